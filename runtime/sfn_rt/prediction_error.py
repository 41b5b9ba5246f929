"""Predicted against real frame: error per pixel, evidence per frame, and where it is largest.

    mean         mean of (I^ - I)^2 over the frame                            paper Eq. (13)
    largest_box  largest share, over any box of the size of a person, of pixels whose error is
                 larger than that of 99 of 100 pixels of normal footage

The paper's mean drowns one small thing in a wide frame; a box of the size of what moves in the
scene does not. The share asks how much of a body was mispredicted, not how strongly: a white shirt
errs more than a grey one wherever it goes, and the mean of a box would measure the shirt. Both live
in the normalised space of the loss.

Axes: B frames, h and w the model's frame size, C = 3 channels, gh and gw the patch grid.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class VisualConfig:
    """How the visual evidence is measured; part of the bundle's manifest."""

    measure: Literal["largest_box", "mean"] = "largest_box"
    box_height: int = 16  # pixels at the model's frame size
    box_width: int = 16
    pixel_error: float = 0.2  # absolute error from which a pixel counts as mispredicted
    grid_height: int = 13  # cells of the heat map
    grid_width: int = 20

    def __post_init__(self) -> None:
        if self.measure not in ("largest_box", "mean"):
            raise ValueError(f"measure must be 'largest_box' or 'mean', got {self.measure!r}")
        for name in ("box_height", "box_width", "grid_height", "grid_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.pixel_error < float("inf"):
            raise ValueError(f"pixel_error must be above 0, got {self.pixel_error}")


@dataclass(frozen=True, slots=True)
class VisualError:
    """The error of one frame."""

    evidence: float
    box: Box  # x, y, w, h of the box that errs most, as shares of the frame
    heat: NDArray[np.float16]  # (gh, gw) mean absolute error a cell


def absolute_error(predicted: FloatArray, actual: FloatArray) -> FloatArray:
    """Root of the mean squared error over channels: (B, 3, h, w) twice to (B, h, w)."""
    difference = predicted - actual
    squared = np.einsum("bchw,bchw->bhw", difference, difference)  # (B, h, w)
    return np.asarray(np.sqrt(squared / difference.shape[1]), dtype=np.float32)


def measure_error(error: FloatArray, config: VisualConfig) -> VisualError:
    """Evidence, peak box and heat map of one frame's absolute error (h, w)."""
    height, width = error.shape
    box_h, box_w = min(config.box_height, height), min(config.box_width, width)
    # Anchored at the top left, so that cell (y, x) is the box that begins there.
    wrong = (error > config.pixel_error).astype(np.float32)  # (h, w)
    boxes = cv2.boxFilter(wrong, -1, (box_w, box_h), anchor=(0, 0))
    boxes = boxes[: height - box_h + 1, : width - box_w + 1]
    top = int(boxes.argmax())
    y, x = divmod(top, boxes.shape[1])
    evidence = float(boxes[y, x])
    if config.measure == "mean":
        evidence = float(np.mean(np.square(error)))
    heat = cv2.resize(
        error, (config.grid_width, config.grid_height), interpolation=cv2.INTER_AREA
    ).astype(np.float16)
    return VisualError(evidence, (x / width, y / height, box_w / width, box_h / height), heat)


def semantic_error(predicted: FloatArray, actual: FloatArray) -> NDArray[np.float64]:
    """1 - cosine of sentence embeddings, (B, S) twice to (B,); paper Eq. (13)."""
    p, a = predicted.astype(np.float64), actual.astype(np.float64)
    norms = np.linalg.norm(p, axis=1) * np.linalg.norm(a, axis=1)
    return np.asarray(1.0 - np.einsum("bs,bs->b", p, a) / np.maximum(norms, 1e-12))
