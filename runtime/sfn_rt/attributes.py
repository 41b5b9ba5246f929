"""The attribute term: how rare is what moves, against everything that moved on normal footage.

Each thing has a speed, a size, a direction and a place. Its evidence is

    -log P(normal speed >= speed | place, size) - log P(normal size >= size)
    + what its direction and its place are rarer than 1 in 1000

and a frame's evidence is that of its rarest thing, 0 where nothing moves. Speed is compared with
what is usual at that height of the picture, because far things move slowly in it, and among
things of its own size, because the mean flow of a small blob is noisy and that of a group is not.
Rarity counts only from 1 in 1000 on for direction and place: both are spread over the whole picture
anyway, and a thing is not abnormal for being at the edge of where people usually are.

The same numbers explain an event: they say which attribute was rare, and by how much.

No speed and no size is called rarer than 1 in all the things seen: beyond that a tail is a guess.

Axes: M normal things, R rows and C columns of the place grid, A sectors of direction.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from sfn_rt.exceptions import BundleError, InputError
from sfn_rt.scores import Tail
from sfn_rt.semantics.scene import Scene, Thing

FloatArray = NDArray[np.float64]

ROWS, COLUMNS, SECTORS = 9, 12, 8
SIZE_CLASSES = 6
LEAST_IN_CLASS = 500  # things; a tail of fewer says little beyond its 95th percentile
RARE = float(np.log(1000.0))  # nats; direction and place count from here on
SECTOR_NAMES = (
    "to the right", "down and to the right", "down", "down and to the left",
    "to the left", "up and to the left", "up", "up and to the right",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rarity:
    """Surprise of each attribute of one thing, in nats."""

    speed: float
    size: float
    direction: float
    place: float

    @property
    def total(self) -> float:
        """The thing's evidence."""
        return (
            self.speed + self.size + max(0.0, self.direction - RARE) + max(0.0, self.place - RARE)
        )


