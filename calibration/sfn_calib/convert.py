"""A graph in fp32 to the same graph in a recipe's precision."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sfn_calib.ranges import Ranges
from sfn_calib.recipe import Recipe

NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One graph that was written, valid and loadable."""

    path: Path
    precision: str
    nodes: tuple[str, ...]  # nodes of the fp32 graph that now compute in the precision
    kept: Mapping[str, str]  # node that stayed above it -> why
    notes: tuple[str, ...]  # what else a reader should know, e.g. weights that underflow


def convert(
    graph: Path,
    out: Path,
    recipe: Recipe,
    ranges: Ranges | None = None,
    *,
    keep: frozenset[str] = NONE,
) -> Converted:
    """Write `graph` to `out` in the recipe's precision, the nodes named in `keep` above it."""
    raise NotImplementedError
