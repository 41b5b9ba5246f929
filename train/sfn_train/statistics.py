"""What normal footage looks like to a trained model: the content of normal.npz.

The runtime's own evidence stream runs over the held-out normal footage, with the model in PyTorch
behind its backend protocol. Nothing here sees a test video.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfn_rt.evidence import BLOCK, FrameEvidence, Looked, Perception, Stream
from sfn_rt.frames import Frame, open_source
from sfn_rt.normal import SIGNALS, NormalFootage, SceneModel, term_subsets
from sfn_rt.pipeline import grouped
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.progress import Progress
from sfn_rt.scores import EMA_ALPHA, Tail, causal_scores
from sfn_rt.semantics.cached import CachedCaptioner, Part, find_captions
from sfn_rt.semantics.captioner import Captioner
from sfn_rt.semantics.describe import SceneCaptioner
from sfn_rt.streams import open_stream
from sfn_rt.threshold import fit_threshold
from sfn_train.captions.known import KnownSentences, open_text, read_captions
from sfn_train.checkpoint import Run
from sfn_train.config import Config
from sfn_train.data.prepare import Footage, Prepared
from sfn_train.data.split import Span
from sfn_train.systems import open_backend
from sfn_train.text import TextModel
from sfn_train.usual import usual_captions

FALSE_ALARMS_PER_HOUR = 1.0
HEAT_QUANTILE = 0.999
PIXEL_QUANTILE = 0.99
ERROR_FRAMES = 2000  # enough for a quantile of their pixels
ERROR_STEP, ERROR_BINS = 0.002, 4096  # of the histogram of absolute errors

Blocks = Callable[[Footage, Span], Iterator[Looked]]  # the frames of a span, looked at, in order


def fit_statistics(
    run: Run,
    prepared: Prepared,
    *,
    blocks: Blocks | None = None,
    text: TextModel | KnownSentences | None = None,
    terms: Sequence[str] | None = None,
    progress: bool = True,
) -> Run:
    """The run with `normal` filled in, and with the visual settings that follow from the scene.

    `blocks` gives footage that has been decoded and looked at before; None reads the videos.
    `text` is the sentence encoder where it is loaded already; `terms` are those to fit, None: all
    that the model has learned.
    """
    config = run.config
    scene = SceneModel(prepared.attributes, prepared.background, prepared.thumbnails)
    visual = visual_config(config, prepared)
    run.model.eval()
    if text is None and config.model.use_text:
        text, _ = open_text(config, read_captions(prepared.dataset.train, config).values())
    with open_perception(run, scene, visual, text) as perception:
        perception = replace(perception, terms=tuple(terms or perception.terms))
        if "visual" in perception.available_terms:
            pixel_error = _pixel_error(perception, config, prepared, blocks, progress)
            visual = replace(visual, pixel_error=pixel_error)
        perception = replace(perception, visual=visual)
        footage = [
            list(evidence_of(perception, config, video, span, blocks, progress))
            for video, span in prepared.held_out()
        ]
    fps = float(np.median([video.fps for video in prepared.videos]))
    normal = fit_normal(scene, perception.terms, footage, fps)
    if config.model.use_text:
        normal = replace(normal, captions=usual_captions(prepared))
    info = {**run.info, "visual": asdict(visual)}
    return replace(run, normal=normal.to_arrays(), info=info)


@contextmanager
def open_perception(
    run: Run,
    scene: SceneModel,
    visual: VisualConfig,
    text: TextModel | KnownSentences | None = None,
) -> Iterator[Perception]:
    """What evidence is made with, the run's network in PyTorch; what it has learned is on."""
    config = run.config
    if not config.model.use_text:
        text = None
    elif text is None:
        text = TextModel.of(config.semantics)
    with open_backend(run.model, text if isinstance(text, TextModel) else None) as backend:
        perception = Perception(
            backend=backend,
            system=config.system,
            observed=config.model.observed,
            lag=getattr(config.model, "lag", 0),  # a model that predicts has none
            preprocessing=config.preprocessing,
            visual=visual,
            scene=scene,
            terms=(),
        )
        if config.system == "sfn-vad":
            perception = replace(
                perception,
                scene_config=config.semantics.scene,
                captioner=SceneCaptioner(scene.attributes),
                text=text,
                stride=config.semantics.stride,
                windows=config.sfn.caption_windows,
            )
        yield replace(perception, terms=learned_terms(config, perception.available_terms))


def learned_terms(config: Config, available: Sequence[str]) -> tuple[str, ...]:
    """Without those that a prediction feeds which no loss has taught."""
    loss, untaught = config.train.loss, set()
    if config.system == "sfn-vad":
        untaught |= {"semantic"} if not loss.text else set()
        untaught |= {"visual"} if not (loss.frame or loss.motion) else set()
    return tuple(term for term in available if term not in untaught)


