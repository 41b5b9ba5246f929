"""The no-model baselines on pictures whose answers are known."""

import numpy as np
import pytest

from sfn_rt.baselines import Baselines, from_length, median_background
from sfn_rt.exceptions import DataError, InputError

H, W = 96, 144
RNG = np.random.default_rng(0)
GROUND = RNG.integers(90, 130, (H, W), np.uint8)
THING = RNG.integers(0, 256, (20, 12), np.uint8) // 3  # textured, so that flow can follow it


def picture(*places: tuple[int, int]) -> np.ndarray:
    """RGB with one thing of 20 x 12 pixels at each (x, y)."""
    grey = GROUND.copy()
    for x, y in places:
        grey[y : y + 20, x : x + 12] = THING
    return np.repeat(grey[..., None], 3, axis=2)  # (H, W, 3)


def video(speed: int, n_frames: int = 24, y: int = 30) -> list[np.ndarray]:
    return [picture((10 + speed * t, y)) for t in range(n_frames)]


@pytest.fixture(scope="module")
def fitted() -> Baselines:
    return Baselines.fit(lambda: [video(1), video(2), [picture()] * 80])


def run(baselines: Baselines, frames: list[np.ndarray]) -> dict[str, np.ndarray]:
    baselines.reset()
    rows = [baselines.update(frame) for frame in frames]
    return {name: np.array([row[name] for row in rows]) for name in baselines.names}


def test_difference_is_the_mean_and_largest_box_of_squares():
    before, after = picture(), picture()
    after[40:64, 50:74] += 10  # one whole box of 24 x 24
    evidence = run(Baselines(), [before, after])
    assert evidence["mean frame difference"][1] == pytest.approx(100 * 24 * 24 / (H * W))
    assert evidence["largest box of it"][1] == pytest.approx(100)
    assert list(evidence) == ["mean frame difference", "largest box of it"]


def test_first_frame_of_a_video_has_no_evidence(fitted):
    evidence = run(fitted, video(1))
    for values in evidence.values():
        assert np.isnan(values[0])
        assert np.isfinite(values[1:]).all()


def test_reset_forgets_the_previous_video(fitted):
    frames = video(2)
    first = run(fitted, frames)
    run(fitted, video(3, y=60))
    again = run(fitted, frames)
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])


def test_fastest_blob_measures_pixels_a_frame(fitted):
    # Below the true speed: the blob's mean takes in a rim of ground that stands still.
    speed = run(fitted, video(3))["fastest blob"][4:]
    assert 2 < np.median(speed) < 3.2
    assert np.median(speed) > 1.7 * np.median(run(fitted, video(1))["fastest blob"][4:])


def test_tail_rises_beyond_everything_normal(fitted):
    name = "tail of speed + area"
    assert np.median(run(fitted, video(4))[name][4:]) > np.nanmax(run(fitted, video(1))[name])


def test_nothing_that_moves_is_zero_not_nan(fitted):
    evidence = run(fitted, [picture()] * 3)
    assert evidence["fastest blob"][1:].tolist() == [0, 0]
    assert evidence["tail of speed + area"][1:] == pytest.approx(0)


def test_constant_grey_video_stays_finite():
    frames = [np.full((H, W, 3), 128, np.uint8)] * 30
    baselines = Baselines.fit(lambda: [frames])
    assert all(np.isfinite(v[1:]).all() for v in run(baselines, frames).values())


def test_background_is_the_median_of_every_20th_frame():
    frames = video(2, n_frames=60)  # the thing is elsewhere in each of the frames 0, 20, 40
    np.testing.assert_array_equal(median_background([frames]), GROUND)


def test_survives_its_arrays(fitted, tmp_path):
    np.savez(tmp_path / "normal.npz", **fitted.to_arrays())
    with np.load(tmp_path / "normal.npz", allow_pickle=False) as stored:
        again = Baselines.from_arrays(stored)
    assert again.names == fitted.names
    for name, values in run(fitted, video(3)).items():
        np.testing.assert_array_equal(run(again, video(3))[name], values)


def test_tall_frames_are_reduced_to_240_lines():
    frames = [np.repeat(np.repeat(f, 5, axis=0), 5, axis=1) for f in video(1, n_frames=6)]
    baselines = Baselines.fit(lambda: [frames])
    assert baselines.background is not None
    assert baselines.background.shape == (240, 360)


def test_place_and_bump_come_from_the_length():
    evidence = from_length(8)
    assert evidence["place in the video"].tolist() == [
        0,
        0.125,
        0.25,
        0.375,
        0.5,
        0.625,
        0.75,
        0.875,
    ]
    assert evidence["centre bump"].argmax() == 4
    assert from_length(0)["centre bump"].shape == (0,)


def test_unusable_footage_is_refused():
    with pytest.raises(DataError, match="at least one normal video"):
        Baselines.fit(list)
    with pytest.raises(DataError, match="2 frames or more"):
        Baselines.fit(lambda: [[picture()]])
    with pytest.raises(InputError, match="must be grey"):
        Baselines(picture())
