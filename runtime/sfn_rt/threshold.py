"""Normal footage and a false-alarm budget to the one threshold that a bundle ships with.

The budget is in alarms an hour, and normal footage is often minutes long: on 400 s, "once an
hour" happens once in nine such sets. So there are two methods, and the rule says which was used.

Counted. Where the footage is long enough to hold `_ENOUGH` alarms at the budgeted rate, the
threshold is the lowest one at which the events of `events.py` stay within the budget.

Extrapolated. Otherwise the footage is cut into blocks of about 5 s, longer than a score remembers
and than the pause that ends an event, so that a block's maximum stands for about one event.
Distances above the median score m are measured as w(v) = (v - m)^1.5. With u the value that a
quarter of the maxima exceed (fewer where there are many: at most 40 of them), b the mean excess of
their w over w(u), and d the mean block length in hours,

    rate(v) = -log(1 - P(maximum > u)) / d * exp(-(w(v) - w(u)) / b)      alarms an hour, v > u
    v = m + (w(u) + b log(rate(u) / budget))^(1 / 1.5)

So the tail is exponential in w. Each surprise, a -log P, has a tail exponential in v itself
(power 1), but the moving average adds up nine frames of them, which draws the tail towards a
Gaussian's (power 2); the power lies between. Measured on synthetic scores of both kinds and a
budget of one an hour (tests/runtime/test_threshold.py), the realised rate is within a factor of 3
of the budget in the median after 400 s of footage. Single sets scatter by a factor of 3 either
way: b rests on 20 maxima there. More normal footage is the cure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sfn_rt.events import find_events, min_gap_frames
from sfn_rt.exceptions import InputError
from sfn_rt.scores import FloatArray

_BLOCK_S = 5.0
_ENOUGH = 10  # counted alarms leave the rate uncertain by a third
_TAIL_SHARE = 0.25  # of the block maxima
_TAIL_POWER = 1.5  # between a sum of few surprises (1) and of many (2)
_TAIL_MOST = 40  # block maxima: with longer footage the tail starts further out
_LEAST = 1e-9  # a threshold is positive, even where normal footage scored zero throughout


@dataclass(frozen=True)
class Threshold:
    """Where an event begins, and how that was found."""

    value: float
    rule: str  # a sentence for people
    false_alarms_per_hour: float  # the budget

    def __post_init__(self) -> None:
        if not (np.isfinite(self.value) and self.value > 0):
            raise InputError(f"threshold must be a positive number, got {self.value}")


def fit_threshold(
    normal_scores: Sequence[FloatArray], fps: float, false_alarms_per_hour: float = 1.0
) -> Threshold:
    """From causal scores (T,) of normal videos that nothing else was fitted on.

    Frames without a score (NaN) are left out. The module says how.
    """
    budget = false_alarms_per_hour
    if not (np.isfinite(budget) and budget > 0):
        raise InputError(f"the false-alarm budget must be above 0 an hour, got {budget}")
    if not (np.isfinite(fps) and fps > 0):
        raise InputError(f"frames a second must be above 0, got {fps}")
    videos = [np.asarray(score, dtype=np.float64) for score in normal_scores]
    videos = [score[np.isfinite(score)] for score in videos]
    videos = [score for score in videos if score.size]
    if not videos:
        raise InputError(
            "no normal scores to set a threshold with; hold out at least one normal video"
        )

    hours = sum(score.size for score in videos) / fps / 3600
    maxima, block_hours = _block_maxima(videos, fps)
    wanted = f"{budget:g} false alarm{'' if budget == 1 else 's'} an hour"
    if budget * hours >= _ENOUGH:
        value = _counted(videos, maxima, fps, budget * hours)
        rule = f"{wanted}, counted on {hours:.3g} h of normal footage"
    else:
        median = float(np.median(np.concatenate(videos)))
        value, n_tail = _extrapolated(maxima, median, block_hours, budget)
        rule = (
            f"{wanted}, extrapolated from {hours * 3600:.0f} s of normal footage: tail "
            f"of the {n_tail} largest of {maxima.size} block maxima"
        )
    if maxima[0] == maxima[-1]:  # no tail to speak of: whatever exceeds it is abnormal
        value = float(np.nextafter(maxima[-1], np.inf))
        rule += "; the score did not vary there"
    return Threshold(max(value, _LEAST), rule, budget)


def _block_maxima(videos: Sequence[FloatArray], fps: float) -> tuple[FloatArray, float]:
    """Sorted maxima of blocks within one video each, and the mean block length in hours."""
    frames = max(1, round(_BLOCK_S * fps))
    maxima = [
        float(block.max())
        for score in videos
        for block in np.array_split(score, max(1, round(score.size / frames)))
    ]
    mean_frames = sum(score.size for score in videos) / len(maxima)
    return np.sort(np.array(maxima)), mean_frames / fps / 3600


def _counted(videos: Sequence[FloatArray], maxima: FloatArray, fps: float, allowed: float) -> float:
    """The lowest block maximum, from their median up, with at most `allowed` events at it.

    Below the median events run into one another, and counting them means nothing.
    """
    gap = min_gap_frames(fps)

    def too_many(threshold: float) -> bool:
        found = (len(find_events(score, threshold, min_gap_frames=gap)) for score in videos)
        return sum(found) > allowed

    candidates = np.unique(np.maximum(maxima[maxima.size // 2 :], _LEAST))
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if too_many(float(candidates[middle])) else (low, middle)
    return float(candidates[low])


def _extrapolated(
    maxima: FloatArray, median: float, block_hours: float, budget: float
) -> tuple[float, int]:
    """The threshold, and how many block maxima its tail was fitted on."""
    n_tail = max(1, min(round(_TAIL_SHARE * maxima.size), _TAIL_MOST))
    w = np.maximum(maxima - median, 0.0) ** _TAIL_POWER
    w_u = float(w[-n_tail - 1]) if maxima.size > n_tail else 0.0  # one block alone: from m itself
    mean_excess = float(np.mean(w[-n_tail:])) - w_u
    share = n_tail / (maxima.size + 1)  # never 1: the logarithm stays finite
    rate = float(-np.log1p(-share)) / block_hours  # alarms an hour above u
    folds = max(0.0, float(np.log(rate / budget)))
    return median + (w_u + mean_excess * folds) ** (1 / _TAIL_POWER), n_tail
