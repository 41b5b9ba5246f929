"""Trials to tables: the mean over seeds, the spread, and whether a difference is one.

    spread    largest less smallest figure of a row's seeds
    verdict   the difference of two rows' means; `none` where it is no larger than the larger of
              their spreads, unknown with a single seed

All figures are frame-level AUC in %, micro: all scored frames of all test videos in one ROC.
"""

import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sfn_train.ablation.results import Results
from sfn_train.ablation.rows import Base, Row, Table, says
from sfn_train.ablation.trial import PROTOCOLS, TOGETHER, Figures, Trial

Verdict = Literal["none", "higher", "lower", "one seed", "-"]
TITLES = {"paper": "`paper` protocol", "causal": "`causal` protocol"}


@dataclass(frozen=True)
class Line:
    """One row of a table with what its trials found."""

    row: Row
    note: str
    trials: tuple[Trial, ...]  # a seed each; fewer than asked for where a table is unfinished

    def values(self, protocol: str, evidence: str = TOGETHER) -> list[float]:
        """AUC in % of each seed; none where the row does not give that evidence."""
        return [
            100 * trial.figures[evidence][protocol]["micro_auc"]
            for trial in self.trials
            if evidence in trial.figures
        ]


Measured = tuple[Table, tuple[Line, ...]]


@dataclass(frozen=True)
class Report:
    """All tables asked for, for people and for a page."""

    tables: tuple[Measured, ...]
    baselines: Mapping[str, Figures]
    base: Base
    seeds: tuple[int, ...]
    data: str  # folder's name
    constants: str  # of the `paper` protocol
    missing: int  # trials that have not been run
    wall_s: float
    machine: str
    remarks: tuple[str, ...]


def collect(
    tables: Sequence[Table], base: Base, seeds: Sequence[int], results: Results
) -> tuple[tuple[Table, tuple[Line, ...]], ...]:
    """Every table with the trials that are there."""
    found = []
    for table in tables:
        lines = []
        full = base.row(table.full_row, seeds[0])
        for row in table.rows:
            configs = [base.row(row, seed) for seed in seeds]
            trials = [results.get(config.fingerprint()) for config in configs]
            lines.append(
                Line(row, says(configs[0], full), tuple(t for t in trials if t is not None))
            )
        found.append((table, tuple(lines)))
    return tuple(found)


def spread(values: Sequence[float]) -> float:
    """Largest less smallest."""
    return max(values) - min(values)


def verdict(row: Sequence[float], full: Sequence[float]) -> Verdict:
    """Whether a row differs from the full model's by more than seeds do."""
    if not row or not full:
        return "-"
    if len(row) < 2 or len(full) < 2:
        return "one seed"
    difference = statistics.fmean(row) - statistics.fmean(full)
    if abs(difference) <= max(spread(row), spread(full)):
        return "none"
    return "higher" if difference > 0 else "lower"


def against_memory(report: Report) -> str | None:
    """The SFFM against the best memory row under the paper's protocol, whichever way it falls."""
    lines = next((lines for table, lines in report.tables if table.name == "memory"), None)
    if lines is None:
        return None
    measured = {line.row.row: values for line in lines if (values := line.values("paper"))}
    sffm = measured.pop("SFFM", None)
    if sffm is None or not measured:
        return None
    best = max(measured, key=lambda name: statistics.fmean(measured[name]))
    other = measured[best]
    difference = statistics.fmean(sffm) - statistics.fmean(other)
    found = verdict(sffm, other)
    meaning = {
        "none": "no larger than the spread of the seeds, so none",
        "higher": "more than the spread of the seeds: the SFFM is better here",
        "lower": "more than the spread of the seeds: the memory is better here",
    }.get(found, "of one seed, so nothing follows from it")
    return (
        f"SFFM against the best memory row ({best}), `paper` protocol, mean of {len(sffm)} seeds: "
        f"{_figure(sffm)} against {_figure(other)}, a difference of {difference:+.1f} points, "
        f"{meaning}."
    )


# ------------------------------------------------------------------------------------- text


def text(report: Report) -> str:
    """Plain text for a terminal."""
    blocks = ["\n".join(_text_table(report, table, lines)) for table, lines in report.tables]
    blocks.append("\n".join(_text_baselines(report)))
    blocks.append("\n".join([*filter(None, [against_memory(report)]), *_facts(report)]))
    return "\n\n".join(block for block in blocks if block)


def _text_table(report: Report, table: Table, lines: Sequence[Line]) -> Iterator[str]:
    width = max(len(line.row.row) for line in lines) + 2
    yield f"{table.title}: AUC in %, difference from {table.full!r}, `alone` by term"
    half = f"{'mean':>6}{'spread':>8}{'diff':>10}{'visual':>8}{'semantic':>10}"
    yield f"{'':{width}}{'':>10}{'paper':^42}{'causal':^42}{'seconds':>16}"
    yield f"{'':{width}}{'published':>10}{half}{half}{'train':>8}{'measure':>8}"
    full = _full(table, lines)
    for line in lines:
        published = "-" if line.row.published is None else f"{line.row.published:.1f}"
        cells = "".join(_half(line, full, protocol) for protocol in PROTOCOLS)
        yield f"{line.row.row:{width}}{published:>10}{cells}{_seconds(line)}".rstrip()
        yield textwrap.fill(line.note, 100, initial_indent="  ", subsequent_indent="  ")


