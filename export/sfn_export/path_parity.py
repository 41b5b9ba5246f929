"""The whole path on real clips, PyTorch against the exported bundle.

Both run the runtime's own pipeline over the same frames, each with its own encoders, sentences and
decoder, so that differences add up as they would on a device: score a frame, share of tokens
routed differently, AUC.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from sfn_export.exceptions import ParityError
from sfn_export.parity import (
    ROUTING,
    Rerouted,
    check_rerouted,
    count_rerouted,
    routing_changes,
)
from sfn_rt.backends.base import Array, Arrays, Backend, CheckedBackend
from sfn_rt.datasets import Video, open_dataset
from sfn_rt.frames import open_source
from sfn_rt.metrics import roc_auc
from sfn_rt.model import Model, open_model
from sfn_rt.pipeline import VideoRun
from sfn_rt.scores import VideoScores
from sfn_rt.semantics.cached import (
    CachedCaptioner,
    CaptionFile,
    Part,
    find_captions,
    video_sha256,
)
from sfn_rt.semantics.captioner import Captioner
from sfn_rt.semantics.describe import SceneCaptioner
from sfn_train.systems import open_backend
from sfn_train.text import TextModel

MAX_SCORE = 1e-3  # a frame; scores have a normal range of about 0..1
MAX_AUC = 1e-4  # 0.01 points
MOST_VIDEOS = 3
CAPTIONED: tuple[Part, ...] = ("test", "train")  # folders of a captioned data set
Series = Mapping[str, Array]  # score -> (T,)


@dataclass(frozen=True, kw_only=True)
class PathReport:
    """What was compared; it is only ever made of a comparison that passed."""

    n_frames: int
    max_score: float  # largest difference of any term or score at any frame
    where: str
    rerouted: Rerouted
    auc: float | None  # largest difference of any score's AUC; None without labels of both classes

    def text(self) -> str:
        """For people."""
        auc = "" if self.auc is None else f"; AUC {100 * self.auc:.4f} points"
        routed = ""
        if self.rerouted.tokens:
            routed = f"; {self.rerouted.differ} of {self.rerouted.tokens} tokens routed otherwise"
        return (
            f"real clips, {self.n_frames} frames: score {self.max_score:.1e} ({self.where})"
            f"{routed}{auc}"
        )

    def to_json(self) -> dict[str, object]:
        """For programs."""
        return asdict(self)


class Recorder(CheckedBackend):
    """A backend that keeps the routing of every clip it decodes."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.name, self.parts = inner.name, inner.parts
        self.routing: list[Array] = []  # (B, layers, tokens, K) each

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """As the inner backend, with the routing asked for beside what the caller wants."""
        if all(tensor.name != ROUTING for tensor in self.parts[part].outputs):
            return self._inner.infer(part, feeds, names)
        results = self._inner.infer(part, feeds, list({*names, ROUTING}))
        self.routing.append(results[ROUTING].astype(np.int16))
        return results


def check_path(
    bundle: Path,
    model: nn.Module,
    text: TextModel | None,
    videos: Sequence[Video],
    *,
    frames: int,
    captions: Path | None = None,
    fps: float | None = None,
    threads: int | None = None,
) -> PathReport:
    """Score the first `frames` frames of each video twice and compare; raises on a miss.

    `captions` is the folder of those that the model was trained on.
    """
    expected: dict[str, Series] = {}
    actual: dict[str, Series] = {}
    with open_model(bundle, threads=threads) as opened, open_backend(model, text) as torch_backend:
        reference, exported = Recorder(torch_backend), Recorder(opened.perception.backend)
        ours = with_backend(opened, exported)
        theirs = with_backend(opened, reference)
        if text is not None:
            theirs = replace(theirs, perception=replace(theirs.perception, text=text))
        for video in videos:
            before, after = (described(m, captions, video) for m in (theirs, ours))
            first, second = _score_twice(before, after, video, frames, fps)
            expected[video.name], actual[video.name] = series_of(first), series_of(second)
    labels = {video.name: video.labels for video in videos if video.labels is not None}
    auc = auc_difference(expected, actual, labels)
    return compare_paths(expected, actual, (reference.routing, exported.routing), auc)


