"""An NVIDIA GPU's memory through cuda-python: one stream, pinned staging, recorded CUDA graphs.

All calls are of the CUDA runtime (`cuda.bindings.runtime`); each returns an error code first, and
`_done` turns what is not success into one sentence with a way out.

A CUDA graph holds the kernels of a recorded sequence with their pointers, and starts them as one.
TensorRT sets itself up at the first run of a shape, which cannot be recorded. So a key's first
sequence just runs, the second is recorded, and from then on it is started again.
"""

import ctypes
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from math import prod
from typing import Any, NoReturn

import numpy as np

from sfn_rt.backends.base import Array
from sfn_rt.backends.device import Buffer, CopyCounts
from sfn_rt.exceptions import BackendError

MEGABYTE = 1e6
# CUDA's major release -> the oldest driver for Linux that runs all of its minor ones.
DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
INSTALL = "install it with the backend's extra, `pip install 'sfn-rt[trt]'`, [rtx] or [gpu]"


@dataclass(frozen=True)
class Gpu:
    """What is known of a GPU before anything runs there."""

    number: int
    name: str
    capability: tuple[int, int]

    @property
    def architecture(self) -> str:
        """As CUDA says it, e.g. "sm_89"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


@dataclass
class Recording:
    """One sequence of work that is started again; what lives as long as it does."""

    executable: Any = None  # None: has run, is not recorded yet
    kept: dict[Hashable, Any] = field(default_factory=dict)  # execution contexts of its own


def find_gpu(device: int = 0) -> Gpu:
    """The GPU of that number; BackendError where there is none or the driver does not fit."""
    cuda = _runtime()
    error, count = cuda.cudaGetDeviceCount()
    if error != cuda.cudaError_t.cudaSuccess:
        _no_gpu(cuda, error)
    if not 0 <= device < count:
        raise BackendError(f"no GPU {device}: this machine has {count}, numbered from 0")
    attributes = cuda.cudaDeviceAttr
    major, minor = (
        _done(cuda, cuda.cudaDeviceGetAttribute(attribute, device))
        for attribute in (
            attributes.cudaDevAttrComputeCapabilityMajor,
            attributes.cudaDevAttrComputeCapabilityMinor,
        )
    )
    name = _done(cuda, cuda.cudaGetDeviceProperties(device)).name
    return Gpu(device, name.decode() if isinstance(name, bytes) else str(name), (major, minor))


def use_device(device: int) -> None:
    """Make this thread work on that GPU."""
    cuda = _runtime()
    _done(cuda, cuda.cudaSetDevice(device))


class CudaMemory:
    """The memory of one GPU and its one stream."""

    def __init__(self, device: int = 0) -> None:
        self.gpu = find_gpu(device)
        self.name = self.gpu.name
        self.device = ("cuda", device)
        self.counts = CopyCounts()
        self.recording: Recording | None = None  # what `replay` runs or records just now
        self._cuda = _runtime()
        self._recordings: dict[Hashable, Recording] = {}
        self._pointers: set[int] = set()
        self._pinned: list[int] = []
        self._under_way: list[Array] = []  # host arrays that a copy may still read
        self._call(self._cuda.cudaSetDevice, device)
        self._stream: Any = self._call(
            self._cuda.cudaStreamCreateWithFlags, self._cuda.cudaStreamNonBlocking
        )

    @property
    def stream(self) -> int:
        """Handle of the stream that all work is put into."""
        return int(self._stream)

    def free_bytes(self) -> tuple[int, int]:
        """What is free, and what there is."""
        free, total = self._call(self._cuda.cudaMemGetInfo)
        return int(free), int(total)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """A new array of zeros."""
        nbytes = max(1, prod(shape) * np.dtype(dtype).itemsize)
        error, pointer = self._cuda.cudaMalloc(nbytes)
        if error == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            self._cuda.cudaGetLastError()  # else the next call reports it once more
            raise BackendError(self._does_not_fit(nbytes, shape))
        _done(self._cuda, (error,))
        self._pointers.add(int(pointer))
        buffer = Buffer(int(pointer), shape, dtype)
        self.zero(buffer)
        return buffer

    def _does_not_fit(self, nbytes: int, shape: tuple[int, ...]) -> str:
        free, total = self.free_bytes()
        return (
            f"{self.name}: no room for {nbytes / MEGABYTE:.0f} MB {list(shape)}: "
            f"{free / MEGABYTE:.0f} of {total / MEGABYTE:.0f} MB are free; take fewer streams or "
            f"a smaller block, or close what else runs there"
        )

    def free(self, buffer: Buffer) -> None:
        """Give an array of `empty` back; waits until no work needs it, nor a recording."""
        if buffer.pointer not in self._pointers:
            return  # the memory was closed as a whole
        self.forget()
        self._pointers.remove(buffer.pointer)
        self._call(self._cuda.cudaFree, buffer.pointer)

    def zero(self, buffer: Buffer) -> None:
        """Set all bytes to 0, in stream order."""
        self._call(self._cuda.cudaMemsetAsync, buffer.pointer, 0, buffer.nbytes, self._stream)

    def pinned(self, nbytes: int) -> Array:
        """Page-locked memory of the host: a GPU fetches from it by itself."""
        pointer = int(self._call(self._cuda.cudaHostAlloc, max(1, nbytes), 0))
        self._pinned.append(pointer)
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))

    def upload(self, host: Array, to: Buffer) -> None:
        """Copy a contiguous array in, in stream order."""
        assert host.flags.c_contiguous
        assert host.nbytes == to.nbytes, (host.shape, to)
        self._under_way.append(host)
        self._copy(to.pointer, host.ctypes.data, host.nbytes, "cudaMemcpyHostToDevice")
        self.counts.uploads += 1

    def download(self, buffer: Buffer) -> Array:
        """Wait for the stream; a new array of the host."""
        host = np.empty(buffer.shape, buffer.dtype)
        self._copy(host.ctypes.data, buffer.pointer, buffer.nbytes, "cudaMemcpyDeviceToHost")
        self.synchronize()
        self.counts.downloads += 1
        return host

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
        """Copy `rows` of `width` bytes on the GPU, in stream order."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        pitches = (to_pitch or width, source_pitch or width)
        assert min(pitches) >= width, (width, pitches)
        if width and rows:
            self._call(
                self._cuda.cudaMemcpy2DAsync,
                *(to, pitches[0], source, pitches[1], width, rows, kind, self._stream),
            )

    def synchronize(self) -> None:
        """Wait until all work is done."""
        if self._stream is None:
            return
        self._call(self._cuda.cudaStreamSynchronize, self._stream)
        self._under_way.clear()

    def replay(self, key: Hashable, record: Callable[[], None]) -> None:
        """Run `record` the first time, record it the second, start the recording from then on."""
        recording = self._recordings.get(key)
        if recording is None:
            recording = Recording()
            self._within(recording, record)
            self._recordings[key] = recording
            return
        if recording.executable is None:
            self._within(recording, lambda: self._record(recording, record))
            self.counts.captures += 1
        self._call(self._cuda.cudaGraphLaunch, recording.executable, self._stream)
        self.counts.replays += 1

    def _within(self, recording: Recording, work: Callable[[], None]) -> None:
        assert self.recording is None, "a recording inside a recording"
        self.recording = recording
        try:
            work()
        finally:
            self.recording = None

    def _record(self, recording: Recording, record: Callable[[], None]) -> None:
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(cuda.cudaStreamBeginCapture, self._stream, mode)
        try:
            record()
        except BaseException:
            cuda.cudaStreamEndCapture(self._stream)  # else the stream is of no more use
            cuda.cudaGetLastError()
            raise
        graph = self._call(cuda.cudaStreamEndCapture, self._stream)
        try:
            recording.executable = self._call(cuda.cudaGraphInstantiate, graph, 0)
        finally:
            self._call(cuda.cudaGraphDestroy, graph)

    def forget(self) -> None:
        """Drop what was recorded."""
        self.synchronize()
        for recording in self._recordings.values():
            if recording.executable is not None:
                self._call(self._cuda.cudaGraphExecDestroy, recording.executable)
        self._recordings.clear()

    def close(self) -> None:
        """Give everything back."""
        if self._stream is None:
            return
        # Unchecked: after a failure of the GPU every call says so again, and hides the first.
        cuda = self._cuda
        cuda.cudaStreamSynchronize(self._stream)
        self._under_way.clear()
        for recording in self._recordings.values():
            if recording.executable is not None:
                cuda.cudaGraphExecDestroy(recording.executable)
        self._recordings.clear()
        for pointer in self._pointers:
            cuda.cudaFree(pointer)
        self._pointers.clear()
        for pointer in self._pinned:
            cuda.cudaFreeHost(pointer)
        self._pinned.clear()
        cuda.cudaStreamDestroy(self._stream)
        self._stream = None

    def _copy(self, to: int, source: int, nbytes: int, kind: str) -> None:
        if nbytes:
            direction = getattr(self._cuda.cudaMemcpyKind, kind)
            self._call(self._cuda.cudaMemcpyAsync, to, source, nbytes, direction, self._stream)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return _done(self._cuda, function(*arguments), function.__name__)


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except (ImportError, RuntimeError) as error:
        raise BackendError(f"cuda-python cannot be imported ({error}); {INSTALL}") from error
    return runtime


