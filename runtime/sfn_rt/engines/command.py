"""`sfn-rt build`: every engine that a bundle needs, built once and found from then on."""

import errno
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from sfn_rt.backends.cuda import Gpu, find_gpu
from sfn_rt.bundle import FULL, load_bundle
from sfn_rt.engines.build import EngineOptions, Progress, build
from sfn_rt.engines.cache import OPTION, EngineCache, Record
from sfn_rt.engines.flavour import Flavour, load_flavour
from sfn_rt.engines.parts import EnginePart, engine_parts, targets_here
from sfn_rt.exceptions import BackendError, InputError
from sfn_rt.sinks.files import output_errors, write_atomic

REDRAW_S = 0.1
FRAME = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What is built, for what, and where it goes."""

    backend: str = "tensorrt"
    precision: str = FULL
    targets: tuple[str, ...] | None = None  # None: the GPU here
    engines: Path | None = None  # folder; None: $SFN_ENGINES, else the user's cache
    device: int = 0
    again: bool = False  # also what is there already
    engine: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True)
class BuiltEngine:
    """One engine of a bundle, and whether it was there before."""

    record: Record
    found: bool

    def line(self) -> str:
        """For people."""
        record = self.record
        report = record.engine_report()
        shares = " + ".join(f"{share:.0%} {name}" for name, share in report.shares.items())
        done = "found" if self.found else f"built in {record.seconds:.1f} s"
        size = record.path.stat().st_size / 1e6
        return (
            f"{record.part:<12} {record.precision:<5} {len(report.layers):>5} layers "
            f"{size:>7.1f} MB   {done:<17} {shares}"
        ).rstrip()

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        record = self.record
        return {
            "part": record.part,
            "precision": record.precision,
            "plan": str(record.path),
            "bytes": record.path.stat().st_size,
            "sha256": record.sha256,
            "found": self.found,
            "seconds": record.seconds,
            "layers": len(record.report["layers"]),
            "shares": record.report["shares"],
        }


@dataclass(frozen=True)
class BuildSummary:
    """All engines of a bundle at a precision."""

    title: str  # which TensorRT
    architectures: tuple[str, ...]
    folder: Path
    engines: tuple[BuiltEngine, ...]
    reports: bool

    def text(self) -> str:
        lines = [engine.line() for engine in self.engines]
        if self.reports:
            for engine in self.engines:
                lines += ["", f"{engine.record.part}: {engine.record.engine_report().text()}"]
            lines.append("")
        where = ", ".join(self.architectures)
        lines.append(f"{len(self.engines)} engines by {self.title} for {where} in {self.folder}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        engines = []
        for engine in self.engines:
            report = {"report": engine.record.report} if self.reports else {}
            engines.append(engine.to_json() | report)
        return {
            "tensorrt": self.title,
            "architectures": list(self.architectures),
            "folder": str(self.folder),
            "engines": engines,
        }


def parse_frame(text: str) -> tuple[int, int]:
    """ "1920x1080" -> (1080, 1920): height and width."""
    if (match := FRAME.fullmatch(text)) is None:
        raise InputError(f"--max-frame is width x height in pixels, e.g. 1920x1080, got {text!r}")
    return int(match[2]), int(match[1])


def build_engines(bundle: Path, options: BuildOptions, reports: bool = False) -> BuildSummary:
    """Build what is missing; an interruption keeps what is whole and loses the one under way."""
    opened = load_bundle(bundle)
    flavour = load_flavour(options.backend)
    parts = list(engine_parts(opened, options.precision))
    if options.targets is not None and not flavour.ahead_of_time:
        raise BackendError(
            f"{flavour.title} builds for the GPU here and for no other; leave --target out, or "
            f"take --backend tensorrt-rtx"
        )
    where = options.targets or _gpu_here(flavour, options.device)
    cache = EngineCache.at(options.engines)
    done: list[BuiltEngine] = []
    display = PhaseLine()
    for part in parts:
        try:
            done.append(_one(part, flavour, where, cache, options, display.of(part.name)))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"while building {part.name}; {len(done)} of {len(parts)} engines are in "
                f"{cache.folder}, the same command goes on there"
            ) from None
        finally:
            display.erase()
    architectures = parts[0].wanted(flavour, where).architectures
    return BuildSummary(flavour.title, architectures, cache.folder, tuple(done), reports)


def _check_folder(folder: Path) -> None:
    """Engines take minutes: whether they can be kept is asked before they are built."""
    with output_errors(folder, OPTION):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "no permission", str(folder))


def _gpu_here(flavour: Flavour, device: int) -> Gpu:
    try:
        gpu = find_gpu(device)
    except BackendError as error:
        if not flavour.ahead_of_time:
            raise
        raise BackendError(
            f"{error}; to build for a GPU that is elsewhere name it, e.g. --target SM89"
        ) from error
    targets_here(flavour, gpu)  # refuses one that it does not know
    return gpu


def _one(
    part: EnginePart,
    flavour: Flavour,
    where: Gpu | tuple[str, ...],
    cache: EngineCache,
    options: BuildOptions,
    progress: Progress,
) -> BuiltEngine:
    wanted = part.wanted(flavour, where, options.engine.max_batch)
    if not options.again and (found := cache.built(wanted, options.engine)) is not None:
        return BuiltEngine(found, found=True)
    _check_folder(cache.folder)
    targets, timings = None, None
    if not isinstance(where, Gpu):
        targets = where
    elif flavour.ahead_of_time:
        targets = targets_here(flavour, where)
    else:
        timings = cache.timings(flavour, where.architecture)
    built = build(
        part.graph,
        flavour,
        targets=targets,
        options=options.engine,
        timings=timings.read_bytes() if timings is not None and timings.is_file() else None,
        device=options.device,
        progress=progress,
    )
    record = cache.put(wanted, options.engine, built)
    if timings is not None and built.timings is not None:
        write_atomic(timings, built.timings)
    return BuiltEngine(record, found=False)


class PhaseLine:
    """What the builder does just now, in one line on a terminal; silent elsewhere."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.visible = self.stream.isatty()
        self._clock, self._drawn_at = clock, -REDRAW_S

    def of(self, part: str) -> Progress:
        """Shows the phases of one part's build."""

        def show(phase: str, step: int, steps: int) -> None:
            if not self.visible or self._clock() - self._drawn_at < REDRAW_S:
                return
            self._drawn_at = self._clock()
            self.stream.write(f"\r\x1b[2K{part}: {phase[:60]} {step}/{steps}")
            self.stream.flush()

        return show

    def erase(self) -> None:
        """Leave nothing behind."""
        if self.visible:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()
