"""Backends whose arrays stay on a device: buffers, the memory they lie in, and parts run on them.

A plain backend takes and gives arrays of the host, so what one part gives another crosses the bus
twice. Here a part reads and writes buffers, all work is put into ONE stream and is done in that
order, and only what somebody looks at comes back:

    memory = backend.memory
    frames = memory.empty((8, 3, h, w), "float32")        # zeros
    memory.upload(staging, to=frames)                      # returns at once
    backend.run("motion", {"difference": frames}, {"tokens": tokens})
    answer = memory.download(tokens)                       # waits for all of the above

Every device backend is also a plain one (`infer`): upload, run, download.

`HostMemory` is the memory of a device that is this processor: the path of a GPU, run and tested
without one. Its addresses are checked; a copy past the end of a buffer is an AssertionError.
"""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, Self

import numpy as np

from sfn_rt.backends.base import Array, Arrays, CheckedBackend, PartSpec, TensorSpec
from sfn_rt.exceptions import BackendError

BATCH = "batch"  # the axis along which a part's work can be cut
ALIGNMENT = 256  # bytes; TensorRT takes no array that begins elsewhere


@dataclass(frozen=True)
class Buffer:
    """An array on a device, contiguous: where it lies and what it means."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str  # numpy's name

    @property
    def nbytes(self) -> int:
        """Of the whole array."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def row_bytes(self) -> int:
        """Of one entry of the first axis."""
        return prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    def rows(self, start: int, stop: int) -> Self:
        """Entries start .. stop - 1 of the first axis, in place."""
        assert 0 <= start <= stop <= self.shape[0], (start, stop, self.shape)
        shape = (stop - start, *self.shape[1:])
        return type(self)(self.pointer + start * self.row_bytes, shape, self.dtype)

    def view(self, *shape: int) -> Self:
        """The beginning of the same memory as another shape."""
        seen = type(self)(self.pointer, shape, self.dtype)
        assert seen.nbytes <= self.nbytes, (shape, self.shape)
        return seen


@dataclass
class CopyCounts:
    """What crossed between host and device, and what was recorded, since the memory was opened."""

    uploads: int = 0
    downloads: int = 0
    captures: int = 0  # sequences of work recorded
    replays: int = 0  # and started again as one


