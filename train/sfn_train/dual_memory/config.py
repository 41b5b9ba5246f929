"""Architecture, pseudo-anomalies and losses of one dual-memory model."""

import math
from dataclasses import dataclass
from typing import Literal

CLIP = 16  # frames of a clip
SCORED = 8  # the clip's frame, counted from 0, whose error is the score
Skip = Literal["none", "concatenate"]


@dataclass(frozen=True, kw_only=True)
class DualMemoryConfig:
    """Saved with the checkpoint, never guessed from a path. Sizes in pixels, widths in channels."""

    frame_height: int = 256
    frame_width: int = 256
    channels: int = 1  # 1: grey, 3: RGB; converted inside the network
    widths: tuple[int, ...] = (32, 64, 128, 256)  # a level; each level halves frames and sides
    skips: tuple[Skip, ...] = ("none", "none", "none")  # a level but the lowest, finest first
    slots: int = 2000  # of each of the two memories
    shrink: float = 0.0005  # addressing weights up to this are cut to 0
    slot_spread: float = 3.0  # deviation of the logits of an untrained memory; see memory.py

    clip_step: int = 1  # frames between the beginnings of two training clips of an epoch
    pseudo_probability: float = 0.2  # that a training clip is a pseudo-anomaly
    pseudo_strides: tuple[int, ...] = (2, 3, 4, 5)  # which shows every s-th frame

    entropy: float = 2e-4  # weight of the addressing weights' entropy
    distance: float = 2e-5  # weight of the distance between the memories, which is to grow
    maximise_pseudo: bool = False  # raise the normal memory's error on pseudo-anomalies, too

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"widths must be 2 levels or more, each at least 1, got {self.widths}")
        if CLIP % self.reduction:
            raise ValueError(f"widths has {len(self.widths)} levels, {CLIP} frames allow 5")
        for name in ("frame_height", "frame_width"):
            size = getattr(self, name)
            if size < self.reduction or size % self.reduction:
                raise ValueError(
                    f"{name} {size} is no multiple of {self.reduction}, to which "
                    f"{len(self.widths)} levels reduce it"
                )
        if len(self.skips) != len(self.widths) - 1:
            raise ValueError(
                f"skips must be one for each level but the lowest, {len(self.widths) - 1}, got "
                f"{len(self.skips)}"
            )
        for name in ("slots", "clip_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.shrink < 1:
            raise ValueError(f"shrink must be 0 or above and below 1, got {self.shrink}")
        if not 0 < self.slot_spread < math.inf:
            raise ValueError(f"slot_spread must be above 0, got {self.slot_spread}")
        if not 0 <= self.pseudo_probability <= 1:
            raise ValueError(
                f"pseudo_probability must be from 0 to 1, got {self.pseudo_probability}"
            )
        if self.pseudo_probability and (not self.pseudo_strides or min(self.pseudo_strides) < 2):
            raise ValueError(
                f"pseudo_strides must be one or more, each at least 2, got {self.pseudo_strides}; "
                f"pseudo_probability 0 makes none"
            )
        for name in ("entropy", "distance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or above, got {getattr(self, name)}")

    @property
    def reduction(self) -> int:
        """Frames, rows and columns to one place of the lowest level."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Places down and across on the lowest level."""
        return self.frame_height // self.reduction, self.frame_width // self.reduction

    # What code that serves both systems asks a model.

    @property
    def observed(self) -> int:
        """Frames of a clip."""
        return CLIP

    @property
    def lag(self) -> int:
        """Frames of the clip that come after the one that is scored."""
        return CLIP - 1 - SCORED

    @property
    def patch(self) -> int:
        """Smallest side of what can be told apart."""
        return 1

    @property
    def use_text(self) -> bool:
        """There is no semantic branch."""
        return False
