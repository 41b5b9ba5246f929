"""The networks of S streams on one device: pictures in, measured errors out, nothing else crosses.

A step takes a block of b frames of every stream: one upload (pictures and captions), resize,
differences, encoders, ring, decoder, measure, one download of M numbers a frame.

    with Resident(backend, settings, streams=16) as networks:
        measured = networks.step(images, text)        # S arrays (b, H, W, 3), and (S, b, K S')
        measured.visual(stream), measured.column("semantic", stream)

The three moments of a step apart, so that the next pictures are written while the device works:

    networks.stage(images, text); networks.launch()
    while ...:
        networks.stage(next_images, text)             # the processor copies, the device computes
        measured = networks.collect()
        networks.launch()

And in two halves, where captions are decided by what the encoders see. `encode` alone does not
even upload unless something is to be looked at: then `decode` is the step as above.

    seen = networks.encode(images, change=True)       # tokens, differences: further downloads
    measured = networks.decode(text)                  # a further upload, if captions are new

What a step does is recorded once for a block's length and the cameras' sizes, and replayed where
the memory can (CUDA graphs). The frames of a stream's beginning, which have fewer than T before
them, run like others, on zeros: `n_predicted` says how many at the end of the block count.
`DeviceNetworks` (device_networks.py) is the seam to the evidence of one stream.

Axes: S streams, b frames of a block, p of them predicted, T observed frames, N patches, D width,
K captions of S' numbers, M measured numbers.
"""

import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sfn_rt.arrivals import Arrivals, Staged
from sfn_rt.backends.base import Array
from sfn_rt.backends.device import Buffer, DeviceBackend, Memory
from sfn_rt.exceptions import BackendError
from sfn_rt.measured import measured_layout as measured_layout
from sfn_rt.measured import read_visual
from sfn_rt.networks import NetworkSettings
from sfn_rt.prediction_error import VisualError
from sfn_rt.resident_work import Work
from sfn_rt.ring import per_stream

DEVICE_PARTS = ("prepare", "difference", "measure")
RECORDED = 32  # sequences of work kept for replay; cameras that change their size make new ones

_numbers = count()  # tells the recordings of one Resident from another's


@dataclass(frozen=True)
class Measured:
    """What was found out about a block of every stream."""

    rows: NDArray[np.float32]  # (S, b, M)
    n_predicted: tuple[int, ...]  # p of each stream: its last p rows count
    layout: Mapping[str, slice]
    settings: NetworkSettings

    def of(self, stream: int) -> NDArray[np.float32]:
        """(p, M) of a stream."""
        return self.rows[stream, self.rows.shape[1] - self.n_predicted[stream] :]

    def column(self, name: str, stream: int = 0) -> NDArray[np.float32] | None:
        """(p,) of "visual", "semantic" or "distilled"; None where the model has no such."""
        return self.of(stream)[:, self.layout[name].start] if name in self.layout else None

    def visual(self, stream: int = 0) -> list[VisualError]:
        """Evidence, box and heat of each predicted frame; empty without a picture branch."""
        size = (self.settings.preprocessing.height, self.settings.preprocessing.width)
        return read_visual(self.of(stream), self.layout, self.settings.visual, size)


@dataclass(frozen=True)
class Glimpse:
    """What the host was shown of a block after the encoders, of all streams."""

    n_predicted: tuple[int, ...]
    tokens: Array | None = None  # (S, b, 1 + N, D) of the frame before each
    difference: Array | None = None  # (S, b, 3, h, w) between the two frames before each
    hidden: Array | None = None  # (S, b, 1 + N, C) of each, by the vision tower


