"""fp16 and bf16: a graph that computes in half precision between float32 inputs and outputs.

Own code, because onnxruntime.transformers.float16.convert_float_to_float16, told which operators
to leave alone, wrote two nodes of one name into our decoder (an invalid graph), knows no bf16, and
turns a constant that fp16 cannot hold (1e-12, the lowest float32) into one that changes the result.

Every value has one type: that of the node which computes it. Where a node wants the other one, a
Cast stands between, one a value and type. Weights are stored in half; what fp16 would lose of
constants that matter keeps the node that reads them in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from sfn_calib.graph import FLOAT, MOVES, Graph, rebuilt
from sfn_rt.backends.base import Array

FP16, BF16 = int(TensorProto.FLOAT16), int(TensorProto.BFLOAT16)
Slots = tuple[frozenset[int], frozenset[int]]  # inputs and outputs of a node, by place
NAMES = {FLOAT: "fp32", FP16: "fp16", BF16: "bf16"}
TYPES = {"fp16": FP16, "bf16": BF16}
DTYPES: dict[int, Any] = {FP16: np.dtype(np.float16), BF16: np.dtype(ml_dtypes.bfloat16)}
ONNX_NAMES = {FP16: "tensor(float16)", BF16: "tensor(bfloat16)"}
LARGEST = {FP16: 65504.0, BF16: (2 - 2.0**-7) * 2.0**127}
SMALLEST = {FP16: 2.0**-14, BF16: 2.0**-126}  # below: fewer and fewer digits, then zero
KEEPS_TYPE = frozenset({"Cast", "Constant", "ConstantOfShape", "Range", "EyeLike", "RandomNormal"})


@dataclass
class Halved:
    """A graph in half precision and what became of its nodes."""

    model: ModelProto
    nodes: list[str] = field(default_factory=list)  # that compute in half
    kept: dict[str, str] = field(default_factory=dict)  # in float32 -> why
    notes: list[str] = field(default_factory=list)


def halve(graph: Graph, precision: str, full: Mapping[str, str]) -> Halved:
    """Rewrite `graph` in fp16 or bf16 but for the nodes in `full`, which maps names to reasons."""
    return _Halving(graph, TYPES[precision], full).run()


def lost_in_half(values: Array, half: int) -> str | None:
    """Why a constant must stay float32, None where half precision holds what it says."""
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max(initial=0))
    if largest > LARGEST[half]:
        return f"a constant of {largest:.3g} is infinite in {NAMES[half]}"
    if 0 < largest < SMALLEST[half]:
        return f"a constant of {largest:.3g} is below what {NAMES[half]} holds"
    return None


class _Halving:
    """One pass over the nodes, in their order."""

    def __init__(self, graph: Graph, half: int, full: Mapping[str, str]) -> None:
        self.graph, self.half, self.full = graph, half, full
        self.suffix = f"/{NAMES[half]}"
        self.nodes: list[NodeProto] = []
        self.type_of = {name: FLOAT for name in graph.types if graph.is_float(name)}
        self.renamed: dict[str, str] = {}  # graph output -> its value in half
        self.made: dict[tuple[str, int], str] = {}  # value and type -> a copy of that type
        self.weights: dict[str, TensorProto] = {}
        self.result = Halved(ModelProto())

    def run(self) -> Halved:
        """The rewritten graph."""
        for node in self.graph.nodes:
            copy = NodeProto()
            copy.CopyFrom(node)
            self.convert(copy, self.halved_slots(node))
        for name, inner in self.renamed.items():
            self.nodes.append(_cast(inner, name, FLOAT))
        self.result.model = rebuilt(self.graph, self.nodes, self.weights.values())
        return self.result

    def halved_slots(self, node: NodeProto) -> Slots:
        """Which inputs and outputs of a node become half; none where it stays in float32."""
        nothing: Slots = (frozenset(), frozenset())
        if node.op_type in KEEPS_TYPE or not self.graph.touches_floats(node):
            return nothing
        inputs, outputs = _half_slots(
            node.op_type, node.domain, self.graph.opset[node.domain], self.half,
            len(node.input), len(node.output),
        )  # fmt: skip
        inputs = frozenset(i for i in inputs if self.graph.is_float(node.input[i]))
        outputs = frozenset(i for i in outputs if self.graph.is_float(node.output[i]))
        reason = self.full.get(node.name)
        if reason is None and not inputs and not outputs:
            opset = self.graph.opset[node.domain]
            reason = f"{node.op_type} of opset {opset} takes no {NAMES[self.half]}"
        reason = reason or self.lost_constant(node)
        if reason is not None:
            self.result.kept[node.name] = reason
            return nothing
        if node.op_type not in MOVES:
            if outputs:
                self.result.nodes.append(node.name)
        elif self.moves_full(node):
            return nothing
        return inputs, outputs

    def moves_full(self, node: NodeProto) -> bool:
        """Whether all that a node moves is float32: whoever wants it in half rounds it there.

        Else a layer given back to float32 would still be fed rounded values.
        """
        constants = self.graph.constants
        moved = [n for n in node.input if self.graph.is_float(n) and n not in constants]
        return bool(moved) and all(self.type_of[name] == FLOAT for name in moved)

    def convert(self, node: NodeProto, slots: Slots) -> None:
        """Append a node whose values have the types it wants."""
        inputs, outputs = slots
        for i, name in enumerate(node.input):
            if self.type_of.get(name) is None or node.op_type == "Cast":
                node.input[i] = self.renamed.get(name, name)
            else:
                node.input[i] = self.value(name, self.half if i in inputs else FLOAT)
        for i in outputs:
            name = node.output[i]
            self.type_of[name] = self.half
            if name in self.graph.outputs:
                node.output[i] = self.renamed[name] = name + self.suffix
        self.nodes.append(node)

    def value(self, name: str, kind: int) -> str:
        """The name under which `name` exists in a type; a Cast is added where it does not yet."""
        if name in self.graph.constants:
            return name if kind == FLOAT else self.weight(name)
        if self.type_of[name] == kind:
            return self.renamed.get(name, name)
        key = (name, kind)
        if key not in self.made:
            copy = f"{name}/as_{NAMES[kind]}"
            source = self.renamed.get(name, name)
            self.nodes.append(_cast(source, copy, kind))
            self.made[key] = copy
        return self.made[key]

    def weight(self, name: str) -> str:
        """A constant in half."""
        copy = name + self.suffix
        if copy not in self.weights:
            values = self.graph.array(name)
            halved = values.astype(DTYPES[self.half])
            self.weights[copy] = numpy_helper.from_array(halved, copy)
            if gone := int(np.count_nonzero((halved == 0) & (values != 0))):
                self.result.notes.append(
                    f"{name}: {gone} of {values.size} values are 0 in {NAMES[self.half]}"
                )
        return copy

    def lost_constant(self, node: NodeProto) -> str | None:
        """Why this node's constants forbid half precision; scales were made to fit."""
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return None
        for name in node.input:
            if name not in self.graph.constants or not self.graph.is_float(name):
                continue
            if reason := lost_in_half(self.graph.array(name), self.half):
                return reason
        return None


def _cast(source: str, to: str, kind: int) -> NodeProto:
    return onnx.helper.make_node("Cast", [source], [to], name=f"{to}/Cast", to=kind)


@cache
def _half_slots(
    operator: str, domain: str, opset: int, half: int, n_inputs: int, n_outputs: int
) -> Slots:
    """Inputs and outputs that an operator's schema lets be half, beside float32."""
    try:
        schema = onnx.defs.get_schema(operator, opset, domain)
    except onnx.defs.SchemaError:
        return frozenset(), frozenset()
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}

    def slots(formal: "list[onnx.defs.OpSchema.FormalParameter]", n: int) -> frozenset[int]:
        kinds = [allowed.get(formal[min(i, len(formal) - 1)].type_str, set()) for i in range(n)]
        wanted = {ONNX_NAMES[half], "tensor(float)"}
        return frozenset(i for i, kind in enumerate(kinds) if wanted <= kind)

    return slots(list(schema.inputs), n_inputs), slots(list(schema.outputs), n_outputs)
