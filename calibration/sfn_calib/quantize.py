"""int8 and fp8: explicit Q/DQ around the products that have constant weights.

onnxruntime.quantization inserts the nodes and quantises the weights; the scales are ours, and are
handed to it: symmetric, zero point 0, one scale an activation and one a channel of a weight. Left
to itself the library gives fp8 a scale from the standard deviation, which cuts off all beyond 4.5
of them, and one scale a weight.

Where the rest of the graph runs in fp16, a scale must be an fp16 number. It is rounded up to one
before anything is quantised with it, so that nothing is scaled back by another number.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from sfn_calib.exceptions import CalibrationError
from sfn_calib.graph import Graph, rebuilt
from sfn_calib.ranges import Ranges
from sfn_calib.recipe import PRODUCTS, Recipe
from sfn_rt.backends.base import Array

LARGEST = {"int8": 127.0, "fp8": 448.0}  # of what a quantised value can be
DTYPES = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn)}
SMALLEST = 2.0**-24  # of fp16 above 0


def quantise(graph: Graph, recipe: Recipe, nodes: list[NodeProto], ranges: Ranges) -> ModelProto:
    """`graph` with Q/DQ before each of `nodes`; outputs are not quantised again."""
    if not nodes:
        return rebuilt(graph, graph.nodes)
    _check(graph, nodes, ranges)
    model = _with_weights_of_their_own(graph, nodes)
    scales = _Scales(recipe)
    overrides = {n.input[0]: scales.of_activation(ranges.largest[n.input[0]]) for n in nodes}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in _named(model, nodes):
        weight = numpy_helper.to_array(constants[node.input[1]])
        overrides[node.input[1]] = scales.of_weight(weight, channel_axis(node))
    _insert(model, recipe, [node.name for node in nodes], overrides)
    return model


def channel_axis(node: NodeProto) -> int:
    """The axis of a product's weight that runs over its outputs."""
    if node.op_type == "Conv":
        return 0
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else 1


class _Scales:
    """Scales in the form that onnxruntime.quantization takes them in."""

    def __init__(self, recipe: Recipe) -> None:
        self.largest = LARGEST[recipe.precision]
        self.zero = np.zeros((), DTYPES[recipe.precision])
        self.in_fp16 = recipe.beside == "fp16"

    def of_activation(self, largest: float) -> list[dict[str, Any]]:
        """One scale."""
        return [{"scale": self.rounded(np.array(largest)), "zero_point": self.zero}]

    def of_weight(self, weight: Array, axis: int) -> list[dict[str, Any]]:
        """A scale a channel."""
        rest = tuple(i for i in range(weight.ndim) if i != axis)
        scales = self.rounded(np.abs(weight).max(axis=rest))
        return [
            {"axis": axis, "scale": np.array(scale), "zero_point": self.zero} for scale in scales
        ]

    def rounded(self, largest: Array) -> Array:
        """Magnitudes to scales in float32 that are numbers of the type they are kept in."""
        scales = np.where(largest > 0, largest / self.largest, 1.0).astype(np.float32)
        if self.in_fp16:
            half = np.maximum(scales, SMALLEST).astype(np.float16)
            up = np.nextafter(half, np.float16(np.inf))
            scales = np.where(half < scales, up, half).astype(np.float32)
        return scales


def _check(graph: Graph, nodes: list[NodeProto], ranges: Ranges) -> None:
    for node in nodes:
        if (name := node.input[0]) not in ranges.largest:
            raise CalibrationError(
                f"{graph.source}: no range was measured of {name!r}, which {node.name!r} takes; "
                f"measure this graph with this recipe"
            )


def _with_weights_of_their_own(graph: Graph, nodes: list[NodeProto]) -> ModelProto:
    """A copy where nothing else reads a quantised weight: the library replaces it everywhere."""
    chosen = {node.name for node in nodes}
    copies, tensors = [], []
    for node in graph.nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        if node.name in chosen and len(graph.consumers[node.input[1]]) > 1:
            copy.input[1] = f"{node.name}/weight"
            tensors.append(numpy_helper.from_array(graph.array(node.input[1]), copy.input[1]))
        copies.append(copy)
    model = rebuilt(graph, copies, tensors)
    for name, kind in graph.types.items():
        if name in graph.producer and name not in graph.outputs:
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return model


def _named(model: ModelProto, nodes: list[NodeProto]) -> list[NodeProto]:
    chosen = {node.name for node in nodes}
    return [node for node in model.graph.node if node.name in chosen]


def _insert(
    model: ModelProto, recipe: Recipe, names: list[str], overrides: dict[str, list[dict[str, Any]]]
) -> None:
    """Have the library rewrite `model`."""
    from onnxruntime.quantization import QDQQuantizer, QuantType, TensorData, TensorsData
    from onnxruntime.quantization.calibrate import CalibrationMethod
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    kind = QuantType.QInt8 if recipe.precision == "int8" else QuantType.QFLOAT8E4M3FN
    add_infer_metadata(model)  # types are known: it would write the model to disk to infer them
    one = np.float32(1)
    seen = {
        n: TensorData(lowest=-one, highest=one) for n, o in overrides.items() if "axis" not in o[0]
    }
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=kind,
        activation_qType=kind,
        tensors_range=TensorsData(CalibrationMethod.MinMax, seen),
        nodes_to_quantize=names,
        nodes_to_exclude=[],
        op_types_to_quantize=list(PRODUCTS),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "DedicatedQDQPair": True,
            "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
            "AddQDQPairToWeight": False,
            "TensorQuantOverrides": overrides,
        },
    )
    with _quiet():
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    del model.graph.value_info[:], model.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's advice on biases, which we keep."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
