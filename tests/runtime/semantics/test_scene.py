"""What moves: found, measured in source pixels, and not invented."""

import json
from dataclasses import asdict

import cv2
import numpy as np
import pytest

from sfn_rt.semantics.scene import (
    Scene,
    SceneAnalyser,
    SceneConfig,
    Thing,
    analysis_size,
    estimate_background,
    to_analysis,
)

CONFIG = SceneConfig()
HEIGHT, WIDTH = 120, 180


def ground(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(70, 130, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def walker(seed: int = 1) -> np.ndarray:
    """A textured patch: optical flow needs something to hold on to."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(150, 250, (12, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (24, 36), interpolation=cv2.INTER_CUBIC)


def paint(image: np.ndarray, x: float, y: float, thing: np.ndarray | None = None) -> np.ndarray:
    thing = walker() if thing is None else thing
    image = image.copy()
    left, top = round(x), round(y)
    image[top : top + thing.shape[0], left : left + thing.shape[1]] = thing
    return image


def analyse(images: list[np.ndarray], background: np.ndarray | None = None) -> list[Scene]:
    analyser = SceneAnalyser(CONFIG, background)
    return [analyser.step(image) for image in images]


def walk(n: int = 6, vx: int = 3, vy: int = 0, x: int = 40, y: int = 40) -> list[np.ndarray]:
    return [paint(ground(), x + vx * i, y + vy * i) for i in range(n)]


def background() -> np.ndarray:
    return to_analysis(CONFIG, ground())


@pytest.mark.parametrize(("vx", "vy"), [(3, 0), (-3, 0), (0, 3), (2, -2), (0, 0)])
def test_one_thing_with_its_box_and_velocity(vx: int, vy: int) -> None:
    scene = analyse(walk(vx=vx, vy=vy), background())[-1]
    assert (scene.width, scene.height) == (WIDTH, HEIGHT)
    (thing,) = scene.things
    x, y = 40 + 5 * vx, 40 + 5 * vy
    assert thing.box == pytest.approx((x, y, 24, 36), abs=6)
    assert thing.area == pytest.approx(24 * 36, rel=0.4)
    assert (thing.vx, thing.vy) == pytest.approx((vx, vy), abs=0.7)
    assert thing.speed == pytest.approx(np.hypot(vx, vy), abs=0.7)


def test_two_things_are_two() -> None:
    images = [paint(paint(ground(), 20 + 2 * i, 30), 130 - 4 * i, 70) for i in range(5)]
    first, second = sorted(analyse(images, background())[-1].things, key=lambda thing: thing.x)
    assert first.vx == pytest.approx(2, abs=0.7)
    assert second.vx == pytest.approx(-4, abs=0.7)


def test_large_frames_are_analysed_small_and_measured_in_source_pixels() -> None:
    config = SceneConfig(flow_height=60)
    analyser = SceneAnalyser(config, to_analysis(config, ground()))
    for i in range(6):
        scene = analyser.step(paint(ground(), 40 + 4 * i, 40))
    (thing,) = scene.things
    assert thing.box == pytest.approx((60, 40, 24, 36), abs=10)
    assert thing.vx == pytest.approx(4, abs=1)
    assert (scene.width, scene.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(240, 360, (240, 360)), (480, 640, (240, 320)), (1081, 1919, (240, 426)), (9, 7, (9, 7))],
)
def test_analysis_size(height: int, width: int, expected: tuple[int, int]) -> None:
    assert analysis_size(CONFIG, height, width) == expected
    image = np.zeros((height, width, 3), np.uint8)
    assert to_analysis(CONFIG, image).shape == expected


def test_the_first_frame_has_no_things() -> None:
    assert analyse(walk(), background())[0].things == ()


def test_an_empty_scene_has_no_things_despite_noise() -> None:
    rng = np.random.default_rng(0)
    noisy = [
        np.clip(ground() + rng.normal(0, 3, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        for _ in range(4)
    ]
    assert all(scene.things == () for scene in analyse(noisy, background()))


@pytest.mark.parametrize("change", [-40, -15, 25, 60])
def test_light_that_changes_everywhere_is_no_thing(change: int) -> None:
    lit = np.clip(ground().astype(int) + change, 0, 255).astype(np.uint8)
    scenes = analyse([ground(), lit, lit], background())
    assert all(scene.things == () for scene in scenes)


def test_a_thing_is_found_while_the_light_changes() -> None:
    images = [np.clip(image.astype(int) - 25, 0, 255).astype(np.uint8) for image in walk()]
    assert len(analyse(images, background())[-1].things) == 1


def test_blobs_below_the_least_area_are_left_out() -> None:
    speck = np.full((5, 5, 3), 250, np.uint8)
    images = [paint(ground(), 40 + i, 40, speck) for i in range(3)]
    assert analyse(images, background())[-1].things == ()
    fine = SceneAnalyser(SceneConfig(min_area=4), background())
    assert [len(fine.step(image).things) for image in images][-1] == 1


def test_analysis_is_deterministic() -> None:
    assert analyse(walk(), background()) == analyse(walk(), background())
    assert analyse(walk()) == analyse(walk())


def test_a_running_background_takes_in_what_stays() -> None:
    config = SceneConfig(background_step=1)
    analyser = SceneAnalyser(config, None)
    empty = ground()
    analyser.step(empty)
    parked = empty.copy()
    parked[40:80, 60:90] += 35
    counts = [len(analyser.step(parked).things) for _ in range(25)]
    assert counts[0] == 1
    assert counts[-1] == 0
    assert len(analyser.step(empty).things) == 1  # now its absence is new


def test_a_running_background_moves_one_level_every_few_frames() -> None:
    analyser = SceneAnalyser(SceneConfig(background_step=4), None)
    dark, bright = (np.full((32, 32, 3), level, np.uint8) for level in (100, 130))
    analyser.step(dark)
    for _ in range(16):
        analyser.step(bright)
    running = analyser.state()["running"]
    assert set(np.unique(running).tolist()) == {104}


def test_a_background_of_another_size_is_not_used() -> None:
    scenes = analyse(walk(), background=np.zeros((33, 44), np.uint8))
    assert len(scenes) == 6  # a running one took its place
    assert scenes[-1].things
    assert analyse([ground()] * 3, np.zeros((33, 44), np.uint8))[-1].things == ()


def test_a_given_background_stays_as_it_is() -> None:
    analyser = SceneAnalyser(CONFIG, background())
    parked = paint(ground(), 60, 40)
    assert [len(analyser.step(parked).things) for _ in range(30)][-1] == 1
    assert analyser.state()["running"] is None


def test_background_is_the_median() -> None:
    greys = [to_analysis(CONFIG, image) for image in walk(n=9, vx=15, x=5)]
    middle = estimate_background(greys)
    assert middle.dtype == np.uint8
    np.testing.assert_allclose(middle, background(), atol=2)


@pytest.mark.parametrize("given", [True, False], ids=["given", "running"])
def test_state_continues_to_the_same_scenes(given: bool) -> None:
    images = walk(n=14, vx=3)
    whole = analyse(images, background() if given else None)
    first = SceneAnalyser(CONFIG, background() if given else None)
    for image in images[:6]:
        first.step(image)
    state = first.state()
    again = SceneAnalyser(CONFIG, background() if given else None)
    again.restore(state)
    for image in images[6:]:  # the first one goes on: it must not reach into the state
        first.step(image)
    assert [again.step(image) for image in images[6:]] == whole[6:]


@pytest.mark.parametrize(
    "size", [(8, 8), (7, 300), (12, 12), (17, 33), (48, 48), (31, 500), (16, 16)]
)
def test_small_and_odd_frames(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(3)]
    for scene in analyse(images):
        for thing in scene.things:
            assert np.isfinite([*thing.box, thing.speed, thing.vx, thing.vy]).all()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_one_colour_throughout(level: int) -> None:
    flat = [np.full((HEIGHT, WIDTH, 3), level, np.uint8)] * 4
    assert all(scene.things == () for scene in analyse(flat))


def test_scenes_survive_json_exactly() -> None:
    scene = analyse(walk(), background())[-1]
    raw = json.loads(json.dumps(asdict(scene)))
    things = tuple(Thing(**thing) for thing in raw["things"])
    assert Scene(raw["width"], raw["height"], things) == scene


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flow_preset": "slow"}, "flow_preset must be one of"),
        ({"flow_height": 0}, "flow_height must be at least 1"),
        ({"min_area": 0}, "min_area must be at least 1"),
    ],
)
def test_settings_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneConfig(**change)  # type: ignore[arg-type]
