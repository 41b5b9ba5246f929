"""How fast a bundle scores a video: end to end, and each stage on its own.

End to end runs as `sfn-rt score` does, looking ahead in another thread. The stages are timed one
after another in one thread, so they add up to more than the time a frame takes end to end.
Several streams on one device: bench_streams.py.
"""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sfn_rt.backends.device import DeviceBackend
from sfn_rt.evidence import BLOCK, EvidenceStream, Looked, empty_scene
from sfn_rt.exceptions import VideoError
from sfn_rt.frames import Frame, open_source
from sfn_rt.model import Model, open_model
from sfn_rt.options import BenchOptions
from sfn_rt.pipeline import VideoRun, grouped
from sfn_rt.semantics.scene import SceneAnalyser

Stages = dict[str, dict[str, float]]  # stage -> mean, p50 and p99 in milliseconds a frame


@dataclass(frozen=True)
class BenchResult:
    """What `sfn-rt bench` answers. Milliseconds a frame; a block of frames is the unit timed."""

    frames: int
    warmup: int
    frames_per_second: float
    block_ms: dict[str, float]  # p50 and p99 of a block, end to end
    stages: Stages
    system: str  # that the bundle holds
    machine: dict[str, Any]

    def text(self) -> str:
        """For people."""
        lines = [
            f"{self.system} on {self.machine['processor']}, {self.machine['backend']} "
            f"{self.machine['precision']}, {self.machine['threads']} threads, blocks of {BLOCK}, "
            f"captions {self.machine['captions']}, warm-up {self.warmup} frames",
            f"{self.frames} frames end to end: {self.frames_per_second:.1f} frames/s "
            f"(a block p50 {self.block_ms['p50']:.1f} ms, p99 {self.block_ms['p99']:.1f} ms)",
            f"{'stage':<18}{'mean':>9}{'p50':>9}{'p99':>9}  ms a frame, one after another",
        ]
        for stage, times in self.stages.items():
            lines.append(
                f"{stage:<18}{times['mean']:>9.2f}{times['p50']:>9.2f}{times['p99']:>9.2f}"
            )
        if self.machine["resident"] and "predict" in self.stages:
            lines.append(
                "on a device preprocess only gathers pictures: it resizes, encodes and predicts as "
                "one piece of work, under predict"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "system": self.system,
            "frames": self.frames,
            "warmup": self.warmup,
            "frames_per_second": self.frames_per_second,
            "block_ms": self.block_ms,
            "stages_ms": self.stages,
            "machine": self.machine,
        }


def bench(video: Path, bundle: Path, options: BenchOptions) -> BenchResult:
    """Time `options.frames` frames of `video`, after a warm-up; a short video starts over."""
    with open_model(
        bundle, threads=options.threads, lane=options.lane, backend=options.backend
    ) as model:
        fps, blocks = _end_to_end(video, model, options)
        stages = _stages(video, model, options)
        machine = {
            "processor": processor(),
            "python": platform.python_version(),
            "backend": model.perception.backend.name,
            "resident": isinstance(model.perception.backend, DeviceBackend),
            "threads": options.threads or "library's choice of",
            "precision": model.computed.precision,
            "captions": _captions(model),
            "block": BLOCK,
        }
        system = model.perception.system
    return BenchResult(
        options.frames, options.warmup, fps, _spread(blocks), stages, system, machine
    )


def _end_to_end(video: Path, model: Model, options: BenchOptions) -> tuple[float, list[float]]:
    times: list[float] = []
    measured = 0
    start = 0.0
    run: VideoRun | None = None
    total = options.warmup + options.frames
    seen = 0
    while seen < total:
        with open_source(video) as source:
            run = VideoRun(model, source.fps)
            before = time.perf_counter()
            for block in run.blocks(source):
                run.take(block)
                now = time.perf_counter()
                seen += len(block.frames)
                if seen > options.warmup:
                    if not measured:
                        start = before
                    measured += len(block.frames)
                    times.append(1e3 * (now - before))
                before = now
                if seen >= total:
                    break
        if not run.n_taken:
            raise VideoError(f"{video}: no frames to measure with")
    return measured / (before - start), times


def _stages(video: Path, model: Model, options: BenchOptions) -> Stages:
    """Each stage's times, block after block in this thread."""
    watch = _Watch()
    stages = _reconstruct if model.perception.system == "dual-memory" else _predict
    step = stages(model, watch)
    blocks = grouped(_endless(video), BLOCK)
    for number in range(-(-(options.warmup + options.frames) // BLOCK)):
        watch.counts = number * BLOCK >= options.warmup
        with watch("decode"):
            frames = next(blocks)
        step(frames)
    return {stage: {"mean": float(np.mean(ms)), **_spread(ms)} for stage, ms in watch.times.items()}


def _predict(model: Model, watch: "_Watch") -> Callable[[list[Frame]], None]:
    """The stages of sfn-vad's stream, one by one."""
    p = model.perception
    analyser = SceneAnalyser(p.scene_config, p.scene.background)
    stream = EvidenceStream(p)
    causal = VideoRun(model, 25.0).causal

    def step(frames: list[Frame]) -> None:
        with watch("preprocess"):
            pictures = stream.pictures(frames)
        with watch("scene"):
            scenes = [
                analyser.step(frame.image) if p.needs_scenes else empty_scene(frame)
                for frame in frames
            ]
        block = Looked(frames, pictures, scenes, {})
        with watch("encode"):
            seen = stream.encode(block)
        with watch("caption"):
            held, _ = stream.describe(block, seen)
        with watch("predict"):
            errors, semantic = stream.decode(block, seen, held)
        with watch("score"):
            visual = errors.visual if errors is not None else []
            for i, scene in enumerate(scenes[len(scenes) - len(held) :]):
                evidence = {}
                if visual:
                    evidence["visual"] = visual[i].evidence
                if semantic is not None:
                    evidence["semantic"] = semantic[i]
                if p.scene.attributes is not None:
                    evidence["attribute"] = p.scene.attributes.evidence(scene)
                causal.update({term: evidence[term] for term in p.terms})

    return step


def _reconstruct(model: Model, watch: "_Watch") -> Callable[[list[Frame]], None]:
    """The stages of dual-memory's stream."""
    run = VideoRun(model, 25.0)

    def step(frames: list[Frame]) -> None:
        with watch("preprocess"):
            block = run.stream.look(frames)
        with watch("reconstruct"):
            rows = run.stream.predict(block)
        with watch("score"):
            for row in rows:
                if row.terms:
                    run.causal.update(row.terms)

    return step


class _Watch:
    """Times what runs inside `with watch(stage):`, in milliseconds a frame of a block."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        self.counts = False  # False during the warm-up

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        before = time.perf_counter()
        yield
        if self.counts:
            self.times.setdefault(stage, []).append(1e3 * (time.perf_counter() - before) / BLOCK)


def _endless(video: Path) -> Iterator[Frame]:
    while True:
        with open_source(video) as source:
            yield from islice(source, None)


def _spread(ms: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(ms, [50, 99])
    return {"p50": float(p50), "p99": float(p99)}


def _captions(model: Model) -> str:
    who = model.captioning
    return "none" if who is None else f"{who.who}, {who.settings.policy}"


def processor() -> str:
    """The model of this machine's processor, for a result."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()
