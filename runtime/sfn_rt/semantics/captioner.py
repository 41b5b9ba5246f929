"""A caption says what happens in a clip; whoever can do that is a `Captioner`.

A caption is made where (t - observed) is a multiple of the stride, for the clip that predicts
frame t and so ends at frame t - 1; it holds until the next one. Its sentence embedding is the
text input of the model and the target of the semantic term. A model that reads several caption
windows gets one caption of each, all made at the same frames: `narrator.py` keeps count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sfn_rt.frames import Frame
from sfn_rt.semantics.scene import Scene


@dataclass(frozen=True)
class Clip:
    """The frames that one caption tells of, oldest first, and what moves in each."""

    end_frame: int  # index of the last of them
    frames: Sequence[Frame]  # of a window longer than the observed frames, only those are kept
    scenes: Sequence[Scene]  # of the whole window
    longer: bool = False  # the window is longer than the observed frames: tell all of it


class Captioner(Protocol):
    """Writes one caption a clip. Must be deterministic: a resumed run has to agree with itself."""

    name: str
    needs_scenes: bool  # False where captions are made without knowing what moves

    def caption(self, clip: Clip) -> str:
        """Describe the clip in plain English; never empty."""
        ...
