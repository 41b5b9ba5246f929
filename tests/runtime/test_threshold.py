import numpy as np
import pytest

from sfn_rt.events import find_events, min_gap_frames
from sfn_rt.exceptions import InputError
from sfn_rt.threshold import Threshold, fit_threshold

FPS = 10.0
WARM_UP = np.full(4, np.nan)


def smoothed(steps: np.ndarray) -> np.ndarray:
    """AR(1), as a causal score is: the same EMA."""
    rows, mean = [], steps[0]
    for value in steps.tolist():
        mean += 0.2 * (value - mean)
        rows.append(mean)
    return np.array(rows)


def gaussian(n_frames: int, rng: np.random.Generator) -> np.ndarray:
    return smoothed(5 + 3 * rng.standard_normal(n_frames))


def exponential(n_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Three surprises a frame, each exponential, as the score of normal footage is."""
    return smoothed(rng.exponential(size=(n_frames, 3)).sum(axis=1))


def rate(score: np.ndarray, threshold: float) -> float:
    """Alarms an hour, counted by the deployed rule; half an alarm where none was seen."""
    found = find_events(score, threshold, min_gap_frames=min_gap_frames(FPS))
    return max(len(found), 0.5) / (score.size / FPS / 3600)


@pytest.fixture(scope="module")
def long_runs() -> dict[str, np.ndarray]:
    """40 hours of each, to measure what a threshold really lets through."""
    n_frames = round(40 * 3600 * FPS)
    return {
        "exponential": exponential(n_frames, np.random.default_rng(100)),
        "gaussian": gaussian(n_frames, np.random.default_rng(101)),
    }


def typical_rate(kind: str, run: np.ndarray, seconds: int, budget: float) -> tuple[float, str]:
    """Geometric mean of the realised rates of thresholds from 25 separate sets of footage."""
    make = {"exponential": exponential, "gaussian": gaussian}[kind]
    rates, rule = [], ""
    for seed in range(25):
        score = make(round(seconds * FPS), np.random.default_rng(seed))
        videos = [np.r_[WARM_UP, part] for part in np.array_split(score, 8)]
        threshold = fit_threshold(videos, FPS, budget)
        rates.append(rate(run, threshold.value))
        rule = threshold.rule
    return float(np.exp(np.mean(np.log(rates)))), rule


def test_one_alarm_an_hour_from_400_seconds(long_runs):
    realised, rule = typical_rate("exponential", long_runs["exponential"], 400, 1.0)
    assert realised < 3
    assert "extrapolated from 400 s" in rule
    assert "20 largest of 80 block maxima" in rule


def test_a_lighter_tail_than_assumed_gives_fewer_alarms_not_more(long_runs):
    realised, _ = typical_rate("gaussian", long_runs["gaussian"], 400, 1.0)
    assert realised < 1


@pytest.mark.parametrize("kind", ["exponential", "gaussian"])
def test_one_alarm_an_hour_from_an_hour(long_runs, kind: str):
    realised, rule = typical_rate(kind, long_runs[kind], 3600, 1.0)
    assert 1 / 3 < realised < 3
    assert "extrapolated" in rule


@pytest.mark.parametrize("kind", ["exponential", "gaussian"])
@pytest.mark.parametrize("budget", [20.0, 100.0])
def test_alarms_are_counted_where_there_are_enough(long_runs, kind: str, budget: float):
    realised, rule = typical_rate(kind, long_runs[kind], 3600, budget)
    assert realised == pytest.approx(budget, rel=0.25)
    assert "counted on 1 h" in rule


def test_a_counted_threshold_keeps_the_budget_on_its_own_footage():
    score = exponential(36_000, np.random.default_rng(5))
    threshold = fit_threshold([score], FPS, 30)
    assert rate(score, threshold.value) <= 30
    assert rate(score, threshold.value * 0.97) > 30


def test_a_larger_budget_never_raises_the_threshold():
    score = exponential(36_000, np.random.default_rng(6))
    values = [fit_threshold([score], FPS, budget).value for budget in (0.01, 0.1, 1, 5)]
    assert values == sorted(values, reverse=True)
    values = [fit_threshold([score], FPS, budget).value for budget in (10, 50, 200, 1e5)]
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
