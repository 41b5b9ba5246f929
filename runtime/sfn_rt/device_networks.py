"""One stream's networks on a device, for `sfn_rt.evidence`.

Where nothing but the errors is asked for, a block crosses once in and once out; the lane's
questions (how much has changed, what the VLM's tower saw) are downloads of their own, and captions
that are new after such a question are an upload of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfn_rt.backends.base import Array
from sfn_rt.backends.device import DeviceBackend
from sfn_rt.frames import Frame
from sfn_rt.networks import Errors, NetworkSettings
from sfn_rt.resident import Resident


@dataclass(frozen=True)
class DeviceSeen:
    """A block after the encoders, and what was asked to be shown of it."""

    n_predicted: int
    tokens: Array | None  # (p, 1 + N, D) of the last observed frame of each clip
    difference: Array | None  # (p, 3, h, w) between the last two observed frames of each clip
    hidden: Array | None  # (b, 1 + N, C) of the block's frames, by the vision tower


class DeviceNetworks:
    """Frames go to the device, errors come back."""

    def __init__(self, backend: DeviceBackend, settings: NetworkSettings, block: int) -> None:
        self._resident = Resident(backend, settings, block=block)

    def look(self, frames: Sequence[Frame]) -> NDArray[np.uint8]:
        """(b, H, W, 3): the pictures as they are."""
        return np.stack([frame.image for frame in frames])

    def encode(self, pictures: Array, *, change: bool, hidden: bool) -> DeviceSeen:
        """Take the next frames (b, H, W, 3), and show what the lane asks to see."""
        seen = self._resident.encode([pictures], change=change, hidden=hidden)
        (n,) = seen.n_predicted
        first = len(pictures) - n
        return DeviceSeen(
            n,
            tokens=None if seen.tokens is None else seen.tokens[0, first:],
            difference=None if seen.difference is None else seen.difference[0, first:],
            hidden=None if seen.hidden is None else seen.hidden[0],
        )

    def decode(self, seen: DeviceSeen, pictures: Array, text: Array | None) -> Errors | None:
        """Predict the block's frames and compare; None where none has T before it."""
        if seen.n_predicted == 0:
            return None
        captions = None
        if text is not None:
            captions = np.zeros((1, len(pictures), text.shape[1]), np.float32)
            captions[0, len(pictures) - seen.n_predicted :] = text
        measured = self._resident.decode(captions)
        semantic = measured.column("semantic")
        return Errors(
            measured.visual(),
            None if semantic is None else semantic.astype(np.float64),
            measured.column("distilled"),
        )

    def state(self) -> dict[str, Array]:
        """Arrays to continue from, exactly."""
        return self._resident.state()

    def restore(self, state: Mapping[str, Array]) -> None:
        """Continue where `state` was taken."""
        self._resident.restore(state)
