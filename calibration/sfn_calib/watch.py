"""Stretches of footage through the runtime's own stream: evidence, routing, and what parts are fed.

The terms are those that a precision can change, visual and semantic: the attribute term looks at
what moves and never at a network. Captions come from what moves, or, for a model that was trained
on a VLM's, from its student: nobody wrote captions of footage that is altered here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sfn_calib.clips import Stretch
from sfn_calib.exceptions import CalibrationError
from sfn_rt.backends.base import Array, Arrays, Backend, CheckedBackend
from sfn_rt.bundle import Bundle
from sfn_rt.evidence import BLOCK, FrameEvidence, Perception
from sfn_rt.exceptions import VideoError
from sfn_rt.frames import Frame, open_source
from sfn_rt.model import Model, open_model
from sfn_rt.normal import NormalFootage
from sfn_rt.options import LaneOptions
from sfn_rt.pipeline import grouped
from sfn_rt.prefetch import prefetch
from sfn_rt.scores import PAPER_TERMS, FloatArray
from sfn_rt.semantics.text_encoder import TextEncoder
from sfn_rt.streams import open_stream

ROUTING = "routing"


@dataclass(frozen=True, eq=False)
class Track:
    """What one model says of one stretch, of the n frames that it can score."""

    terms: Mapping[str, FloatArray]  # (n,) each
    routing: NDArray[np.int16]  # (n, layers, tokens, K), each token's filters sorted
    unscored: int  # frames before them

    @property
    def n_frames(self) -> int:
        """n"""
        return len(next(iter(self.terms.values())))


class Recorder(CheckedBackend):
    """A backend that remembers the routing of what it decodes, and all feeds where told."""

    def __init__(self, inner: Backend, *, keep_feeds: bool = False) -> None:
        self._inner, self._keep_feeds = inner, keep_feeds
        self.name, self.parts = inner.name, inner.parts
        self.routing: list[NDArray[np.int16]] = []  # (B, layers, tokens, K) each
        self.feeds: dict[str, list[dict[str, Array]]] = {part: [] for part in inner.parts}

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """As the inner backend, with the routing asked for beside what the caller wants."""
        if self._keep_feeds:
            self.feeds[part].append({name: array.copy() for name, array in feeds.items()})
        if all(tensor.name != ROUTING for tensor in self.parts[part].outputs):
            return self._inner.infer(part, feeds, names)
        results = self._inner.infer(part, feeds, list({*names, ROUTING}))
        self.routing.append(np.sort(results[ROUTING], axis=-1).astype(np.int16))
        return results


@contextmanager
def open_reference(bundle: Bundle, threads: int | None) -> Iterator[Model]:
    """The bundle at full precision, with the terms that a precision can change."""
    normal = NormalFootage.from_arrays(bundle.normal())
    lane, told = _lane(bundle, normal)
    terms = tuple(t for t in PAPER_TERMS if t in normal.tails and (told or t != "semantic"))
    if not terms:
        raise CalibrationError(
            f"{bundle.folder}: neither its visual nor its semantic term can be told here, so no "
            f"score shows what a precision changes; export a model that predicts pictures"
        )
    with open_model(bundle.folder, threads=threads, terms=terms, lane=lane) as model:
        yield model


def _lane(bundle: Bundle, normal: NormalFootage) -> tuple[LaneOptions, bool]:
    """Who describes footage that nobody has captioned, and whether that tells the semantic term."""
    semantics = bundle.manifest.semantics
    assert semantics is not None
    if semantics.captioner == "scene":
        return LaneOptions(), True
    given = {tensor.name for tensor in bundle.manifest.parts["decoder"].outputs}
    if "distilled" in given and "distilled" in normal.signals and semantics.text is not None:
        return LaneOptions(captioner="student"), True
    return LaneOptions(policy="off"), False


def with_backend(model: Model, backend: Backend) -> Perception:
    """The model's perception with all its networks, the text encoder too, computed by `backend`."""
    perception = replace(model.perception, backend=backend)
    semantics = model.bundle.manifest.semantics
    if semantics is None or semantics.text is None:
        return perception
    tokenizer = model.bundle.path(semantics.text.tokenizer)
    return replace(perception, text=TextEncoder(backend, tokenizer, semantics.text.max_tokens))


def read_stretch(stretch: Stretch, fps: float | None) -> list[Frame]:
    """All frames of a stretch."""
    frames = []
    with open_source(stretch.path, fps=fps) as source:
        for frame in source:
            if frame.index >= stretch.stop:
                break
            if frame.index >= stretch.start:
                frames.append(frame)
    if len(frames) < len(stretch):
        raise VideoError(
            f"{stretch.path}: only {stretch.start + len(frames)} of its frames can be decoded, "
            f"{stretch.stop} are wanted; copy it again or leave it out"
        )
    return frames


def watch(perception: Perception, frames: Iterable[Frame]) -> Track:
    """Evidence and routing of a stretch, by a stream of its own."""
    recorder = Recorder(perception.backend)
    stream = open_stream(replace(perception, backend=recorder))
    rows: list[FrameEvidence] = []
    for block in prefetch(stream.look(block) for block in grouped(iter(frames), BLOCK)):
        rows += stream.predict(block)
    rows += stream.finish()
    scored = [row for row in rows if row.terms]
    terms = {t: np.array([row.terms[t] for row in scored]) for t in perception.terms}
    empty = np.empty((len(scored), 0, 0, 0), np.int16)
    routing = np.concatenate(recorder.routing) if recorder.routing else empty
    return Track(terms, routing, len(rows) - len(scored))


def record_feeds(
    model: Model, stretches: Sequence[Stretch], fps: float | None
) -> dict[str, list[dict[str, Array]]]:
    """What every part is fed on the calibration clips, by the model at full precision."""
    recorder = Recorder(model.perception.backend, keep_feeds=True)
    perception = with_backend(model, recorder)
    for stretch in stretches:
        stream = open_stream(perception)
        for block in grouped(iter(read_stretch(stretch, fps)), BLOCK):
            stream.predict(stream.look(block))
        stream.finish()
    return recorder.feeds