def clips_of(data: Path, fps: float | None = None) -> tuple[Video, ...]:
    """Videos of a data set to compare on: test videos spread over the set, else training ones."""
    dataset = open_dataset(data, fps=fps)
    videos = dataset.test or dataset.train
    step = max(1, len(videos) // MOST_VIDEOS)
    return videos[::step][:MOST_VIDEOS]


def with_backend(model: Model, backend: Backend) -> Model:
    """The same model computed by another backend."""
    return replace(model, perception=replace(model.perception, backend=backend))


def described(model: Model, captions: Path | None, video: Video) -> Model:
    """The model with the captions made for this video, where they are here; else it looks."""
    for part in CAPTIONED:
        if captions is not None and (path := find_captions(captions, video.name, part)).is_file():
            file = CaptionFile.read(path)
            if file.source is None or file.source.video == video_sha256(video.path):
                return _told_by(model, CachedCaptioner(file))
    return _told_by(model, SceneCaptioner(model.perception.scene.attributes))


def _told_by(model: Model, captioner: Captioner) -> Model:
    """Every stride, at once: what is compared is the networks, on captions that differ."""
    perception = replace(model.perception, captioner=captioner, worker=None, lane=None, counts=True)
    return replace(model, perception=perception)


def _score_twice(
    first: Model, second: Model, video: Video, frames: int, fps: float | None
) -> tuple[VideoScores, VideoScores]:
    """Both models over one video, looked at once."""
    with open_source(video.path, fps=fps) as source:
        runs = VideoRun(first, source.fps), VideoRun(second, source.fps)
        for block in runs[0].blocks(source):
            for run in runs:
                run.take(block)
            if runs[0].rows.n_frames >= frames:
                break
    return runs[0].finish(video.name), runs[1].finish(video.name)


def series_of(result: VideoScores) -> Series:
    """Every number that a frame of a video gets."""
    return {**result.terms, "paper": result.paper, "causal": result.causal}


def auc_difference(
    expected: Mapping[str, Series], actual: Mapping[str, Series], labels: Mapping[str, Array]
) -> float | None:
    """Largest difference of the micro AUC of any score; None without both classes."""
    videos = [name for name in expected if name in labels]
    if not videos:
        return None
    names = expected[videos[0]]
    differences = []
    for name in names:
        pairs = [(expected[v][name], actual[v][name], labels[v]) for v in videos]
        before, after, truth = (
            np.concatenate([p[i][: len(p[0])] for p in pairs]) for i in range(3)
        )
        scored = np.isfinite(before) & np.isfinite(after)
        truth = truth[scored] > 0
        if truth.all() or not truth.any():
            return None
        differences.append(abs(roc_auc(before[scored], truth) - roc_auc(after[scored], truth)))
    return float(max(differences))


def compare_paths(
    expected: Mapping[str, Series],
    actual: Mapping[str, Series],
    routing: tuple[Sequence[Array], Sequence[Array]],
    auc: float | None,
) -> PathReport:
    """Compare video -> score -> (T,) of both programs; raises if a budget is exceeded."""
    rerouted = Rerouted(case="real clips", tokens=0, differ=0, first="")
    if routing[0]:
        before, after = (np.concatenate(list(arrays)) for arrays in routing)
        rerouted = count_rerouted("decoder", routing_changes(before, after), "real clips")
        check_rerouted(rerouted)
    worst, where, n_frames = 0.0, "none", 0
    for video, scores in expected.items():
        n_frames += max(map(len, scores.values()))
        for name, series in scores.items():
            other = actual[video][name]
            if not np.array_equal(np.isnan(series), np.isnan(other)):
                raise ParityError(f"{name} of {video}: other frames have a score than in PyTorch")
            difference = np.nan_to_num(np.abs(series - other), nan=0.0)
            frame = int(difference.argmax())
            if difference[frame] > worst:
                worst, where = float(difference[frame]), f"{name} of {video}, frame {frame}"
    if worst > MAX_SCORE:
        raise ParityError(f"{where}: differs by {worst:.2e} (budget {MAX_SCORE:.0e}), real clips")
    if auc is not None and auc > MAX_AUC:
        raise ParityError(
            f"AUC differs by {100 * auc:.3f} points (budget {100 * MAX_AUC:.2f}), real clips"
        )
    return PathReport(n_frames=n_frames, max_score=worst, where=where, rerouted=rerouted, auc=auc)