def visual_config(config: Config, prepared: Prepared) -> VisualConfig:
    """A box of the size of the things that move in the scene, at the model's frame size.

    Its area is the median area of their bounding boxes; it is square, because people are tall
    and what they are mistaken for is wide. Where nothing moves, an eighth of the frame.
    """
    height, width = config.model.frame_height, config.model.frame_width
    rows, columns = config.model.grid
    areas = [
        (thing.w * width / scene.width) * (thing.h * height / scene.height)
        for video in prepared.videos
        for scene in video.scenes
        for thing in scene.things
    ]
    side = round(float(np.sqrt(np.median(areas)))) if areas else height // 8
    side = int(np.clip(side, config.model.patch, height // 2))
    return VisualConfig(
        measure=config.visual.measure,
        box_height=side,
        box_width=side,
        grid_height=rows,
        grid_width=columns,
    )


def fit_normal(
    scene: SceneModel,
    terms: Sequence[str],
    footage: Sequence[Sequence[FrameEvidence]],
    fps: float,
) -> NormalFootage:
    """Tails of terms and signals, a threshold for every choice of terms; of held-out evidence."""
    videos = [[row for row in rows if row.terms] for rows in footage]
    columns = [
        {term: np.array([row.terms[term] for row in rows]) for term in terms}
        for rows in videos
        if rows
    ]
    tails = {term: Tail.fit(np.concatenate([c[term] for c in columns])) for term in terms}
    thresholds = {}
    for chosen in term_subsets(terms):
        scores = [causal_scores({t: c[t] for t in chosen}, tails, EMA_ALPHA) for c in columns]
        thresholds[chosen] = fit_threshold(scores, fps, FALSE_ALARMS_PER_HOUR)
    signals = {
        name: Tail.fit(np.array([row.signals[name] for rows in videos for row in rows]))
        for name in SIGNALS
        if all(name in row.signals for rows in videos for row in rows)
        and (name != "distilled" or "semantic" in terms)  # what a student was taught of
    }
    cells = [row.heat for rows in videos for row in rows if row.heat is not None]
    scale = float(np.quantile(np.stack(cells).astype(np.float32), HEAT_QUANTILE)) if cells else 1.0
    return NormalFootage(scene, tails, thresholds, max(scale, 1e-6), signals)


def _pixel_error(
    perception: Perception,
    config: Config,
    prepared: Prepared,
    blocks: Blocks | None,
    progress: bool,
) -> float:
    """The absolute error that 99 of 100 pixels of held-out normal footage stay below."""
    counts = np.zeros(ERROR_BINS, np.int64)
    perception = replace(perception, terms=("visual",), on_error=partial(_count_errors, counts))
    n_frames = 0
    for video, span in prepared.held_out():
        for row in evidence_of(perception, config, video, span, blocks, progress):
            n_frames += bool(row.terms)
        if n_frames >= ERROR_FRAMES:
            break
    share = np.cumsum(counts) / max(counts.sum(), 1)
    edge = int(np.argmax(share >= PIXEL_QUANTILE)) + 1
    return max(edge * ERROR_STEP, ERROR_STEP)


def _count_errors(counts: NDArray[np.int64], error: NDArray[np.float32]) -> None:
    bins = np.minimum(error / ERROR_STEP, ERROR_BINS - 1).astype(np.int64)
    counts += np.bincount(bins.ravel(), minlength=ERROR_BINS)


def evidence_of(
    perception: Perception,
    config: Config,
    video: Footage,
    span: Span,
    blocks: Blocks | None,
    progress: bool,
    part: Part = "train",
) -> Iterator[FrameEvidence]:
    """The evidence of each frame of a span, by the runtime's own stream.

    `part` of the data set is where captions that were made elsewhere are looked up.
    """
    if config.semantics.captions is not None:
        path = find_captions(Path(config.semantics.captions), video.name, part)
        captioner: Captioner = CachedCaptioner(path)
        perception = replace(perception, captioner=captioner)
    stream = open_stream(perception)
    looked = _look(stream, video, span) if blocks is None else blocks(video, span)
    with Progress(f"statistics {video.name}", len(span), enabled=progress) as bar:
        for block in looked:
            yield from stream.predict(block)
            bar.advance(len(block.frames))
    yield from stream.finish()


def _look(stream: Stream, video: Footage, span: Span) -> Iterator[Looked]:
    with open_source(video.path, fps=video.fps) as source:
        frames: Iterator[Frame] = (f for f in source if span.start <= f.index < span.stop)
        for block in grouped(frames, BLOCK):
            yield stream.look(block)
