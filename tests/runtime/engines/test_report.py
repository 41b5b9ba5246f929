"""What is read out of a builder's log and of an engine's inspector."""

import json

import pytest

from sfn_rt.engines.onnx_file import OnnxNode
from sfn_rt.engines.report import EngineReport, report_of_inspector, report_of_log

NODES = tuple(
    OnnxNode(name, operator)
    for name, operator in (
        ("a/Reshape_0", "Reshape"),
        ("a/MatMul_1", "MatMul"),
        ("a/Relu_2", "Relu"),
        ("b/MatMul_3", "MatMul"),
        ("b/Softmax_4", "Softmax"),
        ("c/Conv_5", "Conv"),
        ("c/Shape_6", "Shape"),
    )
)
LINEAR = "Strides: [32,1], StrideOrder: [1,0], Datatype: {}, Format: (Linear) Row major format"


def tensor(name: str, kind: str) -> str:
    return f"{{ Name: {name}, Dimensions: [-1,32], {LINEAR.format(kind)} }}"


def line(name: str, kind: str, taken: list[str], given: list[str], nodes: list[str]) -> str:
    """As TensorRT-RTX 1.7 writes a layer into its log."""
    inputs = ", ".join(tensor(f"t{i}", each) for i, each in enumerate(taken))
    outputs = ", ".join(tensor(f"u{i}", each) for i, each in enumerate(given))
    constants = ", ".join(tensor(each, "Float") for each in ("alpha", "beta"))
    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {inputs}], Constants: [ {constants}], "
        f"Outputs: [ {outputs}], TacticName: t, StreamId: 0, Metadata: {metadata}"
    )


LOG = "\n".join(
    [
        "Layers:",
        line("scale_0", "kgen", ["Float"], ["Float"], ["a/MatMul_1", "a/Relu_2"]),
        line("product_1", "gemm", ["Int8"], ["Float"], ["a/MatMul_1"]),
        line("attention_2", "kgen", ["Half", "Half"], ["Half"], ["b/MatMul_3", "b/Softmax_4"]),
        line("conv_3", "runtime_fusion", ["FP8"], ["Half"], ["c/Conv_5"]),
        line("shape_4", "shape_call", [], [], []),
        "",
        "I/O Tensors:",
        " Name: x, IOMode: Input, DataType: Float, Dimensions: [-1,32], Location: Device",
    ]
)


def test_layers_types_and_nodes_of_a_log() -> None:
    report = report_of_log(LOG, NODES)
    assert [layer.name for layer in report.layers] == [
        "scale_0",
        "product_1",
        "attention_2",
        "conv_3",
        "shape_4",
    ]
    product = report.layers[1]
    assert (product.kind, product.inputs, product.outputs) == ("gemm", ("int8",), ("fp32",))
    assert report.layers[2].nodes == ("b/MatMul_3", "b/Softmax_4")


def test_a_product_is_computed_by_its_own_layer_and_not_by_what_scales_it() -> None:
    report = report_of_log(LOG, NODES)
    assert report.products == {"a/MatMul_1": "int8", "b/MatMul_3": "fp16", "c/Conv_5": "fp8"}
    assert report.shares == pytest.approx({"fp8": 1 / 3, "int8": 1 / 3, "fp16": 1 / 3})


def test_fusions_and_what_no_layer_names() -> None:
    report = report_of_log(LOG, NODES)
    assert [layer.name for layer in report.fusions] == ["scale_0", "attention_2"]
    assert [node.name for node in report.unnamed] == ["a/Reshape_0", "c/Shape_6"]


def test_text_and_json() -> None:
    report = report_of_log(LOG, NODES)
    text = report.text()
    assert text.splitlines()[0] == "5 layers, of all profiles, from 7 nodes"
    assert "matrix products   3: 33% fp8, 33% int8, 33% fp16" in text
    assert "in no layer       2: Reshape 1, Shape 1" in text
    assert EngineReport.from_json(json.loads(json.dumps(report.to_json()))) == report


INSPECTED_10 = {
    "Layers": [
        {
            "Name": "conv",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major Int8 format"}],
            "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
            "Metadata": "[ONNX Layer: c/Conv_5]\u001e[ONNX Layer: a/Relu_2]",
        }
    ],
    "Bindings": ["x", "y"],
}
INSPECTED_11 = {
    "Layers": [
        {
            "Name": "conv",
            "LayerType": "conv",
            "Inputs": [{"Name": "x", "Datatype": "Int8", "Format": "Row major"}],
            "Outputs": [{"Name": "y", "Datatype": "Half", "Format": "Row major"}],
            "Metadata": "[ONNX Layer: c/Conv_5][ONNX Layer: a/Relu_2]",
        }
    ],
    "I/O Tensors": [],
}


@pytest.mark.parametrize("inspected", [INSPECTED_10, INSPECTED_11], ids=["10", "11"])
def test_an_inspector_says_the_same(inspected: object) -> None:
    """Written after NVIDIA's documentation: no inspector runs without a GPU."""
    (layer,) = report_of_inspector(json.dumps(inspected), NODES).layers
    assert (layer.inputs, layer.outputs) == (("int8",), ("fp16",))
    assert layer.nodes == ("c/Conv_5", "a/Relu_2")


def test_an_engine_that_says_nothing_of_its_layers() -> None:
    for report in (
        report_of_log("", NODES),
        report_of_inspector(json.dumps({"Layers": []}), NODES),
    ):
        assert report.shares == {}
        assert report.text() == "7 nodes; this TensorRT says nothing of the engine's layers"
    named_only = report_of_inspector(json.dumps({"Layers": ["conv"]}), NODES)
    assert named_only.layers[0].precision == "other"
