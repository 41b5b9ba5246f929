"""Graphs of a real bundle by a recipe, and the worst layers back until a gate holds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sfn_calib.clips import Stretch
from sfn_calib.convert import convert
from sfn_calib.emulate import open_variant
from sfn_calib.exceptions import CalibrationError
from sfn_calib.gate import GateFigures, Pair, Protocol
from sfn_calib.mixed import ROUNDS, Feeds, Workshop, settle
from sfn_calib.recipe import Recipe
from sfn_calib.watch import open_reference, read_stretch, record_feeds, watch, with_backend
from sfn_rt.backends.base import Backend
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import Bundle, load_bundle

RECIPE = replace(Recipe.load("int8"), leave=("text", "appearance"))
SMALL = replace(RECIPE, leave=("text", "appearance", "decoder"))


def figures(loss: float) -> GateFigures:
    one = Protocol(
        auc_fp32=90.0, auc=90.0 - loss, loss=loss, loss_interval=(0.0, loss), spearman=1.0
    )
    return GateFigures(
        protocols={"paper": one, "causal": one}, rerouted=0.0, rerouted_by_layer=(),
        broken=0, normal_frames=100, abnormal_frames=100, videos=2,
    )  # fmt: skip


class Judge:
    """A gate that holds from a given round on."""

    def __init__(self, holds_from: int) -> None:
        self.holds_from, self.asked = holds_from, 0

    def __call__(self, backend: Backend, label: str) -> tuple[GateFigures, tuple[Pair, ...]]:
        self.asked += 1
        return figures(0.0 if self.asked >= self.holds_from else 5.0), ()


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def stretch(tiny_data: Path) -> Stretch:
    return Stretch("01", tiny_data / "training" / "frames" / "01", "", 2, 18)


@pytest.fixture(scope="module")
def feeds(bundle: Bundle, stretch: Stretch) -> Feeds:
    with open_reference(bundle, 1) as model:
        return record_feeds(model, [stretch], None)


@pytest.fixture
def small(bundle: Bundle, feeds: Feeds, tmp_path: Path) -> Workshop:
    """With one part to convert."""
    return Workshop(bundle.graphs(), tmp_path, SMALL, feeds, threads=1)


@pytest.fixture
def workshop(bundle: Bundle, feeds: Feeds, tmp_path: Path) -> Workshop:
    return Workshop(bundle.graphs(), tmp_path, RECIPE, feeds, threads=1)


def test_feeds_are_what_the_stream_feeds(feeds: Feeds, stretch: Stretch) -> None:
    assert sum(len(rows["frame"]) for rows in feeds["appearance"]) == len(stretch)
    assert sum(len(rows["difference"]) for rows in feeds["motion"]) == len(stretch) - 1
    assert sum(len(rows["text"]) for rows in feeds["decoder"]) == len(stretch) - 4
    assert feeds["text"]


def test_what_holds_at_once_gives_nothing_back(workshop: Workshop) -> None:
    said: list[str] = []
    attempt = settle(workshop, RECIPE, Judge(1), said.append)
    assert not attempt.misses
    assert not attempt.given_back
    assert attempt.variants == {
        "appearance": "fp32", "motion": "int8", "decoder": "int8", "text": "fp32",
    }  # fmt: skip
    noise = [layer.sqnr_db for layer in attempt.layers]
    assert noise == sorted(noise)
    assert len(noise) == sum(len(done.nodes) for done in attempt.converted.values())


def test_the_worst_layers_go_back_twice_as_many_a_round(small: Workshop) -> None:
    judge, said = Judge(3), []
    attempt = settle(small, SMALL, judge, said.append)
    assert judge.asked == 3
    assert not attempt.misses
    given = [len(each.given_back) for each in attempt.rounds]
    assert given[0] == 0
    assert given[2] == 2 * given[1] > 0
    assert attempt.given_back == attempt.layers[: sum(given)]
    for layer in attempt.given_back:
        assert layer.node not in attempt.converted[layer.part].nodes
    assert any(attempt.given_back[0].node in line for line in said)


def test_a_gate_that_never_holds_ends_with_something_still_converted(small: Workshop) -> None:
    judge = Judge(99)
    attempt = settle(small, SMALL, judge, lambda text: None)
    assert judge.asked <= ROUNDS
    assert attempt.misses
    assert len(attempt.given_back) < len(attempt.layers)
    assert any(done.nodes for done in attempt.converted.values())


def test_a_recipe_that_converts_nothing_is_refused(
    bundle: Bundle, feeds: Feeds, tmp_path: Path
) -> None:
    nothing = replace(RECIPE, leave=tuple(bundle.manifest.parts))
    shop = Workshop(bundle.graphs(), tmp_path, nothing, feeds, threads=1)
    with pytest.raises(CalibrationError, match="no layer"):
        settle(shop, nothing, Judge(1), lambda text: None)


def test_the_variant_sees_the_same_frames_a_little_otherwise(
    bundle: Bundle, workshop: Workshop, stretch: Stretch
) -> None:
    workshop.write(())
    frames = read_stretch(stretch, None)
    with open_reference(bundle, 1) as model, workshop.open() as backend:
        full = watch(model.perception, frames)
        lower = watch(with_backend(model, backend), frames)
    assert full.n_frames == lower.n_frames == len(stretch) - 4
    assert full.routing.shape == lower.routing.shape
    assert full.routing.shape[0] == full.n_frames
    for term, values in full.terms.items():
        assert np.allclose(values, lower.terms[term], atol=0.3), term
    assert not np.array_equal(full.terms["semantic"], lower.terms["semantic"])


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_a_part_given_back_whole_is_full_precision(
    name: str, bundle: Bundle, feeds: Feeds, tmp_path: Path
) -> None:
    recipe, graph = Recipe.load(name), bundle.graph("decoder")
    done = convert(graph, tmp_path / "lower.onnx", recipe)
    back = convert(graph, tmp_path / "back.onnx", recipe, keep=frozenset(done.nodes))
    assert done.nodes
    assert not back.nodes
    with (
        OrtBackend({"decoder": graph}, threads=1) as full,
        open_variant({"decoder": back.path}, {"decoder": name}, threads=1) as variant,
    ):
        expected, actual = (b.infer("decoder", feeds["decoder"][-1]) for b in (full, variant))
    for output, values in expected.items():
        assert np.allclose(values, actual[output], atol=1e-5), output
