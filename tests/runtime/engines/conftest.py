"""Small graphs of every precision, as calibration writes them; their nodes are named by module."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

WIDTH = 32
QUANTIZED = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
MakeGraph = Callable[..., Path]


@pytest.fixture
def make_graph(tmp_path: Path) -> MakeGraph:
    """Two linear layers with a ReLU between; `extra` nodes come last and give "y"."""

    def make(
        precision: str = "fp32",
        *,
        batch: int | str = "batch",
        extra: Sequence[onnx.NodeProto] = (),
        name: str = "part",
        external: bool = False,
        scale: float = 0.1,
    ) -> Path:
        rng = np.random.default_rng(0)
        kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        weights = []
        for name_of in ("w1", "w2"):
            values = scale * rng.standard_normal((WIDTH, WIDTH))
            dtype = helper.tensor_dtype_to_np_dtype(kind)
            weights.append(numpy_helper.from_array(values.astype(dtype), name_of))
        nodes = linear("vit.mlp/MatMul_1", "x", "w1", "a", precision)
        nodes.append(helper.make_node("Relu", ["a"], ["b"], name="vit.mlp/Relu_2"))
        nodes += linear("vit.mlp/MatMul_3", "b", "w2", "c" if extra else "y", precision)
        if precision in QUANTIZED:
            weights.append(numpy_helper.from_array(np.float32(0.02), "step"))
            weights.append(helper.make_tensor("zero", QUANTIZED[precision], [], [0]))
        graph = helper.make_graph(
            [*nodes, *extra],
            "g",
            [helper.make_tensor_value_info("x", kind, (batch, WIDTH))],
            [helper.make_tensor_value_info("y", kind, (batch, WIDTH))],
            weights,
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        path = tmp_path / f"{name}.onnx"
        onnx.save(
            model,
            path,
            save_as_external_data=external,
            location=f"{path.name}.data",
            size_threshold=0,
        )
        return path

    return make


def linear(name: str, taken: str, weight: str, given: str, precision: str) -> list[onnx.NodeProto]:
    """A matrix product; where quantized, of tensors that were int8 or fp8 just before."""
    if precision not in QUANTIZED:
        return [helper.make_node("MatMul", [taken, weight], [given], name=name)]
    nodes = []
    for tensor in (taken, weight):
        for operator, source, to in (
            ("QuantizeLinear", tensor, f"{name}/{tensor}/q"),
            ("DequantizeLinear", f"{name}/{tensor}/q", f"{name}/{tensor}/dq"),
        ):
            node = helper.make_node(operator, [source, "step", "zero"], [to])
            node.name = f"{name}/{tensor}/{operator}"
            nodes.append(node)
    product = helper.make_node("MatMul", [f"{name}/{t}/dq" for t in (taken, weight)], [given])
    product.name = name
    return [*nodes, product]