@dataclass(frozen=True, eq=False)
class AttributeModel:
    """What the things of normal footage are like; fitted in training, shipped in the bundle."""

    slope: float  # of log speed against the foot's height in the picture (0 top, 1 bottom)
    offset: float
    floor: float  # pixels a frame added before the logarithm, so that rest is finite
    size_edges: FloatArray  # (n - 1,) of log area between the n size classes
    speed: tuple[Tail, ...]  # a size class: log speed relative to what is usual at that height
    size: Tail  # of log area, source pixels
    counts: FloatArray  # (R, C, A + 1) smoothed things a cell and sector; the last is "at rest"
    n_things: int
    _places: list[list[float]] = field(init=False, repr=False)  # (R, C)
    _headings: list[list[list[float]]] = field(init=False, repr=False)  # (R, C, A + 1)

    @classmethod
    def fit(cls, videos: Iterable[Iterable[Scene]]) -> Self:
        """From the scenes of normal videos. Raises InputError where nothing ever moved."""
        rows = [(thing, scene) for video in videos for scene in video for thing in scene.things]
        if not rows:
            raise InputError(
                "nothing moved in the training videos, so there is no normal motion to compare "
                "with; train without the attribute term or give videos in which something moves"
            )
        foot = np.array([_foot(thing, scene) for thing, scene in rows])
        speed = np.array([thing.speed for thing, _ in rows])
        floor = 0.05 * float(np.median(speed)) + 1e-3
        slope, offset = _line(foot, np.log(speed + floor))
        relative = np.log(speed + floor) - (slope * foot + offset)
        area = np.log([thing.area for thing, _ in rows])
        n_classes = int(np.clip(len(rows) // LEAST_IN_CLASS, 1, SIZE_CLASSES))
        edges = np.quantile(area, np.arange(1, n_classes) / n_classes)
        size_class = np.digitize(area, edges)
        speeds = tuple(Tail.fit(relative[size_class == i]) for i in np.unique(size_class))
        edges = edges if len(speeds) == n_classes else edges[:0]  # sizes too alike for classes
        if len(speeds) != n_classes:
            speeds = (Tail.fit(relative),)
        counts = _count([(*_cell(t, s), sector_of(t, floor)) for t, s in rows])
        return cls(slope, offset, floor, edges, speeds, Tail.fit(area), counts, len(rows))

    def __post_init__(self) -> None:
        # Looked up for every thing of every frame, so worked out once.
        object.__setattr__(self, "_places", _place_rarities(self.counts).tolist())
        object.__setattr__(self, "_headings", _direction_rarities(self.counts).tolist())

    def rarities(self, scene: Scene) -> list[Rarity]:
        """How surprising each attribute of each thing is."""
        if not scene.things:
            return []
        area = np.log([thing.area for thing in scene.things])
        relative = np.array([self.relative_speed(thing, scene) for thing in scene.things])
        size_class = np.digitize(area, self.size_edges)
        speed = np.empty(len(area))
        for i in set(size_class.tolist()):
            speed[size_class == i] = self.speed[i].surprise(relative[size_class == i])
        size = np.minimum(self.size.surprise(area), self.most)
        speed = np.minimum(speed, self.most)
        found = []
        for thing, of_speed, of_size in zip(
            scene.things, speed.tolist(), size.tolist(), strict=True
        ):
            row, column = _cell(thing, scene)
            heading = self._headings[row][column][sector_of(thing, self.floor)]
            found.append(Rarity(of_speed, of_size, heading, self._places[row][column]))
        return found

    @property
    def most(self) -> float:
        """The largest surprise that the footage supports: rarer than 1 in all its things."""
        return max(math.log(self.n_things), RARE)

    def relative_speed(self, thing: Thing, scene: Scene) -> float:
        """Log of the speed over what is usual at that height of the picture."""
        usual = self.slope * _foot(thing, scene) + self.offset
        return math.log(thing.speed + self.floor) - usual

    def _speed_tail(self, thing: Thing) -> Tail:
        return self.speed[int(np.digitize(np.log(thing.area), self.size_edges))]

    def rarest(self, scene: Scene) -> tuple[Thing, Rarity] | None:
        """The thing that surprises most; None where nothing moves."""
        rated = zip(scene.things, self.rarities(scene), strict=True)
        return max(rated, key=lambda pair: pair[1].total, default=None)

    def evidence(self, scene: Scene) -> float:
        """The attribute term of one frame, in nats."""
        top = self.rarest(scene)
        return 0.0 if top is None else top[1].total

    def explain(self, scene: Scene) -> tuple[str, tuple[float, float, float, float] | None]:
        """A sentence on the rarest thing and its box in source pixels."""
        top = self.rarest(scene)
        if top is None:
            return "nothing moves", None
        thing, rarity = top
        reasons = []
        if rarity.speed >= 3.0:
            usual = self._speed_tail(thing).quantile(0.999)
            ratio = np.exp(self.relative_speed(thing, scene) - usual)
            reasons.append((rarity.speed, _exceeds(rarity.speed, float(ratio), "faster")))
        if rarity.size >= 3.0:
            ratio = np.exp(np.log(thing.area) - self.size.quantile(0.999))
            reasons.append((rarity.size, _exceeds(rarity.size, float(ratio), "larger")))
        if rarity.direction > RARE:
            where = SECTOR_NAMES[sector_of(thing, self.floor) % SECTORS]
            heading = f"moves {where} where few do ({_one_in(rarity.direction)})"
            reasons.append((rarity.direction - RARE, heading))
        if rarity.place > RARE:
            place = f"is where few things go ({_one_in(rarity.place)})"
            reasons.append((rarity.place - RARE, place))
        if not reasons:
            return "nothing that moves is unusual in size, speed, direction or place", thing.box
        reasons.sort(key=lambda reason: -reason[0])
        return ", and ".join(text for _, text in reasons), thing.box

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For an .npz file; `from_arrays` gives the same model back."""
        arrays: dict[str, NDArray[Any]] = {
            "line": np.array([self.slope, self.offset, self.floor]),
            "counts": self.counts,
            "n_things": np.array(self.n_things),
            "size_edges": self.size_edges,
        }
        tails = {"size": self.size} | {f"speed/{i}": tail for i, tail in enumerate(self.speed)}
        for name, tail in tails.items():
            arrays |= {f"{name}/{key}": value for key, value in tail.to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `to_arrays`."""
        if missing := sorted({"line", "counts", "n_things", "size_edges"} - set(arrays)):
            raise BundleError(f"the stored attribute statistics lack {missing}; train again")

        def tail(name: str) -> Tail:
            start = f"{name}/"
            own = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
            return Tail.from_arrays(own)

        edges = np.asarray(arrays["size_edges"], dtype=np.float64)
        speeds = tuple(tail(f"speed/{i}") for i in range(len(edges) + 1))
        slope, offset, floor = (float(value) for value in arrays["line"])
        counts = np.asarray(arrays["counts"], dtype=np.float64)
        if counts.shape != (ROWS, COLUMNS, SECTORS + 1):
            raise BundleError(f"attribute counts have shape {counts.shape}; train again")
        n_things = int(arrays["n_things"])
        return cls(slope, offset, floor, edges, speeds, tail("size"), counts, n_things)


def _foot(thing: Thing, scene: Scene) -> float:
    return (thing.y + thing.h) / scene.height


def _cell(thing: Thing, scene: Scene) -> tuple[int, int]:
    row = int(ROWS * _foot(thing, scene))
    column = int(COLUMNS * (thing.x + thing.w / 2) / scene.width)
    return min(max(row, 0), ROWS - 1), min(max(column, 0), COLUMNS - 1)


def sector_of(thing: Thing, floor: float) -> int:
    """Direction as one of 8 sectors clockwise from the right; 8 for a thing without a heading."""
    length = float(np.hypot(thing.vx, thing.vy))
    if length < max(0.5 * thing.speed, 4 * floor):  # it wobbles rather than goes somewhere
        return SECTORS
    turn = np.arctan2(thing.vy, thing.vx) / (2 * np.pi) * SECTORS
    return int(np.floor(turn + 0.5)) % SECTORS


def _line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Least squares y = slope x + offset; level where x hardly varies."""
    if np.ptp(x) < 0.1:
        return 0.0, float(y.mean())
    slope, offset = np.polyfit(x, y, 1)
    return float(slope), float(offset)


def _count(cells: Sequence[tuple[int, int, int]]) -> FloatArray:
    """(R, C, A + 1) things a cell and sector, blurred to the neighbouring cells."""
    counts = np.zeros((ROWS, COLUMNS, SECTORS + 1))
    for row, column, sector in cells:
        counts[row, column, sector] += 1
    return np.asarray(cv2.GaussianBlur(counts, (3, 3), 0.7, borderType=cv2.BORDER_REPLICATE))


def _place_rarities(counts: FloatArray) -> FloatArray:
    """-log share of normal things in each cell (R, C); half a thing is added to each."""
    total = counts.sum() + 0.5 * ROWS * COLUMNS
    return np.asarray(-np.log((counts.sum(axis=2) + 0.5) / total))


def _direction_rarities(counts: FloatArray) -> FloatArray:
    """-log share of a cell's things in a sector or beside it (R, C, A + 1); 0 without a heading."""
    near = [(np.arange(SECTORS) + turn) % SECTORS for turn in (-1, 0, 1)]
    here = sum(counts[:, :, sectors] for sectors in near)  # (R, C, A)
    overall = counts.sum(axis=(0, 1))
    prior = (sum(overall[sectors] for sectors in near) + 0.5) / (overall.sum() + 4)  # (A,)
    weight = 4.0  # things; what the prior is worth where the cell says little
    share = (here + weight * prior) / (counts.sum(axis=2, keepdims=True) + weight)
    return np.concatenate([-np.log(share), np.zeros((ROWS, COLUMNS, 1))], axis=2)


def _exceeds(surprise: float, ratio: float, word: str) -> str:
    if ratio >= 1.05:
        return f"{ratio:.1f} times {word} than 999 of 1000 things seen here"
    if ratio >= 1.0:
        return f"{word} than 999 of 1000 things seen here"
    rare = math.exp(-surprise)
    if rare < 0.01:
        return f"{word} than {min(round(1000 * (1 - rare)), 999)} of 1000 things seen here"
    return f"{word} than {round(100 * (1 - rare))} of 100 things seen here"


def _one_in(surprise: float) -> str:
    return f"1 in {min(round(float(np.exp(surprise)), -2), 1e6):,.0f}"
