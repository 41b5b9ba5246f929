"""A caption says what happens in a clip; whoever can do that is a `Captioner`.

A caption asked for at frame t is of the clip that predicts t and so ends at frame t - 1. Its
sentence embedding is the text input of the model and the target of the semantic term. A model that
reads several caption windows gets one caption of each, all made at the same frames. `narrator.py`
keeps what a caption can be made of, `lane.py` decides at which frames one is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sfn_rt.backends.base import Array
from sfn_rt.frames import Frame
from sfn_rt.semantics.scene import Scene


@dataclass(frozen=True)
class Clip:
    """The frames that one caption tells of, oldest first, and what moves in each."""

    end_frame: int  # index of the last of them
    frames: Sequence[Frame]  # of a window longer than the observed frames, only those are kept
    scenes: Sequence[Scene]  # of the whole window
    longer: bool = False  # the window is longer than the observed frames: tell all of it


@dataclass(frozen=True, eq=False)
class Moment:
    """All that captions for predicting one frame can be made of; those before it, oldest first.

    Axes: T observed frames, N patches, C width of the vision tower.
    """

    t: int  # index of the predicted frame, which is not among them
    time_s: float  # of it
    frames: Sequence[Frame]  # the T observed
    scenes: Sequence[Scene]  # of the longest window
    hidden: Array | None = None  # (T, 1+N, C) where the model's own tower saw the frames already


@dataclass(frozen=True)
class Said:
    """What a language model said of a clip."""

    text: str
    cut: bool  # it had not ended at the cap
    tokens: tuple[int, ...] = ()


class Captioner(Protocol):
    """Writes one caption a clip. Must be deterministic: a resumed run has to agree with itself."""

    name: str
    needs_scenes: bool  # False where captions are made without knowing what moves

    def caption(self, clip: Clip) -> str:
        """Describe the clip in plain English; never empty."""
        ...
