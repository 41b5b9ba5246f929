"""An ONNX file read without the onnx package: the same nodes, and every file with weights."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from sfn_rt.engines.onnx_file import read_onnx
from sfn_rt.exceptions import BackendError

MakeGraph = Callable[..., Path]


def test_nodes_are_those_of_the_onnx_package(tiny_bundle: Path) -> None:
    for path in sorted(tiny_bundle.glob("*.onnx")):
        expected = onnx.load(path, load_external_data=False).graph.node
        found = read_onnx(path)
        assert [(n.name, n.operator) for n in found.nodes] == [
            (n.name, n.op_type) for n in expected
        ]
        assert found.external == ()


def test_a_hash_is_of_graph_and_weights(make_graph: MakeGraph) -> None:
    path = make_graph(external=True)
    assert read_onnx(path).external == ("part.onnx.data",)
    before = read_onnx(path).sha256()
    assert before == read_onnx(path).sha256()
    assert read_onnx(make_graph()).sha256() != before
    changed = make_graph(external=True, scale=0.2)  # the graph is the same, its weights are not
    assert read_onnx(changed).sha256() != before
    (path.parent / "part.onnx.data").unlink()
    with pytest.raises(BackendError, match=r"part\.onnx\.data is missing, part\.onnx has weights"):
        read_onnx(path).sha256()


def test_nodes_of_an_operator(make_graph: MakeGraph) -> None:
    graph = read_onnx(make_graph("int8"))
    assert graph.named("MatMul") == "vit.mlp/MatMul_1 or vit.mlp/MatMul_3"
    assert graph.named("QuantizeLinear").endswith(" or others")
    assert graph.named("NonZero") == ""


@pytest.mark.parametrize("content", [b"", b"no protocol buffer", b"\x3a\x7f\x0a", b"\xff" * 40])
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "part.onnx"
    path.write_bytes(content)
    with pytest.raises(BackendError, match=r"part\.onnx: not an ONNX file"):
        read_onnx(path)
    with pytest.raises(BackendError, match=r"none\.onnx does not exist"):
        read_onnx(tmp_path / "none.onnx")


def test_a_file_that_is_cut_off(make_graph: MakeGraph) -> None:
    path = make_graph()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BackendError, match="not an ONNX file"):
        read_onnx(path)
