"""What is assumed of a frame without its caption: on the real error's scale, normal or unusual."""

import numpy as np
import pytest

from sfn_rt.normal import NormalFootage, SceneModel
from sfn_rt.scores import Tail
from sfn_rt.semantics.levels import CHANGED, Expectation, NormalLevels
from sfn_rt.semantics.usual import UsualCaptions
from sfn_rt.threshold import Threshold

RNG = np.random.default_rng(0)
SEMANTIC = Tail.fit(RNG.gamma(2.0, 0.02, 2000))
DISTILLED = Tail.fit(RNG.gamma(2.0, 0.5, 2000))  # of another scale


def test_the_inverse_of_surprise() -> None:
    values = np.concatenate([SEMANTIC.normal[::50], [0.3, 1.0, 5.0]])
    for value in values:
        assert SEMANTIC.value(float(SEMANTIC.surprise(value))) == pytest.approx(value, rel=1e-9)
    assert SEMANTIC.value(0.0) == SEMANTIC.normal[0]
    assert np.isfinite(SEMANTIC.value(1e6))


def test_what_is_as_rare_is_as_surprising() -> None:
    expected = Expectation(SEMANTIC, DISTILLED)
    for estimate in (0.1, 1.0, 3.0, 10.0, 100.0):
        value = expected.of(estimate)
        assert float(SEMANTIC.surprise(value)) == pytest.approx(float(DISTILLED.surprise(estimate)))
    rising = [expected.of(x) for x in np.linspace(0, 20, 100)]
    assert (np.diff(rising) >= 0).all()


def test_without_a_student_nothing_unusual_is_assumed() -> None:
    median = SEMANTIC.quantile(0.5)
    assert Expectation(SEMANTIC, None).of(7.0) == median
    assert Expectation(SEMANTIC, DISTILLED).of(float("nan")) == median


def normal(**more: object) -> NormalFootage:
    scene = SceneModel(None, None, np.zeros((1, 16, 24), np.float32))
    thresholds = {("semantic",): Threshold(3.0, "made up", 1.0)}
    return NormalFootage(scene, {"semantic": SEMANTIC}, thresholds, 1.0, **more)  # type: ignore[arg-type]


def test_levels_of_normal_footage() -> None:
    said = UsualCaptions(("a", "b"), np.eye(2, 3, dtype=np.float32), np.ones(2, np.float32) / 2)
    signals = {"motion": DISTILLED, "distilled": DISTILLED}
    found = NormalLevels.of(normal(signals=signals, captions=said), 2)
    assert found.changed == {"motion": DISTILLED.quantile(CHANGED)}  # the student is no change
    assert found.usual is not None
    assert found.usual.tolist() == [1, 0, 0, 1, 0, 0]
    assert found.expected == Expectation(SEMANTIC, DISTILLED)
    assert found.suspicious is None  # no visual term


def test_a_bundle_of_an_earlier_training_has_none() -> None:
    found = NormalLevels.of(normal(), 1)
    assert (found.changed, found.usual) == ({}, None)
    assert found.expected == Expectation(SEMANTIC, None)


def test_signals_and_captions_survive_their_file() -> None:
    said = UsualCaptions(("é", "b"), np.eye(2, 3, dtype=np.float32), np.ones(2, np.float32) / 2)
    arrays = normal(signals={"motion": DISTILLED}, captions=said).to_arrays()
    again = NormalFootage.from_arrays(arrays)
    assert again.captions is not None
    assert again.captions.texts == said.texts
    np.testing.assert_array_equal(again.captions.embeddings, said.embeddings)
    np.testing.assert_array_equal(again.signals["motion"].normal, DISTILLED.normal)
