"""Predicted against real frame: error per pixel, evidence per frame, and where it is largest.

    mean         mean of (I^ - I)^2 over the frame                            paper Eq. (13)
    psnr         -PSNR in dB, 10 log10 of that mean; the dual-memory system's
    largest_box  largest share, over any box of the size of a person, of pixels whose error is
                 larger than that of 99 of 100 pixels of normal footage

The paper's mean drowns one small thing in a wide frame; a box of the size of what moves in the
scene does not. The share asks how much of a body was mispredicted, not how strongly: a white shirt
errs more than a grey one wherever it goes, and the mean of a box would measure the shirt. Both live
in the normalised space of the loss.

Axes: B frames, h and w the model's frame size, C = 3 channels, gh and gw the patch grid.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Box = tuple[float, float, float, float]
Measure = Literal["largest_box", "mean", "psnr"]
LEAST_MEAN = 1e-10  # mean squared error: a perfect copy is 100 dB, not without bound


@dataclass(frozen=True, kw_only=True)
class VisualConfig:
    """How the visual evidence is measured; part of the bundle's manifest."""

    measure: Measure = "largest_box"
    box_height: int = 16  # pixels at the model's frame size
    box_width: int = 16
    pixel_error: float = 0.2  # absolute error from which a pixel counts as mispredicted
    grid_height: int = 13  # cells of the heat map
    grid_width: int = 20

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure):
            raise ValueError(f"measure must be one of {get_args(Measure)}, got {self.measure!r}")
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
    if config.measure != "largest_box":
        evidence = float(np.mean(np.square(error)))
    if config.measure == "psnr":
        evidence = 10 * float(np.log10(max(evidence, LEAST_MEAN)))
    heat = cv2.resize(
        error, (config.grid_width, config.grid_height), interpolation=cv2.INTER_AREA
    ).astype(np.float16)
    return VisualError(evidence, (x / width, y / height, box_w / width, box_h / height), heat)


def semantic_error(
    predicted: FloatArray, actual: FloatArray, n_windows: int = 1
) -> NDArray[np.float64]:
    """1 - cosine of sentence embeddings, mean over windows; paper Eq. (13) with one.

    (B, K S) twice to (B,).
    """
    p, a = (x.astype(np.float64).reshape(len(x) * n_windows, -1) for x in (predicted, actual))
    norms = np.linalg.norm(p, axis=1) * np.linalg.norm(a, axis=1)
    error = 1.0 - np.einsum("bs,bs->b", p, a) / np.maximum(norms, 1e-12)  # (B K,)
    return np.asarray(error.reshape(-1, n_windows).mean(axis=1))
