"""Architecture of one SFN model."""

from dataclasses import dataclass
from typing import Literal

GateRule = Literal["raw", "renormalised", "renormalised_x2"]
FilterKind = Literal["sffm", "bottleneck", "mlp", "none"]
MLP_RATIO = 4  # of the standard MLP in the filters' place


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
    bottleneck: int | None = None  # R, its width, where it is no whole fraction: Avenue's 192
    n_filters: int = 63  # E, routed filters; one more is shared
    n_active: int = 7  # K
    n_shared: int = 1  # filters that every token passes: 0 or 1
    gate: GateRule = "renormalised_x2"
    filter: FilterKind = "sffm"  # bottleneck, mlp: one filter, dim / reduction or 4 dim wide
    memory: Literal["none", "input", "every_layer"] = "none"  # in the place of filters
    memory_slots: int = 256  # of the visual and of the semantic memory
    joint_attention: int = 0  # layers in which appearance attends to text and motion; ICME: 4
    motion_norm: bool = True  # LayerNorm at the motion encoder's end; the paper has none
    windows: tuple[int, ...] = ()  # frames that captions tell of; none: the observed ones
    tower: str | None = None  # the frozen vision tower: a folder or a hub name; none: a small ViT
    head_channels: int = 16  # between the two convolutions of the frame head; the paper: 3
    predict: Literal["frame", "change"] = "change"  # the paper: frame; change: from the last one
    use_appearance: bool = True
    use_motion: bool = True
    use_text: bool = True
    student: int = 0  # hidden width of what expects the semantic error without a caption; 0: none

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
        if self.reduction < 1 or self.rank < 1:
            raise ValueError(f"reduction {self.reduction} leaves no bottleneck of dim {self.dim}")
        if not 1 <= self.n_active <= self.n_filters:
            raise ValueError(f"n_active must be in [1, {self.n_filters}], got {self.n_active}")
        if self.n_shared not in (0, 1):
            raise ValueError(f"n_shared must be 0 or 1, got {self.n_shared}")
        if not (self.has_picture or self.use_text):
            raise ValueError("use_appearance, use_motion and use_text are all off: nothing is left")
        if self.memory != "none" and self.filter != "none":
            raise ValueError(f"memory {self.memory} takes the filters' place: set filter to none")
        if self.memory_slots < 2:
            raise ValueError(f"memory_slots must be at least 2, got {self.memory_slots}")
        if self.joint_attention < 0:
            raise ValueError(
                f"joint_attention must be 0 or more layers, got {self.joint_attention}"
            )
        if self.joint_attention and not (
            self.use_appearance and (self.use_motion or self.use_text)
        ):
            raise ValueError("joint_attention needs appearance, and text or motion to attend to")
        if any(window < 1 for window in self.windows) or list(self.windows) != sorted(
            set(self.windows)
        ):
            raise ValueError(f"windows must rise from 1 frame on, got {list(self.windows)}")
        if self.windows and not self.use_text:
            raise ValueError("windows are of captions: use_text must be on")
        if self.tower is not None and not self.use_appearance:
            raise ValueError("tower is of the appearance branch: use_appearance must be on")
        if self.student < 0:
            raise ValueError(f"student must be a width, or 0 for none, got {self.student}")

    @property
    def has_picture(self) -> bool:
        """Whether a frame is predicted; without, the caption's meaning alone is."""
        return self.use_appearance or self.use_motion

    @property
    def has_student(self) -> bool:
        """Whether a semantic error is expected; one needs a picture to expect it of."""
        return self.student > 0 and self.use_text and self.has_picture

    @property
    def caption_windows(self) -> tuple[int, ...]:
        """Frames that each caption of a clip tells of, shortest first."""
        return self.windows or (self.observed,)

    @property
    def n_windows(self) -> int:
        """K, captions of one clip."""
        return len(self.caption_windows)

    @property
    def text_width(self) -> int:
        """K S, the embeddings of a clip's captions side by side."""
        return self.n_windows * self.text_dim

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
        return self.dim // self.reduction if self.bottleneck is None else self.bottleneck
