"""Scores and labels to the figures that are published, and to those that matter on a camera.

Arguments come as (scores, labels); labels are integers or bools with 1 = abnormal, scores are
floats with larger = more abnormal, so that swapping them is an error and not a wrong figure.
Every figure is exact where scores tie, and NaN where the labels cannot give it (one class only).

Axes: T frames of one video, H x W pixels of the source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from sfn_rt.events import RELEASE, find_events, min_gap_frames
from sfn_rt.exceptions import InputError
from sfn_rt.scores import OBSERVED, FloatArray

Labels = npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_]

EARLY_S = 1.0  # an alarm this long before the label begins is early, not false


class RocCurve(NamedTuple):
    """One point for each distinct score, from nothing flagged to everything flagged."""

    fpr: FloatArray  # share of normal frames flagged
    tpr: FloatArray  # share of abnormal frames flagged
    threshold: FloatArray  # flagged are the scores at or above it; the first is infinite


def roc_curve(scores: FloatArray, labels: Labels) -> RocCurve:
    """All operating points of a score; rates of an absent class are NaN."""
    threshold, true, false = _counts(scores, labels)
    with np.errstate(invalid="ignore"):
        return RocCurve(false / false[-1], true / true[-1], threshold)


def roc_auc(scores: FloatArray, labels: Labels) -> float:
    """Chance that an abnormal frame scores above a normal one; ties count half."""
    _, true, false = _counts(scores, labels)
    if true[-1] == 0 or false[-1] == 0:
        return float("nan")
    # Whole numbers up to the last division, so that the result is exact.
    doubled_area = int(np.sum(np.diff(false) * (true[1:] + true[:-1])))
    return doubled_area / (2 * int(true[-1]) * int(false[-1]))


def average_precision(scores: FloatArray, labels: Labels) -> float:
    """Precision averaged over recall, as a step function: the mean precision of the alarms."""
    _, true, false = _counts(scores, labels)
    if true[-1] == 0:
        return float("nan")
    precision = true[1:] / (true[1:] + false[1:])
    return float(np.sum(np.diff(true) * precision) / true[-1])


def equal_error_rate(scores: FloatArray, labels: Labels) -> float:
    """The rate at which false alarms and misses are equally frequent, on the straight-line ROC."""
    curve = roc_curve(scores, labels)
    if np.isnan(curve.fpr[-1]) or np.isnan(curve.tpr[-1]):
        return float("nan")
    excess = curve.fpr - (1.0 - curve.tpr)  # rises from -1 to 1
    after = int(np.argmax(excess >= 0))
    before = after - 1
    share = -excess[before] / (excess[after] - excess[before])
    return float(curve.fpr[before] + share * (curve.fpr[after] - curve.fpr[before]))


def macro_auc(scores: Sequence[FloatArray], labels: Sequence[Labels]) -> float:
    """Mean of the videos' own AUCs, over the videos that hold both classes."""
    aucs = [roc_auc(s, y) for s, y in zip(scores, labels, strict=True)]
    known = [auc for auc in aucs if not np.isnan(auc)]
    return float(np.mean(known)) if known else float("nan")


