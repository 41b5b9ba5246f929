"""What moves in a frame: foreground blobs with their size, place, speed and direction.

Cheap and deterministic, from OpenCV alone: the difference from a background picture finds the
things, dense optical flow (DIS) gives each its speed. The numbers feed two users: the `scene`
captioner, which says them in a sentence, and the attribute term, which compares them with normal
footage. Lighting that changes everywhere at once is taken out by the median difference.

All analysis happens at `flow_height`; what leaves this module is in source pixels and source
pixels a frame.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
LEAST_SIDE = 12  # pixels; OpenCV refuses the flow of smaller pictures


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Settings of the analysis; part of the bundle's manifest. Lengths in analysis pixels."""

    flow_height: int = 240  # frames taller than this are reduced to it
    flow_preset: Literal["ultrafast", "fast", "medium"] = "medium"
    foreground_threshold: int = 18  # grey levels from the background
    min_area: int = 60  # pixels of a blob
    background_step: int = 8  # frames between single-level updates of a running background

    def __post_init__(self) -> None:
        if self.flow_preset not in PRESETS:
            raise ValueError(
                f"flow_preset must be one of {sorted(PRESETS)}, got {self.flow_preset!r}"
            )
        for name in ("flow_height", "foreground_threshold", "min_area", "background_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Thing:
    """One moving blob. Source pixels, and source pixels a frame."""

    x: float
    y: float
    w: float
    h: float
    area: float
    speed: float  # mean length of the flow inside the blob
    vx: float  # mean flow; right is positive
    vy: float  # down is positive

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x, y, width, height."""
        return self.x, self.y, self.w, self.h


@dataclass(frozen=True, slots=True)
class Scene:
    """The things of one frame."""

    width: int  # source pixels
    height: int
    things: tuple[Thing, ...]


def analysis_size(config: SceneConfig, height: int, width: int) -> tuple[int, int]:
    """Height and width of the analysed picture for a source of the given size."""
    if height <= config.flow_height:
        return height, width
    return config.flow_height, max(16, round(width * config.flow_height / height))


def to_analysis(config: SceneConfig, image: UInt8) -> UInt8:
    """(H, W, 3) RGB to grey at analysis size."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = analysis_size(config, *grey.shape)
    if grey.shape != (height, width):
        grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(grey, dtype=np.uint8)


def estimate_background(greys: Iterable[UInt8]) -> UInt8:
    """Median picture (h, w) of sampled analysis frames; give it a few hundred at most."""
    stack = np.stack(list(greys))  # (n, h, w)
    return np.asarray(np.median(stack, axis=0), dtype=np.uint8)


class SceneAnalyser:
    """Finds the things of each frame of one video, in order.

    With a background from normal footage it is used as it is. Without one, or where its size is
    not this video's, a running median starts at the first frame.
    """

    def __init__(self, config: SceneConfig, background: UInt8 | None) -> None:
        self.config = config
        self._given = background
        self._running: UInt8 | None = None
        self._previous: UInt8 | None = None
        self._count = 0
        self._flow = cv2.DISOpticalFlow.create(PRESETS[config.flow_preset])

    def step(self, image: UInt8) -> Scene:
        """Analyse the next frame (H, W, 3); the first one has no motion yet, so no things."""
        height, width = image.shape[:2]
        grey = to_analysis(self.config, image)
        background = self._background(grey)
        previous, self._previous = self._previous, grey
        self._count += 1
        if previous is None or min(grey.shape) < LEAST_SIDE:
            return Scene(width, height, ())
        mask = self._foreground(grey, background)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
        kept = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= self.config.min_area]
        if not kept:
            return Scene(width, height, ())
        empty = np.zeros((*grey.shape, 2), np.float32)
        flow = np.asarray(self._flow.calc(previous, grey, empty))  # (h, w, 2) pixels a frame
        scale = (width / grey.shape[1], height / grey.shape[0])
        things = tuple(_thing(np.asarray(labels), stats[i], i, flow, scale) for i in kept)
        return Scene(width, height, things)

    def _background(self, grey: UInt8) -> UInt8:
        if self._given is not None and self._given.shape == grey.shape:
            return self._given
        if self._running is None:
            self._running = grey.copy()
        elif self._count % self.config.background_step == 0:  # one grey level towards the frame
            above, below = grey > self._running, grey < self._running
            self._running = (self._running + above - below).astype(np.uint8)
        return self._running

    def _foreground(self, grey: UInt8, background: UInt8) -> UInt8:
        difference = grey.astype(np.int16) - background
        lighting = int(np.median(difference[::4, ::4]))
        distance = np.minimum(np.abs(difference - lighting), 255).astype(np.uint8)
        smooth = cv2.GaussianBlur(distance, (5, 5), 0)
        mask = (smooth > self.config.foreground_threshold).astype(np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 5), np.uint8))
        return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))

    def state(self) -> dict[str, Any]:
        """Arrays and numbers to continue from, exactly."""
        return {"previous": self._previous, "running": self._running, "count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._previous, self._running = state["previous"], state["running"]
        self._count = int(state["count"])


def _thing(
    labels: NDArray[Any],
    stat: NDArray[Any],
    label: int,
    flow: NDArray[Any],
    scale: tuple[float, float],
) -> Thing:
    x, y, w, h, area = (int(value) for value in stat)
    inside = labels[y : y + h, x : x + w] == label
    moved = flow[y : y + h, x : x + w][inside] * np.asarray(scale, np.float32)  # (area, 2)
    vx, vy = moved.mean(axis=0)
    speed = np.hypot(moved[:, 0], moved[:, 1]).mean()
    sx, sy = scale
    return Thing(x * sx, y * sy, w * sx, h * sy, area * sx * sy, float(speed), float(vx), float(vy))
