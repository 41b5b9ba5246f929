"""Signal to quantisation noise of every converted layer, in one graph and in bounded memory.

The fp32 graph and the variant run as one model on the same feeds, and beside them every converted
layer once more, alone, on what the fp32 graph feeds it. The model gives back the energy of each
layer's output and of its two differences: three numbers a layer and batch, whatever the number of
clips.

    SQNR = 10 log10( sum x^2 / sum (x - y)^2 )

Its own error says which layer to give precision back to. The error that has come together behind a
layer says what the rest of the model is given; a layer late in the graph is bad there through no
fault of its own.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from sfn_calib.convert import Converted
from sfn_calib.emulate import emulated, opens_optimised
from sfn_calib.exceptions import CalibrationError, ConversionError
from sfn_calib.graph import FLOAT, Graph
from sfn_calib.sessions import session_of
from sfn_rt.backends.base import Array

STEPS = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})  # between a value and a layer
IN_VARIANT, ALONE = "variant/", "alone/"
GROUP = 128  # layers compared at once: the outputs of that many are in memory together
MOST_DB = 150.0  # 2**-24 of the signal is 144 dB below it
ENERGIES = ("signal", "alone", "behind")


@dataclass(frozen=True, kw_only=True)
class LayerSqnr:
    """How far one layer's output is off."""

    node: str  # of the fp32 graph
    operator: str
    sqnr_db: float  # of its own doing: what enters it is exact
    behind_db: float  # as it runs in the variant, all that comes before it converted too


def layer_sqnr(
    reference: Path,
    converted: Converted,
    feeds: Iterable[Mapping[str, Array]],
    *,
    threads: int | None = None,
) -> tuple[LayerSqnr, ...]:
    """Every converted layer of a graph against fp32, worst (lowest sqnr_db) first.

    Sums that add a mask of -3e38 are left out: in fp32 already their energy is no number.
    """
    graph = Graph.load(reference)
    operators = {node.name: node.op_type for node in graph.nodes}
    layers = [name for name in converted.nodes if name in operators]
    groups = [layers[start : start + GROUP] for start in range(0, len(layers), GROUP)]
    if len(groups) > 1 and not isinstance(feeds, Sequence):
        feeds = list(feeds)  # gone through once a group
    sums = np.zeros((0, len(ENERGIES)))
    for group in groups:
        model = _Comparison(graph, Graph.load(converted.path), group).model()
        if converted.precision == "bf16":
            model = emulated(Graph(model, converted.path))
        optimised = opens_optimised(converted.precision)
        with session_of(model, threads=threads, optimised=optimised) as session:
            del model
            energies = _energies(session, len(group), feeds)
        del session  # before the next group's is opened
        if energies is None:
            raise CalibrationError(f"{reference}: no clip was fed to compare its layers on")
        sums = np.concatenate([sums, energies])
    found = [
        LayerSqnr(
            node=name,
            operator=operators[name],
            sqnr_db=decibels(signal, alone),
            behind_db=decibels(signal, behind),
        )
        for name, (signal, alone, behind) in zip(layers, sums, strict=True)
        if math.isfinite(signal)
    ]
    return tuple(sorted(found, key=lambda layer: layer.sqnr_db))


def _energies(session: Any, n_layers: int, feeds: Iterable[Mapping[str, Array]]) -> Array | None:
    """Energies (layers, 3) over all feeds; None where there are none."""
    names = [f"{kind}/{i}" for i in range(n_layers) for kind in ENERGIES]
    sums: Array | None = None
    for feed in feeds:
        found = np.asarray(session.run(names, dict(feed)), np.float64)
        found = found.reshape(n_layers, len(ENERGIES))
        sums = found if sums is None else sums + found
    return sums


def decibels(signal: float, noise: float) -> float:
    """Of two energies, within what float32 can tell apart; what is not finite is all noise."""
    if not math.isfinite(noise) or not math.isfinite(signal):
        return -MOST_DB
    if noise == 0:
        return MOST_DB
    return max(-MOST_DB, min(MOST_DB, 10 * math.log10(signal / noise))) if signal > 0 else -MOST_DB