def _counts(
    scores: FloatArray, labels: Labels
) -> tuple[FloatArray, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Thresholds, and the abnormal and normal frames at or above each; all start at (inf, 0, 0)."""
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if label.dtype.kind not in "biu":
        raise InputError(
            f"labels must be integers or bools with 1 = abnormal, got {label.dtype}; "
            f"the order of arguments is (scores, labels)"
        )
    if score.ndim != 1 or score.shape != label.shape:
        raise InputError(f"{score.shape} scores do not match {label.shape} labels; both are (T,)")
    if np.isnan(score).any():
        raise InputError(
            f"scores must not be NaN, {int(np.isnan(score).sum())} of {score.size} are; "
            f"leave out the frames that cannot be scored, labels too"
        )
    if label.size and not np.isin(label, (0, 1)).all():
        raise InputError(f"labels must be 0 or 1, got values up to {label.max()}")
    order = np.argsort(-score, kind="stable")
    score, abnormal = score[order], label[order].astype(np.int64)
    ends = np.flatnonzero(np.r_[score[1:] != score[:-1], True]) if score.size else np.array([], int)
    true = np.cumsum(abnormal)[ends]
    return (
        np.r_[np.inf, score[ends]],
        np.r_[0, true].astype(np.int64),
        np.r_[0, ends + 1 - true].astype(np.int64),
    )


# ------------------------------------------------------------------ at one deployed threshold


@dataclass(frozen=True, kw_only=True)
class EventMetrics:
    """What an operator sees at one threshold. Figures without a basis are NaN."""

    false_alarms: int  # events raised on normal frames
    normal_hours: float  # of normal footage watched
    false_alarms_per_hour: float
    normal_alarmed: float  # share of normal frames that lie inside an alarm
    events: int  # abnormal stretches in the labels
    found: int  # of them, those an alarm overlaps
    share_found: float
    delay_s: float  # median over the found ones; 0 where the alarm was on already


def event_metrics(
    scores: Sequence[FloatArray],
    labels: Sequence[Labels],
    threshold: float,
    fps: float | Sequence[float],
    *,
    release: float = RELEASE,
) -> EventMetrics:
    """False alarms, events found and their delay, with alarms by the rule of `events.py`.

    A video's scores may be NaN on frames that cannot be scored: they count for nothing. An alarm
    is false if it is raised on a normal frame, unless an abnormal stretch begins within
    `EARLY_S`; one that rings all day is a single false alarm, so the share of normal frames
    alarmed is given beside it.
    """
    rates = [float(fps)] * len(scores) if isinstance(fps, int | float) else [float(f) for f in fps]
    false_alarms = events = found = normal_frames = alarmed_frames = 0
    normal_s = 0.0
    delays: list[float] = []
    for score, label, rate in zip(scores, labels, rates, strict=True):
        if len(score) != len(label):
            raise InputError(f"{len(score)} scores do not match {len(label)} labels of one video")
        abnormal = np.asarray(label, dtype=bool) & np.isfinite(score)
        normal = ~np.asarray(label, dtype=bool) & np.isfinite(score)
        alarms = find_events(score, threshold, release=release, min_gap_frames=min_gap_frames(rate))
        alarmed = np.zeros(len(score), dtype=bool)
        for start, end in alarms:
            alarmed[start : end + 1] = True
            false_alarms += not abnormal[start : start + round(EARLY_S * rate) + 1].any()
        normal_frames += int(normal.sum())
        normal_s += float(normal.sum()) / rate
        alarmed_frames += int((alarmed & normal).sum())
        for start, end in find_events(abnormal.astype(np.float64), 1.0, release=1.0):
            events += 1
            inside = alarmed[start : end + 1]
            if inside.any():
                found += 1
                delays.append(float(np.argmax(inside)) / rate)

    hours = normal_s / 3600
    nan = float("nan")
    return EventMetrics(
        false_alarms=false_alarms,
        normal_hours=hours,
        false_alarms_per_hour=false_alarms / hours if hours else nan,
        normal_alarmed=alarmed_frames / normal_frames if normal_frames else nan,
        events=events,
        found=found,
        share_found=found / events if events else nan,
        delay_s=float(np.median(delays)) if delays else nan,
    )


# ------------------------------------------------------------------------------ localisation


class Masks(Protocol):
    """Marked pixels of one video."""

    def __len__(self) -> int: ...
    def frame(self, index: int, /) -> npt.NDArray[np.bool_]:
        """(H, W), True on the abnormal pixels."""
        ...


@dataclass(frozen=True, kw_only=True)
class BoxHits:
    """How often the peak box points at the anomaly. Add the videos' counts with `+`."""

    hits: int = 0
    frames: int = 0  # frames with marked pixels; one without a box is a miss
    marked: float = 0.0  # sum over them of the share of the image that is marked

    def __add__(self, other: "BoxHits") -> "BoxHits":
        return BoxHits(
            hits=self.hits + other.hits,
            frames=self.frames + other.frames,
            marked=self.marked + other.marked,
        )

    @property
    def share(self) -> float:
        """Share of frames whose box hit."""
        return self.hits / self.frames if self.frames else float("nan")

    @property
    def chance(self) -> float:
        """What a box at a random place would reach."""
        return self.marked / self.frames if self.frames else float("nan")


def peak_box_hits(
    boxes: npt.NDArray[np.float32], masks: Masks, *, scored: slice = slice(OBSERVED, None)
) -> BoxHits:
    """The pointing game: a box (T, 4) of x, y, w, h hits if its centre is a marked pixel.

    Of the `scored` frames, one without a box is a miss. A covering share would reward boxes for
    being large; the centre does not.
    """
    if len(boxes) != len(masks):
        raise InputError(f"{len(boxes)} frames of boxes do not match {len(masks)} frames of masks")
    hits = frames = 0
    marked = 0.0
    for index in range(*scored.indices(len(boxes))):
        mask = masks.frame(index)  # (H, W)
        if not mask.any():
            continue
        frames += 1
        marked += float(mask.mean())
        x, y, width, height = (float(value) for value in boxes[index])
        column, row = x + width / 2, y + height / 2
        if 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]:  # False for NaN: no box
            hits += bool(mask[int(row), int(column)])
    return BoxHits(hits=hits, frames=frames, marked=marked)


