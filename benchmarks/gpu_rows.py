"""The rows of the GPU table: which there are, what each must reach, and how they are shown.

A row that cannot be measured stays in the table and says why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

HALF = ("fp16", "bf16")
EIGHT_BITS = ("int8", "fp8")
AED_MAE = 1655.0  # frames/s, published


@dataclass(frozen=True)
class Goal:
    """What a row is held against: `must` is the least, `aim` is what is hoped for."""

    figure: str  # of the row: "ratio", "over_floor", "frames_per_second", "of_floor", copies
    must: float | None = None
    aim: float | None = None
    less: bool = False  # whether small is good

    def reached(self, value: float | None) -> str:
        """For the table's last column."""
        if value is None:
            return ""

        def holds(bound: float) -> bool:
            return value <= bound if self.less else value >= bound

        if self.aim is not None and holds(self.aim):
            return "aim"
        if self.must is not None:
            return "must" if holds(self.must) else "NOT"
        return "" if self.aim is None else "below aim"


COPIES = (Goal("uploads", must=1, less=True), Goal("downloads", must=1, less=True))  # a step


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement, or the reason why there is none."""

    what: str
    profile: str  # of the bundle
    kind: str  # parts, torch, sffm, step, stream
    route: str
    precision: str
    batch: int  # of parts; streams times frames of a step
    streams: int = 0
    mode: str = ""  # of torch; form of an SFFM; whether a step is fused
    goals: tuple[Goal, ...] = ()
    not_run: str | None = None
    ms: Mapping[str, float] | None = None
    floor_ms: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)  # over_floor, ratio, ...

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"reached": self.reached}

    @property
    def reached(self) -> str:
        """Each goal and whether the row reaches it."""
        said = {goal.figure: goal.reached(self.figures.get(goal.figure)) for goal in self.goals}
        return ", ".join(
            f"{figure.replace('_', ' ')}: {word}" for figure, word in said.items() if word
        )


def select(
    bundles: Mapping[str, Sequence[str]],
    sffms: Sequence[str],
    routes: Mapping[str, Mapping[str, Any]],
    no_torch: str | None,
    steps: Mapping[str, Sequence[str]] | None = None,
) -> list[Row]:
    """Every row. `bundles`: profile -> its precisions; `sffms`: profiles with an SFFM apart;
    `steps`: profile -> precisions in which a step is there as one graph.
    """
    rows: list[Row] = []
    for profile, precisions in bundles.items():
        for route in routes:
            paper = profile.startswith("paper")
            rows += [_parts(profile, route, precision) for precision in precisions]
            rows += _streams(profile, route, precisions, paper)
            if profile in sffms:
                rows += _sffms(profile, route)
            for precision in (steps or {}).get(profile, ()):
                rows += _steps(profile, route, precision)
        rows += _torch(profile, precisions, no_torch)
    return [_refused(row, routes, bundles) for row in rows]


def _parts(profile: str, route: str, precision: str) -> Row:
    return Row(
        what="motion encoder and decoder", profile=profile, kind="parts", route=route,
        precision=precision, batch=1,
    )  # fmt: skip


def _sffms(profile: str, route: str) -> list[Row]:
    goals = (Goal("over_floor", must=4, aim=1.5, less=True),)
    return [
        Row(what="one SFFM", profile=profile, kind="sffm", route=route, precision="fp32",
            batch=batch, mode=form, goals=goals)
        for form in ("dense", "dispatch")
        for batch in (1, 16)
    ]  # fmt: skip


def _steps(profile: str, route: str, precision: str) -> list[Row]:
    return [
        Row(what="a step", profile=profile, kind="step", route=route, precision=precision,
            batch=streams, streams=streams, mode=mode)
        for mode in ("in parts", "fused")
        for streams in (1, 16)
    ]  # fmt: skip


def _streams(profile: str, route: str, precisions: Sequence[str], paper: bool) -> list[Row]:
    rows = []
    for precision in precisions:
        for streams in (1, 16):
            goals: tuple[Goal, ...] = COPIES
            if paper:
                goals += (Goal("of_floor", aim=0.7),)
            elif streams == 16:
                goals += (Goal("frames_per_second", must=AED_MAE, aim=10_000),)
            rows += [
                Row(what="end to end", profile=profile, kind="stream", route=route,
                    precision=precision, batch=streams * block, streams=streams, goals=goals)
                for block in (1, 8)
            ]  # fmt: skip
    return rows


def _torch(profile: str, precisions: Sequence[str], why_not: str | None) -> list[Row]:
    shared = [p for p in precisions if p in ("fp32", *HALF)]
    return [
        Row(what="motion encoder and decoder", profile=profile, kind="torch", route="PyTorch",
            precision=precision, batch=1, mode=mode, not_run=why_not)
        for precision in shared
        for mode in ("eager", "compiled")
    ]  # fmt: skip


def _refused(
    row: Row, routes: Mapping[str, Mapping[str, Any]], bundles: Mapping[str, Sequence[str]]
) -> Row:
    route = routes.get(row.route)
    if route is not None and not route["works"]:
        return replace(row, not_run=str(route["why"]))
    if row.route == "cuda" and row.precision == "fp8":
        return replace(row, not_run="ONNX Runtime has no fp8 kernels for these graphs")
    return row


def compare(rows: Sequence[Row]) -> list[Row]:
    """Add what rows are worth beside each other: PyTorch against parts, 8 bits against fp16."""
    return [_compared(row, rows) for row in rows]


def _compared(row: Row, rows: Sequence[Row]) -> Row:
    if row.ms is None:
        return row
    figures = dict(row.figures)
    goals = row.goals
    if row.kind == "parts" and row.precision in HALF:
        for mode, name in (("eager", "against_eager"), ("compiled", "against_compiled")):
            theirs = [r.ms["p50"] for r in rows if r.ms and r.kind == "torch" and r.mode == mode
                      and (r.profile, r.precision) == (row.profile, row.precision)]  # fmt: skip
            if theirs:
                figures[name] = round(theirs[0] / row.ms["p50"], 2)
        goals += (Goal("against_eager", 5, 10), Goal("against_compiled", 1.3, 2))
    if row.precision in EIGHT_BITS:
        same = [r.ms["p50"] for r in rows if r.ms and r.precision == "fp16" and r.what == row.what
                and (r.profile, r.route, r.batch, r.streams, r.mode)
                == (row.profile, row.route, row.batch, row.streams, row.mode)]  # fmt: skip
        if same:
            figures["against_fp16"] = round(same[0] / row.ms["p50"], 2)
    return replace(row, figures=figures, goals=goals)


def table(rows: Sequence[Row]) -> str:
    """Markdown: what was measured, then what was not and why."""
    lines = [
        "| what | profile | route | precision | batch | p50, ms | p99, ms | floor, ms | figures "
        "| goals |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.ms is None:
            continue
        what = f"{row.what}{', ' + row.mode if row.mode else ''}"
        what += f", {row.streams} stream(s)" if row.streams else ""
        floor = "" if row.floor_ms is None else f"{row.floor_ms:.3f}"
        figures = ", ".join(f"{name.replace('_', ' ')} {v:g}" for name, v in row.figures.items())
        lines.append(
            f"| {what} | {row.profile} | {row.route} | {row.precision} | {row.batch} "
            f"| {row.ms['p50']:.3f} | {row.ms['p99']:.3f} | {floor} | {figures} | {row.reached} |"
        )
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.not_run is not None:
            told = reasons.setdefault((row.route, row.not_run), [])
            told.append(f"{row.what}{' ' + row.mode if row.mode else ''} of {row.profile}")
    if reasons:
        lines += ["", "Not run:", ""]
    for (route, why), left in reasons.items():
        lines.append(f"- {route}: {len(left)} rows ({', '.join(dict.fromkeys(left))}): {why}")
    return "\n".join(lines)
