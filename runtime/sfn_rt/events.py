"""Scores to events: when something abnormal begins, peaks and ends, and what it is.

An event begins at the first frame whose score reaches the threshold and lasts while the score
stays at or above `release` times the threshold: without that slack, noise around the threshold
would ring the bell at every frame. A new beginning at most `min_gap_frames` after the last frame
of an event continues that event: one walker behind a pillar is one event, not two.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from sfn_rt.exceptions import InputError
from sfn_rt.scores import FloatArray

RELEASE = 0.8  # share of the threshold at which an event ends
MIN_GAP_S = 1.0  # shorter pauses do not end an event

Box = tuple[float, float, float, float]  # x, y, w, h in source pixels


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is said and shown of one frame; without a caption there is nothing to say of it."""

    caption: str = ""
    explanation: str = ""
    box: Box | None = None
    nearest: str = ""  # the caption of normal footage that is most like this one
    new: tuple[str, ...] = ()  # phrases of the caption that `nearest` does not say
    caption_age: int | None = None  # frames from the one it was made for to this one
    caption_cut: bool = False  # it had not ended at the most words allowed


def min_gap_frames(fps: float) -> int:
    """The pause that ends an event, in frames of a video with `fps` frames a second."""
    return max(1, round(MIN_GAP_S * fps))


@dataclass(frozen=True, kw_only=True)
class Event(Description):
    """One abnormal stretch of a video, described by its peak; frames are 0-based, both ends in."""

    start_frame: int
    end_frame: int
    peak_frame: int
    start_s: float
    end_s: float
    peak_s: float
    score: float  # at the peak

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """From `asdict` of one that has been through JSON, where tuples became lists."""
        box = raw["box"]
        x_y_w_h = None if box is None else (box[0], box[1], box[2], box[3])
        return cls(**{**raw, "box": x_y_w_h, "new": tuple(raw.get("new", ()))})


class EventDetector:
    """Finds events in a stream, a frame at a time. Holds one open event, whatever the length."""

    def __init__(
        self, threshold: float, *, release: float = RELEASE, min_gap_frames: int = 1
    ) -> None:
        _check(threshold, release, min_gap_frames)
        self._threshold = threshold
        self._release = release * threshold
        self._min_gap = min_gap_frames
        self._open: Event | None = None
        self._active = False  # the open event's last frame was the stream's last frame

    def update(
        self, frame: int, time_s: float, score: float, describe: Callable[[], Description]
    ) -> Event | None:
        """Take the next frame; the event that this frame shows to be over, if any.

        A score of NaN (a frame that cannot be scored) is never part of an event. `describe` is
        asked only where a new peak is reached, since words and boxes cost more than scores.
        """
        finished = None
        current = self._open
        # Frames may have been dropped, so the gap is read from frame numbers, not counted.
        if current is not None and frame - current.end_frame > max(self._min_gap, 1):
            finished, current = self.finish(), None

        if score >= self._threshold or (self._active and score >= self._release):
            if current is None:
                self._open = self._peak(frame, time_s, score, describe, frame, time_s)
            elif score > current.score:
                self._open = self._peak(
                    frame, time_s, score, describe, current.start_frame, current.start_s
                )
            else:
                self._open = replace(current, end_frame=frame, end_s=time_s)
            self._active = True
            return finished

        self._active = False
        if current is not None and frame - current.end_frame >= self._min_gap:
            finished = self.finish()
        return finished

    def finish(self) -> Event | None:
        """Close the open event, if any: the stream has ended."""
        event, self._open, self._active = self._open, None, False
        return event

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on exactly; survives JSON."""
        return {"open": None if self._open is None else asdict(self._open), "active": self._active}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._active = bool(state["active"])
        self._open = None if state["open"] is None else Event.of(state["open"])

    @staticmethod
    def _peak(
        frame: int,
        time_s: float,
        score: float,
        describe: Callable[[], Description],
        start_frame: int,
        start_s: float,
    ) -> Event:
        return Event(
            **vars(describe()),
            start_frame=start_frame,
            end_frame=frame,
            peak_frame=frame,
            start_s=start_s,
            end_s=time_s,
            peak_s=time_s,
            score=score,
        )


def find_events(
    scores: FloatArray, threshold: float, *, release: float = RELEASE, min_gap_frames: int = 1
) -> list[tuple[int, int]]:
    """First and last frame of each event in a whole video (T,), as EventDetector finds them."""
    _check(threshold, release, min_gap_frames)
    score = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=-np.inf)
    begins = score >= threshold
    decided = begins | ~(score >= release * threshold)  # between the two levels nothing changes
    last_decided = np.maximum.accumulate(np.where(decided, np.arange(len(score)), -1))
    active = (last_decided >= 0) & begins[np.maximum(last_decided, 0)]  # (T,)

    edges = np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0))
    start, end = edges[::2], edges[1::2] - 1  # inclusive
    if start.size == 0:
        return []
    apart = start[1:] - end[:-1] > min_gap_frames
    first = np.flatnonzero(np.r_[True, apart])
    last = np.flatnonzero(np.r_[apart, True])
    return [(int(start[i]), int(end[j])) for i, j in zip(first, last, strict=True)]


def _check(threshold: float, release: float, min_gap_frames: int) -> None:
    if not (np.isfinite(threshold) and threshold > 0):
        raise InputError(f"event threshold must be a positive number, got {threshold}")
    if not 0 < release <= 1:
        raise InputError(f"release must be in (0, 1], got {release}")
    if min_gap_frames < 0:
        raise InputError(f"min_gap_frames must be 0 or more, got {min_gap_frames}")