class PixelAuroc:
    """AUROC over all pixels of all frames in constant memory: a histogram a class.

    The bins are those of the float itself: sign, exponent and 9 bits of mantissa, so that any
    range of heat is resolved to 0.2 % without knowing it beforehand. Values in one bin tie.
    """

    _DROPPED = 14  # of float32's 23 mantissa bits

    def __init__(self) -> None:
        self._bins = 1 << (32 - self._DROPPED)
        self._normal = np.zeros(self._bins, dtype=np.int64)
        self._abnormal = np.zeros(self._bins, dtype=np.int64)

    def update(self, heat: npt.NDArray[np.floating[Any]], mask: npt.NDArray[np.bool_]) -> None:
        """Add one frame: heat (h, w) of any scale, resized to the mask (H, W)."""
        if heat.ndim != 2 or mask.ndim != 2 or not np.isfinite(heat).all():
            raise InputError(
                f"pixel AUROC needs finite heat (h, w) and a mask (H, W), got {heat.shape} and "
                f"{mask.shape}; leave out frames without a heat map"
            )
        pixels = np.ascontiguousarray(heat, dtype=np.float32)
        if heat.shape != mask.shape:
            size = (mask.shape[1], mask.shape[0])
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR))
        bits = (pixels + np.float32(0.0)).view(np.uint32)  # + 0.0: -0 and 0 are one value
        sign = np.uint32(0x80000000)
        rank = np.where(bits & sign, ~bits, bits | sign) >> np.uint32(self._DROPPED)  # monotone
        self._abnormal += np.bincount(rank[mask], minlength=self._bins)
        self._normal += np.bincount(rank[~mask], minlength=self._bins)

    @property
    def pixels(self) -> int:
        """How many pixels were added."""
        return int(self._normal.sum() + self._abnormal.sum())

    def value(self) -> float:
        """The AUROC so far; NaN while there are pixels of one class only."""
        n_normal, n_abnormal = int(self._normal.sum()), int(self._abnormal.sum())
        if n_normal == 0 or n_abnormal == 0:
            return float("nan")
        below = np.cumsum(self._normal) - self._normal
        # Floats here: the product of two pixel counts outgrows 64 bits on long videos.
        wins = self._abnormal.astype(np.float64) @ (below + 0.5 * self._normal)
        return float(wins / n_normal / n_abnormal)


def localisation(boxes: BoxHits, pixels: PixelAuroc | None = None) -> dict[str, float]:
    """Both figures under the names `evaluation.py` takes."""
    return {
        "box_hit_share": boxes.share,
        "box_hit_chance": boxes.chance,
        "frames": boxes.frames,
        "pixel_auroc": float("nan") if pixels is None else pixels.value(),
    }
