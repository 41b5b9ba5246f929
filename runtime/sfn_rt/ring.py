"""What the last frames left behind, on a device: the memory of S streams.

A feature's sequence holds, frame after frame and within a frame stream after stream, the L entries
before a block and then the block's own. So a block of all streams is one piece of memory: encoders
write there, and what was `back` frames earlier is read there, without a copy.

    before the block   block              L = T, but T - 1 for motion
    | 0 .. L - 1 |     | L .. L + b - 1 |

Only the decoder's windows are put together, L entries side by side, and after each block the last L
entries move to the front. Before the first frames lie zeros.

Axes: S streams, b frames of a block, T observed frames of a clip, L kept entries of a feature.
"""

from collections.abc import Mapping
from math import prod

import numpy as np

from sfn_rt.backends.base import Array
from sfn_rt.backends.device import Buffer, Memory

PAIRS = "motion"  # its entries lie between two frames: there is one less of them


class Ring:
    """The features of S streams that the next predictions still need."""

    def __init__(
        self,
        memory: Memory,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        observed: int,
        streams: int,
        block: int,
    ) -> None:
        """`shapes` are those of one frame's features, by name; `block` is the most frames."""
        self._memory, self._streams, self._observed = memory, streams, observed
        self._kept = {name: observed - (name == PAIRS) for name in shapes}
        self._sequences = {
            name: memory.empty(((self._kept[name] + block) * streams, *shape), "float32")
            for name, shape in shapes.items()
        }
        self.seen = [0] * streams  # frames of each stream, from its beginning

    @property
    def buffers(self) -> list[Buffer]:
        """To give back."""
        return list(self._sequences.values())

    def block(self, name: str, b: int, back: int = 0) -> Buffer:
        """(b S, ...): the block's entries, or those of the frames `back` before each."""
        first = (self._kept[name] - back) * self._streams
        return self._sequences[name].rows(first, first + b * self._streams)

    def windows(self, name: str, b: int, to: Buffer) -> Buffer:
        """(b S, L, ...): what lies before each of the block's entries, put together in `to`."""
        length, row = self._kept[name], self._sequences[name].row_bytes
        n, source = b * self._streams, self._sequences[name].pointer
        if n == 1:
            return self._sequences[name].view(1, length, *self._sequences[name].shape[1:])
        for k in range(length):
            self._memory.copy(
                source + k * self._streams * row,
                to.pointer + k * row,
                width=row,
                rows=n,
                source_pitch=row,
                to_pitch=length * row,
            )
        return to.rows(0, n)

    def advance(self, b: int) -> None:
        """Move each feature's last entries to its front, a block of b being over."""
        for name, sequence in self._sequences.items():
            length, one = self._kept[name], self._streams * sequence.row_bytes
            for start in range(0, length, b):  # pieces of b: source and target never overlap
                piece = min(b, length - start) * one
                at = sequence.pointer + start * one
                self._memory.copy(at + b * one, at, width=piece)

    def state(self, stream: int) -> dict[str, Array]:
        """What is kept of a stream, oldest first; nothing of before its beginning."""
        arrays = {}
        for name, sequence in self._sequences.items():
            length = self._kept[name]
            n = min(max(self.seen[stream] - (name == PAIRS), 0), length)
            if n:
                whole = self._memory.download(sequence.rows(0, length * self._streams))
                split = whole.reshape(length, self._streams, *sequence.shape[1:])
                arrays[name] = split[length - n :, stream].copy()
        return arrays

    def restore(self, stream: int, state: Mapping[str, Array]) -> None:
        """Put back what `state` gave; nothing begins the stream anew."""
        for name, sequence in self._sequences.items():
            length, shape = self._kept[name], sequence.shape[1:]
            entries = np.zeros((length, *shape), np.float32)
            given = state.get(name, entries[:0])
            if given.shape[1:] != shape or len(given) > length:
                raise ValueError(f"{name} must be up to {length} of {shape}, got {given.shape}")
            entries[length - len(given) :] = given
            for t, entry in enumerate(entries):
                at = t * self._streams + stream
                self._memory.upload(np.ascontiguousarray(entry[None]), sequence.rows(at, at + 1))
            self._memory.synchronize()
        self.seen[stream] = len(state["frame"]) if "frame" in state else 0


def per_stream(rows: Array, streams: int) -> Array:
    """(b S, ...) as it lies on the device to (S, b, ...)."""
    b = len(rows) // streams
    return np.swapaxes(rows.reshape(b, streams, *rows.shape[1:]), 0, 1)


def frames_first(arrays: Array) -> Array:
    """(S, b, ...) to (b S, ...) as it lies on the device."""
    swapped = np.swapaxes(arrays, 0, 1)
    return np.ascontiguousarray(swapped).reshape(prod(swapped.shape[:2]), *swapped.shape[2:])
