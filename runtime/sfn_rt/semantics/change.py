"""How much has changed: the two signals by which the lane's policy `change` asks for a caption.

    motion      mean absolute difference of the last two observed frames, in the most changed cells
    appearance  1 - cosine of each patch's tokens to those of a reference picture, in the most
                changed patches

The most changed places count, because one cyclist is a hundredth of a picture. The reference is the
picture of the newest caption that was asked for, and at most `PERIOD` frames old: what crept
in over minutes is not a change. What is much is read from normal footage, as a quantile of these
same numbers.

Axes: N patches, D width, h and w the model's frame size, gh and gw cells.
"""

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from sfn_rt.backends.base import Array

PERIOD = 25  # frames after which the reference is renewed
TOP_SHARE = 0.02  # of the cells or patches, and at least 4 of them
FloatArray = NDArray[np.float32]


class ChangeSignals:
    """The signals of one stream, a frame at a time; state is one picture's tokens."""

    def __init__(self, grid: tuple[int, int]) -> None:
        self._grid = grid  # gh, gw
        self._reference: FloatArray | None = None  # (N, D), rows of length 1
        self._newest: FloatArray | None = None
        self._age = 0

    def measure(self, tokens: FloatArray | None, difference: FloatArray) -> dict[str, float]:
        """Of the newest observed frame: tokens (1 + N, D), and (3, h, w) less the one before."""
        rows, columns = self._grid
        red, green, blue = np.abs(difference)  # (h, w) each
        change = cv2.add(cv2.add(red, green), blue)  # twice as fast as numpy's mean
        cells = cv2.resize(change, (columns, rows), interpolation=cv2.INTER_AREA)
        signals = {"motion": _mean_of_most(np.asarray(cells, np.float32).ravel()) / 3}
        if tokens is None:
            return signals
        patches = tokens[1:]  # the class token is of the whole picture
        length = np.linalg.norm(patches, axis=1, keepdims=True)
        self._newest = patches / np.maximum(length, 1e-12)
        if self._reference is None or self._age >= PERIOD:
            self.renew()
        assert self._reference is not None
        cosine = np.einsum("nd,nd->n", self._newest, self._reference)
        self._age += 1
        return signals | {"appearance": _mean_of_most(1 - cosine)}

    def renew(self) -> None:
        """The newest frame is the reference from now on."""
        self._reference, self._age = self._newest, 0

    def state(self) -> tuple[dict[str, Array], int]:
        """An array and a number to continue from, exactly."""
        return {} if self._reference is None else {"reference": self._reference}, self._age

    def restore(self, arrays: Mapping[str, Array], age: int) -> None:
        """Continue where `state` was taken."""
        self._reference, self._age = arrays.get("reference"), age


def _mean_of_most(values: FloatArray) -> float:
    n = max(4, round(TOP_SHARE * len(values)))
    most = values if n >= len(values) else np.partition(values, -n)[-n:]
    return float(most.mean())
