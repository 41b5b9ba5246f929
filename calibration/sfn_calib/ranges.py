"""Ranges of the activations that a recipe quantises, measured on clips in bounded memory.

The graph runs once over the feeds. Of every activation a histogram of magnitudes is kept, whose
bins double in width where a larger value arrives: memory is the same for ten clips and for ten
thousand. (The calibrators of onnxruntime.quantization keep every tensor of every clip, or add
bins without end.)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from sfn_calib.exceptions import CalibrationError
from sfn_calib.graph import FLOAT, Graph, rebuilt
from sfn_calib.recipe import Recipe
from sfn_calib.sessions import session_of
from sfn_calib.stays import quantisable
from sfn_rt.backends.base import Array

N_BINS = 4096
ENTROPY_BINS = 256  # what the histogram is brought to before entropy is compared


@dataclass(frozen=True)
class Ranges:
    """Largest magnitude to represent, by activation."""

    largest: Mapping[str, float]
    how: str  # for people
    n_feeds: int


class Histogram:
    """Magnitudes of one activation."""

    def __init__(self) -> None:
        self.counts = np.zeros(N_BINS, np.int64)
        self.top = 0.0  # upper end of the last bin
        self.largest = 0.0  # exact

    def add(self, values: Array) -> None:
        """Count another clip's values."""
        magnitudes = np.abs(values, dtype=np.float32).ravel()
        largest = float(magnitudes.max(initial=0))
        if not np.isfinite(largest):
            raise ValueError("not a finite number")
        self.largest = max(self.largest, largest)
        if self.top == 0:
            self.top = largest
        while largest > self.top > 0:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros(N_BINS // 2, np.int64)])
            self.top *= 2
        if self.top == 0:
            self.counts[0] += magnitudes.size
        else:
            self.counts += np.histogram(magnitudes, N_BINS, (0, self.top))[0]

    def percentile(self, percentile: float) -> float:
        """The magnitude below which this share of values lies."""
        reached = np.cumsum(self.counts) >= self.counts.sum() * percentile / 100
        edge = self.top * (int(reached.argmax()) + 1) / N_BINS
        return min(edge, self.largest)

    def entropy(self) -> float:
        """The range that loses least information in 128 steps, by TensorRT's old rule."""
        from onnxruntime.quantization.calibrate import HistogramCollector

        coarse = self.counts.reshape(ENTROPY_BINS, -1).sum(axis=1)
        both = np.concatenate([coarse[::-1], coarse])
        edges = np.linspace(-self.top, self.top, 2 * ENTROPY_BINS + 1, dtype=np.float32)
        collector = HistogramCollector("entropy", True, 2 * ENTROPY_BINS, 128, 99.9, "same")
        ends = np.float32(-self.largest), np.float32(self.largest)
        _, high = collector.get_entropy_threshold((both, edges, *ends, ends[1]), 128)
        return float(high)


def measure_ranges(
    graph: Path, recipe: Recipe, feeds: Iterable[Mapping[str, Array]], *, threads: int | None = None
) -> Ranges:
    """Run `graph` over `feeds` and see what its products are given."""
    opened = Graph.load(graph)
    names = sorted({node.input[0] for node in quantisable(opened, recipe)[0]})
    histograms = {name: Histogram() for name in names}
    n_feeds = 0
    model = rebuilt(opened, opened.nodes)
    for name in names:
        if name in opened.producer and name not in opened.outputs:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, FLOAT, None))
    del opened
    with session_of(model, threads=threads) as session:
        for feed in feeds:
            n_feeds += 1
            outside = {name: feed[name] for name in names if name in feed}
            inside = [name for name in names if name not in feed]
            found = zip(inside, session.run(inside, dict(feed)), strict=True) if inside else ()
            for name, values in (*outside.items(), *found):
                _count(histograms[name], name, values, graph)
    if n_feeds == 0:
        raise CalibrationError(f"{graph}: no clip was fed; ranges come from normal footage")
    rule = {"percentile": f"{recipe.percentile} % of magnitudes"}.get(recipe.ranges, recipe.ranges)
    return Ranges({n: _range(h, recipe) for n, h in histograms.items()}, rule, n_feeds)


def _count(histogram: Histogram, name: str, values: Array, graph: Path) -> None:
    try:
        histogram.add(values)
    except ValueError as error:
        raise CalibrationError(
            f"{graph}: {name!r} holds what is {error} on the clips; the model or a clip is damaged"
        ) from None


def _range(histogram: Histogram, recipe: Recipe) -> float:
    if recipe.ranges == "minmax" or histogram.largest == 0:
        return histogram.largest
    if recipe.ranges == "percentile":
        return histogram.percentile(recipe.percentile)
    return histogram.entropy()
