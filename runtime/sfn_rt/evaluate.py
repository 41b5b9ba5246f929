"""A data set to its table of figures: each test video scored, beside what no model scores.

test video -> evidence and score (as `sfn-rt score` makes them) -> evaluation.evaluate
           -> no-model baselines, from the same frames          ->
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfn_rt.baselines import Baselines, from_length
from sfn_rt.datasets import Dataset, Video, check_length, open_dataset
from sfn_rt.evaluation import Evaluation, evaluate
from sfn_rt.exceptions import DataError, VideoError
from sfn_rt.frames import open_source
from sfn_rt.metrics import BoxHits, PixelAuroc, localisation, peak_box_hits
from sfn_rt.model import Model, open_model, with_captions
from sfn_rt.options import BackendOptions, EvalOptions
from sfn_rt.pipeline import VideoRun, check_frames, lane_text
from sfn_rt.plots import Panel, RocCurve, Series, label_spans, line_chart, roc_chart
from sfn_rt.progress import Progress
from sfn_rt.scores import (
    FloatArray,
    PaperConstants,
    VideoScores,
    paper_constants,
    scored_span,
)
from sfn_rt.sinks.files import OutputFolder, output_errors, to_json, write_atomic, write_scores

ByVideo = dict[str, FloatArray]


@dataclass(frozen=True)
class EvaluationReport:
    """What `sfn-rt eval` answers."""

    evaluation: Evaluation
    out: Path
    files: tuple[str, ...]
    warnings: tuple[str, ...]
    lane: Mapping[str, Any] | None  # who described the videos, when, and what became of it

    def text(self) -> str:
        """For people."""
        warnings = [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(
            [*warnings, self.evaluation.table(), f"{self.out}: {', '.join(self.files)}"]
        )

    def to_json(self) -> dict[str, object]:
        """For programs; schemas/evaluation.schema.json."""
        return dict(self.evaluation.to_json())


def evaluate_dataset(data: Path, bundle: Path, options: EvalOptions) -> EvaluationReport:
    """Score every labelled test video of `data` and measure the scores; writes to `options.out`."""
    dataset = open_dataset(data, fps=options.fps, labels=options.labels)
    labelled = [video for video in dataset.test if video.labels is not None]
    if not labelled:
        raise DataError(
            f"{data}: no labels for its {len(dataset.test)} test videos, so there is nothing to "
            f"measure; add frame_labels.npz (one array of 0 and 1 a video), or use `sfn-rt score`"
        )
    with ExitStack() as stack:
        opened = open_model(
            bundle, threads=options.threads, terms=options.terms, captions=options.captions,
            lane=options.lane, backend=options.backend,
        )  # fmt: skip
        model = stack.enter_context(opened)
        folder = stack.enter_context(OutputFolder(options.out, overwrite=options.force))
        workers = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        stop = threading.Event()
        stack.callback(stop.set)  # leaving early waits for one frame, not for all baselines
        no_model = workers.submit(measure_baselines, dataset, labelled, stop)
        constants_name, constants = paper_constants(model.perception.system, dataset.published)
        scored, warnings, places, lane = _score_all(model, labelled, dataset, constants, options)
        baselines = no_model.result()
        notes = list(dataset.notes)
        if not dataset.train:
            notes.append("no normal videos beside the test videos: blob baselines are left out")
        if lane is not None:
            notes.append(lane_text(lane))
        if model.computed != BackendOptions():
            notes.append(f"computed {model.computed.text()}")
        if lag := model.perception.lag:
            notes.append(f"the evidence of a frame sees the {lag} after it, so scores come late")
        result = evaluate(
            scored,
            {video.name: video.labels for video in labelled if video.labels is not None},
            tails=model.tails,
            constants=constants,
            constants_name=constants_name,
            threshold=model.threshold,
            fps=float(np.median([video.fps for video in scored])),
            alpha=model.alpha,
            baselines=baselines,
            localisation=places,
            fingerprint=dataset.fingerprint,
            labels_from=dataset.labels_from,
            notes=notes,
        )
        with output_errors(options.out):
            names = _write(folder.files, result, scored, labelled)
        folder.commit()
    return EvaluationReport(result, options.out, names, tuple(warnings), lane)


class Stopped(Exception):
    """The measurement was no longer wanted; nobody waits for this."""


def measure_baselines(
    dataset: Dataset, videos: Iterable[Video], stop: threading.Event | None = None
) -> dict[str, ByVideo]:
    """(T,) evidence of every no-model baseline, by baseline and video.

    Runs beside the scoring, in a thread: raises Stopped soon after `stop` is set.
    """

    def images(video: Video) -> Iterator[np.ndarray]:
        with open_source(video.path, fps=dataset.fps) as source:
            for frame in source:
                if stop is not None and stop.is_set():
                    raise Stopped
                yield frame.image

    if dataset.train:

        def normal() -> Iterator[Iterator[np.ndarray]]:
            return (images(video) for video in dataset.train)

        baselines = Baselines.fit(normal)
    else:
        baselines = Baselines()
    found: dict[str, ByVideo] = {}
    for video in videos:
        baselines.reset()
        rows = [baselines.update(image) for image in images(video)]
        columns = {name: np.array([row[name] for row in rows]) for name in baselines.names}
        for name, values in (from_length(len(rows)) | columns).items():
            found.setdefault(name, {})[video.name] = values
    return found


def _score_all(
    model: Model,
    videos: list[Video],
    dataset: Dataset,
    constants: PaperConstants,
    options: EvalOptions,
) -> tuple[list[VideoScores], list[str], Mapping[str, float] | None, Mapping[str, Any] | None]:
    scored: list[VideoScores] = []
    warnings: list[str] = []
    lanes: list[Mapping[str, Any]] = []
    hits: BoxHits | None = None
    pixels = PixelAuroc()
    # All captions are looked at before the first video is scored, which may take long.
    models = [with_captions(model, options.captions, v.path, v.name, "test") for v in videos]
    for number, (video, model) in enumerate(zip(videos, models, strict=True), start=1):
        with (
            open_source(video.path, fps=dataset.fps) as source,
            Progress(
                f"{video.name} ({number}/{len(videos)})", source.n_frames, enabled=options.progress
            ) as progress,
        ):
            run = VideoRun(model, source.fps)
            for block in run.blocks(source):
                for row in run.take(block):
                    if row.heat is not None and video.masks is not None:
                        if row.index >= len(video.masks):
                            check_length(video, row.index + 1)
                        pixels.update(row.heat, video.masks.frame(row.index))
                progress.advance(len(block.frames))
            if source.problem is not None:
                raise VideoError(f"{video.path}: {source.problem}; labels need the whole video")
            check_length(video, run.n_taken)
            check_frames(video.path, run.n_taken, model)
            result = run.finish(video.name, constants)
        scored.append(result)
        if (lane := run.lane(result.captions)) is not None:
            lanes.append(lane)
        told = [text for text in (*source.warnings, *run.warnings) if text not in dataset.notes]
        warnings += [f"{video.name}: {text}" for text in told]
        if video.masks is not None:
            found = peak_box_hits(result.box, video.masks, scored=scored_span(result.terms))
            hits = found if hits is None else hits + found
    places = None if hits is None else localisation(hits, pixels if pixels.pixels else None)
    return scored, warnings, places, all_lanes(lanes)


def all_lanes(lanes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The counts of all videos together; everything else is the same for each."""
    if not lanes:
        return None
    counted = [key for key, value in lanes[0].items() if isinstance(value, int)]
    counted.remove("latency")
    return {**lanes[-1], **{key: sum(lane[key] for lane in lanes) for key in counted}}