class _Comparison:
    """The one model of both graphs, their layers alone, and the energies."""

    def __init__(self, graph: Graph, variant: Graph, layers: list[str]) -> None:
        self.graph, self.variant, self.layers = graph, variant, layers
        self.inputs = {value.name for value in graph.model.graph.input}
        self.originals = {node.name: node for node in graph.nodes}
        self.converted = {node.name: node for node in variant.nodes}
        self.nodes: list[NodeProto] = []

    def model(self) -> ModelProto:
        """Inputs as the graph's, outputs the energies of every layer."""
        shell = ModelProto(
            ir_version=self.graph.model.ir_version,
            opset_import=self.graph.model.opset_import,
        )
        shell.graph.name = "comparison"
        shell.graph.input.extend(self.graph.model.graph.input)
        self.nodes.extend(self.graph.nodes)
        self.nodes.extend(self.renamed(node, IN_VARIANT) for node in self.variant.nodes)
        for i, layer in enumerate(self.layers):
            self.compare(i, layer)
            for kind in ENERGIES:
                shell.graph.output.append(
                    onnx.helper.make_tensor_value_info(f"{kind}/{i}", FLOAT, [])
                )
        shell.graph.node.extend(self.nodes)
        shell.graph.initializer.extend(self.graph.constants.values())
        for tensor in self.variant.constants.values():
            copy = shell.graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = IN_VARIANT + tensor.name
        return shell

    def renamed(self, node: NodeProto, prefix: str) -> NodeProto:
        """A node of the variant, its values apart from those of the fp32 graph."""
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        for i, name in enumerate(node.input):
            copy.input[i] = self.value(name, prefix)
        for i, name in enumerate(node.output):
            copy.output[i] = name and prefix + name
        return copy

    def value(self, name: str, prefix: str) -> str:
        """What a value of the variant is called; inputs are shared, constants not copied twice."""
        if not name or name in self.inputs:
            return name
        return (IN_VARIANT if name in self.variant.constants else prefix) + name

    def compare(self, i: int, layer: str) -> None:
        """Append the layer alone, and the energies of it and of both differences."""
        original, converted = self.originals[layer], self.converted[layer]
        exact, out = original.output[0], converted.output[0]
        prefix = f"{ALONE}{i}/"
        self.nodes.extend(self.alone(converted, prefix))
        self.energy(exact, f"signal/{i}")
        for kind, value in (("alone", prefix + out), ("behind", IN_VARIANT + out)):
            as_float, difference = f"{kind}/{i}/fp32", f"{kind}/{i}/difference"
            self.add("Cast", [value], as_float, to=FLOAT)
            self.add("Sub", [exact, as_float], difference)
            self.energy(difference, f"{kind}/{i}")

    def alone(self, node: NodeProto, prefix: str) -> Iterator[NodeProto]:
        """A layer with the steps before it, fed from the fp32 graph."""
        done: set[str] = set()
        for name in node.input:
            yield from self.steps(name, prefix, done)
        yield self.renamed(node, prefix)

    def steps(self, name: str, prefix: str, done: set[str]) -> Iterator[NodeProto]:
        """What makes a layer's input `name` of a value that the fp32 graph has."""
        if name in done or not name or name in self.inputs or name in self.variant.constants:
            return
        done.add(name)
        node = self.variant.producer[name]
        if node.op_type in STEPS and node.name not in self.originals:
            yield from self.steps(node.input[0], prefix, done)
            yield self.renamed(node, prefix)
            return
        kind = self.variant.types[name]
        base = name if name in self.graph.types else name.rsplit("/", 1)[0]
        if base not in self.graph.types:
            raise ConversionError(f"{self.variant.source}: {name!r} has no match in fp32")
        yield onnx.helper.make_node(
            "Cast", [base], [prefix + name], name=f"{prefix}{name}/Cast", to=kind
        )

    def energy(self, value: str, name: str) -> None:
        self.add("ReduceSumSquare", [value], name, keepdims=0)

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        node = onnx.helper.make_node(operator, inputs, [output], name=output, **attributes)
        self.nodes.append(node)
