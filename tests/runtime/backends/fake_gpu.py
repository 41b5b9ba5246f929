"""A GPU without a GPU: the calls of cuda-python that the project makes, on the host's memory.

What makes a GPU hard to program is kept: work that is put into a stream is done only when somebody
waits for it; what is captured is not done at all, and done with the pointers of that time whenever
the graph is launched; memory that was freed is an illegal address, and the GPU is lost from then
on; memory is finite; nothing may be allocated or waited for during a capture.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

ALIGNMENT = 256
Work = Callable[[], None]


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorSystemDriverMismatch = 803
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


OK = Error.cudaSuccess


class Kind(Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(Enum):
    cudaStreamCaptureModeThreadLocal = 1


class Attribute(Enum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class IllegalAddress(Exception):
    """Raised by work, when it is done."""


@dataclass
class Stream:
    handle: int
    queue: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None  # not None: a capture is under way
    broken: bool = False  # by what a capture does not allow

    def __int__(self) -> int:
        return self.handle

    def put(self, work: Work) -> None:
        (self.queue if self.captured is None else self.captured).append(work)


@dataclass
class FakeCuda:
    """Stands in for the module `cuda.bindings.runtime`; one GPU of `total` bytes."""

    capability: tuple[int, int] = (8, 9)
    gpu: str = "Fake RTX"
    total: int = 1 << 30
    driver: int = 13040
    found: Error = OK  # what looking for GPUs answers
    count: int = 1

    cudaError_t = Error
    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = CaptureMode
    cudaDeviceAttr = Attribute
    cudaStreamNonBlocking = 1

    def __post_init__(self) -> None:
        self.memory: dict[int, Any] = {}  # pointer -> (room, bytes)
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.lost = OK  # an error that stays
        self.device = 0

    # --- the device

    def cudaGetDeviceCount(self) -> tuple[Error, int]:
        return self.found, self.count

    def cudaDriverGetVersion(self) -> tuple[Error, int]:
        return OK, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Error, int]:
        return OK, 13040

    def cudaSetDevice(self, device: int) -> tuple[Error]:
        self.device = device
        return (OK,)

    def cudaDeviceGetAttribute(self, attr: Attribute, device: int) -> tuple[Error, int]:
        return OK, self.capability[attr is Attribute.cudaDevAttrComputeCapabilityMinor]

    def cudaGetDeviceProperties(self, device: int) -> tuple[Error, Any]:
        return OK, SimpleNamespace(name=self.gpu.encode())

    def cudaGetErrorName(self, error: Error) -> tuple[Error, bytes]:
        return OK, Error(error).name.encode()

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return OK, f"the text of {int(error)}".encode()

    def cudaGetLastError(self) -> tuple[Error]:
        return (self.lost,)

    # --- memory

    @property
    def used(self) -> int:
        return sum(size for _, size in self.memory.values())

    def cudaMemGetInfo(self) -> tuple[Error, int, int]:
        return OK, self.total - self.used, self.total

    def cudaMalloc(self, size: int) -> tuple[Error, int]:
        if any(stream.captured is not None for stream in self.streams.values()):
            return Error.cudaErrorStreamCaptureUnsupported, 0
        if size > self.total - self.used:
            return Error.cudaErrorMemoryAllocation, 0
        room = np.full(size + ALIGNMENT, 0xCD, np.uint8)  # not zeros: nobody promised them
        pointer = room.ctypes.data + -room.ctypes.data % ALIGNMENT
        self.memory[pointer] = (room, size)
        return OK, pointer

    def cudaFree(self, devPtr: int) -> tuple[Error]:
        return (OK,) if self.memory.pop(devPtr, None) else (Error.cudaErrorInvalidValue,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Error, int]:
        room = np.zeros(size, np.uint8)
        self.pinned[room.ctypes.data] = room
        return OK, room.ctypes.data

    def cudaFreeHost(self, ptr: int) -> tuple[Error]:
        return (OK,) if self.pinned.pop(ptr, None) is not None else (Error.cudaErrorInvalidValue,)

    def at(self, pointer: int, size: int) -> int:
        """A device address, checked when work is done there."""
        for begin, (_, held) in self.memory.items():
            if begin <= pointer and pointer + size <= begin + held:
                return pointer
        raise IllegalAddress(f"{size} bytes at {pointer:#x}")

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: Stream) -> tuple[Error]:
        stream.put(lambda: ctypes.memset(self.at(devPtr, count), value, count) and None)
        return (self.lost,)

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: Kind, stream: Stream
    ) -> tuple[Error]:
        def work() -> None:
            to = dst if kind is Kind.cudaMemcpyDeviceToHost else self.at(dst, count)
            source = src if kind is Kind.cudaMemcpyHostToDevice else self.at(src, count)
            ctypes.memmove(to, source, count)

        stream.put(work)
        return (self.lost,)

    def cudaMemcpy2DAsync(
        self,
        dst: int,
        dpitch: int,
        src: int,
        spitch: int,
        width: int,
        height: int,
        kind: Kind,
        stream: Stream,
    ) -> tuple[Error]:
        if width > min(dpitch, spitch):
            return (Error.cudaErrorInvalidValue,)

        def work() -> None:
            for row in range(height):
                to, source = dst + row * dpitch, src + row * spitch
                ctypes.memmove(self.at(to, width), self.at(source, width), width)

        stream.put(work)
        return (self.lost,)

    # --- streams and graphs

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, Stream]:
        stream = Stream(0x5000 + len(self.streams))
        self.streams[stream.handle] = stream
        return OK, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Error]:
        del self.streams[stream.handle]
        return (OK,)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Error]:
        if stream.captured is not None:
            stream.broken = True
            return (Error.cudaErrorStreamCaptureUnsupported,)
        queue, stream.queue = stream.queue, []
        try:
            for work in queue:
                work()
        except IllegalAddress:
            self.lost = Error.cudaErrorIllegalAddress
        return (self.lost,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: CaptureMode) -> tuple[Error]:
        stream.captured = []
        return (self.lost,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Error, Any]:
        captured, stream.captured = stream.captured, None
        broken, stream.broken = stream.broken, False
        if captured is None or broken:
            return Error.cudaErrorStreamCaptureInvalidated, None
        return OK, captured

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> tuple[Error, list[Work]]:
        return OK, list(graph)

    def cudaGraphLaunch(self, graphExec: list[Work], stream: Stream) -> tuple[Error]:
        for work in graphExec:
            stream.put(work)
        return (self.lost,)

    def cudaGraphDestroy(self, graph: list[Work]) -> tuple[Error]:
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec: list[Work]) -> tuple[Error]:
        graphExec[:] = []
        return (OK,)
