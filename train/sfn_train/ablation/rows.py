"""A row of a table: its configuration, and what that adds or removes.

What a row says of itself is derived from the configuration it runs with, never written beside it:
a branch that is off takes its head, its loss and its weight in the score with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

import yaml

from sfn_rt.scores import PAPER_TERMS
from sfn_train.config import Config, read_config
from sfn_train.exceptions import ConfigError
from sfn_train.statistics import learned_terms

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table."""

    row: str
    changes: tuple[str, ...]  # to the base configuration, as for --set
    published: float | None = None  # AUC in % on ShanghaiTech


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that are compared with one of them."""

    name: str
    title: str
    full: str  # the row that the others are compared with
    rows: tuple[Row, ...]

    @property
    def full_row(self) -> Row:
        """The row named `full`."""
        return next(row for row in self.rows if row.row == self.full)


def read_tables(asked: str = ALL) -> tuple[Table, ...]:
    """The table of that name, or all of them."""
    file = resources.files("sfn_train.ablation") / "tables.yaml"
    tables = {}
    for name, raw in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        rows = tuple(Row(**{**row, "changes": tuple(row["changes"])}) for row in raw["rows"])
        tables[name] = Table(name=name, title=raw["title"], full=raw["full"], rows=rows)
    if asked != ALL and asked not in tables:
        raise ConfigError(
            f"no table {asked!r} of ablations; choose one of {', '.join(tables)}, or {ALL}"
        )
    return tuple(tables.values()) if asked == ALL else (tables[asked],)


@dataclass(frozen=True, kw_only=True)
class Base:
    """What all rows have in common."""

    config: str  # name, or a YAML file
    changes: tuple[str, ...]
    steps: int

    def plain(self, seed: int = 0, changes: Sequence[str] = ()) -> Config:
        """The configuration without a row's changes; such as are given come last."""
        own = (f"train.steps={self.steps}", "train.epochs=null", "train.minutes=null")
        every = (*self.changes, *own, f"train.seed={seed}", *changes)
        return read_config(self.config, every)

    def row(self, row: Row, seed: int) -> Config:
        """The configuration of one trial."""
        config = self.plain(seed, row.changes)
        if config.system != "sfn-vad":
            raise ConfigError(
                f"{self.config} is of the system {config.system}; the tables are of sfn-vad, as in "
                f"--config edge"
            )
        if not scored_terms(config):
            raise ConfigError(
                f"row {row.row!r}: neither the frame nor the text is predicted, so there is "
                f"nothing to score; leave out the --set that switches them off"
            )
        return config


def scored_terms(config: Config) -> tuple[str, ...]:
    """The paper's terms that this model is trained to give."""
    there = {"visual": config.sfn.has_picture, "semantic": config.sfn.use_text}
    return learned_terms(config, [term for term in PAPER_TERMS if there[term]])


def says(config: Config, full: Config) -> str:
    """What the row adds and what it leaves out, as far as the full row is not the same."""
    same = [] if config.fingerprint() == full.fingerprint() else _clauses(full)
    own = [clause for clause in _clauses(config) if clause not in same]
    return "; ".join(own) or "nothing that the full row has not"


def _clauses(config: Config) -> list[str]:
    return [*_parts(config), *_off(config), _score(config)]


def _parts(config: Config) -> Iterator[str]:
    c = config.sfn
    if c.filter == "sffm":
        kept = (c.n_active + c.n_shared) * c.rank
        yield (
            f"{c.n_active} of {c.n_filters} filters + {c.n_shared} shared, each {c.rank} wide: "
            f"{kept} of {c.dim} active"
        )
    elif c.filter == "bottleneck":
        yield f"one filter {c.rank} wide for all tokens"
    elif c.filter == "mlp":
        yield f"an MLP {4 * c.dim} wide for all tokens"
    if c.memory != "none":
        kinds = [name for name, on in (("visual", c.has_picture), ("semantic", c.use_text)) if on]
        place = "at the decoder's input" if c.memory == "input" else "in every layer"
        yield f"{' and '.join(kinds)} memory of {c.memory_slots} slots {place}"
    if c.windows:
        yield f"captions of the last {', '.join(map(str, c.windows))} frames"


def _off(config: Config) -> Iterator[str]:
    c, weights = config.sfn, config.train.loss
    if c.filter != "sffm":
        yield "no router and no balance loss"
    if not c.has_picture:
        yield "no appearance, no motion, no frame head, no frame or motion loss"
    elif not c.use_appearance:
        yield "no appearance"
    elif not c.use_motion:
        yield "no motion branch, no motion loss"
    elif not weights.motion:
        yield "motion branch on, no motion loss"
    if not c.use_text:
        yield "no text token, no text head, no text loss"
    elif not weights.text:
        yield "text is an input, no text loss"


def _score(config: Config) -> str:
    terms = scored_terms(config)
    return f"scored by {' and '.join(terms)}{' alone' if len(terms) == 1 else ''}"


def seeds_of(text: str) -> tuple[int, ...]:
    """`0,1,2` as numbers; each once."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise ConfigError(f"--seeds {text}: expected different whole numbers, as in 0,1,2")
    return tuple(seeds)


def trial_names(tables: Sequence[Table], base: Base, seeds: Sequence[int]) -> dict[str, str]:
    """Fingerprint of each trial's configuration to the first row that needs it."""
    names: dict[str, str] = {}
    for table in tables:
        for row in table.rows:
            for seed in seeds:
                names.setdefault(base.row(row, seed).fingerprint(), f"{table.name}: {row.row}")
    return names
