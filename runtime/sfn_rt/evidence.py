"""Frames to evidence: what each term says about each frame, before any score.

    look      preprocess, find what moves                    needs the frames alone
    predict   caption, encode, predict the frame and its meaning, measure the errors

Training fits the statistics of normal footage with this module and a PyTorch backend, the device
scores with it and ONNX Runtime: there is no second implementation to disagree with. A stream's
state is bounded and can be taken out and put back exactly.

Axes: b frames of a block, p of them predicted, T observed frames, h and w the model's frame size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
    absolute_error,
    measure_error,
    semantic_error,
)
from sfn_rt.preprocess import Preprocessing, preprocess
from sfn_rt.scores import TERMS
from sfn_rt.semantics.captioner import Captioner, Clip
from sfn_rt.semantics.scene import Scene, SceneAnalyser, SceneConfig, Thing

BLOCK = 8  # frames run through the networks together


class SentenceEncoder(Protocol):
    """Embeds sentences: the device's TextEncoder, or the trainer's."""

    def encode(self, sentences: Sequence[str]) -> Array:
        """n sentences to (n, S) float32, each row of length 1."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Perception:
    """Everything evidence is made with. Shared by all videos; holds no state of any."""

    backend: Backend
    observed: int  # T
    preprocessing: Preprocessing
    visual: VisualConfig
    scene_config: SceneConfig
    scene: SceneModel
    captioner: Captioner
    text: SentenceEncoder | None  # None: the model has no semantic branch
    stride: int  # frames for which one caption holds
    terms: tuple[str, ...]  # that are switched on
    on_error: Callable[[Array], None] | None = None  # sees each block's error maps (p, h, w)

    @property
    def available_terms(self) -> tuple[str, ...]:
        """Terms this model can give, in the order of TERMS."""
        there = {"visual": True, "semantic": self.text is not None}
        there["attribute"] = self.scene.attributes is not None
        return tuple(term for term in TERMS if there[term])


@dataclass(frozen=True, slots=True)
class Looked:
    """One block after the first stage."""

    frames: Sequence[Frame]
    pictures: NDArray[np.float32]  # (b, 3, h, w)
    scenes: Sequence[Scene]
    analyser: Mapping[str, Any]  # its state after this block


@dataclass(frozen=True, slots=True)
class FrameEvidence:
    """What was found out about one frame. Terms are empty on the first T frames of a video."""

    index: int
    time_s: float
    scene: Scene
    terms: Mapping[str, float]
    caption: str | None
    box: Box | None  # of the largest prediction error, as shares of the frame
    heat: NDArray[np.float16] | None  # (gh, gw)


class EvidenceStream:
    """The evidence of one video, block by block, in order."""

    def __init__(self, perception: Perception) -> None:
        self._p = perception
        self._analyser = SceneAnalyser(perception.scene_config, perception.scene.background)
        self._predictor = Predictor(perception.backend, perception.observed)
        self._recent: list[tuple[Frame, Scene]] = []  # the last T frames
        self._caption: str | None = None

    def look(self, frames: Sequence[Frame]) -> Looked:
        """First stage: may run ahead of `predict`, in another thread."""
        pictures = np.stack([preprocess(f.image, self._p.preprocessing) for f in frames])
        scenes = [self._analyser.step(frame.image) for frame in frames]
        return Looked(frames, pictures, scenes, self._analyser.state())

    def predict(self, block: Looked) -> list[FrameEvidence]:
        """Second stage: the evidence of each frame of the block."""
        n_before = len(self._recent)
        seen = [*self._recent, *zip(block.frames, block.scenes, strict=True)]
        observed = self._p.observed
        first = max(observed - n_before, 0)  # of the block's frames that is predicted
        captions = [
            self._caption_before(seen, n_before + i) for i in range(first, len(block.frames))
        ]
        visual, semantic = self._networks(block, captions)
        self._recent = seen[-observed:]
        rows = []
        for i, (frame, scene) in enumerate(zip(block.frames, block.scenes, strict=True)):
            if i < first:
                rows.append(FrameEvidence(frame.index, frame.time_s, scene, {}, None, None, None))
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
            caption = captions[i - first]
            rows.append(FrameEvidence(frame.index, frame.time_s, scene, terms, caption, box, heat))
        return rows

    def state(self, block: Looked) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays and JSON to continue from, exactly, after `predict(block)`."""
        arrays: dict[str, Array] = {f"predictor/{k}": v for k, v in self._predictor.state().items()}
        for name in ("previous", "running"):
            if block.analyser[name] is not None:
                arrays[f"analyser/{name}"] = block.analyser[name]
        arrays |= {f"image/{i}": frame.image for i, (frame, _) in enumerate(self._recent)}
        recent = [
            {"index": f.index, "time_s": f.time_s, "scene": asdict(s)} for f, s in self._recent
        ]
        plain = {"recent": recent, "caption": self._caption, "count": block.analyser["count"]}
        return arrays, plain

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
        self._recent = [
            (Frame(r["index"], r["time_s"], arrays[f"image/{i}"]), _scene(r["scene"]))
            for i, r in enumerate(plain["recent"])
        ]
        self._caption = plain["caption"]

    def _caption_before(self, seen: Sequence[tuple[Frame, Scene]], at: int) -> str:
        """The caption in force for the clip that ends just before `seen[at]`."""
        t = seen[at][0].index
        if self._caption is None or (t - self._p.observed) % self._p.stride == 0:
            clip = seen[at - self._p.observed : at]
            frames, scenes = [f for f, _ in clip], [s for _, s in clip]
            self._caption = self._p.captioner.caption(Clip(t - 1, frames, scenes))
        return self._caption

    def _networks(self, block: Looked, captions: Sequence[str]) -> tuple[Any, Any]:
        if not {"visual", "semantic"} & set(self._p.terms):
            return None, None
        text = None
        if self._p.text is not None and captions:
            text = self._p.text.encode(captions)  # (p, S)
        prediction = self._predictor.step(block.pictures, text)
        if prediction is None:
            return None, None
        actual = block.pictures[-len(prediction.next_frame) :]  # (p, 3, h, w)
        errors = absolute_error(prediction.next_frame, actual)  # (p, h, w)
        if self._p.on_error is not None:
            self._p.on_error(errors)
        visual = [measure_error(error, self._p.visual) for error in errors]
        semantic = None
        if "semantic" in self._p.terms and prediction.semantic is not None and text is not None:
            semantic = semantic_error(prediction.semantic, text)  # (p,)
        return visual, semantic


def _attributes(perception: Perception) -> AttributeModel:
    assert perception.scene.attributes is not None, "the attribute term is on without a model"
    return perception.scene.attributes


def _scene(raw: Mapping[str, Any]) -> Scene:
    return Scene(raw["width"], raw["height"], tuple(Thing(**thing) for thing in raw["things"]))
