"""How fast a bundle scores several streams together, kept on one device.

A step takes a block of frames of every stream: upload, all parts, download, scores. The pictures
are decoded beforehand and lie in memory, so what is measured is what follows decoding; the next
step's are copied, and the last one's are scored, while the device works. No captions are made: the
semantic term is what the student expects, as with `--captioner student`.

Axes: S streams, b frames of a block, F decoded frames.
"""

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfn_rt.backends.choose import GPU_ONLY, open_backend
from sfn_rt.backends.device import DeviceBackend
from sfn_rt.bench import processor
from sfn_rt.bundle import Bundle, load_bundle
from sfn_rt.exceptions import InputError, VideoError
from sfn_rt.frames import open_source
from sfn_rt.networks import NetworkSettings
from sfn_rt.normal import NormalFootage
from sfn_rt.options import BenchOptions
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.resident import Measured, Resident
from sfn_rt.semantics.levels import NormalLevels

Images = NDArray[np.uint8]
FloatArray = NDArray[np.float64]
DECODED = 512e6  # bytes of pictures that are kept in memory


@dataclass(frozen=True)
class StreamsResult:
    """What `sfn-rt bench --streams` answers."""

    streams: int
    block: int  # frames of each stream in a step
    frames: int  # of all streams together
    warmup: int
    frames_per_second: float  # of all streams together
    step_ms: dict[str, float]  # p50 and p99
    uploads_per_step: float
    downloads_per_step: float
    terms: tuple[str, ...]  # that were scored
    machine: dict[str, Any]

    def text(self) -> str:
        """For people."""
        m = self.machine
        return "\n".join(
            [
                f"{self.streams} streams on {m['device']} ({m['processor']}), {m['backend']} "
                f"{m['precision']}, {self.block} frames of each a step, {m['picture']} pictures in "
                f"memory, no captions, warm-up {self.warmup} frames",
                f"{self.frames} frames: {self.frames_per_second:.1f} frames/s of all streams, "
                f"{self.frames_per_second / self.streams:.1f} of each "
                f"(a step p50 {self.step_ms['p50']:.2f} ms, p99 {self.step_ms['p99']:.2f} ms)",
                f"a step: {self.uploads_per_step:g} upload, {self.downloads_per_step:g} download; "
                f"scored: {', '.join(self.terms)}",
            ]
        )

    def to_json(self) -> dict[str, object]:
        """For programs."""
        return asdict(self)


def bench_streams(video: Path, path: Path, options: BenchOptions) -> StreamsResult:
    """Time steps of several streams, each of which plays `video` from another place."""
    bundle = load_bundle(path)
    manifest = bundle.manifest
    if manifest.system == "dual-memory":
        raise InputError(
            "--streams: dual-memory runs one clip at a time and keeps nothing on a device; leave "
            "it out"
        )
    settings = NetworkSettings(
        observed=manifest.observed,
        preprocessing=manifest.preprocessing,
        visual=VisualConfig(**manifest.visual),  # type: ignore[arg-type]
        n_windows=len(manifest.semantics.windows) if manifest.semantics else 1,
    )
    pictures = _decoded(video, options)
    scores = _Scores(
        NormalFootage.from_arrays(bundle.normal()), settings.n_windows, manifest.score.ema_alpha
    )
    with (
        _device(bundle, options) as backend,
        Resident(backend, settings, streams=_streams(options), block=options.block) as networks,
    ):
        measured, times, copies = _run(networks, backend, pictures, scores, options)
        return StreamsResult(
            _streams(options),
            options.block,
            frames=measured,
            warmup=options.warmup,
            frames_per_second=1e3 * measured / sum(times),
            step_ms={f"p{q}": float(np.percentile(times, q)) for q in (50, 99)},
            uploads_per_step=copies[0] / len(times),
            downloads_per_step=copies[1] / len(times),
            terms=scores.terms,
            machine={
                "processor": processor(),
                "device": backend.memory.name,
                "python": platform.python_version(),
                "backend": backend.name,
                "threads": options.threads or "library's choice",
                "precision": options.backend.precision,
                "picture": f"{pictures.shape[2]}x{pictures.shape[1]}",
            },
        )


def _streams(options: BenchOptions) -> int:
    assert options.streams is not None, "for one stream there is bench.py"
    return options.streams


