import numpy as np
import pytest

from sfn_rt.events import find_events, min_gap_frames
from sfn_rt.exceptions import InputError
from sfn_rt.threshold import Threshold, fit_threshold

FPS = 10.0
WARM_UP = np.full(4, np.nan)


def smoothed(steps: np.ndarray) -> np.ndarray:
    """The causal score's moving average along the last axis: independent steps become AR(1)."""
    rows, mean = [], steps[:, 0]
    for value in steps.T:
        mean = mean + 0.2 * (value - mean)
        rows.append(mean)
    return np.stack(rows, axis=1)


def gaussian(n_sets: int, n_frames: int, rng: np.random.Generator) -> np.ndarray:
    return smoothed(5 + 3 * rng.standard_normal((n_sets, n_frames)))


def exponential(n_sets: int, n_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Three surprises a frame, each exponential, as on normal footage."""
    return smoothed(rng.gamma(3, size=(n_sets, n_frames)))


def ar1(n_sets: int, n_frames: int, rng: np.random.Generator) -> np.ndarray:
    """AR(1) whose own distribution is exponential (Gaver and Lewis 1980)."""
    shape = (n_sets, n_frames)
    return smoothed(5 * rng.exponential(size=shape) * (rng.random(shape) < 0.2))


MAKE = {"exponential": exponential, "gaussian": gaussian, "ar1": ar1}


def rate(runs: np.ndarray, threshold: float) -> float:
    """Alarms an hour, counted by the deployed rule."""
    gap = min_gap_frames(FPS)
    found = sum(len(find_events(score, threshold, min_gap_frames=gap)) for score in runs)
    return found / (runs.size / FPS / 3600)


@pytest.fixture(scope="module")
def long_runs() -> dict[str, np.ndarray]:
    """40 hours of each kind, to measure what a threshold really lets through."""
    return {
        kind: make(40, round(3600 * FPS), np.random.default_rng(100)) for kind, make in MAKE.items()
    }


def typical_rate(
    kind: str, runs: np.ndarray, seconds: int, budget: float, n_sets: int
) -> tuple[float, str]:
    """The rate at the median threshold of many sets of footage."""
    sets = MAKE[kind](n_sets, round(seconds * FPS), np.random.default_rng(7))
    thresholds = [
        fit_threshold([np.r_[WARM_UP, video] for video in np.array_split(score, 8)], FPS, budget)
        for score in sets
    ]
    return rate(runs, float(np.median([t.value for t in thresholds]))), thresholds[0].rule


@pytest.mark.parametrize("kind", ["exponential", "gaussian", "ar1"])
@pytest.mark.parametrize("seconds", [400, 3600])
def test_one_alarm_an_hour_from_less_footage_than_that(long_runs, kind: str, seconds: int):
    realised, rule = typical_rate(kind, long_runs[kind], seconds, 1.0, n_sets=100)
    assert 1 / 3 < realised < 3
    assert f"extrapolated from {seconds} s" in rule


@pytest.mark.parametrize("kind", ["exponential", "gaussian", "ar1"])
@pytest.mark.parametrize("budget", [20.0, 100.0])
def test_alarms_are_counted_where_there_are_enough(long_runs, kind: str, budget: float):
    realised, rule = typical_rate(kind, long_runs[kind], 3600, budget, n_sets=10)
    assert realised == pytest.approx(budget, rel=0.25)
    assert "counted on 1 h" in rule


def test_a_counted_threshold_keeps_the_budget_on_its_own_footage():
    score = exponential(1, 36_000, np.random.default_rng(5))
    threshold = fit_threshold(score, FPS, 30)
    assert rate(score, threshold.value) <= 30
    assert rate(score, threshold.value * 0.97) > 30


def test_a_larger_budget_never_raises_the_threshold():
    score = exponential(1, 36_000, np.random.default_rng(6))
    values = [fit_threshold(score, FPS, budget).value for budget in (0.01, 0.1, 1, 5)]
    assert values == sorted(values, reverse=True)
    values = [fit_threshold(score, FPS, budget).value for budget in (10, 50, 200, 1e5)]
    assert values == sorted(values, reverse=True)


def test_blocks_never_cross_videos_and_short_videos_count():
    loud, quiet = np.full(20, 9.0), np.linspace(1, 2, 500)
    threshold = fit_threshold([loud, quiet], FPS)
    assert threshold.value > 9


@pytest.mark.parametrize("level", [0.0, 3.0])
def test_a_score_that_never_varies_still_gives_a_threshold_above_it(level: float):
    threshold = fit_threshold([np.full(300, level)], FPS)
    assert threshold.value > level
    assert "did not vary" in threshold.rule


def test_a_single_short_video_gives_a_finite_threshold():
    threshold = fit_threshold([np.array([0.5])], FPS)
    assert np.isfinite(threshold.value)
    assert threshold.value > 0.5


@pytest.mark.parametrize(
    ("scores", "fps", "budget", "message"),
    [
        ([], 10, 1, "hold out at least one normal video"),
        ([WARM_UP], 10, 1, "hold out at least one normal video"),
        ([np.ones(9)], 0, 1, "frames a second"),
        ([np.ones(9)], 10, 0, "budget must be above 0"),
    ],
)
def test_bad_input_is_named(scores, fps: float, budget: float, message: str):
    with pytest.raises(InputError, match=message):
        fit_threshold(scores, fps, budget)


def test_threshold_refuses_nonsense():
    with pytest.raises(InputError, match="positive"):
        Threshold(float("nan"), "by hand", 1.0)
