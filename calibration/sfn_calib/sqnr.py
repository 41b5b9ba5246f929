"""Signal to quantisation noise of every converted layer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sfn_calib.convert import Converted
from sfn_rt.backends.base import Array


@dataclass(frozen=True, kw_only=True)
class LayerSqnr:
    """How far one layer's output is off."""

    node: str  # of the fp32 graph
    operator: str
    sqnr_db: float  # of its own doing: what enters it is exact
    behind_db: float  # as it runs in the variant, all that comes before it converted too


def layer_sqnr(
    reference: Path,
    converted: Converted,
    feeds: Iterable[Mapping[str, Array]],
    *,
    threads: int | None = None,
) -> tuple[LayerSqnr, ...]:
    """Every converted layer of a graph against fp32, worst (lowest sqnr_db) first."""
    raise NotImplementedError