class Memory(Protocol):
    """A device's memory and its one stream of work."""

    @property
    def name(self) -> str:
        """For people, e.g. "host" or the GPU's name."""
        ...

    @property
    def device(self) -> tuple[str, int]:
        """Kind and number as inference libraries say them: ("cpu", 0), ("cuda", 0)."""
        ...

    @property
    def stream(self) -> int:
        """Handle of the stream that all work is put into; 0 where there is none."""
        ...

    @property
    def counts(self) -> CopyCounts: ...

    def empty(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """A new array of zeros, which begins at a multiple of ALIGNMENT.

        BackendError, saying what is free, where it does not fit.
        """
        ...

    def free(self, buffer: Buffer) -> None:
        """Give an array of `empty` back; waits until no work needs it. Nothing after `close`."""
        ...

    def zero(self, buffer: Buffer) -> None:
        """Set all bytes to 0, in stream order."""
        ...

    def pinned(self, nbytes: int) -> Array:
        """Host memory (nbytes,) of uint8 that uploads without another copy; kept until `close`."""
        ...

    def upload(self, host: Array, to: Buffer) -> None:
        """Copy a contiguous array in, in stream order; it must stay as it is until that is done."""
        ...

    def download(self, buffer: Buffer) -> Array:
        """Wait for the stream; a new array of the host."""
        ...

    def copy(
        self,
        source: int,
        to: int,
        *,
        width: int,
        rows: int = 1,
        source_pitch: int = 0,
        to_pitch: int = 0,
    ) -> None:
        """Copy `rows` of `width` bytes on the device, in stream order; they do not overlap.

        Rows begin a pitch apart; 0 means that they lie side by side.
        """
        ...

    def synchronize(self) -> None:
        """Wait until all work is done."""
        ...

    def replay(self, key: Hashable, record: Callable[[], None]) -> None:
        """Do what `record` does: recorded once for `key`, started again as one afterwards.

        `record` only runs parts, copies and zeroes, at the same addresses whenever `key` is the
        same; no uploads, no downloads. A memory that cannot record calls it each time.
        """
        ...

    def forget(self) -> None:
        """Drop what was recorded, as it is when buffers that it used are freed."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class DeviceBackend(CheckedBackend):
    """A backend that runs parts on a device's buffers."""

    max_batch: int | None = None  # entries of BATCH that a part takes at once; None: any number
    records = True  # whether `run` may be part of what Memory.replay records

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._kept: dict[tuple[str, str], Buffer] = {}  # (part, input or output) -> for `infer`

    @abstractmethod
    def run(self, part: str, feeds: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Put one batch through `part` into the stream; shapes are those of the buffers.

        Every buffer begins at a multiple of ALIGNMENT. `outputs` may leave some out: nobody wants
        them. Does not wait.
        """

    def __exit__(self, *exc_info: object) -> None:
        self.memory.close()

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """Arrays of the host: upload, run and download, in pieces that the part can take."""
        spec = self.parts[part]
        cut = [s.name for s in spec.inputs if s.shape and s.shape[0] == BATCH]
        n = len(feeds[cut[0]]) if cut else 1
        step = min(n, self.max_batch or n)
        pieces = []
        for at in range(0, n, step):
            piece = {k: v[at : at + step] if k in cut else v for k, v in feeds.items()}
            pieces.append(self._once(part, piece, names))
        if len(pieces) == 1:
            return pieces[0]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}

    def _once(self, part: str, feeds: Arrays, names: Sequence[str]) -> dict[str, Array]:
        spec = self.parts[part]
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        inputs = {}
        for name, array in arrays.items():
            inputs[name] = self._scratch((part, name), array.shape, str(array.dtype))
            self.memory.upload(array, inputs[name])
        shapes = output_shapes(self.name, part, spec, arrays)
        outputs = {
            name: self._scratch((part, name), shapes[name], spec.output(name).dtype)
            for name in names
        }
        self.run(part, inputs, outputs)
        return {name: self.memory.download(buffer) for name, buffer in outputs.items()}

    def _scratch(self, key: tuple[str, str], shape: tuple[int, ...], dtype: str) -> Buffer:
        """A buffer that is kept for the next call and replaced where it is too small."""
        scratch = self._kept
        wanted = Buffer(0, shape, dtype)
        if key not in scratch or scratch[key].nbytes < wanted.nbytes:
            if key in scratch:
                self.memory.free(scratch.pop(key))
            scratch[key] = self.memory.empty(shape, dtype)
        return Buffer(scratch[key].pointer, shape, dtype)


def output_shapes(
    backend: str, part: str, spec: PartSpec, feeds: Mapping[str, Array] | Mapping[str, Buffer]
) -> dict[str, tuple[int, ...]]:
    """The shape of each output, its dynamic axes sized as those of the same name going in."""
    sizes: dict[int | str, int] = {}
    for tensor in spec.inputs:
        sizes |= dict(zip(tensor.shape, feeds[tensor.name].shape, strict=True))
    return {tensor.name: _sized(backend, part, tensor, sizes) for tensor in spec.outputs}


def _sized(
    backend: str, part: str, tensor: TensorSpec, sizes: Mapping[int | str, int]
) -> tuple[int, ...]:
    unknown = [a for a in tensor.shape if isinstance(a, str) and a not in sizes]
    if unknown:
        raise BackendError(
            f"{backend}: {part}: output {tensor.name!r} is {tensor}, and no input tells how large "
            f"{unknown[0]!r} is; run this part on the cpu backend"
        )
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape)


class HostMemory:
    """This processor's memory as a device's; work is done when it is asked for."""

    name = "host"
    device = ("cpu", 0)
    stream = 0

    def __init__(self) -> None:
        self.counts = CopyCounts()
        self._arrays: dict[int, Array] = {}  # pointer -> its bytes
        self._begins: list[int] = []  # pointers, rising

    def empty(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """A new array of zeros."""
        nbytes = max(1, prod(shape) * np.dtype(dtype).itemsize)
        room = np.zeros(nbytes + ALIGNMENT, np.uint8)
        begin = -room.ctypes.data % ALIGNMENT
        array = room[begin : begin + nbytes]
        self._arrays[array.ctypes.data] = array
        self._begins = sorted(self._arrays)
        return Buffer(array.ctypes.data, shape, dtype)

    def free(self, buffer: Buffer) -> None:
        """Give an array of `empty` back."""
        self._arrays.pop(buffer.pointer, None)
        self._begins = sorted(self._arrays)

    def zero(self, buffer: Buffer) -> None:
        """Set all bytes to 0."""
        self._at(buffer.pointer, buffer.nbytes)[:] = 0

    def pinned(self, nbytes: int) -> Array:
        """Host memory; all of it uploads alike here."""
        return np.zeros(nbytes, np.uint8)

    def upload(self, host: Array, to: Buffer) -> None:
        """Copy a contiguous array in."""
        assert host.flags.c_contiguous
        assert host.nbytes == to.nbytes, (host.shape, to)
        self._at(to.pointer, to.nbytes)[:] = host.reshape(-1).view(np.uint8)
        self.counts.uploads += 1

    def download(self, buffer: Buffer) -> Array:
        """A new array."""
        self.counts.downloads += 1
        return self.array(buffer).copy()

    def array(self, buffer: Buffer) -> Array:
        """The buffer itself, as numpy sees it."""
        return self._at(buffer.pointer, buffer.nbytes).view(buffer.dtype).reshape(buffer.shape)

    def copy(
        self,
        source: int,
        to: int,
        *,
        width: int,
        rows: int = 1,
        source_pitch: int = 0,
        to_pitch: int = 0,
    ) -> None:
        """Copy `rows` of `width` bytes."""
        self._strided(to, width, rows, to_pitch or width)[:] = self._strided(
            source, width, rows, source_pitch or width
        )

    def synchronize(self) -> None:
        """Nothing is ever under way."""

    def replay(self, key: Hashable, record: Callable[[], None]) -> None:
        """Do it: there is nothing to save by recording."""
        record()

    def forget(self) -> None:
        """Nothing was recorded."""

    def close(self) -> None:
        """Give everything back."""
        self._arrays.clear()
        self._begins.clear()

    def _strided(self, pointer: int, width: int, rows: int, pitch: int) -> Array:
        assert pitch >= width, (pitch, width)
        whole = self._at(pointer, pitch * (rows - 1) + width if rows else 0)
        return np.lib.stride_tricks.as_strided(whole, (rows, width), (pitch, 1))

    def _at(self, pointer: int, nbytes: int) -> Array:
        place = bisect_right(self._begins, pointer) - 1
        assert place >= 0, f"{pointer:#x} lies in no buffer"
        begin = self._begins[place]
        offset, held = pointer - begin, self._arrays[begin]
        assert offset + nbytes <= held.nbytes, f"{nbytes} bytes from {offset} of {held.nbytes}"
        return held[offset : offset + nbytes]
