"""Times on a device: parts on its buffers, and whole streams, each after a warm-up.

A time runs from before the work is put into the stream until the stream is done, so what the host
takes to start it is in there; where the memory records (CUDA graphs) it is started as one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfn_rt.backends.base import TensorSpec
from sfn_rt.backends.device import Buffer, DeviceBackend
from sfn_rt.networks import NetworkSettings
from sfn_rt.resident import Resident

UNWANTED = ("routing",)  # outputs that no production asks for


@dataclass(frozen=True)
class Repeats:
    """How often: warm-up first, then what is counted."""

    warmup: int = 20
    runs: int = 200


def spread(ms: Sequence[float]) -> dict[str, float]:
    """Percentiles and the best, in milliseconds."""
    p50, p90, p99 = np.percentile(ms, [50, 90, 99])
    values = {"best": min(ms), "p50": p50, "p90": p90, "p99": p99}
    return {name: round(float(value), 4) for name, value in values.items()}


def timed(work: Callable[[], None], wait: Callable[[], None], repeats: Repeats) -> list[float]:
    """Milliseconds of each run."""
    times = []
    for i in range(repeats.warmup + repeats.runs):
        start = time.perf_counter()
        work()
        wait()
        if i >= repeats.warmup:
            times.append(1e3 * (time.perf_counter() - start))
    return times


def time_parts(
    backend: DeviceBackend,
    parts: Sequence[str],
    batch: int,
    repeats: Repeats,
    frame: tuple[int, int] = (240, 360),
) -> list[float]:
    """Milliseconds of these parts one after another, their inputs on the device already.

    `frame` is height and width of a camera's pictures, for parts that take them.
    """
    sizes = {"height": frame[0], "width": frame[1]}
    memory = backend.memory
    random = np.random.default_rng(0)
    jobs = []
    for part in parts:
        spec = backend.parts[part]
        feeds = {tensor.name: _empty(backend, tensor, batch, sizes) for tensor in spec.inputs}
        outputs = [tensor for tensor in spec.outputs if tensor.name not in UNWANTED]
        wanted = {tensor.name: _empty(backend, tensor, batch, sizes) for tensor in outputs}
        for buffer in feeds.values():
            memory.upload(random.standard_normal(buffer.shape).astype(buffer.dtype), buffer)
        jobs.append((part, feeds, wanted))
    memory.synchronize()

    def run() -> None:
        for part, feeds, wanted in jobs:
            backend.run(part, feeds, wanted)

    def start() -> None:
        if backend.records:
            memory.replay(("benchmark", tuple(parts), batch), run)
        else:
            run()

    times = timed(start, memory.synchronize, repeats)
    for _, feeds, wanted in jobs:
        for buffer in (*feeds.values(), *wanted.values()):
            memory.free(buffer)
    return times


def _empty(
    backend: DeviceBackend, tensor: TensorSpec, batch: int, sizes: Mapping[str, int]
) -> Buffer:
    shape = tuple(sizes.get(a, batch) if isinstance(a, str) else a for a in tensor.shape)
    return backend.memory.empty(shape, tensor.dtype)


@dataclass(frozen=True)
class StreamTimes:
    """Whole steps of S streams: pictures of the host in, measured errors out."""

    ms: list[float]  # of a step
    frames_per_second: float
    copies: Mapping[str, float]  # a step: "uploads", "downloads"


def time_streams(
    backend: DeviceBackend,
    settings: NetworkSettings,
    *,
    streams: int,
    block: int,
    frame: tuple[int, int],
    repeats: Repeats,
) -> StreamTimes:
    """Steps of `block` frames of each stream; the next pictures are copied while one computes."""
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (block, *frame, 3), dtype=np.uint8) for _ in range(streams)]
    text = _text(backend, streams, block)
    counts = backend.memory.counts
    times = []
    with Resident(backend, settings, streams=streams, block=block) as networks:
        networks.stage(pictures, text)
        networks.launch()
        begin, before = 0.0, (0, 0)
        for i in range(repeats.warmup + repeats.runs):
            if i == repeats.warmup:
                begin, before = time.perf_counter(), (counts.uploads, counts.downloads)
            start = time.perf_counter()
            networks.stage(pictures, text)
            networks.collect()
            networks.launch()
            if i >= repeats.warmup:
                times.append(1e3 * (time.perf_counter() - start))
        networks.collect()
        seconds = time.perf_counter() - begin
        after = (counts.uploads, counts.downloads)
    frames = streams * block * repeats.runs
    moved = {
        name: round((b - a) / n, 3)
        for name, a, b, n in zip(
            ("uploads", "downloads"), before, after, (repeats.runs, repeats.runs + 1), strict=True
        )
    }
    return StreamTimes(times, frames / seconds, moved)


def _text(backend: DeviceBackend, streams: int, block: int) -> np.ndarray | None:
    found = [s for s in backend.parts["decoder"].inputs if s.name == "text"]
    if not found:
        return None
    width = int(found[0].shape[1])
    text = np.random.default_rng(1).standard_normal((streams, block, width)).astype(np.float32)
    text /= np.linalg.norm(text, axis=-1, keepdims=True)
    return text
