"""Tiny graphs between the parts: what a stream's ring does on a device, for one clip alone.

    split      frames (T + 1, 3, h, w) -> observed ones, pairs of neighbours, the last, the target
    join       encoders' rows, a row a frame -> the decoder's inputs, a row a clip
    evidence   a row of measured numbers (sfn_rt/measured.py) -> each by its name

A server keeps no ring: every request is a whole clip, and its T frames are encoded again.

Axes: T observed frames of a clip, h and w the model's frame size, K captions a clip of S numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sfn_export.exceptions import ExportError
from sfn_rt.backends.base import Array, PartSpec, TensorSpec
from sfn_rt.measured import layout_width
from sfn_rt.prediction_error import VisualConfig

OPSET = 20
IR_VERSION = 10  # what ONNX Runtime 1.18 and later read


class Graph:
    """A graph under construction: constants, nodes, and the whole."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def ints(self, *values: int) -> str:
        """The name of a constant (n,)."""
        name = "i_" + "_".join(map(str, values))
        self._constants[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def floats(self, name: str, values: Sequence[float]) -> str:
        """The name of a constant (n,)."""
        self._constants[name] = numpy_helper.from_array(np.array(values, np.float32), name)
        return name

    def node(self, operator: str, takes: Sequence[str], gives: str, **attributes: Any) -> str:
        """The name of what a node gives."""
        name = f"{self._name}/{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, takes, [gives], name=name, **attributes))
        return gives

    def cut(self, source: str, start: int, stop: int, gives: str, axis: int = 0) -> str:
        """Entries start .. stop - 1 of an axis."""
        return self.node("Slice", [source, *map(self.ints, (start, stop, axis))], gives)

    def whole(self, spec: PartSpec) -> onnx.ModelProto:
        """The finished graph, checked."""
        takes, gives = ([_value(tensor) for tensor in side] for side in (spec.inputs, spec.outputs))
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, self._name, takes, gives, constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


def split_graph(spec: PartSpec) -> onnx.ModelProto:
    """Frames of a clip to those outputs of `spec` that its parts take."""
    graph = Graph("split")
    n = int(spec.inputs[0].shape[0])  # T + 1
    ranges = {
        "observed": (0, n - 1),
        "earlier": (0, n - 2),
        "later": (1, n - 1),
        "last": (n - 2, n - 1),
        "target": (n - 1, n),
    }
    for tensor in spec.outputs:
        graph.cut("frames", *ranges[tensor.name], tensor.name)
    return graph.whole(spec)


def split_spec(observed: int, size: tuple[int, int], wanted: Iterable[str]) -> PartSpec:
    """What `split` takes and gives, where `wanted` are names of its outputs."""
    rows = {"observed": observed, "earlier": observed - 1, "later": observed - 1}
    outputs: dict[str, tuple[int | str, ...]] = {n: (rows.get(n, 1), 3, *size) for n in wanted}
    return PartSpec.of({"frames": (observed + 1, 3, *size)}, outputs)


def join_graph(spec: PartSpec) -> onnx.ModelProto:
    """Rows of the encoders to one row of the decoder; `skip` is that of the last frame."""
    graph = Graph("join")
    outputs = {tensor.name: tensor for tensor in spec.outputs}
    for tensor in spec.inputs:
        name = tensor.name.removesuffix("_rows")
        source = tensor.name
        if name == "skip":
            graph.cut(source, -1, int(tensor.shape[0]), name)
        else:
            shape = graph.ints(*(int(axis) for axis in outputs[name].shape))
            graph.node("Reshape", [source, shape], name)
    return graph.whole(spec)


def join_spec(rows: Mapping[str, tuple[int, ...]], decoder: PartSpec) -> PartSpec:
    """What `join` takes and gives: `rows` are the shapes, by the decoder's input."""
    outputs = {t.name: (1, *t.shape[1:]) for t in decoder.inputs if t.name in rows}
    return PartSpec.of({f"{name}_rows": shape for name, shape in rows.items()}, outputs)


def evidence_graph(
    layout: Mapping[str, slice], visual: VisualConfig, frame: tuple[int, int]
) -> onnx.ModelProto:
    """Measured numbers (batch, M) to outputs by name; the box becomes shares of the `frame`."""
    graph = Graph("evidence")
    shapes: dict[str, tuple[int | str, ...]] = {
        "box": ("batch", 4),
        "heat": ("batch", visual.grid_height, visual.grid_width),
    }
    outputs: dict[str, tuple[int | str, ...]] = {}
    for name, place in layout.items():
        outputs[name] = shapes.get(name, ("batch", 1))
        if name == "box":
            at = graph.cut("measured", place.start, place.stop, "cell", axis=1)  # (batch, 1)
            _box(graph, at, frame, visual)
        elif name == "heat":
            flat = graph.cut("measured", place.start, place.stop, "cells", axis=1)
            graph.node("Reshape", [flat, graph.ints(-1, *map(int, outputs[name][1:]))], name)
        else:
            graph.cut("measured", place.start, place.stop, name, axis=1)
    return graph.whole(PartSpec.of({"measured": ("batch", layout_width(layout))}, outputs))


def fix_inputs(path: Path, values: Mapping[str, Array]) -> onnx.ModelProto:
    """A graph whose inputs called so are constants."""
    model = onnx.load(path)
    inputs = {value.name for value in model.graph.input}
    if missing := sorted(values.keys() - inputs):
        raise ExportError(f"{path}: has no input {missing[0]!r}, only {sorted(inputs)}")
    kept = [value for value in model.graph.input if value.name not in values]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in values.items()
    )
    onnx.checker.check_model(model)
    return model


def _box(graph: Graph, cell: str, frame: tuple[int, int], visual: VisualConfig) -> None:
    """x, y, width and height as shares of the frame, from the number of a cell (batch, 1)."""
    height, width = frame
    box_h, box_w = min(visual.box_height, height), min(visual.box_width, width)
    places = graph.ints(width - box_w + 1)  # that the box fits into, in a row
    whole = graph.node("Round", [cell], "cell_whole")
    number = graph.node("Cast", [whole], "cell_number", to=onnx.TensorProto.INT64)
    y = graph.node("Div", [number, places], "cell_y")
    x = graph.node("Mod", [number, places], "cell_x")
    corner = graph.node("Concat", [x, y, x, y], "corner", axis=1)  # (batch, 4)
    corner = graph.node("Cast", [corner], "corner_pixels", to=onnx.TensorProto.FLOAT)
    spread = graph.floats("spread", [1 / width, 1 / height, 0, 0])
    size = graph.floats("size", [0, 0, box_w / width, box_h / height])
    graph.node("Add", [graph.node("Mul", [corner, spread], "placed"), size], "box")


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, kind, tensor.shape)
