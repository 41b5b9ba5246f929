"""fp16 and bf16: valid graphs, float32 outside, and nothing in half that half cannot hold."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from sfn_calib.convert import convert
from sfn_calib.emulate import open_variant
from sfn_calib.exceptions import ConversionError
from sfn_calib.graph import Graph
from sfn_calib.half import FP16, lost_in_half
from sfn_calib.stays import REASONS
from sfn_rt.backends.base import Array
from sfn_rt.bundle import load_bundle
from small_graphs import chain, feeds_of, node, recipe, write

KINDS = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
RELATIVE = {"fp16": 5e-3, "bf16": 4e-2}  # 10 and 7 bits of mantissa through a few layers
LOWEST = np.finfo(np.float32).min


def run(path: Path, precision: str, feeds: dict[str, Array]) -> dict[str, Array]:
    with open_variant({"part": path}, {"part": precision}, threads=1) as backend:
        return backend.infer("part", feeds)


def both(graph: Path, out: Path, precision: str, feeds: dict[str, Array]) -> list[Array]:
    return [run(graph, "fp32", feeds)["y"], run(out, precision, feeds)["y"]]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_part_of_a_bundle(tiny_bundle: Path, tmp_path: Path, precision: str) -> None:
    bundle = load_bundle(tiny_bundle)
    for part, path in bundle.graphs().items():
        done = convert(path, tmp_path / f"{part}.onnx", recipe(precision))
        with open_variant({part: done.path}, {part: precision}, threads=1) as backend:
            assert backend.parts[part] == bundle.manifest.parts[part].spec  # float32 outside
            (feeds,) = feeds_of(backend.parts[part], n=1)
            actual = backend.infer(part, feeds)
        with open_variant({part: path}, {part: "fp32"}, threads=1) as backend:
            expected = backend.infer(part, feeds)
        alike = np.ones(2, bool)
        if "routing" in expected:
            same = np.sort(expected.pop("routing")) == np.sort(actual["routing"])
            alike = same.all(axis=(1, 2, 3))
            assert same.mean() > 0.9
        for name, values in expected.items():
            error = np.linalg.norm(actual[name][alike] - values[alike])
            assert error <= RELATIVE[precision] * np.linalg.norm(values), (part, name)


def test_routers_gates_norms_and_softmaxes_stay_float32_for_a_reason(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    done = convert(tiny_bundle / "decoder.onnx", tmp_path / "d.onnx", recipe("fp16"))
    graph = Graph.load(done.path)
    found = dict.fromkeys(("TopK", "Softmax", "LayerNormalization"), 0)
    for each in graph.nodes:
        if each.op_type in found:
            found[each.op_type] += 1
            assert graph.is_float(each.input[0]), each.name
            assert done.kept[each.name] in REASONS.values()
        if each.op_type == "TopK":
            router = graph.producer[graph.producer[each.input[0]].input[0]]
            assert router.op_type in ("MatMul", "Gemm")
            assert done.kept[router.name] == REASONS["router"]
            assert all(graph.is_float(name) for name in router.input)
    assert min(found.values()) >= 2
    products = [n for n in graph.nodes if n.op_type in ("MatMul", "Gemm") and n.name in done.nodes]
    assert len(products) > 10
    assert all(graph.types[n.output[0]] == KINDS["fp16"] for n in products)


def test_index_arithmetic_stays_exact(tmp_path: Path) -> None:
    """fp16 counts to 2048: a sum of ones that becomes an index must not be halved."""
    nodes = [
        node("CumSum", ["x", "axis"], "rank"),
        node("Mul", ["rank", "one"], "scaled"),
        node("Cast", ["scaled"], "index", to=onnx.TensorProto.INT64),
        node("Gather", ["table", "index"], "y"),
    ]
    constants = {
        "axis": np.array(0, np.int64),
        "one": np.ones(1, np.float32),
        "table": np.arange(3001, dtype=np.float32) % 5,
    }
    path = write(tmp_path / "a.onnx", nodes, constants, {"x": [3000], "y": [3000]})
    done = convert(path, tmp_path / "b.onnx", recipe("fp16"))
    expected, actual = both(path, done.path, "fp16", {"x": np.ones(3000, np.float32)})
    assert done.kept["scaled/Mul"] == REASONS["indices"]
    np.testing.assert_array_equal(expected, actual)


@pytest.mark.parametrize("constant", [1e-12, LOWEST])
def test_a_constant_that_half_would_lose_keeps_its_node(tmp_path: Path, constant: float) -> None:
    """x / max(|x|, 1e-12) of zeros is 0 / 0 once the constant is 0; a mask's -3e38 becomes -inf."""
    nodes = [
        node("Add", ["x", "c"], "shifted"),
        node("Sub", ["shifted", "c"], "back"),
        node("Mul", ["back", "two"], "y"),
    ]
    constants = {"c": np.array(constant, np.float32), "two": np.array(2, np.float32)}
    path = write(tmp_path / "a.onnx", nodes, constants, {"x": [4], "y": [4]})
    done = convert(path, tmp_path / "b.onnx", recipe("fp16"))
    assert {"shifted/Add", "back/Sub"} <= done.kept.keys()
    assert "fp16" in done.kept["shifted/Add"]
    assert "y/Mul" in done.nodes
    expected, actual = both(path, done.path, "fp16", {"x": np.zeros(4, np.float32)})
    np.testing.assert_array_equal(expected, actual)


