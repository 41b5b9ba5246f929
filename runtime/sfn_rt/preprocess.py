"""Turns a frame into the array the networks see; the same function in training and on devices.

    y = (resize(x) / 255 - mean) / std, per channel

`area` is OpenCV's pixel-area averaging (bilinear along an axis that grows). `bicubic` is the
cubic convolution of Keys (a = -0.5) with its support widened when shrinking, as PIL's and the
paper's preprocessing do; a plain cubic filter would alias. Nothing is rounded to 8 bits between.

Axes: H, W the frame's height and width, h, w the height and width asked for.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from sfn_rt.exceptions import InputError

FloatArray = NDArray[np.float32]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CUBIC_SUPPORT = 2.0  # source pixels either side of the centre, before widening
BLOCK = 32  # output rows filtered together: small enough to touch little, large enough for BLAS


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a bundle's networks expect of a frame. Saved with the model, never guessed."""

    height: int  # pixels
    width: int  # pixels
    resize: Literal["area", "bicubic"] = "area"
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of RGB scaled to 0..1
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
        if self.resize not in ("area", "bicubic"):
            raise ValueError(f"resize must be 'area' or 'bicubic', got {self.resize!r}")
        for name, triple in (("mean", self.mean), ("std", self.std)):
            if len(triple) != 3 or not all(np.isfinite(triple)):
                raise ValueError(f"{name} must be three finite numbers, got {triple!r}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, got {self.std!r}")


def preprocess(image: NDArray[np.uint8], spec: Preprocessing) -> FloatArray:
    """Resize and normalise one frame (H, W, 3) of RGB; returns (3, h, w)."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"frame must be uint8[height, width, 3], got {image.dtype}{list(image.shape)}"
        )
    resize = _resize_area if spec.resize == "area" else _resize_bicubic
    resized = resize(image, spec.height, spec.width)  # (h, w, 3), 0..255
    out = np.empty((3, spec.height, spec.width), dtype=np.float32)
    for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
        np.multiply(resized[:, :, channel], np.float32(1 / (255 * std)), out=out[channel])
        out[channel] -= np.float32(mean / std)
    return out


@lru_cache(maxsize=32)
def resize_matrix(n_in: int, n_out: int, resize: Literal["area", "bicubic"]) -> FloatArray:
    """What `preprocess` does along one axis of n_in pixels, as a matrix (n_out, n_in).

    A frame (H, W) becomes rows @ frame @ columns.T: so a GPU resizes by two products.
    """
    each = np.eye(n_in, dtype=np.float32)  # a picture for each pixel, where it alone is 1
    resized = _resize_area(each, n_out, n_in) if resize == "area" else _filter_rows(each, n_out)
    resized.setflags(write=False)  # kept for the next caller
    return resized


def _resize_area(image: NDArray[np.uint8] | FloatArray, height: int, width: int) -> FloatArray:
    # Shrink first: INTER_AREA means something else to OpenCV once either axis grows.
    small = (min(width, image.shape[1]), min(height, image.shape[0]))
    resized = image.astype(np.float32)
    if small != (image.shape[1], image.shape[0]):
        resized = cv2.resize(resized, small, interpolation=cv2.INTER_AREA).astype(
            np.float32, copy=False
        )
    if small != (width, height):
        resized = cv2.resize(resized, (width, height), interpolation=cv2.INTER_LINEAR).astype(
            np.float32, copy=False
        )
    return resized


def _resize_bicubic(image: NDArray[np.uint8], height: int, width: int) -> FloatArray:
    n_rows, n_columns = image.shape[:2]
    rows = image.reshape(n_rows, n_columns * 3).astype(np.float32)  # (H, W*3)
    tall = _filter_rows(rows, height).reshape(height, n_columns, 3)  # (h, W, 3)
    across = tall.transpose(1, 0, 2).reshape(n_columns, height * 3)  # (W, h*3)
    return _filter_rows(across, width).reshape(width, height, 3).transpose(1, 0, 2)  # (h, w, 3)


def _filter_rows(x: FloatArray, size: int) -> FloatArray:
    """Resample the rows of (H, M) to (size, M)."""
    if len(x) == size:
        return x
    out = np.empty((size, x.shape[1]), dtype=np.float32)
    for start, first, weights in _cubic_blocks(len(x), size):
        np.matmul(
            weights, x[first : first + weights.shape[1]], out=out[start : start + len(weights)]
        )
    return out


@lru_cache(maxsize=32)
def _cubic_blocks(n_in: int, n_out: int) -> list[tuple[int, int, FloatArray]]:
    """Interpolation weights as dense blocks: (first output, first input, (outputs, inputs)).

    Output i is centred on input (i + 0.5) * n_in / n_out - 0.5; weights that would fall outside
    the picture are dropped and the others rescaled to sum 1, as PIL does.
    """
    scale = n_in / n_out
    widen = max(scale, 1.0)
    support = CUBIC_SUPPORT * widen
    centre = (np.arange(n_out) + 0.5) * scale  # (n_out,)
    low = np.maximum((centre - support + 0.5).astype(int), 0)
    high = np.minimum((centre + support + 0.5).astype(int), n_in)
    blocks = []
    for start in range(0, n_out, BLOCK):
        stop = min(start + BLOCK, n_out)
        first, last = int(low[start]), int(high[stop - 1])
        tap = np.arange(first, last)  # (inputs,)
        weights = _keys_cubic((tap[None] - centre[start:stop, None] + 0.5) / widen)
        weights[(tap < low[start:stop, None]) | (tap >= high[start:stop, None])] = 0.0
        weights /= weights.sum(axis=1, keepdims=True)
        blocks.append((start, first, weights.astype(np.float32)))
    return blocks


def _keys_cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic convolution kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
