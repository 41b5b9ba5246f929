"""Mixed precision: while the gate fails, the layers with the most noise go back to full precision.

Graphs are written from a recipe, the gate judges them, and where it fails the layers of the worst
signal-to-quantisation-noise ratio are given back, twice as many a round. What was given back is
named in the report. If nearly all of them are back and the gate still fails, the precision is
refused: what would be left of it is not worth its name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfn_calib.convert import Converted, convert
from sfn_calib.emulate import open_variant
from sfn_calib.exceptions import CalibrationError
from sfn_calib.gate import GateFigures, Pair
from sfn_calib.ranges import measure_ranges
from sfn_calib.recipe import Recipe
from sfn_calib.sqnr import LayerSqnr, layer_sqnr
from sfn_rt.backends.base import Array, Backend
from sfn_rt.bundle import FULL

FIRST_SHARE = 1 / 16  # of the layers, given back first; each round gives back twice as many
ROUNDS = 5  # the first with none given back: at the end 15 of 16 layers are

Say = Callable[[str], None]
Feeds = Mapping[str, Sequence[Mapping[str, Array]]]  # part -> what it is fed on calibration clips
Judge = Callable[[Backend, str], tuple[GateFigures, tuple[Pair, ...]]]


@dataclass(frozen=True, order=True)
class Layer:
    """One converted layer of one part."""

    sqnr_db: float
    part: str
    node: str
    operator: str = field(compare=False)

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "part": self.part,
            "layer": self.node,
            "operator": self.operator,
            # null: a layer that gives nothing but zeros on these clips, or is exact
            "sqnr_db": round(self.sqnr_db, 2) if np.isfinite(self.sqnr_db) else None,
        }


@dataclass(frozen=True)
class Round:
    """What one attempt gave back beside those before it, and what the gate said."""

    given_back: tuple[Layer, ...]
    figures: GateFigures
    misses: tuple[str, ...]


@dataclass(frozen=True)
class Attempt:
    """The last round: graphs, their layers, and whether the gate holds."""

    graphs: Mapping[str, Path]  # every part of the model
    variants: Mapping[str, str]  # part -> the recipe's name, or fp32 where nothing was converted
    converted: Mapping[str, Converted]
    layers: tuple[Layer, ...]  # all that the recipe converts, worst first
    rounds: tuple[Round, ...]
    pairs: tuple[Pair, ...]  # as the variant sees them

    @property
    def figures(self) -> GateFigures:
        """Of the last round."""
        return self.rounds[-1].figures

    @property
    def misses(self) -> tuple[str, ...]:
        """Why the gate does not hold; empty where it does."""
        return self.rounds[-1].misses

    @property
    def given_back(self) -> tuple[Layer, ...]:
        """All layers that went back to full precision."""
        return tuple(layer for each in self.rounds for layer in each.given_back)


class Workshop:
    """Writes and opens the graphs of one recipe for one bundle."""

    def __init__(
        self,
        originals: Mapping[str, Path],
        folder: Path,
        recipe: Recipe,
        feeds: Feeds,
        *,
        threads: int | None = None,
    ) -> None:
        self._originals, self._folder, self._recipe = originals, folder, recipe
        self._feeds, self._threads = feeds, threads
        self._parts = [part for part in originals if part not in recipe.leave]
        self._ranges = (
            {
                part: measure_ranges(originals[part], recipe, feeds[part], threads=threads)
                for part in self._parts
            }
            if recipe.needs_ranges
            else {}
        )
        self._kept: dict[str, frozenset[str]] = {}
        self.converted: dict[str, Converted] = {}

    def write(self, keep: Iterable[Layer]) -> None:
        """All graphs with these layers left at full precision; unchanged ones stay."""
        names: dict[str, set[str]] = {part: set() for part in self._parts}
        for layer in keep:
            names[layer.part].add(layer.node)
        for part in self._parts:
            wanted = frozenset(names[part])
            if self._kept.get(part) == wanted:
                continue
            out = self._folder / f"{part}.{self._recipe.name}.onnx"
            self.converted[part] = convert(
                self._originals[part], out, self._recipe, self._ranges.get(part), keep=wanted
            )
            self._kept[part] = wanted

    @property
    def graphs(self) -> dict[str, Path]:
        """Every part: as written, or the original where nothing in it is converted."""
        return {
            part: self.converted[part].path if self.variants[part] != FULL else original
            for part, original in self._originals.items()
        }

    @property
    def variants(self) -> dict[str, str]:
        """Which variant of each part makes up the precision."""
        return {
            part: self._recipe.name
            if part in self.converted and self.converted[part].nodes
            else FULL
            for part in self._originals
        }

    def layers(self) -> tuple[Layer, ...]:
        """Every converted layer, the one with the most noise first."""
        found: list[Layer] = []
        for part, done in self.converted.items():
            if done.nodes:
                measured: Sequence[LayerSqnr] = layer_sqnr(
                    self._originals[part], done, self._feeds[part], threads=self._threads
                )
                found += [Layer(m.sqnr_db, part, m.node, m.operator) for m in measured]
        return tuple(sorted(found))

    def open(self) -> Backend:
        """The variant, on the CPU."""
        low = {p: self._recipe.precision if v != FULL else FULL for p, v in self.variants.items()}
        return open_variant(self.graphs, low, threads=self._threads)


def settle(workshop: Workshop, recipe: Recipe, judge: Judge, say: Say) -> Attempt:
    """Give back the worst layers until the gate holds, or until hardly any is left."""
    workshop.write(())
    if all(variant == FULL for variant in workshop.variants.values()):
        raise CalibrationError(
            f"recipe {recipe.name}: no layer of this model can be converted, so there would be "
            f"nothing in {recipe.precision}; use another recipe"
        )
    layers = workshop.layers()
    rounds: list[Round] = []
    back = 0
    handful = max(1, round(FIRST_SHARE * len(layers)))
    for number in range(ROUNDS):
        given: tuple[Layer, ...] = ()
        if number:
            given = layers[back : back + handful]
            back, handful = back + len(given), 2 * handful
            if not given or back >= len(layers):
                break
            say(f"given back to full precision: {_named(given)}")
            workshop.write(layers[:back])
        with workshop.open() as backend:
            figures, pairs = judge(backend, f"{recipe.name}, round {number + 1}")
        misses = tuple(figures.misses(recipe.budget))
        rounds.append(Round(given, figures, misses))
        say(f"{recipe.name}: {figures.text()}")
        if not misses:
            break
        say(f"the gate fails: {'; '.join(misses)}")
    return Attempt(
        workshop.graphs, workshop.variants, dict(workshop.converted), layers, tuple(rounds), pairs
    )


def _named(layers: Sequence[Layer]) -> str:
    """Layers for a message: the first of them, worst first."""
    first = ", ".join(f"{x.part} {x.node} ({x.sqnr_db:.1f} dB)" for x in layers[:4])
    more = len(layers) - 4
    return first + (f" and {more} more" if more > 0 else "")
