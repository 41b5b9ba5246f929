"""int8 and fp8: explicit, symmetric, a scale a channel, and only where it was said."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sfn_calib.convert import Converted, convert
from sfn_calib.emulate import open_variant
from sfn_calib.exceptions import CalibrationError
from sfn_calib.graph import Graph
from sfn_calib.ranges import N_BINS, Histogram, Ranges, measure_ranges
from sfn_calib.recipe import Recipe, Stay
from sfn_calib.stays import REASONS
from sfn_rt.backends.base import Array
from sfn_rt.bundle import load_bundle
from small_graphs import chain, feeds_of, node, recipe, write

LOW = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}
BESIDE = {"fp16": onnx.TensorProto.FLOAT16, "fp32": onnx.TensorProto.FLOAT}
RELATIVE = {"int8": 0.1, "fp8": 0.3}


def quantised(
    graph: Path, out: Path, settings: Recipe, keep: frozenset[str] = frozenset()
) -> tuple[Converted, list[dict[str, Array]]]:
    with open_variant({"part": graph}, {"part": "fp32"}, threads=1) as backend:
        feeds = feeds_of(backend.parts["part"])
    ranges = measure_ranges(graph, settings, feeds, threads=1)
    return convert(graph, out, settings, ranges, keep=keep), feeds


@pytest.mark.parametrize("beside", ["fp16", "fp32"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_every_part_of_a_bundle(
    tiny_bundle: Path, tmp_path: Path, precision: str, beside: str
) -> None:
    bundle = load_bundle(tiny_bundle)
    settings = recipe(precision, beside=beside)
    for part in ("appearance", "motion", "decoder"):
        path = bundle.graphs()[part]
        done, (feeds, *_) = quantised(path, tmp_path / f"{part}.onnx", settings)
        assert len(done.nodes) >= 4
        with open_variant({part: done.path}, {part: precision}, threads=1) as backend:
            assert backend.parts[part] == bundle.manifest.parts[part].spec
            actual = backend.infer(part, feeds)
        with open_variant({part: path}, {part: "fp32"}, threads=1) as backend:
            expected = backend.infer(part, feeds)
        if "routing" in expected:
            same = np.sort(expected.pop("routing")) == np.sort(actual["routing"])
            assert same.mean() > 0.6
            expected.pop("semantic", None)  # of one token, which may have been rerouted
        for name, values in expected.items():
            error = np.linalg.norm(actual[name] - values) / np.linalg.norm(values)
            assert error <= RELATIVE[precision], (part, name)


@pytest.mark.parametrize("beside", ["fp16", "fp32"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_scales_are_symmetric_and_one_a_channel(
    tiny_bundle: Path, tmp_path: Path, precision: str, beside: str
) -> None:
    settings = recipe(precision, beside=beside)
    done, _ = quantised(tiny_bundle / "decoder.onnx", tmp_path / "d.onnx", settings)
    graph = Graph.load(done.path)
    pairs = [n for n in graph.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for each in pairs:
        scale, zero = (graph.constants[name] for name in each.input[1:3])
        assert not np.any(numpy_helper.to_array(zero).astype(np.float32)), each.name
        assert zero.data_type == LOW[precision]
        assert scale.data_type == BESIDE[beside]
        assert np.all(numpy_helper.to_array(scale) > 0)
    for name in done.nodes:
        (product,) = (n for n in graph.nodes if n.name == name)
        weight = graph.producer[product.input[1]]
        stored = graph.constants[weight.input[0]]
        assert stored.data_type == LOW[precision]
        channels = numpy_helper.to_array(graph.constants[weight.input[1]])
        axis = next(a.i for a in weight.attribute if a.name == "axis")
        assert channels.shape == (stored.dims[axis],)
        activation = graph.producer[product.input[0]]
        assert activation.op_type == "DequantizeLinear"
        assert graph.constants[activation.input[1]].dims == []


def test_what_routes_norms_and_attends_is_left_with_a_reason(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    done, _ = quantised(tiny_bundle / "decoder.onnx", tmp_path / "d.onnx", recipe("int8"))
    graph = Graph.load(tiny_bundle / "decoder.onnx")
    products = {n.name for n in graph.nodes if n.op_type in ("MatMul", "Gemm", "Conv")}
    assert products == set(done.nodes) | (products & done.kept.keys())
    assert not set(done.nodes) & done.kept.keys()
    said = {done.kept[name] for name in products - set(done.nodes)}
    assert {REASONS[kind] for kind in ("router", "attention", "gated", "gates")} <= said
    for each in graph.nodes:
        if each.op_type in ("TopK", "Softmax", "LayerNormalization"):
            assert done.kept[each.name] in REASONS.values()


def test_the_largest_value_seen_is_the_largest_represented(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.onnx")
    done = convert(
        path, tmp_path / "b.onnx", recipe("int8"), Ranges({"x": 12.7, "bent": 1.27}, "", 1)
    )
    graph = Graph.load(done.path)
    scales = {
        n.input[0]: float(graph.array(n.input[1]))
        for n in graph.nodes
        if n.op_type == "QuantizeLinear"
    }
    assert scales == pytest.approx({"x": 0.1, "bent": 0.01})
    weight = Graph.load(path).array("a")
    stored = next(t for name, t in graph.constants.items() if name.startswith("a_quant"))
    assert np.abs(numpy_helper.to_array(stored)).max(axis=0).tolist() == [127] * weight.shape[1]


def test_scales_in_fp16_are_those_that_were_quantised_with(tmp_path: Path) -> None:
    """Small weights have scales that fp16 holds with few digits: rounded before, not behind."""
    weight = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32) * 3e-4
    path = write(
        tmp_path / "a.onnx", [node("MatMul", ["x", "a"], "y")], {"a": weight},
        {"x": ["batch", 64], "y": ["batch", 4]},
    )  # fmt: skip
    done = convert(
        path, tmp_path / "b.onnx", recipe("int8", beside="fp16"), Ranges({"x": 3.0}, "", 1)
    )
    graph = Graph.load(done.path)
    (dequantise,) = (n for n in graph.nodes if n.input[0].startswith("a_quant"))
    stored, scale = (graph.array(name).astype(np.float64) for name in dequantise.input[:2])
    assert np.abs(stored * scale - weight).max() <= scale.max() / 2 * 1.001
    assert np.abs(stored).max() <= 127


def test_a_weight_that_is_shared_is_quantised_for_one_reader_alone(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    nodes = [
        node("MatMul", ["x", "a"], "once"),
        node("MatMul", ["once", "a"], "twice"),
        node("Add", ["twice", "a"], "y"),
    ]
    path = write(tmp_path / "a.onnx", nodes, {"a": weight}, {"x": [8, 8], "y": [8, 8]})
    keep = frozenset({"twice/MatMul"})
    done, _ = quantised(path, tmp_path / "b.onnx", recipe("int8"), keep)
    graph = Graph.load(done.path)
    assert done.nodes == ("once/MatMul",)
    readers = {n.name: n for n in graph.nodes}
    assert readers["twice/MatMul"].input[1] == readers["y/Add"].input[1] == "a"
    assert "given back" in done.kept["twice/MatMul"]


def test_a_recipe_says_what_else_stays(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.onnx")
    settings = recipe("int8", stay=(Stay(nodes="wide/*", why="a test wants it"),))
    done, _ = quantised(path, tmp_path / "b.onnx", settings)
    assert done.nodes == ("y/MatMul",)
    assert done.kept["wide/MatMul"] == "a test wants it"
    done, _ = quantised(path, tmp_path / "b.onnx", recipe("int8", operators=("Conv",)))
    assert done.nodes == ()
    assert done.kept["wide/MatMul"] == "the recipe quantises no MatMul"


def test_ranges_need_clips_and_finite_ones(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.onnx")
    with pytest.raises(CalibrationError, match="no clip was fed"):
        measure_ranges(path, recipe("int8"), [])
    broken = {"x": np.full((1, 16), np.nan, np.float32)}
    with pytest.raises(CalibrationError, match="'x' holds what is not a finite number"):
        measure_ranges(path, recipe("int8"), [broken])
    with pytest.raises(CalibrationError, match="needs ranges"):
        convert(path, tmp_path / "b.onnx", recipe("int8"))
    with pytest.raises(CalibrationError, match="no range was measured of"):
        convert(path, tmp_path / "b.onnx", recipe("int8"), Ranges({"x": 1.0}, "", 1))


def test_histograms_do_not_grow_and_know_their_percentiles() -> None:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(20_000).astype(np.float32) * s for s in (0.1, 1, 40, 1)]
    histogram = Histogram()
    for each in values:
        histogram.add(each)
        assert histogram.counts.shape == (N_BINS,)
    everything = np.abs(np.concatenate(values))
    assert histogram.counts.sum() == everything.size
    assert histogram.largest == everything.max()
    for percentile in (90.0, 99.0, 99.99, 100.0):
        exact = np.percentile(everything, percentile)
        assert histogram.percentile(percentile) == pytest.approx(
            exact, abs=2 * histogram.top / N_BINS
        )
    assert 0 < histogram.entropy() <= everything.max()


def test_a_larger_value_moves_no_count_to_another_magnitude() -> None:
    histogram = Histogram()
    histogram.add(np.linspace(0, 1, 20_001, dtype=np.float32))
    histogram.add(np.array([1.5], np.float32))
    assert histogram.percentile(50) == pytest.approx(0.5, abs=1e-3)


def test_rules_differ_where_there_are_outliers(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.onnx")
    rng = np.random.default_rng(0)
    feed = rng.standard_normal((400, 16)).astype(np.float32)
    feed[0, 0] = 300
    found = {
        rule: measure_ranges(path, recipe("int8", ranges=rule, percentile=99.9), [{"x": feed}])
        for rule in ("minmax", "percentile", "entropy")
    }
    assert found["minmax"].largest["x"] == 300
    assert found["percentile"].largest["x"] < 10
    assert found["entropy"].largest["x"] < 300


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_tensorrt_rtx_builds_it(tiny_bundle: Path, tmp_path: Path, precision: str) -> None:
    """Ahead of time and for other machines: nothing has run on a GPU here."""
    pytest.importorskip("tensorrt_rtx")
    from sfn_export.rtx import check_rtx

    targets = ("SM89", "SM120") if precision == "fp8" else ("SM86", "SM89", "SM120")
    settings = Recipe.load(precision)
    graph, out = tiny_bundle / "motion.onnx", tmp_path / "motion.onnx"
    if settings.needs_ranges:
        assert settings.beside == "fp16"
        quantised(graph, out, settings)
    else:
        convert(graph, out, settings)
    assert check_rtx(out, targets).layers > 10


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dense", "dispatch"])
def test_a_decoder_of_the_papers_size(tmp_path: Path, form: str) -> None:
    """Random weights, both forms of the SFFM: written, valid, near fp32, worst layers known."""
    import torch

    from sfn_calib.sqnr import layer_sqnr
    from sfn_export.dispatch import exported_decoder
    from sfn_export.trace import DecoderPart, traced
    from sfn_train.config import read_config
    from sfn_train.model.sfn import Decoder
    from sfn_train.torch_backend import part_specs

    config = read_config("paper_ped2").sfn
    spec = part_specs(config, text=False)["decoder"]
    torch.manual_seed(0)
    path = tmp_path / "decoder.onnx"
    part = DecoderPart(exported_decoder(Decoder(config), form), spec)  # type: ignore[arg-type]
    traced("decoder", part, spec, path)
    for precision in ("fp16", "int8", "fp8"):
        settings = Recipe.load(precision)
        feeds = feeds_of(spec, n=1, batch=1)
        ranges = measure_ranges(path, settings, feeds) if settings.needs_ranges else None
        done = convert(path, tmp_path / f"{precision}.onnx", settings, ranges)
        assert done.path.stat().st_size < 0.55 * path.stat().st_size
        layers = layer_sqnr(path, done, feeds)
        products = [x.sqnr_db for x in layers if x.operator in ("MatMul", "Gemm", "Conv")]
        assert len(products) >= 25
        assert products[0] > {"fp16": 60, "int8": 25, "fp8": 18}[precision]
