"""Architecture of one SFN model."""

from dataclasses import dataclass
from typing import Literal

GateRule = Literal["raw", "renormalised", "renormalised_x2"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Saved with the checkpoint, never guessed from a path. Sizes in pixels, widths in channels."""

    frame_height: int = 156
    frame_width: int = 240
    patch: int = 12  # side of a square patch
    observed: int = 4  # T, input frames of a clip; the next one is predicted
    dim: int = 64  # D, decoder width
    text_dim: int = 384  # S, width of the sentence embedding
    appearance_dim: int = 64
    appearance_depth: int = 1
    motion_dim: int = 32
    motion_depth: int = 1
    heads: int = 2
    decoder_depth: int = 4
    reduction: int = 16  # a filter's bottleneck is dim / reduction wide
    n_filters: int = 63  # E, routed filters; one more is shared
    n_active: int = 7  # K
    gate: GateRule = "renormalised_x2"
    filter: Literal["sffm", "identity"] = "sffm"
    head_channels: int = 16  # between the two convolutions of the frame head
    predict: Literal["frame", "change"] = "change"  # the paper: frame; change: from the last one
    use_appearance: bool = True
    use_motion: bool = True
    use_text: bool = True

    def __post_init__(self) -> None:
        for name in ("frame_height", "frame_width"):
            if getattr(self, name) % self.patch:
                raise ValueError(
                    f"{name} {getattr(self, name)} is no multiple of patch {self.patch}"
                )
        for name in ("dim", "appearance_dim", "motion_dim"):
            width = getattr(self, name)
            if width % self.heads or width % 4:
                raise ValueError(
                    f"{name} {width} must be a multiple of heads {self.heads} and of 4"
                )
        if self.dim // self.reduction < 1:
            raise ValueError(f"reduction {self.reduction} leaves no bottleneck of dim {self.dim}")
        if not 1 <= self.n_active <= self.n_filters:
            raise ValueError(f"n_active must be in [1, {self.n_filters}], got {self.n_active}")
        if not (self.use_appearance or self.use_motion):
            raise ValueError("use_appearance and use_motion are both off: nothing to predict from")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.frame_height // self.patch, self.frame_width // self.patch

    @property
    def n_patches(self) -> int:
        """N, patch tokens of a frame."""
        rows, columns = self.grid
        return rows * columns

    @property
    def rank(self) -> int:
        """R, bottleneck width of one filter."""
        return self.dim // self.reduction
