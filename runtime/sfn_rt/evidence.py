"""Frames to evidence: what each term says about each frame, before any score.

    look      preprocess, find what moves                    needs the frames alone
    predict   caption, encode, predict the frame and its meaning, measure the errors

Training fits the statistics of normal footage with this module and a PyTorch backend, the device
scores with it and ONNX Runtime: there is no second implementation to disagree with. A stream's
state is bounded and can be taken out and put back exactly.

`EvidenceStream` is sfn-vad's; `reconstruction.py` has the other system's, `streams.py` chooses.

Axes: b frames of a block, p of them predicted, T observed frames, h and w the model's frame size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sfn_rt.attributes import AttributeModel
from sfn_rt.backends.base import Array, Backend
from sfn_rt.features import Predictor
from sfn_rt.frames import Frame
from sfn_rt.normal import SceneModel
from sfn_rt.prediction_error import (
    Box,
    VisualConfig,
    VisualError,
    absolute_error,
    measure_error,
    semantic_error,
)
from sfn_rt.preprocess import Preprocessing, preprocess
from sfn_rt.scores import TERMS
from sfn_rt.semantics.captioner import Captioner
from sfn_rt.semantics.narrator import Narrator, SentenceEncoder, embed
from sfn_rt.semantics.scene import Scene, SceneAnalyser, SceneConfig
from sfn_rt.systems import System

BLOCK = 8  # frames run through the networks together


@dataclass(frozen=True, kw_only=True, eq=False)
class Perception:
    """Everything evidence is made with. Shared by all videos; holds no state of any."""

    backend: Backend
    observed: int  # T
    preprocessing: Preprocessing
    visual: VisualConfig
    scene: SceneModel
    terms: tuple[str, ...]  # that are switched on
    system: System = "sfn-vad"
    lag: int = 0  # frames between the newest frame seen and the one scored
    scene_config: SceneConfig = field(default_factory=SceneConfig)
    captioner: Captioner | None = None  # None: frames are not described
    text: SentenceEncoder | None = None  # None: the model has no semantic branch
    stride: int = 1  # frames for which one caption holds
    windows: tuple[int, ...] = ()  # frames that each caption tells of; none: the observed ones
    on_error: Callable[[Array], None] | None = None  # sees each block's error maps (p, h, w)

    @property
    def available_terms(self) -> tuple[str, ...]:
        """Terms this model can give, in the order of TERMS."""
        given = {tensor.name for part in self.backend.parts.values() for tensor in part.outputs}
        there = {"visual": bool(given & {"next_frame", "error"})}
        there["semantic"] = self.text is not None and "semantic" in given
        there["attribute"] = self.scene.attributes is not None
        return tuple(term for term in TERMS if there[term])

    @property
    def needs_scenes(self) -> bool:
        """Whether anything asks for what moves in a frame."""
        told = self.captioner is not None and self.captioner.needs_scenes
        return told or "attribute" in self.terms

    @property
    def least_frames(self) -> int:
        """Of a video in which one frame is scored."""
        return self.observed if self.system == "dual-memory" else self.observed + 1


@dataclass(frozen=True, slots=True)
class Looked:
    """One block after the first stage."""

    frames: Sequence[Frame]
    pictures: NDArray[np.float32]  # (b, 3, h, w)
    scenes: Sequence[Scene]
    analyser: Mapping[str, Any]  # state of the scene analysis after this block; empty without


@dataclass(frozen=True, slots=True)
class FrameEvidence:
    """What was found out about one frame. Terms are empty on frames that cannot be scored."""

    index: int
    time_s: float
    scene: Scene
    terms: Mapping[str, float]
    caption: str | None
    box: Box | None  # of the largest prediction error, as shares of the frame
    heat: NDArray[np.float16] | None  # (gh, gw)


class Stream(Protocol):
    """The evidence of one video, block by block: a row a frame, in order, some frames late."""

    @property
    def pending(self) -> int:
        """Frames taken whose rows have not come out."""
        ...

    def look(self, frames: Sequence[Frame]) -> Looked:
        """First stage: may run ahead of `predict`, in another thread."""
        ...

    def predict(self, block: Looked) -> list[FrameEvidence]:
        """Second stage: the rows that this block completes."""
        ...

    def finish(self) -> list[FrameEvidence]:
        """The video is over: the rows of the frames that are pending."""
        ...

    def state(self, block: Looked) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays and JSON to continue from, exactly, after `predict(block)`."""
        ...

    def restore(self, arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        ...


class EvidenceStream:
    """The stream of sfn-vad: every frame is predicted from those before it, none is late."""

    pending = 0

    def __init__(self, perception: Perception) -> None:
        self._p = p = perception
        self._analyser = SceneAnalyser(p.scene_config, p.scene.background)
        self._predictor = Predictor(p.backend, p.observed)
        windows = p.windows or (p.observed,)
        self._n_windows = len(windows)
        self._narrator = Narrator(
            p.captioner, observed=p.observed, stride=p.stride, windows=windows
        )

    def look(self, frames: Sequence[Frame]) -> Looked:
        """First stage: may run ahead of `predict`, in another thread."""
        pictures = np.stack([preprocess(f.image, self._p.preprocessing) for f in frames])
        if not self._p.needs_scenes:
            return Looked(frames, pictures, [empty_scene(frame) for frame in frames], {})
        scenes = [self._analyser.step(frame.image) for frame in frames]
        return Looked(frames, pictures, scenes, self._analyser.state())

    def predict(self, block: Looked) -> list[FrameEvidence]:
        """Second stage: the evidence of each frame of the block."""
        captions = self._narrator.step(block.frames, block.scenes)
        visual, semantic = self._networks(block, captions)
        first = len(block.frames) - len(captions)  # of the block's frames that is predicted
        rows = []
        for i, (frame, scene) in enumerate(zip(block.frames, block.scenes, strict=True)):
            if i < first:
                rows.append(unscored(frame.index, frame.time_s, scene))
                continue
            error = visual[i - first] if visual else None
            terms: dict[str, float] = {}
            if error is not None and "visual" in self._p.terms:
                terms["visual"] = error.evidence
            if semantic is not None:
                terms["semantic"] = float(semantic[i - first])
            if "attribute" in self._p.terms:
                terms["attribute"] = _attributes(self._p).evidence(scene)
            box, heat = (error.box, error.heat) if error else (None, None)
            shortest = captions[i - first][0] if captions[i - first] else None
            rows.append(FrameEvidence(frame.index, frame.time_s, scene, terms, shortest, box, heat))
        return rows

    def finish(self) -> list[FrameEvidence]:
        """Nothing is left: no frame waits for later ones."""
        return []

    def state(self, block: Looked) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays and JSON to continue from, exactly, after `predict(block)`."""
        images, narrator = self._narrator.state()
        arrays = {f"predictor/{k}": v for k, v in self._predictor.state().items()} | images
        for name in ("previous", "running"):
            if block.analyser.get(name) is not None:
                arrays[f"analyser/{name}"] = block.analyser[name]
        return arrays, narrator | {"count": block.analyser.get("count", 0)}

    def restore(self, arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        prefix = "predictor/"
        kept = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        self._predictor.restore(kept)
        self._analyser.restore(
            {
                "previous": arrays.get("analyser/previous"),
                "running": arrays.get("analyser/running"),
                "count": plain["count"],
            }
        )
        self._narrator.restore(arrays, plain)

    def _networks(self, block: Looked, captions: Sequence[Sequence[str]]) -> tuple[Any, Any]:
        if not {"visual", "semantic"} & set(self._p.terms):
            return None, None
        text = None
        if self._p.text is not None and captions:
            text = embed(self._p.text, captions)  # (p, K S)
        prediction = self._predictor.step(block.pictures, text)
        if prediction is None:
            return None, None
        visual = semantic = None
        if prediction.next_frame is not None:
            actual = block.pictures[-len(prediction.next_frame) :]  # (p, 3, h, w)
            errors = absolute_error(prediction.next_frame, actual)  # (p, h, w)
            visual = measure_errors(errors, self._p)
        if "semantic" in self._p.terms and prediction.semantic is not None and text is not None:
            semantic = semantic_error(prediction.semantic, text, self._n_windows)  # (p,)
        return visual, semantic


def measure_errors(errors: NDArray[np.float32], perception: Perception) -> list[VisualError]:
    """Evidence, box and heat of each error map of a block (p, h, w), and a look at them first."""
    if perception.on_error is not None:
        perception.on_error(errors)
    return [measure_error(error, perception.visual) for error in errors]


def empty_scene(frame: Frame) -> Scene:
    """The size of a frame, where nobody asks what moves in it."""
    height, width = frame.image.shape[:2]
    return Scene(width, height, ())


def unscored(index: int, time_s: float, scene: Scene) -> FrameEvidence:
    """The row of a frame that cannot be scored."""
    return FrameEvidence(index, time_s, scene, {}, None, None, None)


def _attributes(perception: Perception) -> AttributeModel:
    assert perception.scene.attributes is not None, "the attribute term is on without a model"
    return perception.scene.attributes
