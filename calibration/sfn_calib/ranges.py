"""Ranges of the activations that a recipe quantises, measured on clips in bounded memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sfn_calib.recipe import Recipe
from sfn_rt.backends.base import Array


@dataclass(frozen=True)
class Ranges:
    """Largest magnitude to represent, by tensor."""

    largest: Mapping[str, float]
    how: str
    n_feeds: int


def measure_ranges(
    graph: Path, recipe: Recipe, feeds: Iterable[Mapping[str, Array]], *, threads: int | None = None
) -> Ranges:
    """Run `graph` over `feeds`, keeping of every activation only its histogram."""
    raise NotImplementedError
