"""Two systems on one labelled data set: which scores better, at what speed and size?

    python benchmarks/systems_ped2.py --data $SFN_DATA/ped2 bundle bundle_dual [--threads 2]

Both bundles score every labelled test video through the runtime. Each system leaves other frames at
the beginning and end of a video without a score, so the evidence of both, and of the no-model
baselines, is first cut to the frames that both score, and then turned into scores:

    paper    with the constants published for the system (a baseline: for the data set)
    alike    the same protocol with one smoothing and scaling, the data set's, for everybody
    causal   tails of normal footage, moving average; nothing of a test video's future

Frame-level micro AUC in %. Frames/s are those of `sfn-rt bench` on the first test video, end to
end, one system after the other; parameters are the numbers that the graphs hold, the sentence
encoder's apart. Prints tables, then one JSON line.
"""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from sfn_rt.bench import bench
from sfn_rt.bundle import load_bundle
from sfn_rt.datasets import Dataset, Video, check_length, open_dataset
from sfn_rt.evaluate import measure_baselines
from sfn_rt.exceptions import SfnError
from sfn_rt.frames import open_source
from sfn_rt.metrics import roc_auc
from sfn_rt.model import open_model
from sfn_rt.options import BenchOptions
from sfn_rt.pipeline import VideoRun
from sfn_rt.scores import (
    EMA_ALPHA,
    PAPER_TERMS,
    PUBLISHED,
    FloatArray,
    PaperConstants,
    Tail,
    causal_scores,
    moving_average,
    paper_constants,
    paper_scores,
    scored_span,
)

Terms = Mapping[str, FloatArray]  # (T,) each
Figures = dict[str, float]  # column -> AUC in %


@dataclass(frozen=True)
class System:
    """One bundle and what it found."""

    name: str
    videos: Mapping[str, Terms]
    tails: Mapping[str, Tail]
    alpha: float
    constants: PaperConstants

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Every term alone, the paper's two where both are there, and all."""
        terms = tuple(next(iter(self.videos.values())))
        found: dict[str, tuple[str, ...]] = {term: (term,) for term in terms}
        if set(PAPER_TERMS) < set(terms):
            found["visual + semantic"] = PAPER_TERMS
        return found | ({"all terms": terms} if len(terms) > 1 else {})


def score(bundle: Path, dataset: Dataset, videos: Sequence[Video], threads: int | None) -> System:
    """Run every video through the runtime, as `sfn-rt eval` does."""
    found: dict[str, Terms] = {}
    with open_model(bundle, threads=threads) as model:
        for video in videos:
            with open_source(video.path, fps=dataset.fps) as source:
                run = VideoRun(model, source.fps)
                for block in run.blocks(source):
                    run.take(block)
                result = run.finish(video.name)
            check_length(video, result.n_frames)
            found[video.name] = result.terms
            print(f"{bundle.name}: {video.name}", flush=True)
        system = model.bundle.manifest.system
        _, constants = paper_constants(system, dataset.published)
        name = f"{system} ({model.bundle.manifest.profile})"
        return System(name, found, model.tails, model.alpha, constants)


def common_spans(systems: Sequence[System], videos: Sequence[Video]) -> dict[str, slice]:
    """The frames of each video that every system scores."""
    return {
        video.name: scored_span(
            {f"{i} {t}": x for i, s in enumerate(systems) for t, x in s.videos[video.name].items()}
        )
        for video in videos
    }


def measure(
    terms: Sequence[Terms],
    truth: NDArray[np.bool_],
    constants: PaperConstants,
    alike: PaperConstants,
    tails: Mapping[str, Tail] | None,
    alpha: float = EMA_ALPHA,
) -> Figures:
    """Micro AUC of one evidence in every column; terms and truth are of the common frames."""
    if tails is None:  # a baseline: no tail of it was measured on normal footage
        causal = [moving_average(t["visual"], alpha) for t in terms]
    else:
        causal = [causal_scores(t, tails, alpha) for t in terms]
    columns = {
        "paper": [paper_scores(t, constants) for t in terms],
        "alike": [paper_scores(t, alike) for t in terms],
        "causal": causal,
    }
    return {name: 100 * roc_auc(np.concatenate(s), truth) for name, s in columns.items()}


def size_of(bundle: Path) -> dict[str, float]:
    """Megabytes of the bundle, and millions of numbers in its graphs."""
    opened = load_bundle(bundle)
    parts = {}
    for part in opened.manifest.parts:
        held = onnx.load(opened.graph(part)).graph.initializer
        parts[part] = sum(
            int(np.prod(t.dims)) for t in held if t.data_type == onnx.TensorProto.FLOAT
        )
    text = parts.pop("text", 0)
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    return {
        "bundle_mb": size / 1e6,
        "parameters_m": sum(parts.values()) / 1e6,
        "text_parameters_m": text / 1e6,
    }


