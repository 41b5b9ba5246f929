"""The attribute term on things made up by hand: what is rare, and what it is called."""

from dataclasses import replace

import numpy as np
import pytest

from sfn_rt.attributes import (
    COLUMNS,
    RARE,
    ROWS,
    SECTORS,
    AttributeModel,
    Rarity,
    sector_of,
)
from sfn_rt.exceptions import BundleError, InputError
from sfn_rt.semantics.scene import Scene, Thing

WIDTH, HEIGHT = 360, 240


def walker(x: float, speed: float = 2.0, y: float = 150.0, angle: float = 0.0) -> Thing:
    vx, vy = speed * np.cos(angle), speed * np.sin(angle)
    return Thing(x, y, 14.0, 40.0, 400.0, speed, float(vx), float(vy))


def scene(*things: Thing) -> Scene:
    return Scene(WIDTH, HEIGHT, things)


def normal_videos(n: int = 1500) -> list[list[Scene]]:
    """People walk to the right along one path in the lower half, at 2 pixels a frame or so."""
    rng = np.random.default_rng(0)
    scenes = []
    for _ in range(n):
        speed = 2.0 * np.exp(0.15 * rng.standard_normal())
        thing = walker(rng.uniform(0, 346), speed, rng.uniform(140, 170), rng.normal(0, 0.2))
        area = 400 * np.exp(0.2 * rng.standard_normal())
        scenes.append(scene(replace(thing, area=float(area))))
    return [scenes[: n // 2], scenes[n // 2 :]]


@pytest.fixture(scope="module")
def model() -> AttributeModel:
    return AttributeModel.fit(normal_videos())


def test_nothing_that_moves_is_no_evidence(model: AttributeModel) -> None:
    assert model.evidence(scene()) == 0.0
    assert model.rarest(scene()) is None
    assert model.explain(scene()) == ("nothing moves", None)


def test_a_usual_walker_is_usual(model: AttributeModel) -> None:
    usual = scene(walker(100))
    assert model.evidence(usual) < 4
    text, box = model.explain(usual)
    assert text == "nothing that moves is unusual in size, speed, direction or place"
    assert box == usual.things[0].box


def test_the_faster_thing_is_named_with_how_much_and_its_box(model: AttributeModel) -> None:
    runner = walker(250, speed=9.0)
    picture = scene(walker(60), runner, walker(150))
    text, box = model.explain(picture)
    assert "times faster than 999 of 1000 things seen here" in text
    ratio = float(text.split()[0])
    usual = 2.0 * np.exp(0.15 * 3.09)  # 999 of 1000 walk slower
    assert ratio == pytest.approx(9.0 / usual, rel=0.25)
    assert box == runner.box
    assert model.evidence(picture) == model.evidence(scene(runner))


def test_the_larger_thing_is_named(model: AttributeModel) -> None:
    cart = replace(walker(200), w=60.0, h=40.0, area=2200.0)
    text, box = model.explain(scene(walker(60), cart))
    assert "larger than 999 of 1000 things seen here" in text
    assert box == cart.box


def test_a_thing_going_the_wrong_way(model: AttributeModel) -> None:
    wrong = walker(180, angle=np.pi)
    assert model.rarities(scene(wrong))[0].direction > RARE
    text, box = model.explain(scene(walker(60), wrong))
    assert "moves to the left where few do (1 in " in text
    assert box == wrong.box
    assert model.evidence(scene(wrong)) > model.evidence(scene(walker(180)))


def test_a_thing_in_a_place_nothing_goes(model: AttributeModel) -> None:
    lost = walker(180, y=10)
    assert model.rarities(scene(lost))[0].place > RARE
    assert "is where few things go (1 in " in model.explain(scene(lost))[0]


def test_the_most_unusual_reason_comes_first(model: AttributeModel) -> None:
    text, _ = model.explain(scene(walker(180, speed=30.0, angle=np.pi)))
    assert text.index("faster") < text.index("moves to the left")


def test_speed_is_compared_with_what_is_usual_at_that_height() -> None:
    """Far things move slowly in the picture: the same speed is fast there, usual nearby."""
    rng = np.random.default_rng(0)
    scenes = []
    for _ in range(1500):
        y = rng.uniform(0, 190)
        speed = 0.5 * np.exp(2.5 * (y + 40) / HEIGHT) * np.exp(0.1 * rng.standard_normal())
        scenes.append(scene(walker(rng.uniform(0, 346), speed, y)))
    model = AttributeModel.fit([scenes])
    near, far = walker(180, 4.5, 180), walker(180, 4.5, 20)
    assert model.rarities(scene(near))[0].speed < 3
    assert model.rarities(scene(far))[0].speed > 6


def test_faster_is_never_less_surprising(model: AttributeModel) -> None:
    found = [model.evidence(scene(walker(100, s))) for s in (2, 3, 4, 8, 16, 1000)]
    assert found == sorted(found)
    assert np.isfinite(found).all()


def test_direction_and_place_count_only_beyond_1_in_1000() -> None:
    assert Rarity(1.0, 2.0, RARE, RARE).total == 3.0
    assert Rarity(1.0, 2.0, RARE + 1.5, RARE - 1).total == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("angle", "sector"), [(0, 0), (90, 2), (180, 4), (270, 6), (20, 0), (25, 1), (-20, 0)]
)
def test_sectors_turn_clockwise_from_the_right(angle: float, sector: int) -> None:
    assert sector_of(walker(0, 2.0, angle=np.deg2rad(angle)), floor=0.1) == sector


def test_what_wobbles_or_rests_has_no_heading() -> None:
    assert sector_of(replace(walker(0), vx=0.2, vy=0.2), floor=0.01) == SECTORS
    assert sector_of(walker(0, speed=0.05), floor=0.1) == SECTORS


@pytest.mark.parametrize(("x", "y"), [(-20.0, -60.0), (500.0, 400.0), (0.0, 0.0)])
def test_a_thing_at_or_beyond_the_edge(model: AttributeModel, x: float, y: float) -> None:
    assert np.isfinite(model.evidence(scene(walker(x, y=y))))


def test_arrays_give_the_same_model_back(model: AttributeModel) -> None:
    arrays = model.to_arrays()
    assert not any(array.dtype.hasobject for array in arrays.values())
    again = AttributeModel.from_arrays(arrays)
    for picture in normal_videos(60)[0]:
        assert again.evidence(picture) == model.evidence(picture)
        assert again.explain(picture) == model.explain(picture)
    assert again.n_things == 1500


@pytest.mark.parametrize("missing", ["line", "counts", "n_things"])
def test_incomplete_arrays_are_refused(model: AttributeModel, missing: str) -> None:
    arrays = model.to_arrays()
    del arrays[missing]
    with pytest.raises(BundleError, match=rf"lack \['{missing}'\]; train again"):
        AttributeModel.from_arrays(arrays)


def test_counts_of_another_grid_are_refused(model: AttributeModel) -> None:
    arrays = model.to_arrays() | {"counts": np.zeros((ROWS, COLUMNS))}
    with pytest.raises(BundleError, match="attribute counts have shape"):
        AttributeModel.from_arrays(arrays)


def test_footage_without_motion_is_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match="nothing moved in the training videos"):
        AttributeModel.fit([[scene()] * 10])


def test_a_single_thing_is_enough_to_fit() -> None:
    model = AttributeModel.fit([[scene(walker(100))]])
    assert np.isfinite(model.evidence(scene(walker(100, 50.0))))
    assert model.evidence(scene(walker(100, 50.0))) > model.evidence(scene(walker(100)))


def test_nothing_is_called_rarer_than_the_footage_supports(model: AttributeModel) -> None:
    absurd = replace(walker(100, 1e6), area=1e9)
    (rarity,) = model.rarities(scene(absurd))
    assert rarity.speed == rarity.size == pytest.approx(np.log(1500))
    few = replace(model, n_things=20)  # a handful says no more than 1 in 1000 either way
    assert few.rarities(scene(absurd))[0].speed == pytest.approx(RARE)
