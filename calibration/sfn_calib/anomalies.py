"""Anomalies made of normal footage, so that no benchmark's labels are needed to test a precision.

Somewhere in the picture, where things move, other content is blended in with a soft edge:

    foreign     what moves elsewhere, upside down, glides across the picture
    faster      the same place, three times as fast
    reversed    the same place, backwards
    frozen      the same place, held still
    jerky       the same place, its frames out of order
    larger      the same place, magnified
    flickering  the same place, at one moment dark for light and at another not

How strongly is one number from 0 to 1, the opacity, so every kind can be made as faint as the
full-precision model can just see. Everything else of the picture, its noise and its light too,
stays what it is; the same seed gives the same pictures.

Axes: n frames of one stretch, H, W the source's height and width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (H, W, 3)
KINDS = ("foreign", "faster", "reversed", "frozen", "jerky", "larger", "flickering")
SEGMENT = 24  # frames for which an anomaly stays in one place
SPEED = 3  # of `faster`
MAGNIFIED = 1.8  # times, of `larger`
VISIBLE = 2.0  # grey levels, the least mean change at full strength of a frame called abnormal
PLACES = 8  # the liveliest of the picture, of which one is drawn
EDGE = 0.2  # of a side, over which a patch fades out


@dataclass(frozen=True)
class Patch:
    """Where the content of one frame is changed, in source pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Image) -> Image:
        """The part of a picture."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


class Anomaly:
    """One stretch of normal footage with something wrong in it, at any strength.

    `side` is the height and width in source pixels of what moves in the scene.
    """

    def __init__(
        self, images: Sequence[Image], kind: str, side: tuple[int, int], seed: Sequence[int]
    ) -> None:
        self._images = images
        self._content: list[tuple[Patch, Image]] = []
        random = np.random.default_rng([*seed, KINDS.index(kind)])
        drawn: dict[str, Draw] = {"foreign": _foreign, "larger": _larger, "flickering": _flickering}
        draw = drawn.get(kind) or _elsewhen(kind)
        for start in range(0, len(images), SEGMENT):
            span = range(start, min(start + SEGMENT, len(images)))
            place = _lively_place(images, span, _size(images[0], side), random)
            self._content += draw(images, span, place, random)
        shows = np.array([self._change(t) >= VISIBLE for t in range(len(images))])
        # What is gone again is as unexpected as what has come: a frame after one that shows counts.
        self.abnormal = shows | np.r_[False, shows[:-1]]  # (n,)

    def frame(self, t: int, strength: float) -> Image:
        """Frame t with the anomaly at an opacity of 0 to 1."""
        patch, content = self._content[t]
        usual = patch.of(self._images[t]).astype(np.float32)
        opacity = strength * _soft(patch.height, patch.width)[..., None]
        image = self._images[t].copy()
        patch.of(image)[:] = np.rint(usual + opacity * (content - usual)).astype(np.uint8)
        return image

    def _change(self, t: int) -> float:
        patch, content = self._content[t]
        usual = patch.of(self._images[t]).astype(np.float32)
        return float(np.abs(content - usual).mean())


Draw = Callable[[Sequence[Image], range, Patch, np.random.Generator], list[tuple[Patch, Image]]]


def _elsewhen(kind: str) -> Draw:
    """The same place at another time: frame t of the span shows another of its frames."""

    def draw(
        images: Sequence[Image], span: range, place: Patch, random: np.random.Generator
    ) -> list[tuple[Patch, Image]]:
        n = len(span)
        order = {
            "faster": _to_and_fro(SPEED * np.arange(n), n),
            "reversed": np.arange(n)[::-1],
            "frozen": np.zeros(n, int),
            "jerky": random.permutation(n),
        }[kind]
        return [(place, place.of(images[span.start + int(i)])) for i in order]

    return draw


def _foreign(
    images: Sequence[Image], span: range, place: Patch, random: np.random.Generator
) -> list[tuple[Patch, Image]]:
    """What is at the place when the span begins, upside down, gliding to the other side."""
    content = place.of(images[span.start])[::-1].copy()
    height, width = images[0].shape[:2]
    room = width - place.width
    step = max(1, place.width // 4) * (1 if random.random() < 0.5 else -1)
    top = int(random.integers(height - place.height + 1))
    first = int(random.integers(room + 1))
    lefts = _to_and_fro(first + step * np.arange(len(span)), room + 1)
    return [(Patch(top, int(left), place.height, place.width), content) for left in lefts]


def _larger(
    images: Sequence[Image], span: range, place: Patch, random: np.random.Generator
) -> list[tuple[Patch, Image]]:
    """The middle of the place, magnified to fill it."""
    height, width = (max(1, round(n / MAGNIFIED)) for n in (place.height, place.width))
    top = place.top + (place.height - height) // 2
    middle = Patch(top, place.left + (place.width - width) // 2, height, width)
    size = (place.width, place.height)
    return [(place, np.asarray(cv2.resize(middle.of(images[t]), size), np.uint8)) for t in span]


def _flickering(
    images: Sequence[Image], span: range, place: Patch, random: np.random.Generator
) -> list[tuple[Patch, Image]]:
    """The place, in half of the frames with light and dark exchanged."""
    on = random.random(len(span)) < 0.5
    usual = [place.of(images[t]) for t in span]
    return [(place, 255 - image if dark else image) for image, dark in zip(usual, on, strict=True)]


def _to_and_fro(places: NDArray[Any], n: int) -> NDArray[Any]:
    """Whole numbers reflected into 0 .. n - 1."""
    if n == 1:
        return np.zeros_like(places)
    around = np.abs(places) % (2 * (n - 1))
    return np.asarray(np.minimum(around, 2 * (n - 1) - around))


def _size(image: Image, side: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a patch: twice what moves, at most half the picture."""
    height, width = (
        max(4, min(2 * wanted, whole // 2))
        for wanted, whole in zip(side, image.shape, strict=False)
    )
    return height, width


def _lively_place(
    images: Sequence[Image], span: range, size: tuple[int, int], random: np.random.Generator
) -> Patch:
    """One of the places in which most changes from frame to frame, none overlapping another."""
    height, width = size
    greys = [cv2.cvtColor(images[t], cv2.COLOR_RGB2GRAY) for t in span]
    change = np.zeros(greys[0].shape, np.float32)
    for before, after in pairwise(greys):
        change += cv2.absdiff(before, after)
    boxes = np.asarray(cv2.boxFilter(change, -1, (width, height), anchor=(0, 0)), np.float32)
    rows, columns = boxes.shape
    boxes = boxes[: rows - height + 1, : columns - width + 1].copy()
    places: list[Patch] = []
    weights: list[float] = []
    for _ in range(PLACES):
        top, left = divmod(int(boxes.argmax()), boxes.shape[1])
        if places and boxes[top, left] <= 0:
            break
        weights.append(float(boxes[top, left]))
        places.append(Patch(top, left, height, width))
        boxes[max(0, top - height + 1) : top + height, max(0, left - width + 1) : left + width] = -1
    total = sum(weights)
    share = [w / total for w in weights] if total > 0 else None
    return places[int(random.choice(len(places), p=share))]


def _soft(height: int, width: int) -> NDArray[np.float32]:
    """(height, width) of 1 in the middle, falling to 0 towards the edge."""

    def ramp(n: int) -> NDArray[np.float32]:
        inward = np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5  # pixels from the nearer end
        return np.minimum(1.0, inward / max(1.0, EDGE * n)).astype(np.float32)

    return np.asarray(np.outer(ramp(height), ramp(width)), np.float32)
