"""Frames to evidence: what each term says about each frame, before any score.

    look      preprocess, find what moves                    needs the frames alone
    predict   encode, caption, predict the frame and its meaning, measure the errors

The semantic evidence of a frame is the error that its caption shows, while that caption is new.
Later it is what is to be expected without one (semantics/levels.py), corrected by how wrong this
was when the caption was new, the less the older that is (semantics/lane.py):

    semantic(t) = expected(t) + weight(age) * (error(t0) - expected(t0)),   0 at least

where t0 is the last frame at which the caption was as new as in training, or the first that it was
there for.

Training fits the statistics of normal footage with this module and a PyTorch backend, the device
scores with it and ONNX Runtime: there is no second implementation to disagree with. A stream's
state is bounded and can be taken out and put back exactly.

`EvidenceStream` is sfn-vad's; `reconstruction.py` has the other system's, `streams.py` chooses.

Axes: b frames of a block, p of them predicted, T observed frames, h and w the model's frame size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sfn_rt.attributes import AttributeModel
from sfn_rt.backends.base import Array, Backend
from sfn_rt.backends.device import DeviceBackend
from sfn_rt.device_networks import DeviceNetworks
from sfn_rt.frames import Frame
from sfn_rt.networks import Errors, HostNetworks, Networks, NetworkSettings, Seen
from sfn_rt.normal import SceneModel
from sfn_rt.prediction_error import Box, VisualConfig
from sfn_rt.preprocess import Preprocessing
from sfn_rt.scores import TERMS
from sfn_rt.semantics.captioner import Captioner, Moment
from sfn_rt.semantics.change import ChangeSignals
from sfn_rt.semantics.lane import Held, Lane, LaneCounts, LaneSettings, Policy
from sfn_rt.semantics.levels import NormalLevels
from sfn_rt.semantics.narrator import Recent, SentenceEncoder, embed
from sfn_rt.semantics.scene import Scene, SceneAnalyser, SceneConfig, analysis_size
from sfn_rt.semantics.worker import InlineWorker, Worker
from sfn_rt.systems import System

BLOCK = 8  # frames run through the networks together
RARE = 4  # frames: where captions are no rarer, all are looked at, ahead and in another thread


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
    captioner: Captioner | None = None  # makes captions at once; None: nobody, or the worker
    worker: Worker | None = None  # makes captions meanwhile, elsewhere
    lane: LaneSettings | None = None  # when captions are made; None: every stride, at once
    counts: bool = True  # whether captions are of the kind that the model was trained with
    semantic_on: bool = True  # whether anything tells the semantic term: captions, or the student
    levels: NormalLevels | None = None  # None: while normal footage is being measured
    text: SentenceEncoder | None = None  # None: the model has no semantic branch
    stride: int = 1  # frames for which one caption holds
    windows: tuple[int, ...] = ()  # frames that each caption tells of; none: the observed ones
    on_error: Callable[[Array], None] | None = None  # sees each block's error maps (p, h, w)

    @property
    def available_terms(self) -> tuple[str, ...]:
        """Terms this model can give, in the order of TERMS."""
        given = {tensor.name for part in self.backend.parts.values() for tensor in part.outputs}
        there = {"visual": bool(given & {"next_frame", "error"})}
        said = self.text is not None and "semantic" in given
        there["semantic"] = said and self.semantic_on
        there["attribute"] = self.scene.attributes is not None
        return tuple(term for term in TERMS if there[term])

    @property
    def needs_scenes(self) -> bool:
        """Whether anything asks for what moves in every frame."""
        return "attribute" in self.terms or (self._tells_scenes and not self.looks_when_asked)

    @property
    def looks_when_asked(self) -> bool:
        """Whether what moves is looked for only in the clips that are captioned.

        What is told of such a clip is its last frame, against the one before and a background
        that stays: the same is found whether all other frames were looked at or not.
        """
        rare = self.when.policy.kind != "every" or self.when.policy.every > RARE
        short = max(self.windows, default=self.observed) <= self.observed
        fixed = self.scene.background is not None
        alone = "attribute" not in self.terms
        return self._tells_scenes and alone and rare and short and fixed

    @property
    def _tells_scenes(self) -> bool:
        told = self.captioner is not None and self.captioner.needs_scenes
        return told and self.when.policy.kind != "off"

    @property
    def when(self) -> LaneSettings:
        """When captions are made."""
        if self.lane is not None:
            return self.lane
        policy = Policy("every", self.stride)
        return LaneSettings(policy=policy, observed=self.observed, stride=self.stride)

    @property
    def least_frames(self) -> int:
        """Of a video in which one frame is scored."""
        return self.observed if self.system == "dual-memory" else self.observed + 1


@dataclass(frozen=True, slots=True)
class Looked:
    """One block after the first stage."""

    frames: Sequence[Frame]
    pictures: Array  # what the networks take of them: (b, 3, h, w), or (b, H, W, 3) on a device
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
    caption_age: int | None = None  # frames since the caption was asked for
    caption_weight: float = 0.0  # of it in the semantic evidence
    caption_cut: bool = False  # it had not ended at the most tokens allowed
    # What the lane looks at, of sfn_rt.normal.SIGNALS; only while normal footage is measured.
    signals: Mapping[str, float] = field(default_factory=dict)


class Stream(Protocol):
    """The evidence of one video, block by block: a row a frame, in order, some frames late."""

    @property
    def pending(self) -> int:
        """Frames taken whose rows have not come out."""
        ...

    @property
    def counts(self) -> LaneCounts | None:
        """What became of the captions; None for a system that takes none."""
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
        windows = p.windows or (p.observed,)
        self._networks = open_networks(p, len(windows))
        self._recent = Recent(p.observed, windows)
        worker = p.worker
        if worker is None and p.captioner is not None:
            worker = InlineWorker(p.captioner, windows, p.observed)
        settings = p.when
        if worker is None:
            settings = replace(settings, policy=Policy("off"))
        self._lane = Lane(settings, worker)
        self._change = ChangeSignals((p.visual.grid_height, p.visual.grid_width))
        self._predicts = bool({"visual", "semantic"} & set(p.terms))
        fitting = p.levels is None and self._predicts
        self._measures_change = settings.policy.kind == "change" or fitting
        self._suspicious = False  # the newest frame that was scored
        self._correction, self._corrected_at = 0.0, -1  # by the caption asked for at that frame

    @property
    def counts(self) -> LaneCounts:
        """What became of the captions."""
        return self._lane.counts

    def pictures(self, frames: Sequence[Frame]) -> Array:
        """What the networks take of the frames: the part of `look` that is theirs."""
        return self._networks.look(frames)

    def look(self, frames: Sequence[Frame]) -> Looked:
        """First stage: may run ahead of `predict`, in another thread."""
        pictures = self.pictures(frames)
        if (not self._p.needs_scenes and not self._p.looks_when_asked) or self._seldom(frames[0]):
            return Looked(frames, pictures, [empty_scene(frame) for frame in frames], {})
        scenes = [self._analyser.step(frame.image) for frame in frames]
        return Looked(frames, pictures, scenes, self._analyser.state())

    def predict(self, block: Looked) -> list[FrameEvidence]:
        """Second stage: the evidence of each frame of the block."""
        seen = self.encode(block)
        held, signals = self.describe(block, seen)
        errors, semantic = self.decode(block, seen, held)
        visual = errors.visual if errors is not None else []
        first = len(block.frames) - len(held)  # of the block's frames that is predicted
        rows = []
        for i, (frame, scene) in enumerate(zip(block.frames, block.scenes, strict=True)):
            if i < first:
                rows.append(unscored(frame.index, frame.time_s, scene))
                continue
            n = i - first
            terms: dict[str, float] = {}
            error = visual[n] if visual else None
            if error is not None and "visual" in self._p.terms:
                terms["visual"] = error.evidence
            if semantic is not None:
                terms["semantic"] = semantic[n]
            if "attribute" in self._p.terms:
                terms["attribute"] = _attributes(self._p).evidence(scene)
            rows.append(
                FrameEvidence(
                    index=frame.index,
                    time_s=frame.time_s,
                    scene=scene,
                    terms=terms,
                    caption=held[n].captions[0] if held[n].captions else None,
                    box=error.box if error else None,
                    heat=error.heat if error else None,
                    caption_age=held[n].age if held[n].captions else None,
                    caption_weight=self._weight(held[n]),
                    caption_cut=held[n].cut,
                    signals=_with_distilled(signals[n], errors, n) if signals else {},
                )
            )
        if self._p.levels is not None and self._p.levels.suspicious is not None and visual:
            self._suspicious = visual[-1].evidence > self._p.levels.suspicious
        return rows

    def finish(self) -> list[FrameEvidence]:
        """Nothing is left: no frame waits for later ones. Captions on their way are not wanted."""
        self._lane.close()
        return []

    def state(self, block: Looked) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays and JSON to continue from, exactly, after `predict(block)`."""
        images, recent = self._recent.state()
        pending, lane = self._lane.state()
        reference, age = self._change.state()
        arrays = {f"predictor/{k}": v for k, v in self._networks.state().items()}
        arrays |= {f"recent/{k}": v for k, v in images.items()}
        arrays |= {f"change/{k}": v for k, v in reference.items()}
        for name in ("previous", "running"):
            if block.analyser.get(name) is not None:
                arrays[f"analyser/{name}"] = block.analyser[name]
        plain = {
            "recent": recent,
            "lane": lane,
            "change": age,
            "suspicious": self._suspicious,
            "correction": [self._correction, self._corrected_at],
            "count": block.analyser.get("count", 0),
        }
        return arrays | pending, plain

    def restore(self, arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._networks.restore(_under(arrays, "predictor/"))
        self._analyser.restore(
            {
                "previous": arrays.get("analyser/previous"),
                "running": arrays.get("analyser/running"),
                "count": plain["count"],
            }
        )
        self._recent.restore(_under(arrays, "recent/"), plain["recent"])
        self._lane.restore(arrays, plain["lane"])
        self._change.restore(_under(arrays, "change/"), plain["change"])
        self._suspicious = plain["suspicious"]
        self._correction, self._corrected_at = plain["correction"]

    def encode(self, block: Looked) -> Seen | None:
        """What `predict` begins with; None where nothing asks the networks."""
        if not self._measures_change and not self._predicts:
            return None
        seen: Seen = self._networks.encode(
            block.pictures, change=self._measures_change, hidden=self._p.worker is not None
        )
        return seen

    def describe(
        self, block: Looked, seen: Seen | None
    ) -> tuple[list[Held], list[dict[str, float]]]:
        """The caption that counts at each predicted frame, and the change before it."""
        hidden = seen.hidden if seen is not None and self._p.worker is not None else None
        predicted = self._recent.step(block.frames, block.scenes, hidden)
        signals: list[dict[str, float]] = []
        for i, (frame, moment) in enumerate(predicted):
            if self._measures_change and seen is not None and seen.difference is not None:
                tokens = None if seen.tokens is None else seen.tokens[i]
                signals.append(self._change.measure(tokens, seen.difference[i]))
            if self._seldom(frame):
                moment = partial(self._looked_at, moment)
            self._offer(frame, moment, signals[-1] if signals else {})
        self._lane.flush()
        return [self._lane.held(frame.index, frame.time_s) for frame, _ in predicted], signals

    def _seldom(self, frame: Frame) -> bool:
        """Whether scenes are looked at where they are told; not against a background that moves."""
        background, (height, width) = self._p.scene.background, frame.image.shape[:2]
        size = analysis_size(self._p.scene_config, height, width)
        fits = background is not None and background.shape == size
        return fits and self._p.looks_when_asked

    def _looked_at(self, moment: Callable[[], Moment]) -> Moment:
        """The moment with what moves in the newest of its frames."""
        found = moment()
        analyser = SceneAnalyser(self._p.scene_config, self._p.scene.background)
        *_, newest = (analyser.step(frame.image) for frame in found.frames[-2:])
        return replace(found, scenes=[*found.scenes[:-1], newest])

    def _offer(
        self, frame: Frame, moment: Callable[[], Moment], signals: Mapping[str, float]
    ) -> None:
        levels = self._p.levels
        changed = levels is not None and any(
            value > levels.changed.get(name, np.inf) for name, value in signals.items()
        )
        asked = self._lane.offer(
            frame.index, frame.time_s, moment, changed=changed, suspicious=self._suspicious
        )
        # What is measured of normal footage is the change within a while, whatever is captioned.
        if asked and levels is not None and signals:
            self._change.renew()

    def decode(
        self, block: Looked, seen: Seen | None, held: Sequence[Held]
    ) -> tuple[Errors | None, list[float] | None]:
        """How wrong the model was, and the semantic evidence where that term is on."""
        if seen is None or not self._predicts:
            return None, None
        errors = self._networks.decode(seen, block.pictures, self._embed(held))
        if errors is None or "semantic" not in self._p.terms:
            return errors, None
        assert errors.semantic is not None
        expected = self._p.levels.expected if self._p.levels is not None else None
        if expected is None:
            return errors, [float(error) for error in errors.semantic]
        guesses = np.full(len(held), np.nan) if errors.distilled is None else errors.distilled
        return errors, [
            self._corrected(float(error), expected.of(float(guess)), caption)
            for error, guess, caption in zip(errors.semantic, guesses, held, strict=True)
        ]

    def _corrected(self, error: float, expected: float, held: Held) -> float:
        """Semantic evidence from the error that the caption shows and what was to be expected."""
        weight = self._weight(held)
        if not weight:
            return expected
        if weight == 1 or held.made_at != self._corrected_at:
            self._correction, self._corrected_at = error - expected, held.made_at
        if weight == 1:
            return error
        return max(0.0, expected + weight * self._correction)

    def _embed(self, held: Sequence[Held]) -> Array | None:
        """(p, K S) of the captions that count, or of the usual one where none does."""
        if self._p.text is None or not held:
            return None
        told = [caption.captions if self._weight(caption) else () for caption in held]
        if all(told):
            return embed(self._p.text, told)
        assert self._p.levels is not None
        usual = self._p.levels.usual
        assert usual is not None
        rows = [embed(self._p.text, [captions])[0] if captions else usual for captions in told]
        return np.stack(rows)

    def _weight(self, held: Held) -> float:
        return held.weight if self._p.counts else 0.0


def open_networks(perception: Perception, n_windows: int) -> Networks:
    """The networks of one stream: on the device where the backend is one and all graphs are there.

    Error maps stay on a device, so whoever wants to see them has them computed on the host.
    """
    p = perception
    settings = NetworkSettings(
        observed=p.observed, preprocessing=p.preprocessing, visual=p.visual,
        n_windows=n_windows, on_error=p.on_error,
    )  # fmt: skip
    if isinstance(p.backend, DeviceBackend) and "measure" in p.backend.parts and p.on_error is None:
        return DeviceNetworks(p.backend, settings, BLOCK)
    return HostNetworks(p.backend, settings)


def empty_scene(frame: Frame) -> Scene:
    """The size of a frame, where nobody asks what moves in it."""
    height, width = frame.image.shape[:2]
    return Scene(width, height, ())


def unscored(index: int, time_s: float, scene: Scene) -> FrameEvidence:
    """The row of a frame that cannot be scored."""
    return FrameEvidence(index, time_s, scene, {}, None, None, None)


def _with_distilled(
    signals: Mapping[str, float], errors: Errors | None, n: int
) -> Mapping[str, float]:
    if errors is None or errors.distilled is None:
        return signals
    return {**signals, "distilled": float(errors.distilled[n])}


def _under(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _attributes(perception: Perception) -> AttributeModel:
    assert perception.scene.attributes is not None, "the attribute term is on without a model"
    return perception.scene.attributes
