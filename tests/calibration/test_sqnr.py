"""SQNR by layer: a layer's own error apart from what came before it, all in one bounded run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sfn_calib.convert import Converted, convert
from sfn_calib.emulate import open_variant
from sfn_calib.exceptions import CalibrationError
from sfn_calib.ranges import Ranges, measure_ranges
from sfn_calib.sqnr import MOST_DB, decibels, layer_sqnr
from sfn_rt.backends.base import Array
from small_graphs import chain, feeds_of, node, recipe, write

BITS = {"fp16": (60, 85), "bf16": (42, 60), "int8": (25, 55), "fp8": (18, 42)}  # dB of a layer


def feeds(n: int = 4, batch: int = 32) -> list[dict[str, Array]]:
    rng = np.random.default_rng(3)
    return [{"x": rng.standard_normal((batch, 16)).astype(np.float32)} for _ in range(n)]


def converted(path: Path, out: Path, precision: str, **settings: object) -> Converted:
    chosen = recipe(precision, **settings)
    ranges = measure_ranges(path, chosen, feeds()) if chosen.needs_ranges else None
    return convert(path, out, chosen, ranges)


def test_it_is_what_the_two_graphs_give(tmp_path: Path) -> None:
    """Behind the last layer it is the SQNR of the output; alone, that of exact inputs."""
    path = chain(tmp_path / "a.onnx")
    done = converted(path, tmp_path / "b.onnx", "int8", beside="fp16")
    layers = {layer.node: layer for layer in layer_sqnr(path, done, feeds())}
    assert layers.keys() == {"wide/MatMul", "y/MatMul"}
    signal = noise = 0.0
    with (
        open_variant({"p": path}, {"p": "fp32"}) as exact,
        open_variant({"p": done.path}, {"p": "int8"}) as variant,
    ):
        for feed in feeds():
            y = exact.infer("p", feed)["y"].astype(np.float64)
            signal += (y**2).sum()
            noise += ((y - variant.infer("p", feed)["y"]) ** 2).sum()
    assert layers["y/MatMul"].behind_db == pytest.approx(10 * np.log10(signal / noise), abs=0.1)
    first = layers["wide/MatMul"]
    assert first.sqnr_db == pytest.approx(first.behind_db, abs=1e-6)  # nothing comes before it
    assert layers["y/MatMul"].sqnr_db > layers["y/MatMul"].behind_db


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_every_layer_of_a_decoder_worst_first(
    tiny_bundle: Path, tmp_path: Path, precision: str
) -> None:
    path = tiny_bundle / "decoder.onnx"
    with open_variant({"decoder": path}, {"decoder": "fp32"}) as backend:
        fed = feeds_of(backend.parts["decoder"], n=2)
    chosen = recipe(precision, beside="fp16") if precision in ("int8", "fp8") else recipe(precision)
    ranges = measure_ranges(path, chosen, fed) if chosen.needs_ranges else None
    done = convert(path, tmp_path / "d.onnx", chosen, ranges)
    layers = layer_sqnr(path, done, fed)
    assert {layer.node for layer in layers} == set(done.nodes)
    values = [layer.sqnr_db for layer in layers]
    assert values == sorted(values)
    products = [x.sqnr_db for x in layers if x.operator in ("MatMul", "Gemm")]
    low, high = BITS[precision]
    assert low < np.median(products) < high


def test_a_clipped_layer_is_the_worst(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.onnx")
    exact = measure_ranges(path, recipe("int8"), feeds())
    clipped = Ranges({**exact.largest, "bent": exact.largest["bent"] / 20}, "", 4)
    done = convert(path, tmp_path / "b.onnx", recipe("int8"), clipped)
    worst, other = layer_sqnr(path, done, feeds())
    assert worst.node == "y/MatMul"
    assert worst.sqnr_db < 10 < 25 < other.sqnr_db


def test_a_mask_is_no_signal(tmp_path: Path) -> None:
    """Attention adds -3e38 where no token is: nothing of that is noise of fp16."""
    constants = {
        "huge": np.float32([-1e38]),
        "a": np.eye(16, dtype=np.float32) / 3,
    }
    nodes = [
        node("Mul", ["x", "huge"], "mask"),
        node("Add", ["x", "mask"], "masked"),
        node("MatMul", ["x", "a"], "y"),
        node("Softmax", ["masked"], "shares"),
    ]
    shapes = {"x": ["batch", 16], "y": ["batch", 16], "shares": ["batch", 16]}
    path = write(tmp_path / "a.onnx", nodes, constants, shapes, outputs=("y", "shares"))
    done = converted(path, tmp_path / "b.onnx", "fp16")
    assert "masked/Add" in done.nodes
    assert [layer.node for layer in layer_sqnr(path, done, feeds())] == ["y/MatMul"]


def test_clips_are_taken_one_at_a_time(tmp_path: Path) -> None:
    """More clips cost no memory: none is asked for before the last one was let go."""
    path = chain(tmp_path / "a.onnx")
    done = converted(path, tmp_path / "b.onnx", "int8")

    def once() -> Iterator[dict[str, Array]]:
        for feed in feeds(n=3):
            yield feed
            feed.clear()

    layers = layer_sqnr(path, done, once())
    assert [x.sqnr_db for x in layers] == pytest.approx(
        [x.sqnr_db for x in layer_sqnr(path, done, feeds(n=3))]
    )
    with pytest.raises(CalibrationError, match="no clip was fed"):
        layer_sqnr(path, done, [])


def test_layers_in_groups_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = chain(tmp_path / "a.onnx")
    done = converted(path, tmp_path / "b.onnx", "fp16")
    whole = layer_sqnr(path, done, feeds())
    monkeypatch.setattr("sfn_calib.sqnr.GROUP", 2)
    assert layer_sqnr(path, done, iter(feeds())) == whole
    assert len(whole) > 2


def test_nothing_converted_is_no_layer(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.onnx")
    done = converted(path, tmp_path / "b.onnx", "int8", operators=("Conv",))
    assert layer_sqnr(path, done, feeds()) == ()


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (1, 0.01, 20),
        (1, 0, MOST_DB),
        (0, 1, -MOST_DB),
        (1, np.inf, -MOST_DB),
        (1, np.nan, -MOST_DB),
    ],
)
def test_decibels_are_finite(signal: float, noise: float, expected: float) -> None:
    assert decibels(signal, noise) == pytest.approx(expected)