def compare(
    systems: Sequence[System],
    baselines: Mapping[str, Mapping[str, FloatArray]],
    videos: Sequence[Video],
    published: PaperConstants,
) -> dict[str, dict[str, Figures]]:
    """Figures by system (or "no model") and evidence, on the frames that all systems score."""
    spans = common_spans(systems, videos)
    truth = np.concatenate([v.labels[spans[v.name]] for v in videos if v.labels is not None]) > 0
    table: dict[str, dict[str, Figures]] = {}
    for system in systems:
        # One smoothing and scaling for everybody; the weights are the system's own.
        alike = replace(system.constants, sigma=published.sigma, minmax=published.minmax)
        rows = table.setdefault(system.name, {})
        for name, chosen in system.choices.items():
            cut = [{t: system.videos[v.name][t][spans[v.name]] for t in chosen} for v in videos]
            tails = {term: system.tails[term] for term in chosen}
            rows[name] = measure(cut, truth, system.constants, alike, tails, system.alpha)
    alone = replace(published, visual=1.0, semantic=0.0)
    rows = table.setdefault("no model", {})
    for name, by_video in baselines.items():
        cut = [{"visual": by_video[v.name][spans[v.name]]} for v in videos]
        rows[name] = measure(cut, truth, alone, alone, None)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", type=Path, nargs=2, help="of the two systems")
    parser.add_argument("--data", type=Path, required=True, help="a labelled data set")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime; default its own choice")
    parser.add_argument("--frames", type=int, default=300, help="to measure the speed on")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    asked = parser.parse_args()
    try:
        line = run(asked.bundles, asked.data, asked.threads, asked.frames)
    except SfnError as error:
        parser.exit(2, f"error: {error}\n")
    if asked.out is not None:
        asked.out.write_text(json.dumps(line, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(line))


def run(bundles: Sequence[Path], data: Path, threads: int | None, frames: int) -> dict[str, object]:
    """Measure, print the tables, and return what the JSON line says."""
    dataset = open_dataset(data)
    videos = [video for video in dataset.test if video.labels is not None]
    published = PUBLISHED[dataset.published or "default"]
    systems = [score(bundle, dataset, videos, threads) for bundle in bundles]
    if systems[0].name == systems[1].name:
        systems = [replace(s, name=f"{s.name}, {b}") for s, b in zip(systems, bundles, strict=True)]
    table = compare(systems, measure_baselines(dataset, videos), videos, published)
    spans = common_spans(systems, videos)
    n_frames = sum(span.stop - span.start for span in spans.values())
    left = sorted({(s.start, len(v.labels) - s.stop) for v in videos if v.labels is not None
                   for s in [spans[v.name]]})  # fmt: skip
    costs = {}
    for bundle, system in zip(bundles, systems, strict=True):
        speed = bench(videos[0].path, bundle, BenchOptions(threads=threads, frames=frames))
        costs[system.name] = size_of(bundle) | {"frames_per_second": speed.frames_per_second}
    device = str(speed.machine["processor"])

    print(
        f"\n{data.name}: {len(videos)} test videos, {n_frames} frames that both systems score; "
        f"left out at beginning and end: {', '.join(f'{a} and {b}' for a, b in left)}\n"
    )
    print("| evidence | paper | alike | causal |\n|---|---|---|---|")
    for name, rows in table.items():
        print(f"| **{name}** | | | |")
        for evidence, row in rows.items():
            cells = " | ".join(f"{row[column]:.1f}" for column in ("paper", "alike", "causal"))
            print(f"| {evidence} | {cells} |")
    print(
        f"\n{device}, fp32, {threads or 'default'} threads, {frames} frames after 20 of warm-up\n"
    )
    print("| system | frames/s | parameters, million | bundle, MB |\n|---|---|---|---|")
    for name, cost in costs.items():
        text = f" + {cost['text_parameters_m']:.1f} text" if cost["text_parameters_m"] else ""
        print(
            f"| {name} | {cost['frames_per_second']:.1f} | {cost['parameters_m']:.2f}{text} "
            f"| {cost['bundle_mb']:.1f} |"
        )
    print()
    return {
        "data": data.name,
        "labels": dataset.fingerprint,
        "frames": n_frames,
        "auc_percent": table,
        "constants": {s.name: asdict(s.constants) for s in systems},
        "alike": {"sigma": published.sigma, "minmax": published.minmax},
        "costs": costs,
        "threads": threads,
        "device": device,
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    main()
