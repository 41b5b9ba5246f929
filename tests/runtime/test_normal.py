"""What a bundle knows of normal footage, stored and read back."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sfn_rt.exceptions import BundleError
from sfn_rt.normal import (
    SAME_SCENE,
    NormalFootage,
    SceneModel,
    same_scene,
    term_subsets,
    thumbnail,
)
from sfn_rt.scores import TERMS, Tail
from sfn_rt.threshold import Threshold


def picture(seed: int, noise: float = 0.0) -> np.ndarray:
    """A scene (48, 72, 3) of large blocks, with noise on top that only `noise` decides."""
    blocks = np.random.default_rng(seed).integers(20, 230, (4, 6, 1))
    image = blocks.repeat(12, axis=0).repeat(12, axis=1).repeat(3, axis=2)
    image = image + noise * np.random.default_rng(99).standard_normal(image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def footage() -> NormalFootage:
    rng = np.random.default_rng(0)
    terms = ("visual", "attribute")
    scene = SceneModel(None, picture(0)[..., 0], thumbnail(picture(0))[None])
    tails = {term: Tail.fit(rng.gamma(2, size=300)) for term in terms}
    thresholds = {
        chosen: Threshold(2.5 + len(chosen), f"rule for {len(chosen)}, = and ü", 1.0)
        for chosen in term_subsets(terms)
    }
    return NormalFootage(scene, tails, thresholds, 0.75)


def test_arrays_give_the_same_back() -> None:
    before = footage()
    after = NormalFootage.from_arrays(before.to_arrays())
    assert after.thresholds == before.thresholds
    assert after.heat_scale == before.heat_scale
    assert after.scene.attributes is None
    np.testing.assert_array_equal(after.scene.background, before.scene.background)
    np.testing.assert_array_equal(after.scene.thumbnails, before.scene.thumbnails)
    values = np.linspace(0, 30, 50)
    assert list(after.tails) == list(before.tails)
    for term, tail in before.tails.items():
        np.testing.assert_array_equal(after.tails[term].surprise(values), tail.surprise(values))


def test_arrays_need_no_pickle() -> None:
    assert not any(array.dtype.hasobject for array in footage().to_arrays().values())


def test_without_a_background_there_is_none_after_reading_either() -> None:
    before = footage()
    before = replace(before, scene=replace(before.scene, background=None))
    assert NormalFootage.from_arrays(before.to_arrays()).scene.background is None


@pytest.mark.parametrize(
    "missing", ["thumbnails", "heat_scale", "tails/", "threshold/"], ids=lambda name: name
)
def test_incomplete_statistics_are_refused(missing: str) -> None:
    arrays = {k: v for k, v in footage().to_arrays().items() if not k.startswith(missing)}
    with pytest.raises(BundleError, match="train again"):
        NormalFootage.from_arrays(arrays)


def test_every_choice_of_terms_has_its_threshold() -> None:
    subsets = term_subsets(TERMS)
    expected = {chosen for size in (1, 2, 3) for chosen in itertools.combinations(TERMS, size)}
    assert set(subsets) == expected
    assert len(subsets) == 7
    assert term_subsets(("attribute", "visual"))[-1] == ("visual", "attribute")  # one order


def test_a_thumbnail_has_mean_0_and_length_1() -> None:
    small = thumbnail(picture(0))
    assert small.shape == (16, 24)
    assert float(small.mean()) == pytest.approx(0, abs=1e-6)
    assert float(np.linalg.norm(small)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_frame_is_like_nothing_and_not_nan(level: int) -> None:
    flat = np.full((48, 72, 3), level, np.uint8)
    assert np.isfinite(thumbnail(flat)).all()
    assert footage().scene.likeness(flat) == 0.0
    assert not same_scene([thumbnail(flat), thumbnail(flat)])


def test_the_scene_is_recognised_in_other_light_and_not_elsewhere() -> None:
    scene = footage().scene
    assert scene.likeness(picture(0)) == pytest.approx(1, abs=1e-5)
    assert scene.likeness(picture(0, noise=20)) > 0.9
    assert scene.likeness((picture(0) // 2) + 40) > 0.99
    assert scene.likeness(picture(1)) < SAME_SCENE


def test_the_most_similar_video_counts() -> None:
    scene = SceneModel(None, None, np.stack([thumbnail(picture(i)) for i in range(3)]))
    assert scene.likeness(picture(2)) == pytest.approx(1, abs=1e-5)


def test_videos_of_one_scene_and_of_several() -> None:
    one = [thumbnail(picture(0, noise)) for noise in (0, 10, 20)]
    assert same_scene(one)
    assert same_scene(one[:1])
    assert not same_scene([*one, thumbnail(picture(1)), thumbnail(picture(2))])


@pytest.mark.parametrize("n", [2, 3, 4, 9])
def test_few_different_scenes_are_not_taken_for_one(n: int) -> None:
    assert not same_scene([thumbnail(picture(i)) for i in range(n)])