class _Scores:
    """The causal scores of all streams, with the arithmetic of scores.CausalScore."""

    def __init__(self, normal: NormalFootage, n_windows: int, alpha: float) -> None:
        levels = NormalLevels.of(normal, n_windows)
        self._expected, self._alpha = levels.expected, alpha
        self._tails = {t: tail for t, tail in normal.tails.items() if t in ("visual", "semantic")}
        self._mean: FloatArray | None = None  # (S,)
        self.usual = levels.usual
        self.terms = tuple(self._tails)

    def take(self, measured: Measured) -> FloatArray:
        """(S, p) scores of a step's frames; all streams began together."""
        rows = measured.rows[:, measured.rows.shape[1] - measured.n_predicted[0] :]  # (S, p, M)
        surprise = np.zeros(rows.shape[:2])
        for term, tail in self._tails.items():
            surprise += tail.surprise(self._evidence(term, rows, measured.layout))
        scores = np.empty_like(surprise)
        for i, now in enumerate(surprise.T):  # (S,)
            before = now if self._mean is None else self._mean
            self._mean = before + self._alpha * (now - before)
            scores[:, i] = self._mean
        return scores

    def _evidence(
        self, term: str, rows: NDArray[np.float32], layout: Mapping[str, slice]
    ) -> FloatArray:
        """(S, p) of a term; the semantic one as the student expects it."""
        if term == "visual":
            return rows[:, :, layout["visual"].start].astype(np.float64)
        guesses = np.full(rows.shape[:2], np.nan)
        if "distilled" in layout:
            guesses[:] = rows[:, :, layout["distilled"].start]
        assert self._expected is not None
        found = [self._expected.of(guess) for guess in guesses.ravel().tolist()]
        return np.array(found).reshape(guesses.shape)


def _run(
    networks: Resident,
    backend: DeviceBackend,
    pictures: Images,
    scores: _Scores,
    options: BenchOptions,
) -> tuple[int, list[float], tuple[int, int]]:
    """Frames measured, the milliseconds of each step, and the uploads and downloads of all."""
    a_step = _streams(options) * options.block
    warmup = max(2, -(-options.warmup // a_step))  # the first two are not yet replayed
    steps = warmup + -(-options.frames // a_step)
    text = _text(backend, scores.usual, options)
    blocks = _blocks(pictures, options)
    counts, before = backend.memory.counts, (0, 0)
    times: list[float] = []
    networks.stage(next(blocks), text)
    networks.launch()
    start = time.perf_counter()
    for step in range(steps):
        if step == warmup:
            before = (counts.uploads, counts.downloads)
        networks.stage(next(blocks), text)
        measured = networks.collect()
        networks.launch()
        scores.take(measured)
        now = time.perf_counter()
        if step >= warmup:
            times.append(1e3 * (now - start))
        start = now
    copies = (counts.uploads - before[0], counts.downloads - before[1])
    networks.collect()
    return (steps - warmup) * a_step, times, copies


def _blocks(pictures: Images, options: BenchOptions) -> Iterator[list[Images]]:
    """(b, H, W, 3) of each stream, again and again; each begins elsewhere in the video."""
    b = options.block
    n = len(pictures) // b
    begins = [round(stream * n / _streams(options)) for stream in range(_streams(options))]
    step = 0
    while True:
        places = [(begin + step) % n * b for begin in begins]
        yield [pictures[at : at + b] for at in places]
        step += 1


def _text(
    backend: DeviceBackend, usual: NDArray[np.float32] | None, options: BenchOptions
) -> NDArray[np.float32] | None:
    """(S, b, K S'): the usual caption for every frame; None for a model that takes none."""
    for spec in backend.parts["decoder"].inputs:
        if spec.name == "text":
            width = spec.shape[1]
            assert isinstance(width, int)
            row = np.zeros(width, np.float32) if usual is None else usual
            return np.tile(row.astype(np.float32), (_streams(options), options.block, 1))
    return None


def _decoded(video: Path, options: BenchOptions) -> Images:
    """(F, H, W, 3): the first frames of the video, as many as are needed or fit in DECODED."""
    frames: list[Images] = []
    with open_source(video) as source:
        for frame in source:
            frames.append(frame.image)
            if len(frames) * frame.image.nbytes >= DECODED:
                break
            if len(frames) >= options.frames + options.warmup:
                break
    if len(frames) < options.block:
        raise VideoError(
            f"{video}: {len(frames)} frames do not fill a block of {options.block}; lower --block"
        )
    return np.stack(frames)


@contextmanager
def _device(bundle: Bundle, options: BenchOptions) -> Iterator[DeviceBackend]:
    """The backend that was asked for; this processor as a device where that is the CPU."""
    asked = options.backend
    if asked.name == "cpu" and asked.precision not in GPU_ONLY:
        from sfn_rt.backends.ort import OrtDevice

        backend: Any = OrtDevice.from_bundle(
            bundle, provider="cpu", precision=asked.precision, threads=options.threads
        )
    else:
        backend = open_backend(bundle, asked, threads=options.threads)
    with backend:
        assert isinstance(backend, DeviceBackend)
        yield backend
