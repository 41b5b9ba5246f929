"""Engines on disk: a folder with each plan, and beside it a record of what it was built from.

An engine fits one kind of GPU, one version of TensorRT and one graph. The record says which, and
where none fits the reason is said by comparing: "built for sm_86, this is sm_89". Nothing that does
not fit is ever loaded. The record is written last and in one step: a build that is interrupted
leaves nothing, or a whole engine.

    decoder-3f9a0c71d2b4.plan    what TensorRT built
    decoder-3f9a0c71d2b4.json    Record: its origin, its sha256, its layers
    decoder-3f9a0c71d2b4.jit     TensorRT-RTX: kernels that were compiled on this device
    tensorrt-11.4.0-sm_89.timings    what kernels took on this GPU, for the next build
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sfn_rt.engines.build import Built, EngineOptions
from sfn_rt.engines.flavour import Flavour, release_of
from sfn_rt.engines.report import EngineReport
from sfn_rt.exceptions import BackendError
from sfn_rt.sinks.files import output_errors, write_atomic

RECORD_VERSION = 1
VARIABLE = "SFN_ENGINES"
OPTION = "--engines"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The engine that somebody needs."""

    part: str
    precision: str
    graph: str  # sha256 of the graph and its weights
    flavour: str
    version: str  # of TensorRT
    architectures: tuple[str, ...]  # e.g. ("sm_89",): it must run on each of them
    gpu: str | None  # name; None where the flavour's engines run on a whole architecture
    max_batch: int | None = None  # at least; None: whatever it was built for


@dataclass(frozen=True, kw_only=True)
class Record:
    """What an engine was built from: the JSON beside it."""

    part: str
    precision: str
    graph: str
    flavour: str
    version: str
    architectures: tuple[str, ...]
    gpu: str | None
    options: dict[str, Any]
    plan: str  # file name
    sha256: str  # of the plan
    seconds: float
    report: dict[str, Any]
    record_version: int = RECORD_VERSION
    folder: Path = field(default=Path(), compare=False)

    @property
    def path(self) -> Path:
        """The plan."""
        return self.folder / self.plan

    @property
    def max_batch(self) -> int:
        """Frames at once."""
        return int(self.options["max_batch"])

    def engine_report(self) -> EngineReport:
        """The layers, as they were when it was built."""
        return EngineReport.from_json(self.report)

    def misfits(self, wanted: Wanted) -> list[str]:
        """Why it is not the engine wanted: one phrase a reason, the first the most telling."""
        reasons = []
        if self.flavour != wanted.flavour:
            reasons.append(f"built by {self.flavour}, {wanted.flavour} is asked for")
        if self.graph != wanted.graph:
            reasons.append("built from another graph than this bundle's")
        if self.precision != wanted.precision:
            reasons.append(f"built at {self.precision}, {wanted.precision} is asked for")
        if missing := [a for a in wanted.architectures if a not in self.architectures]:
            reasons.append(f"built for {', '.join(self.architectures)}, this is {missing[0]}")
        elif None not in (self.gpu, wanted.gpu) and self.gpu != wanted.gpu:
            reasons.append(f"built on {self.gpu}, this is {wanted.gpu}")
        if self.flavour == wanted.flavour and not self._runs_on(wanted.version):
            reasons.append(f"built by {self.flavour} {self.version}, here is {wanted.version}")
        if wanted.max_batch is not None and self.max_batch < wanted.max_batch:
            reasons.append(f"built for up to {self.max_batch} frames at once, not more")
        return reasons

    def _runs_on(self, version: str) -> bool:
        if self.options["version_compatible"]:
            return release_of(self.version) <= release_of(version)
        return self.version == version

    def read_plan(self) -> bytes:
        """The engine, refused where it is not what was written."""
        try:
            plan = self.path.read_bytes()
        except OSError as error:
            raise BackendError(f"{self.path}: {error.strerror}; build it again") from error
        if hashlib.sha256(plan).hexdigest() != self.sha256:
            raise BackendError(
                f"{self.path} was altered: its sha256 is not that of its record; remove it and "
                f"build it again"
            )
        return plan