def _half(line: Line, full: Line, protocol: str) -> str:
    values = line.values(protocol)
    if not values:
        return f"{'not run':>42}"
    differs = "" if line is full else verdict(values, full.values(protocol))
    alone = [line.values(protocol, term) for term in ("visual", "semantic")]
    visual, semantic = (f"{statistics.fmean(v):.1f}" if v else "-" for v in alone)
    figure = f"{statistics.fmean(values):6.1f}{spread(values):8.1f}"
    return f"{figure}{differs:>10}{visual:>8}{semantic:>10}"


def _seconds(line: Line) -> str:
    if not line.trials:
        return ""
    train, measure = (
        statistics.fmean(getattr(trial, name) for trial in line.trials)
        for name in ("train_s", "measure_s")
    )
    return f"{train:8.1f}{measure:8.1f}"


def _text_baselines(report: Report) -> Iterator[str]:
    if not report.baselines:
        return
    width = max(map(len, report.baselines)) + 2
    yield f"{'no model':{width}}{'paper':>8}{'causal':>8}"
    for name, figures in report.baselines.items():
        cells = "".join(f"{100 * figures[p]['micro_auc']:8.1f}" for p in PROTOCOLS)
        yield f"{name:{width}}{cells}"


def _facts(report: Report) -> Iterator[str]:
    yield (
        f"{report.base.steps} steps a trial, seeds {', '.join(map(str, report.seeds))}; "
        f"{_minutes(report.wall_s)} altogether on {report.machine}"
    )
    if report.missing:
        yield f"unfinished: {report.missing} trials to go; the same command runs them"
    yield from report.remarks


# --------------------------------------------------------------------------------- Markdown


def markdown(report: Report, command: str) -> str:
    """The page docs/ablations.md."""
    sentence = against_memory(report)
    parts = [
        "# Ablations",
        f"Written by\n\n```text\n{command}\n```",
        "\n".join(f"- {fact}" for fact in _page_facts(report)),
    ]
    if report.missing:
        parts.append(f"Unfinished: {report.missing} trials have not been run.")
    parts.append(MEANING)
    for table, lines in report.tables:
        parts.append(f"## {table.title}")
        if table.name == "memory" and sentence:
            parts.append(sentence)
        parts.append("\n".join(_markdown_table(table, lines)))
    if report.baselines:
        parts += ["## No model at all", "\n".join(_markdown_baselines(report))]
    return "\n\n".join(parts) + "\n"


def _page_facts(report: Report) -> Iterator[str]:
    base, config = report.base, report.base.plain()
    changed = "".join(f", `{change}`" for change in base.changes)
    yield (
        f"{report.data}; the `paper` protocol takes the constants of {report.constants}, `causal` "
        f"nothing of the test set and nothing of the future"
    )
    yield (
        f"configuration `{base.config}`{changed}; a short schedule of {base.steps} steps of "
        f"{config.clips_per_step} clips, learning rate {config.train.learning_rate:g} "
        f"({config.train.schedule}); seeds {', '.join(map(str, report.seeds))}"
    )
    yield (
        f"visual evidence is `{config.visual.measure}`, captions are "
        f"`{config.semantics.captioner}` every {config.semantics.stride} frames, as in a bundle of "
        f"this configuration"
    )
    yield (
        "frames, what moves in them, captions and their embeddings are cached and the same for all "
        "rows; every trial trains its network from nothing"
    )
    trials = [trial for _, lines in report.tables for line in lines for trial in line.trials]
    threads = sorted({str(trial.threads) for trial in trials})
    yield (
        f"{report.machine}, threads a trial: {' or '.join(threads) or '?'}; "
        f"{_minutes(report.wall_s)} altogether"
    )
    yield from report.remarks


MEANING = """\
Figures are frame-level AUC in % (micro; frames 0-3 of each video left out): the mean of the seeds,
in brackets their spread, largest less smallest. `difference` is from the row in bold: `none` where
the means lie no further apart than the larger of the two spreads. A row is scored by the paper's
terms that it is trained to give, each of which is also shown alone; the attribute term, which no
network learns, takes no part. `published` is the paper's figure on ShanghaiTech at full size: the
order of the rows can be compared with the order here, their height cannot. Seconds are of one
trial."""


def _markdown_table(table: Table, lines: Sequence[Line]) -> Iterator[str]:
    yield (
        "| row | published | paper | difference | visual | semantic | causal | difference | visual "
        "| semantic | parameters | train, s | measure, s | what it is |"
    )
    yield "|---|---|" + "---|" * 12
    full = _full(table, lines)
    for line in lines:
        name = f"**{line.row.row}**" if line is full else line.row.row
        published = "-" if line.row.published is None else f"{line.row.published:.1f}"
        cells = [name, published]
        for protocol in PROTOCOLS:
            values = line.values(protocol)
            alone = [line.values(protocol, term) for term in ("visual", "semantic")]
            cells.append(_figure(values) if values else "not run")
            cells.append("" if line is full else verdict(values, full.values(protocol)))
            cells += [f"{statistics.fmean(v):.1f}" if v else "-" for v in alone]
        cells.append(f"{line.trials[0].parameters:,}" if line.trials else "-")
        cells += _seconds(line).split() or ["-", "-"]
        yield f"| {' | '.join([*cells, line.note])} |"


def _markdown_baselines(report: Report) -> Iterator[str]:
    yield "| evidence | paper | causal |"
    yield "|---|---|---|"
    for name, figures in report.baselines.items():
        cells = [f"{100 * figures[protocol]['micro_auc']:.1f}" for protocol in PROTOCOLS]
        yield f"| {' | '.join([name, *cells])} |"


def _full(table: Table, lines: Sequence[Line]) -> Line:
    return next(line for line in lines if line.row == table.full_row)


def _figure(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f} ({spread(values):.1f})"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
