"""The `scene` captioner: usual clips in usual words, unusual ones in words of their own."""

from dataclasses import replace

import numpy as np
import pytest

from sfn_rt.attributes import AttributeModel
from sfn_rt.semantics.captioner import Clip
from sfn_rt.semantics.describe import BEYOND, SIZES, SPEEDS, SceneCaptioner
from sfn_rt.semantics.scene import Scene, Thing


def walker(x: float, speed: float = 2.0, vx: float | None = None, y: float = 150.0) -> Thing:
    return Thing(x, y, 14.0, 40.0, 400.0, speed, speed if vx is None else vx, 0.0)


def caption(captioner: SceneCaptioner, *things: Thing) -> str:
    empty = Scene(360, 240, ())
    return captioner.caption(Clip(3, (), (empty, empty, empty, Scene(360, 240, things))))


@pytest.fixture(scope="module")
def captioner() -> SceneCaptioner:
    rng = np.random.default_rng(0)
    scenes = []
    for _ in range(800):
        speed = 2.0 * np.exp(0.15 * rng.standard_normal())
        thing = walker(rng.uniform(0, 346), speed, y=rng.uniform(140, 170))
        area = 400 * np.exp(0.2 * rng.standard_normal())
        scenes.append(Scene(360, 240, (replace(thing, area=float(area)),)))
    model = AttributeModel.fit([scenes])
    # As if many more had been seen: 800 things support no word for 1 in 22,000.
    return SceneCaptioner(replace(model, n_things=1_000_000))


def test_the_last_frame_of_the_clip_is_described(captioner: SceneCaptioner) -> None:
    assert caption(captioner) == "Nothing moves in the scene."
    thing = Scene(360, 240, (walker(100),))
    assert captioner.caption(Clip(3, (), (thing, Scene(360, 240, ())))) == (
        "Nothing moves in the scene."
    )


def test_a_usual_walker_in_usual_words(captioner: SceneCaptioner) -> None:
    assert caption(captioner, walker(20)) == (
        "One thing moves. The most notable is a thing of usual size on the left in the "
        "foreground, moving to the right at a usual pace."
    )


@pytest.mark.parametrize(
    ("n", "words"),
    [(1, "One thing moves"), (2, "Two things move"), (4, "A few things move"),
     (5, "Several things move"), (14, "Many things move"), (15, "A crowd of things moves")],
)  # fmt: skip
def test_how_many(captioner: SceneCaptioner, n: int, words: str) -> None:
    assert caption(captioner, *(walker(20 * i) for i in range(n))).startswith(f"{words}. ")


def used(said: list[str], words: list[str]) -> list[str]:
    """Of `words`, those that were said, in the order in which they first were."""
    found = [word for text in said for word in words if word in text]
    return list(dict.fromkeys(found))


def test_faster_is_said_with_every_word_there_is_in_order(captioner: SceneCaptioner) -> None:
    said = [caption(captioner, walker(100, float(speed))) for speed in np.geomspace(1, 100, 300)]
    words = [*(word for _, word in SPEEDS), BEYOND[0]]
    assert used(said, words) == words


def test_larger_is_said_with_every_word_there_is_in_order(captioner: SceneCaptioner) -> None:
    things = [replace(walker(100), area=float(area)) for area in np.geomspace(200, 20000, 300)]
    said = [caption(captioner, thing) for thing in things]
    words = [*(word for _, word in SIZES), BEYOND[1]]
    assert used([text.split("notable is ")[1] for text in said], words) == words


def test_the_rarest_thing_is_the_one_described(captioner: SceneCaptioner) -> None:
    said = caption(captioner, walker(20), walker(300, 40.0), walker(150))
    assert said.startswith("A few things move. ")
    assert "on the right" in said
    assert "extreme speed" in said


def test_a_direction_never_taken_and_a_place_never_gone(captioner: SceneCaptioner) -> None:
    wrong = caption(captioner, walker(180, vx=-2.0))
    assert "moving to the left" in wrong
    assert "in a direction never taken there" in wrong
    lost = caption(captioner, walker(180, y=5))
    assert "in the background" in lost
    assert "where nothing usually goes" in lost


def test_what_has_no_heading_is_just_in_motion(captioner: SceneCaptioner) -> None:
    assert "in motion" in caption(captioner, walker(180, vx=0.1))


def test_where_normally_nothing_moves() -> None:
    captioner = SceneCaptioner(None)
    assert caption(captioner) == "Nothing moves in the scene."
    assert caption(captioner, walker(20)) == "One thing moves, where normally nothing does."


def test_the_same_clip_gets_the_same_words(captioner: SceneCaptioner) -> None:
    things = [walker(20 * i, 2 + i) for i in range(5)]
    assert caption(captioner, *things) == caption(captioner, *things)


def long(captioner: SceneCaptioner, *scenes: tuple[Thing, ...]) -> str:
    told = tuple(Scene(360, 240, things) for things in scenes)
    return captioner.caption(Clip(len(told) - 1, (), told, longer=True))


def test_a_longer_window_tells_of_what_has_left_the_picture(captioner: SceneCaptioner) -> None:
    runner, walks = walker(300, 40.0), walker(20)
    said = long(captioner, (walks, runner), *[(walks,)] * 15)
    assert said == (
        "One thing moves over time. The most notable, seen briefly, is a thing of usual size on "
        "the right in the foreground, moving to the right rushing past at extreme speed."
    )
    assert "extreme speed" not in caption(captioner, walks)


@pytest.mark.parametrize(
    ("n", "words"),
    [(1, "seen briefly"), (4, "seen briefly"), (5, "seen at times"), (12, "seen at times"),
     (13, "seen all along"), (16, "seen all along")],
)  # fmt: skip
def test_a_longer_window_tells_how_long_it_lasted(
    captioner: SceneCaptioner, n: int, words: str
) -> None:
    runner, walks = walker(300, 40.0), walker(20)
    assert words in long(captioner, *[(walks, runner)] * n, *[(walks,)] * (16 - n))


def test_a_longer_window_tells_how_many_there_usually_are(captioner: SceneCaptioner) -> None:
    three = tuple(walker(60 * i) for i in range(3))
    assert long(captioner, *[three] * 9, *[()] * 7).startswith("A few things move over time. ")
    assert long(captioner, *[three] * 3, *[()] * 9).startswith("Hardly a thing moves over time. ")
    assert long(captioner, *[()] * 9) == "Nothing has moved in the scene."


def test_a_longer_window_where_normally_nothing_moves() -> None:
    captioner = SceneCaptioner(None)
    assert long(captioner, (), ()) == "Nothing has moved in the scene."
    assert long(captioner, (walker(20),), (walker(20),)) == (
        "One thing moves over time, where normally nothing does."
    )


def test_scenes_that_windows_share_are_rated_once(captioner: SceneCaptioner) -> None:
    assert captioner._rarest is not None
    scenes = [(walker(20.5 + i),) for i in range(40)]
    before = captioner._rarest.cache_info().misses
    for end in range(8, 40):
        long(captioner, *scenes[max(0, end - 16) : end])
        long(captioner, *scenes[end - 8 : end])
    assert captioner._rarest.cache_info().misses - before == 39
