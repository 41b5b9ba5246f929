"""Clips of normal footage made faster, and what `scene` captions would say of them.

A clip is made faster of every s-th frame, as a whole or around one of its things alone: there the
faster clip is seen and elsewhere the usual one, both up to the same last picture. So all it
shows is normal footage but for speed, and its captions are those of the last picture with the
things' speeds multiplied by s. Captions that were made elsewhere tell of the footage as it is:
with those, clips have its own speed.

Axes: T observed frames, h, w the model's frame size, N patches, C the tower's width, K captions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfn_rt.semantics.describe import SceneCaptioner
from sfn_rt.semantics.narrator import tell
from sfn_rt.semantics.scene import Scene, Thing
from sfn_train.config import Config
from sfn_train.data.clips import open_features, usable_spans
from sfn_train.data.prepare import Prepared
from sfn_train.data.split import Span

MARGIN = 0.25  # of a thing's sides, around what is taken from the faster clip

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Drawn:
    """One clip and what is said of it."""

    frames: Array  # (T, 3, h, w)
    features: tuple[Tensor, Tensor] | None  # of the frozen tower: (T, 1 + N, C), (T, N, C)
    captions: tuple[str, ...]  # K


@dataclass(frozen=True)
class Box:
    """A part of the picture, in source pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    @classmethod
    def swept(cls, thing: Thing, frames: float) -> "Box":
        """Where a thing was in the last so many frames of its own pace, with a margin."""
        dx, dy = thing.vx * frames, thing.vy * frames
        across, down = MARGIN * thing.w, MARGIN * thing.h
        return cls(
            thing.x - max(dx, 0.0) - across,
            thing.y - max(dy, 0.0) - down,
            thing.x + thing.w - min(dx, 0.0) + across,
            thing.y + thing.h - min(dy, 0.0) + down,
        )

    def holds(self, thing: Thing) -> bool:
        """Whether a thing's middle is inside."""
        x, y = thing.x + thing.w / 2, thing.y + thing.h / 2
        return self.x0 <= x <= self.x1 and self.y0 <= y <= self.y1

    def cells(self, scene: Scene, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a picture of that size that shows the scene."""
        down, across = height / scene.height, width / scene.width
        rows = slice(max(0, int(self.y0 * down)), min(height, math.ceil(self.y1 * down)))
        columns = slice(max(0, int(self.x0 * across)), min(width, math.ceil(self.x1 * across)))
        return rows, columns


class HastenedClips:
    """Draws clips of normal footage at several speeds, and says what `scene` would say of them."""

    def __init__(self, prepared: Prepared, config: Config, spans: Sequence[Span]) -> None:
        self._prepared, self._config = prepared, config
        self._observed = config.model.observed
        self._spans = usable_spans(prepared, spans, self._observed + 1)
        self._features = open_features(prepared, config)
        self._scene = SceneCaptioner(prepared.attributes)
        self._cached = config.semantics.captioner == "cached"
        self.speeds = tuple(
            speed
            for speed in ((1,) if self._cached else config.distil.speeds)
            if any(self._room(span, speed) > 0 for span in self._spans)
        )

    def draw(self, random: np.random.Generator, speed: int | None = None) -> Drawn:
        """A clip at one of the speeds, any place in the footage as likely as any other."""
        if speed is None:
            speed = int(random.choice(self.speeds))
        room = np.array([max(0, self._room(span, speed)) for span in self._spans])
        place = int(random.integers(room.sum()))
        number = int(np.searchsorted(np.cumsum(room), place, side="right"))
        span = self._spans[number]
        end = span.stop - 2 - (place - int(room[:number].sum()))  # the last frame that is observed
        start = end - (self._observed - 1) * speed
        video = self._prepared.videos[span.video]
        frames = video.read(start, end + 1)[::speed].astype(np.float32)  # (T, 3, h, w)
        features = None
        if self._features is not None:
            hidden, embedded = self._features.read(video.name, start, end + 1)
            features = hidden[::speed], embedded[::speed]
        if self._cached:
            numbers = video.caption_ids[end + 1]
            told = tuple(self._prepared.sentences[i] for i in numbers)
            return Drawn(frames, features, told)

        longest = max(self._config.sfn.caption_windows)
        scenes = list(video.scenes[: end + 1][::-speed][:longest][::-1])
        around = None
        things = scenes[-1].things
        alone = self._features is None and random.random() < self._config.distil.alone
        if speed > 1 and things and alone:
            thing = things[int(random.integers(len(things)))]
            around = Box.swept(thing, (self._observed - 1) * speed)
            rows, columns = around.cells(scenes[-1], *frames.shape[-2:])
            usual = video.read(end + 1 - self._observed, end + 1).astype(np.float32)
            usual[:, :, rows, columns] = frames[:, :, rows, columns]
            frames = usual
        faster = [hastened(scene, speed, around) for scene in scenes]
        windows = self._config.sfn.caption_windows
        return Drawn(frames, features, tell(self._scene, end + 1, windows, self._observed, faster))

    def _room(self, span: Span, speed: int) -> int:
        """Clips in a span, each with a frame behind it that it predicts."""
        return len(span) - 1 - (self._observed - 1) * speed


def hastened(scene: Scene, speed: int, around: Box | None) -> Scene:
    """A scene whose things, or those inside a box, are so many times as fast."""
    if speed == 1:
        return scene
    things = tuple(
        replace(thing, speed=thing.speed * speed, vx=thing.vx * speed, vy=thing.vy * speed)
        if around is None or around.holds(thing)
        else thing
        for thing in scene.things
    )
    return replace(scene, things=things)
