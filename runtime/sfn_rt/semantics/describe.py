"""The `scene` captioner: what moves, in plain English, deterministic and cheap.

Words come from a fixed vocabulary, and each stands for a range of what normal footage does: a
thing moves "quickly" when fewer than one in ten of those seen here are faster. So a usual
clip is told in usual words, and an unusual one needs words that the model has rarely or never
been shown in training: that is what the semantic term measures.

A clip of the observed frames is told by its last frame. A longer window is told as a whole: how
many things it usually shows, the rarest of all that moved in it, and for how much of it something
about as rare did. What lasts differs so from a flicker of noise, and what has left the picture is
still told of.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from sfn_rt.attributes import RARE, SECTOR_NAMES, AttributeModel, Rarity, sector_of
from sfn_rt.semantics.captioner import Clip
from sfn_rt.semantics.scene import Scene, Thing

COUNTS = ((1, "One thing moves"), (2, "Two things move"), (4, "A few things move"),
          (8, "Several things move"), (14, "Many things move"))  # fmt: skip
# A word holds up to a surprise in nats: rarer than 1 in 10, 50, 250, 1800, 22,000 and beyond.
SPEEDS = ((2.3, "at a usual pace"), (3.9, "briskly"), (5.5, "fast, at a run"),
          (7.5, "very fast, like a bicycle"), (10.0, "racing like a vehicle"))  # fmt: skip
SIZES = ((2.3, "a thing of usual size"), (3.9, "a large thing"), (5.5, "a very large thing"),
         (7.5, "a huge object"), (10.0, "an enormous object like a car"))  # fmt: skip
BEYOND = ("rushing past at extreme speed", "a gigantic object like a truck")
# How much of a longer window shows something at least ALIKE as rare as its rarest thing.
LASTING = ((0.25, "seen briefly"), (0.75, "seen at times"), (1.0, "seen all along"))
ALIKE = 0.5
REMEMBERED = 256  # scenes whose rarest thing is kept: windows share most of theirs

Rarest = tuple[Thing, Rarity] | None


class SceneCaptioner:
    """Says what moves, the rarest thing first: in a clip's last frame, or in a longer window."""

    name = "scene"
    needs_scenes = True

    def __init__(self, attributes: AttributeModel | None) -> None:
        self._attributes = attributes
        self._rarest = lru_cache(REMEMBERED)(attributes.rarest) if attributes else None

    def caption(self, clip: Clip) -> str:
        """How many things move, and how large, how fast, where and which way the rarest does."""
        if clip.longer:
            return self._window(clip.scenes)
        return self.captions(clip.scenes[-1])[0]

    def captions(self, scene: Scene) -> list[str]:
        """What could be said of a scene: a caption for each of its things, the rarest one first."""
        if not scene.things:
            return ["Nothing moves in the scene."]
        count = _word(COUNTS, len(scene.things), "A crowd of things moves")
        if self._attributes is None:
            return [f"{count}, where normally nothing does."]
        rated = zip(scene.things, self._attributes.rarities(scene), strict=True)
        return [
            f"{count}. The most notable is {_describe(self._attributes, *pair, scene)}."
            for pair in sorted(rated, key=lambda pair: -pair[1].total)
        ]

    def _window(self, scenes: Sequence[Scene]) -> str:
        """What happened in a row of scenes."""
        if not any(scene.things for scene in scenes):
            return "Nothing has moved in the scene."
        usual = round(float(np.median([len(scene.things) for scene in scenes])))
        count = _word(COUNTS, usual, "A crowd of things moves") if usual else "Hardly a thing moves"
        if self._attributes is None or self._rarest is None:
            return f"{count} over time, where normally nothing does."
        rated = [(scene, *top) for scene in scenes if (top := self._rarest(scene)) is not None]
        scene, thing, rarity = max(rated, key=lambda row: row[2].total)
        alike = sum(other.total >= ALIKE * rarity.total for _, _, other in rated)
        lasting = _word(LASTING, alike / len(scenes), LASTING[-1][1])
        told = _describe(self._attributes, thing, rarity, scene)
        return f"{count} over time. The most notable, {lasting}, is {told}."


def _describe(attributes: AttributeModel, thing: Thing, rarity: Rarity, scene: Scene) -> str:
    size = _word(SIZES, rarity.size, BEYOND[1])
    speed = _word(SPEEDS, rarity.speed, BEYOND[0])
    sector = sector_of(thing, attributes.floor)
    heading = f"moving {SECTOR_NAMES[sector]}" if sector < len(SECTOR_NAMES) else "in motion"
    words = f"{size} {_place(thing, scene)}, {heading} {speed}"
    if rarity.direction > RARE:
        words += ", in a direction never taken there"
    if rarity.place > RARE:
        words += ", where nothing usually goes"
    return words


def _word(table: tuple[tuple[float, str], ...], value: float, beyond: str) -> str:
    return next((word for limit, word in table if value <= limit), beyond)


def _place(thing: Thing, scene: Scene) -> str:
    down = min(int(3 * (thing.y + thing.h / 2) / scene.height), 2)
    across = min(int(3 * (thing.x + thing.w / 2) / scene.width), 2)
    row = ("in the background", "", "in the foreground")[down]
    column = ("on the left", "in the middle", "on the right")[across]
    return f"{column} {row}".strip()
