"""A CPU that runs every precision: bf16 rounds as torch does, and says that it is emulated."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sfn_calib.convert import convert
from sfn_calib.emulate import emulated, open_variant
from sfn_calib.exceptions import ConversionError
from sfn_calib.graph import Graph
from sfn_calib.ranges import measure_ranges
from sfn_rt.exceptions import BackendError, InputError
from small_graphs import chain, node, recipe, write


def test_bf16_rounds_every_value_as_torch_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 8)).astype(np.float32)
    bias = rng.standard_normal(8).astype(np.float32)
    path = write(
        tmp_path / "a.onnx",
        [node("MatMul", ["x", "a"], "wide"), node("Add", ["wide", "b"], "y")],
        {"a": weight, "b": bias},
        {"x": ["batch", 16], "y": ["batch", 8]},
    )
    done = convert(path, tmp_path / "b.onnx", recipe("bf16"))
    x = rng.standard_normal((5, 16)).astype(np.float32)
    with open_variant({"p": done.path}, {"p": "bf16"}) as backend:
        actual = backend.infer("p", {"x": x})["y"]

    def bf16(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).bfloat16()

    product = (bf16(x).float() @ bf16(weight).float()).bfloat16()  # sums in fp32, as a GPU does
    expected = (product.float() + bf16(bias).float()).bfloat16().float().numpy()
    np.testing.assert_allclose(actual, expected, rtol=2**-7)  # a sum's order may tip a rounding
    assert (actual == expected).mean() > 0.9
    assert np.array_equal(actual, bf16(actual).float().numpy())  # nothing between two bf16 numbers


def test_the_emulation_has_no_bf16_values_but_between_two_casts(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    done = convert(tiny_bundle / "decoder.onnx", tmp_path / "d.onnx", recipe("bf16"))
    graph = Graph(emulated(Graph.load(done.path)), done.path)
    half = {name for name, kind in graph.types.items() if kind == onnx.TensorProto.BFLOAT16}
    assert len(half) > len(done.nodes)
    for name in half:
        assert graph.producer[name].op_type == "Cast"
        assert {reader.op_type for reader in graph.consumers[name]} == {"Cast"}


def test_each_part_in_its_own_precision(tiny_bundle: Path, tmp_path: Path) -> None:
    fed = [{"x": np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)}]
    path = chain(tmp_path / "a.onnx")
    graphs, precisions = {"plain": path}, {"plain": "fp32"}
    for precision in ("fp16", "bf16", "int8", "fp8"):
        chosen = recipe(precision)
        ranges = measure_ranges(path, chosen, fed) if chosen.needs_ranges else None
        done = convert(path, tmp_path / f"{precision}.onnx", chosen, ranges)
        graphs[precision], precisions[precision] = done.path, precision
    with open_variant(graphs, precisions, threads=1) as backend:
        assert backend.name == "ort (bf16 rounded in fp32, fp16, fp32, fp8 unoptimised, int8)"
        y = {part: backend.infer(part, fed[0])["y"] for part in graphs}
        errors = [np.abs(y[p] - y["plain"]).max() for p in ("fp16", "bf16", "int8", "fp8")]
        assert 0 < errors[0] < errors[1] < errors[3]
        assert errors[0] < errors[2]
        with pytest.raises(InputError, match="must be float32"):
            backend.infer("fp16", {"x": fed[0]["x"].astype(np.float16)})
    with pytest.raises(BackendError, match="closed"):
        backend.infer("fp16", fed[0])


def test_a_graph_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ConversionError, match=r"bad\.onnx"):
        open_variant({"p": tmp_path / "bad.onnx"}, {"p": "int8"})
