"""What no model at all would score: the figures every result has to stand beside.

A video's labels are often predictable from how much, how fast or how large things move, or
from where in the video one is. Each baseline here is evidence of that kind, one number a frame,
and goes through the same two protocols as the model's terms:

    place in the video         t / T                        needs the length: `from_length`
    centre bump                Gaussian at the middle of T   needs the length: `from_length`
    mean frame difference      mean over pixels of (I_t - I_{t-1})^2
    largest box of it          the same, largest mean over a 24 x 24 box
    fastest blob               largest mean optical-flow speed inside a moving blob
    fastest blob x area^0.25   largest product of a blob's speed and its area^0.25
    tail of speed + area       -log P(a normal frame is as fast) - log P(it is as large)

A moving blob is a connected region that differs from the median of normal footage. All lengths
are in pixels of frames 240 high, Ped2's height; taller frames are reduced to it first.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from sfn_rt.exceptions import DataError, InputError
from sfn_rt.scores import Tail

Image = NDArray[np.uint8]  # (H, W, 3) RGB, or (H, W) grey

LENGTH_NAMES = ("place in the video", "centre bump")
DIFFERENCE_NAMES = ("mean frame difference", "largest box of it")
BLOB_NAMES = ("fastest blob", "fastest blob x area^0.25")
TAIL_NAME = "tail of speed + area"

WORK_HEIGHT = 240  # pixels
BOX = 24  # pixels, about a person
DIFFERENT = 18  # grey levels from the background
SMALLEST = 60  # pixels of area; less is noise
BACKGROUND_EVERY = 20  # frames
BACKGROUND_LIMIT = 256  # frames held for the median, 22 MB at Ped2's size


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """The moving blobs of one frame: areas in pixels and mean speeds in pixels a frame."""

    area: NDArray[np.float64]  # (n,)
    speed: NDArray[np.float64]  # (n,)

    @property
    def largest(self) -> float:
        return float(self.area.max(initial=0.0))

    @property
    def fastest(self) -> float:
        return float(self.speed.max(initial=0.0))


class Baselines:
    """Evidence of one stream at a time: `reset` between videos, `update` with every frame.

    Without a background there are only the frame differences; without tails, no tail.
    """

    def __init__(
        self,
        background: Image | None = None,  # (H, W) grey
        speed: Tail | None = None,  # of each normal frame's fastest blob
        area: Tail | None = None,  # of each normal frame's largest blob
    ) -> None:
        if background is not None and background.ndim != 2:
            raise InputError(
                f"baselines: background must be grey, uint8[H, W], got "
                f"{background.dtype}[{', '.join(map(str, background.shape))}]"
            )
        if (speed is None) != (area is None):
            raise InputError("baselines: the tails of speed and area come together; give both")
        self.background = None if background is None else _working_size(background)
        self.speed = speed
        self.area = area
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._previous: Image | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of `update`, in the order of a table."""
        blobs = BLOB_NAMES if self.background is not None else ()
        return DIFFERENCE_NAMES + blobs + ((TAIL_NAME,) if blobs and self.speed else ())

    @classmethod
    def fit(cls, normal: Callable[[], Iterable[Iterable[Image]]]) -> Self:
        """Learn background and tails from normal videos. `normal` is called twice.

        Background first, then blobs: two readings of the footage instead of all of it in memory.
        """
        background = median_background(normal())
        baselines = cls(background)
        speeds: list[float] = []
        areas: list[float] = []
        for video in normal():
            baselines.reset()
            for image in video:
                blobs = baselines._blobs(*baselines._advance(image))
                if blobs is not None:
                    speeds.append(blobs.fastest)
                    areas.append(blobs.largest)
        if not speeds:
            raise DataError(
                "baselines: normal footage has no two frames of one video to measure speed on; "
                "give at least one normal video of 2 frames or more"
            )
        return cls(background, Tail.fit(np.array(speeds)), Tail.fit(np.array(areas)))

    def reset(self) -> None:
        """Forget the previous frame: the next one starts another video."""
        self._previous = None

    def update(self, image: Image) -> dict[str, float]:
        """Evidence of the next frame, NaN for a video's first: it has nothing to differ from."""
        grey, previous = self._advance(image)
        if previous is None:
            return dict.fromkeys(self.names, np.nan)
        square = np.square(grey.astype(np.float32) - previous)  # (h, w)
        box = cv2.blur(square, (BOX, BOX))  # (h, w)
        evidence = [float(square.mean()), float(box.max())]
        blobs = self._blobs(grey, previous)
        if blobs is not None:
            product = blobs.speed * blobs.area**0.25
            evidence += [blobs.fastest, float(product.max(initial=0.0))]
            if self.speed is not None and self.area is not None:
                surprise = self.speed.surprise(blobs.fastest) + self.area.surprise(blobs.largest)
                evidence.append(float(surprise))
        return dict(zip(self.names, evidence, strict=True))

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything learnt, as named arrays for an npz file without pickle."""
        arrays: dict[str, NDArray[np.generic]] = {}
        if self.background is not None:
            arrays["background"] = self.background
        for name, tail in (("speed", self.speed), ("area", self.area)):
            if tail is not None:
                arrays |= {f"{name}.{key}": value for key, value in tail.to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """The inverse of `to_arrays`."""

        def tail(name: str) -> Tail | None:
            start = f"{name}."
            part = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
            return Tail.from_arrays(part) if part else None

        background = arrays.get("background")
        grey = None if background is None else np.asarray(background, np.uint8)
        return cls(grey, tail("speed"), tail("area"))

    def _advance(self, image: Image) -> tuple[Image, Image | None]:
        """The frame in grey at working size, and the one before it."""
        grey = _working_size(_grey(image))
        if self.background is not None and grey.shape != self.background.shape:
            height, width = self.background.shape
            grey = _as_uint8(cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA))
        previous, self._previous = self._previous, grey
        return grey, previous

    def _blobs(self, grey: Image, previous: Image | None) -> Blobs | None:
        if self.background is None or previous is None:
            return None
        flow = self._flow.calc(previous, grey, None)  # type: ignore[call-overload]  # (h, w, 2)
        speed = np.hypot(flow[..., 0], flow[..., 1])  # (h, w), pixels a frame
        difference = cv2.GaussianBlur(cv2.absdiff(grey, self.background), (5, 5), 0)
        moving = (difference > DIFFERENT).astype(np.uint8)
        # 5 high and 3 wide: closes the gap between a head and its body, not between two people.
        closed = cv2.morphologyEx(moving, cv2.MORPH_CLOSE, np.ones((5, 3), np.uint8))
        opened = cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        count, label, stats, _ = cv2.connectedComponentsWithStats(opened)
        area = stats[:, cv2.CC_STAT_AREA].astype(np.float64)  # (count,)
        total = np.bincount(label.ravel(), weights=speed.ravel(), minlength=count)
        kept = np.arange(count)[1:][area[1:] >= SMALLEST]  # component 0 is what does not move
        return Blobs(area=area[kept], speed=total[kept] / area[kept])


def median_background(videos: Iterable[Iterable[Image]]) -> Image:
    """The scene without what passes through it: median of every 20th frame, (h, w) grey.

    Frames held are bounded: on long footage every other one is let go and the step doubles.
    """
    held: list[Image] = []
    step, count = BACKGROUND_EVERY, 0
    for video in videos:
        for image in video:
            if count % step == 0:
                held.append(_working_size(_grey(image)))
                if held[-1].shape != held[0].shape:
                    raise DataError(
                        f"baselines: normal videos must have one frame size, got (height, width) "
                        f"{held[0].shape} and {held[-1].shape}; give videos of one camera"
                    )
                if len(held) > BACKGROUND_LIMIT:
                    held = held[::2]
                    step *= 2
            count += 1
    if not held:
        raise DataError("baselines: normal footage has no frames; give at least one normal video")
    return np.asarray(np.median(np.stack(held), axis=0), np.uint8)


def from_length(n_frames: int) -> dict[str, NDArray[np.float64]]:
    """The two baselines that look at nothing but a video's length: (T,) each."""
    place = np.arange(n_frames) / max(n_frames, 1)
    bump = np.exp(-0.5 * np.square((place - 0.5) / 0.25))
    return dict(zip(LENGTH_NAMES, (place, bump), strict=True))


def _grey(image: Image) -> Image:
    if image.ndim == 2:
        return image
    return _as_uint8(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def _working_size(grey: Image) -> Image:
    height, width = grey.shape
    if height <= WORK_HEIGHT:
        return grey
    size = (max(1, round(width * WORK_HEIGHT / height)), WORK_HEIGHT)
    return _as_uint8(cv2.resize(grey, size, interpolation=cv2.INTER_AREA))


def _as_uint8(image: cv2.typing.MatLike) -> Image:
    return np.asarray(image, np.uint8)