def test_infinite_masks_are_no_loss_and_weights_that_underflow_are_told(tmp_path: Path) -> None:
    assert lost_in_half(np.array([0, -np.inf], np.float32), FP16) is None
    weight = np.full((16, 4), 0.5, np.float32)
    weight[0] = 1e-9
    constants = {"a": weight}
    path = write(
        tmp_path / "a.onnx", [node("MatMul", ["x", "a"], "y")], constants,
        {"x": ["batch", 16], "y": ["batch", 4]},
    )  # fmt: skip
    done = convert(path, tmp_path / "b.onnx", recipe("fp16"))
    assert done.notes == ("a: 4 of 64 values are 0 in fp16",)


def test_weights_beyond_fp16_stay_float32(tmp_path: Path) -> None:
    constants = {"a": np.full((16, 4), 1e5, np.float32)}
    path = write(
        tmp_path / "a.onnx", [node("MatMul", ["x", "a"], "y")], constants,
        {"x": ["batch", 16], "y": ["batch", 4]},
    )  # fmt: skip
    done = convert(path, tmp_path / "b.onnx", recipe("fp16"))
    assert done.nodes == ()
    assert "infinite" in done.kept["y/MatMul"]


def test_given_back_nodes_compute_in_float32(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.onnx")
    done = convert(path, tmp_path / "b.onnx", recipe("fp16"), keep=frozenset({"y/MatMul"}))
    assert "y/MatMul" not in done.nodes
    assert "given back" in done.kept["y/MatMul"]
    graph = Graph.load(done.path)
    (product,) = (n for n in graph.nodes if n.name == "y/MatMul")
    assert all(graph.is_float(name) for name in product.input)
    with pytest.raises(ConversionError, match="no node 'z'"):
        convert(path, tmp_path / "b.onnx", recipe("fp16"), keep=frozenset({"z"}))


def test_an_output_that_is_used_inside_too(tmp_path: Path) -> None:
    constants = {"two": np.array(2, np.float32)}
    nodes = [node("Mul", ["x", "two"], "twice"), node("Mul", ["twice", "two"], "y")]
    shapes = {"x": [4], "y": [4], "twice": [4]}
    path = write(tmp_path / "a.onnx", nodes, constants, shapes, ("y", "twice"))
    done = convert(path, tmp_path / "b.onnx", recipe("fp16"))
    found = run(done.path, "fp16", {"x": np.arange(4, dtype=np.float32)})
    assert found["twice"].dtype == np.float32
    np.testing.assert_array_equal(found["twice"], [0, 2, 4, 6])
    np.testing.assert_array_equal(found["y"], [0, 4, 8, 12])


def test_graphs_that_cannot_be_rewritten_are_refused(tmp_path: Path) -> None:
    constants = {"two": np.array(2, np.float32)}
    nodes = [node("Mul", ["x", "two"], "twice"), node("Mul", ["twice", "two"], "y")]
    path = write(tmp_path / "a.onnx", nodes, constants, {"x": [4], "y": [4]})
    model = onnx.load(path)
    model.graph.node[1].name = model.graph.node[0].name
    onnx.save(model, path)
    with pytest.raises(ConversionError, match="two nodes are called 'twice/Mul'"):
        convert(path, tmp_path / "b.onnx", recipe("fp16"))
    path.write_bytes(b"no graph")
    with pytest.raises(ConversionError, match="not an ONNX graph"):
        convert(path, tmp_path / "b.onnx", recipe("fp16"))
    assert not (tmp_path / "b.onnx").exists()


def test_large_weights_lie_beside_the_graph_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in" / "a.onnx"
    path.parent.mkdir()
    onnx.save(
        onnx.load(chain(tmp_path / "a.onnx")), path, save_as_external_data=True,
        location="a.onnx.data", size_threshold=0,
    )  # fmt: skip
    monkeypatch.setattr("sfn_calib.graph.INLINE_BYTES", 100)
    monkeypatch.setattr("sfn_calib.graph.SMALL", 8)
    for _ in range(2):  # the second time over the first
        done = convert(path, tmp_path / "b.onnx", recipe("fp16"))
    assert (tmp_path / "b.onnx.data").stat().st_size < 2000
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)}
    expected, actual = both(path, done.path, "fp16", feeds)
    assert np.linalg.norm(expected - actual) < 5e-3 * np.linalg.norm(expected)
    (path.parent / "a.onnx.data").unlink()
    with pytest.raises(ConversionError, match=r"a\.onnx"):
        convert(path, tmp_path / "b.onnx", recipe("fp16"))
