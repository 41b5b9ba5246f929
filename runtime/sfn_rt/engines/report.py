"""What became of a graph: an engine's layers, their types, and which ONNX nodes each one holds.

Read from the engine's inspector where there is a GPU. A builder without one says the same once, as
the last message of its log, a line a layer:

    Name: a_gemm, LayerType: gemm, Inputs: [ { Name: x, ..., Datatype: Int8, ... }], Constants:
    [ ... ], Outputs: [ ... ], TacticName: ..., Metadata: [ONNX Layer: mjad.blocks.0/MatMul_3]

Precision is asked for by the graph (Q/DQ, casts); what is reported here is what was built.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sfn_rt.engines.onnx_file import OnnxNode

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum")
# As TensorRT 10, 11 and RTX write them -> as this project does, lowest first.
TYPES = {
    "fp4": ("FP4",),
    "fp8": ("FP8", "E4M3"),
    "int8": ("Int8", "INT8"),
    "fp16": ("Half", "FP16", "Float16"),
    "bf16": ("BFloat16", "BF16"),
    "fp32": ("Float", "FP32"),
}
# Kinds of layers that multiply no matrices unless nothing else names the node.
ELEMENTWISE = ("kgen", "shape_call", "reformat", "copy", "noop", "constant", "move", "shuffle")
SHOWN = 5


@dataclass(frozen=True)
class EngineLayer:
    """One step of an engine: a kernel, or a group of them."""

    name: str
    kind: str  # TensorRT's word, e.g. gemm, kgen, runtime_fusion
    inputs: tuple[str, ...]  # types
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]  # ONNX nodes that went into it; several are a fusion

    @property
    def precision(self) -> str:
        """The lowest type that goes in, or out where all is constant; "other" for indices."""
        return next((t for t in TYPES if t in (self.inputs or self.outputs)), "other")


@dataclass(frozen=True)
class EngineReport:
    """All layers of an engine beside the nodes of its graph."""

    layers: tuple[EngineLayer, ...]
    nodes: tuple[OnnxNode, ...]

    @property
    def products(self) -> dict[str, str]:
        """Each matrix product and convolution of the graph -> the type that it is computed in."""
        return {
            node.name: found.precision
            for node in self.nodes
            if node.operator in PRODUCTS and (found := self._computes(node.name)) is not None
        }

    @property
    def shares(self) -> dict[str, float]:
        """Type -> its share of the matrix products."""
        counts = Counter(self.products.values())
        order = [*TYPES, "other"]
        return {t: counts[t] / counts.total() for t in order if counts[t]}

    @property
    def fusions(self) -> tuple[EngineLayer, ...]:
        """Layers that hold several nodes, the largest first."""
        several = [layer for layer in self.layers if len(layer.nodes) > 1]
        return tuple(sorted(several, key=lambda layer: -len(layer.nodes)))

    @property
    def unnamed(self) -> tuple[OnnxNode, ...]:
        """Nodes that no layer names: constants worked out while building, shapes, and no-ops."""
        named = {name for layer in self.layers for name in layer.nodes}
        return tuple(node for node in self.nodes if node.name not in named)

    def _computes(self, node: str) -> EngineLayer | None:
        holds = [layer for layer in self.layers if node in layer.nodes]
        # What follows a product names it too, where it applies the product's scale.
        return min(holds, key=lambda at: _is_elementwise(at.kind), default=None)

    def text(self) -> str:
        """For people."""
        if not self.layers:
            return f"{len(self.nodes)} nodes; this TensorRT says nothing of the engine's layers"
        kinds = Counter(layer.kind for layer in self.layers).most_common()
        fused = self.fusions
        lines = [f"{len(self.layers)} layers, of all profiles, from {len(self.nodes)} nodes"]
        lines.append(f"  kinds             {_counted(kinds)}")
        shares = ", ".join(f"{share:.0%} {name}" for name, share in self.shares.items())
        lines.append(f"  matrix products   {len(self.products)}: {shares or 'none'}")
        lines.append(f"  fused             {len(fused)} layers hold several nodes")
        for layer in fused[:SHOWN]:
            more = f" and {len(layer.nodes) - 2} more" if len(layer.nodes) > 2 else ""
            lines.append(f"    {layer.kind:<16}{', '.join(layer.nodes[:2])}{more}")
        gone = Counter(node.operator for node in self.unnamed).most_common()
        lines.append(f"  in no layer       {len(self.unnamed)}: {_counted(gone[:8]) or 'none'}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """For programs; `from_json` reads it."""
        return {
            "products": self.products,
            "shares": self.shares,
            "layers": [asdict(layer) for layer in self.layers],
            "nodes": [asdict(node) for node in self.nodes],
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "EngineReport":
        """What `to_json` gave."""
        layers = [
            EngineLayer(
                str(each["name"]),
                str(each["kind"]),
                tuple(each["inputs"]),
                tuple(each["outputs"]),
                tuple(each["nodes"]),
            )
            for each in raw["layers"]
        ]
        nodes = [OnnxNode(str(each["name"]), str(each["operator"])) for each in raw["nodes"]]
        return cls(tuple(layers), tuple(nodes))


def report_of_log(message: str, nodes: Sequence[OnnxNode]) -> EngineReport:
    """From the last message of a builder's log."""
    lines = message.partition("Layers:\n")[2].splitlines()
    layers = [_layer_of_line(line) for line in lines if ", LayerType: " in line]
    return EngineReport(tuple(layers), tuple(nodes))


def report_of_inspector(text: str, nodes: Sequence[OnnxNode]) -> EngineReport:
    """From EngineInspector.get_engine_information as JSON, of TensorRT 10 or 11."""
    layers = [_layer_of_json(each) for each in json.loads(text).get("Layers", [])]
    return EngineReport(tuple(layers), tuple(nodes))


def _layer_of_line(line: str) -> EngineLayer:
    head, _, rest = line.partition(", LayerType: ")
    kind, _, rest = rest.partition(",")
    before, _, after = rest.partition("Outputs: [")
    taken = before.partition("Constants: [")[0]
    given, _, metadata = after.partition("Metadata: ")
    return EngineLayer(
        head.removeprefix("Name: "),
        kind,
        tuple(_type(word) for word in re.findall(r"Datatype: (\w+)", taken)),
        tuple(_type(word) for word in re.findall(r"Datatype: (\w+)", given)),
        _nodes(metadata),
    )


def _layer_of_json(raw: Any) -> EngineLayer:
    if isinstance(raw, str):  # built without details: names alone
        return EngineLayer(raw, "unknown", (), (), ())
    return EngineLayer(
        str(raw.get("Name", "")),
        str(raw.get("LayerType", "unknown")),
        tuple(_tensor_type(tensor) for tensor in raw.get("Inputs", [])),
        tuple(_tensor_type(tensor) for tensor in raw.get("Outputs", [])),
        _nodes(str(raw.get("Metadata", ""))),
    )


def _tensor_type(tensor: Mapping[str, Any]) -> str:
    # TensorRT 11 has "Datatype": "Half"; 10 has "Format/Datatype": "Row major linear FP16 format".
    said = str(tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype"))
    return next((kind for word in said.split() if (kind := _type(word)) in TYPES), "other")


def _type(word: str) -> str:
    return next((ours for ours, theirs in TYPES.items() if word in theirs), word.lower())


def _nodes(metadata: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(re.findall(r"\[ONNX Layer: ([^\]]+)\]", metadata)))


def _is_elementwise(kind: str) -> bool:
    return kind.lower() in ELEMENTWISE


def _counted(counts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts)