@dataclass(frozen=True)
class EngineCache:
    """A folder of engines."""

    folder: Path

    @classmethod
    def at(cls, folder: Path | None) -> "EngineCache":
        """The folder asked for, else $SFN_ENGINES, else the user's cache."""
        if folder is None:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            folder = Path(os.environ.get(VARIABLE) or base / "sfn-rt" / "engines")
        return cls(folder)

    def find(self, wanted: Wanted) -> Record | str:
        """The engine that fits, or why there is none."""
        built = [record for record in self.records() if record.part == wanted.part]
        if not built:
            return "none was built for it"
        misfits = [(record.misfits(wanted), record) for record in built]
        if fitting := [record for reasons, record in misfits if not reasons]:
            # The exact version before a compatible one, the smaller of those that are large enough.
            return min(fitting, key=lambda r: (r.version != wanted.version, r.max_batch, r.plan))
        # The folder may hold engines of many bundles: one of this graph comes the closest.
        reasons, nearest = min(misfits, key=lambda p: (p[1].graph != wanted.graph, len(p[0])))
        return f"{nearest.plan} is {reasons[0]}"

    def built(self, wanted: Wanted, options: EngineOptions) -> Record | None:
        """The engine that fits and was built in just this way."""
        asked = options.to_json()
        fitting = (r for r in self.records() if r.options == asked and not r.misfits(wanted))
        return next((r for r in fitting if r.part == wanted.part), None)

    def records(self) -> Iterator[Record]:
        """All engines whose record this version can read; the others are none of ours."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.json")):
            if (record := _read_record(path)) is not None and record.path.is_file():
                yield record

    def put(self, wanted: Wanted, options: EngineOptions, built: Built) -> Record:
        """Keep an engine; it is found from the moment when all of it is there."""
        digest = hashlib.sha256(built.plan).hexdigest()
        stem = f"{wanted.part}-{digest[:12]}"
        record = Record(
            part=wanted.part,
            precision=wanted.precision,
            graph=wanted.graph,
            flavour=wanted.flavour,
            version=wanted.version,
            architectures=wanted.architectures,
            gpu=wanted.gpu,
            options=options.to_json(),
            plan=f"{stem}.plan",
            sha256=digest,
            seconds=round(built.seconds, 2),
            report=built.report.to_json(),
            folder=self.folder,
        )
        with output_errors(self.folder, OPTION):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / record.plan, built.plan, OPTION)
        values = {k: v for k, v in asdict(record).items() if k != "folder"}
        write_atomic(self.folder / f"{stem}.json", json.dumps(values, indent=1) + "\n", OPTION)
        self._replace(record)
        return record

    def _replace(self, new: Record) -> None:
        """Remove what was built from the same thing in the same way before."""
        for old in list(self.records()):
            if old.plan != new.plan and _origin(old) == _origin(new):
                for suffix in (".json", ".plan", ".jit"):
                    old.path.with_suffix(suffix).unlink(missing_ok=True)

    def timings(self, flavour: Flavour, architecture: str) -> Path:
        """Where the builder keeps what kernels took on a GPU."""
        return self.folder / f"{flavour.name}-{flavour.version}-{architecture}.timings"


def _origin(record: Record) -> dict[str, object]:
    outcome = {"plan", "sha256", "seconds", "report", "folder"}
    return {f.name: getattr(record, f.name) for f in fields(record) if f.name not in outcome}


def _read_record(path: Path) -> Record | None:
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    known = {f.name for f in fields(Record)} - {"folder"}
    if not isinstance(raw, dict) or raw.keys() != known:
        return None
    if raw["record_version"] != RECORD_VERSION:
        return None
    architectures = tuple(raw.pop("architectures"))
    return Record(**raw, architectures=architectures, folder=path.parent)