def _write(
    folder: Path, result: Evaluation, scored: list[VideoScores], videos: list[Video]
) -> tuple[str, ...]:
    write_atomic(folder / "evaluation.json", to_json(result.to_json()))
    write_atomic(folder / "table.txt", result.table() + "\n")
    shown = [row for row in result.rows if row.kind != "baseline"]
    best = result.best_baseline("causal")
    if best is not None:
        shown.append(result.row(best[0]))
    for protocol in ("paper", "causal"):
        curves = []
        for row in shown:
            figures = row.paper if protocol == "paper" else row.causal
            if np.isfinite(figures.micro_auc):
                roc = figures.roc
                curves.append(RocCurve(row.evidence, roc.fpr, roc.tpr, figures.micro_auc))
        if curves:
            chart = roc_chart(curves, title=f"ROC, all test videos, {protocol} protocol")
            write_atomic(folder / f"roc_{protocol}.svg", chart)
    (folder / "scores").mkdir(exist_ok=True)
    (folder / "curves").mkdir(exist_ok=True)
    for scores, video in zip(scored, videos, strict=True):
        assert video.labels is not None
        write_scores(folder / "scores" / f"{scores.name}.csv", scores)
        spans = label_spans(scores.time_s, video.labels, "labelled abnormal")
        panels = [
            Panel(
                title="Causal score (uses nothing from the future)",
                series=[Series("causal score", scores.causal)],
                labels=spans,
                threshold=result.threshold.value,
                height=180,
            ),
            Panel(
                title="Paper score (offline)",
                series=[Series("paper score", scores.paper)],
                labels=spans,
                height=90,
                legend=False,
            ),
        ]
        chart = line_chart(scores.time_s, panels, title=scores.name)
        write_atomic(folder / "curves" / f"{scores.name}.svg", chart)
    return tuple(sorted(entry.name for entry in folder.iterdir()))