def _done(cuda: Any, answer: tuple[Any, ...], function: str = "CUDA") -> Any:
    """What a call answered behind its error code; BackendError where that is not success."""
    error, *values = answer
    if error != cuda.cudaError_t.cudaSuccess:
        raise BackendError(
            f"the GPU failed in {function}: {_said(cuda, error)}; start again, and look at "
            f"`nvidia-smi` and the system's log if it stays"
        )
    return values[0] if len(values) == 1 else tuple(values)


def _said(cuda: Any, error: Any) -> str:
    name, text = (
        answer[1].decode() if isinstance(answer[1], bytes) else str(answer[1])
        for answer in (cuda.cudaGetErrorName(error), cuda.cudaGetErrorString(error))
    )
    return f"{name} ({int(error)}), {text}"


def _no_gpu(cuda: Any, error: Any) -> NoReturn:
    """Say why no GPU can be used, and which driver would do."""
    built_for, runs = cuda.cudaRuntimeGetVersion()[1], cuda.cudaDriverGetVersion()[1]
    needs = f"CUDA {_release(built_for)} needs driver {DRIVERS.get(built_for // 1000, 'as new')}"
    codes = cuda.cudaError_t
    if error == codes.cudaErrorInsufficientDriver and runs:
        raise BackendError(
            f"the NVIDIA driver is too old: it runs CUDA {_release(runs)}, {needs} or newer; "
            f"update it (on a Jetson: JetPack), or use --backend cpu"
        )
    if error == codes.cudaErrorInsufficientDriver:
        raise BackendError(
            f"no NVIDIA driver is on this machine; {needs} or newer; without an NVIDIA GPU use "
            f"--backend cpu"
        )
    if error == codes.cudaErrorNoDevice:
        raise BackendError(
            "no GPU is here: the driver sees none; is it passed to this container "
            "(`docker run --gpus all`), is CUDA_VISIBLE_DEVICES empty? Else use --backend cpu"
        )
    raise BackendError(
        f"no GPU can be used: {_said(cuda, error)}; {needs} or newer, and `nvidia-smi` must work"
    )


def _release(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