class Resident:
    """The networks of S streams and their memory, on the device of a backend."""

    def __init__(
        self, backend: DeviceBackend, settings: NetworkSettings, *, streams: int = 1, block: int = 8
    ) -> None:
        """For blocks of at most `block` frames of every stream."""
        if missing := [part for part in DEVICE_PARTS if part not in backend.parts]:
            raise BackendError(
                f"{backend.name}: the bundle has no graph {missing[0]!r}, which keeps a stream on "
                f"the device; export the model again, or use --backend cpu"
            )
        self._backend, self._settings, self._streams = backend, settings, streams
        self._memory: Memory = backend.memory
        texts = [s.shape[1] for s in backend.parts["decoder"].inputs if s.name == "text"]
        self._takes_text = bool(texts)
        width = sum(axis for axis in texts if isinstance(axis, int))
        self._arrivals = Arrivals(
            self._memory, settings.preprocessing, streams=streams, block=block, text_width=width
        )
        self._work = Work(backend, settings, self._arrivals, streams=streams, block=block)
        self._ring = self._work.ring
        self._number, self._recorded = next(_numbers), set[Hashable]()
        self._staged: Staged | None = None  # in pinned memory, nothing of it done
        self._text: Array | None = None  # that goes with it
        self._encoded: Staged | None = None  # on the device, its decoder not yet run
        self._flying: tuple[int, ...] | None = None  # n_predicted of the step under way
        self._b = 0  # frames of the newest block
        self._finalizer = weakref.finalize(self, _release, self._memory, self._work, self._arrivals)
        self._finalizer.atexit = False  # then the memory goes as a whole

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the device's memory back; also happens when nobody holds this any more."""
        self._finalizer()

    # --- a step, whole or in its three moments

    def step(self, images: Sequence[Array], text: Array | None = None) -> Measured:
        """The next b frames of every stream, (b, H, W, 3) each, and their captions (S, b, K S')."""
        self.stage(images, text)
        self.launch()
        return self.collect()

    def stage(self, images: Sequence[Array], text: Array | None = None) -> None:
        """Write the next block where the device takes it; a step may be under way."""
        assert self._staged is None, "a staged block is launched before the next is staged"
        self._staged, self._text = self._arrivals.stage(images), self._checked(text)

    def launch(self) -> None:
        """Upload the staged block and put all its work into the stream; returns at once."""
        assert self._flying is None, "a step is collected before the next is launched"
        self._finish_encoded()
        staged = self._take()
        self._arrivals.upload(staged, self._text)

        def work() -> None:
            self._work.encode(staged)
            self._work.decode(staged.b)

        self._do(("step", staged.b, staged.groups), work)
        self._flying = self._count(staged.b)

    def collect(self) -> Measured:
        """Wait for the step under way: the one download."""
        assert self._flying is not None, "nothing was launched"
        n_predicted, self._flying = self._flying, None
        rows = self._memory.download(self._work.buffer("measured", self._b))
        layout = self._work.layout
        return Measured(per_stream(rows, self._streams), n_predicted, layout, self._settings)

    # --- a step in two halves

    def encode(
        self, images: Sequence[Array], *, change: bool = False, hidden: bool = False
    ) -> Glimpse:
        """Take the next frames, and show what the lane decides by, where it is asked for."""
        self._settle()
        self._staged, self._text = self._arrivals.stage(images), None
        n_predicted = tuple(self._predicted(seen, self._staged.b) for seen in self._ring.seen)
        hidden = hidden and "vision" in self._backend.parts
        if not (hidden or (change and any(n_predicted))):
            return Glimpse(n_predicted)
        b = self._encode_staged()
        tokens = difference = states = None
        if change:
            if self._work.has_tokens:
                tokens = self._show(self._ring.block("tokens", b, back=1))
            before = (self._ring.block("frame", b, back=1), self._ring.block("frame", b, back=2))
            difference = self._show(self._work.difference(*before))
        if hidden:
            states = self._show(self._work.buffer("vision/hidden", b))
        return Glimpse(n_predicted, tokens, difference, states)

    def decode(self, text: Array | None = None) -> Measured:
        """Predict and measure the frames that `encode` took, by their captions (S, b, K S')."""
        if self._staged is not None:
            self._text = self._checked(text)
            self.launch()
            return self.collect()
        assert self._encoded is not None, "frames are encoded before they are decoded"
        staged, self._encoded = self._encoded, None
        self._arrivals.upload(staged, self._checked(text), pictures=False)
        self._do(("decode", staged.b), lambda: self._work.decode(staged.b))
        self._flying = self._count(staged.b)
        return self.collect()

    # --- what a stream leaves behind

    def state(self, stream: int = 0) -> dict[str, Array]:
        """Arrays to continue from, as features.Predictor names and shapes them."""
        self._settle()
        return self._ring.state(stream)

    def restore(self, state: Mapping[str, Array], stream: int = 0) -> None:
        """Continue a stream where `state` was taken; nothing begins it anew."""
        self._settle()
        self._ring.restore(stream, state)

    # --- how work is put into the stream

    def _do(self, key: tuple[Hashable, ...], work: Callable[[], None]) -> None:
        if not self._backend.records:
            work()
            return
        if key not in self._recorded and len(self._recorded) >= RECORDED:
            self._memory.forget()
            self._recorded.clear()
        self._recorded.add(key)
        self._memory.replay((self._number, *key), work)

    def _take(self) -> Staged:
        """The staged block, whose matrices are on the device and which counts as seen."""
        assert self._staged is not None, "nothing was staged"
        staged, self._staged = self._staged, None
        for group in staged.groups:
            self._arrivals.matrices(group.size)
        self._b = staged.b
        return staged

    def _encode_staged(self) -> int:
        """Encode what is staged and leave the ring where the decoder takes it; b."""
        staged = self._take()
        self._arrivals.upload(staged)
        self._do(("encode", staged.b, staged.groups), lambda: self._work.encode(staged))
        self._encoded = staged
        return staged.b

    def _finish_encoded(self) -> None:
        """Move the ring on past frames that nobody decodes."""
        if self._encoded is not None:
            b, self._encoded = self._encoded.b, None
            self._do(("advance", b), lambda: self._ring.advance(b))
            self._count(b)
            self._memory.synchronize()  # their pinned place is written again

    def _settle(self) -> None:
        """Bring the ring to where the newest frames are in it."""
        if self._staged is not None:
            self._finish_encoded()
            self._encode_staged()
        self._finish_encoded()

    def _checked(self, text: Array | None) -> Array | None:
        """The captions, where the model takes any."""
        if self._takes_text and text is None:
            raise ValueError("the model takes captions: give their embeddings")
        return text if self._takes_text else None

    def _show(self, buffer: Buffer) -> Array:
        return per_stream(self._memory.download(buffer), self._streams)

    def _predicted(self, seen: int, b: int) -> int:
        return min(max(seen + b - self._settings.observed, 0), b)

    def _count(self, b: int) -> tuple[int, ...]:
        """Note that b frames more were seen; how many of them were predicted."""
        n_predicted = tuple(self._predicted(seen, b) for seen in self._ring.seen)
        self._ring.seen = [seen + b for seen in self._ring.seen]
        return n_predicted


def _release(memory: Memory, work: Work, arrivals: Arrivals) -> None:
    memory.synchronize()
    memory.forget()
    for buffer in (*work.buffers, *arrivals.buffers):
        memory.free(buffer)
