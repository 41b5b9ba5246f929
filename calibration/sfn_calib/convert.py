"""A graph in fp32 to the same graph in a recipe's precision, valid and loadable, or an error.

Inputs and outputs stay float32: casts are inside. A weight is stored in the precision it is used
in. Large weights lie in `out`.data beside the graph, which names that file: keep both names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sfn_calib.emulate import emulated, opens_optimised
from sfn_calib.exceptions import CalibrationError, ConversionError
from sfn_calib.graph import Graph, save_graph
from sfn_calib.half import halve
from sfn_calib.quantize import quantise
from sfn_calib.ranges import Ranges
from sfn_calib.recipe import HALF, Recipe
from sfn_calib.sessions import open_session, session_of
from sfn_calib.stays import quantisable, stays_full

NONE: frozenset[str] = frozenset()
GIVEN_BACK = "given back: its own error was among the worst"


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
    """Write `graph` to `out` in the recipe's precision, the nodes named in `keep` above it.

    int8 and fp8 need the `ranges` that measure_ranges found on this graph.
    """
    opened = Graph.load(graph)
    if unknown := sorted(keep - {node.name for node in opened.nodes}):
        raise ConversionError(f"{graph}: has no node {unknown[0]!r} to keep in higher precision")
    write = _write_half if recipe.precision in HALF else _write_eight_bit
    converted = write(opened, out, recipe, ranges, keep)
    _check_loads(out, recipe)
    return converted


def _write_half(
    graph: Graph, out: Path, recipe: Recipe, ranges: Ranges | None, keep: frozenset[str]
) -> Converted:
    full = stays_full(graph) | dict.fromkeys(sorted(keep), GIVEN_BACK)
    halved = halve(graph, recipe.precision, full)
    save_graph(halved.model, out)
    return Converted(
        path=out,
        precision=recipe.precision,
        nodes=tuple(halved.nodes),
        kept=halved.kept,
        notes=tuple(halved.notes),
    )


def _write_eight_bit(
    graph: Graph, out: Path, recipe: Recipe, ranges: Ranges | None, keep: frozenset[str]
) -> Converted:
    if ranges is None:
        raise CalibrationError(f"{graph.source}: {recipe.name} needs ranges measured on clips")
    nodes, kept = quantisable(graph, recipe)
    full = stays_full(graph)
    kept |= full
    kept |= {node.name: GIVEN_BACK for node in nodes if node.name in keep}
    nodes = [node for node in nodes if node.name not in keep]
    model = quantise(graph, recipe, nodes, ranges)
    notes: tuple[str, ...] = (f"activations: {ranges.how}, {ranges.n_feeds} batches",)
    if recipe.beside == "fp16":
        halved = halve(Graph(model, graph.source), recipe.beside, full)
        model, kept = halved.model, halved.kept | kept
        notes += tuple(halved.notes)
    save_graph(model, out)
    return Converted(
        path=out,
        precision=recipe.precision,
        nodes=tuple(node.name for node in nodes),
        kept=kept,
        notes=notes,
    )


def _check_loads(out: Path, recipe: Recipe) -> None:
    """Have ONNX Runtime take what was written; it has no kernels for bf16, which is emulated."""
    if recipe.precision == "bf16":
        with session_of(emulated(Graph.load(out))):
            return
    open_session(out, optimised=opens_optimised(recipe.precision))
