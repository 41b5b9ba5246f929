"""Anomalies are of a chosen strength, in one place, seeded, and nothing else changes."""

import numpy as np
import pytest

from footage import SIZE, walk
from sfn_calib.anomalies import KINDS, Anomaly

IMAGES = walk(50, 3)
SIDE = (8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_goes_from_nothing_to_a_patch(kind: str) -> None:
    anomaly = Anomaly(IMAGES, kind, SIDE, (0, 0))
    changes = []
    for strength in (0.0, 0.3, 1.0):
        frames = [anomaly.frame(t, strength) for t in range(len(IMAGES))]
        assert all(f.dtype == np.uint8 and f.shape == (*SIZE, 3) for f in frames)
        by_frame = [np.abs(f.astype(int) - i) for f, i in zip(frames, IMAGES, strict=True)]
        touched = [np.argwhere(change.any(axis=-1)) for change in by_frame]
        for places in touched:  # one patch, twice as large as what moves at most
            if len(places):
                assert (np.ptp(places, axis=0) < 2 * np.array(SIDE)).all()
        changes.append(sum(int(change.sum()) for change in by_frame))
    assert changes[0] == 0
    assert 0 < changes[1] < changes[2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_pictures(kind: str) -> None:
    one, same, other = (Anomaly(IMAGES, kind, SIDE, (0, seed)) for seed in (1, 1, 2))
    frames = [[a.frame(t, 1.0) for t in range(50)] for a in (one, same, other)]
    assert np.array_equal(frames[0], frames[1])
    if kind in (
        "foreign",
        "jerky",
        "flickering",
    ):  # the others draw their place alone, and here one thing moves
        assert not np.array_equal(frames[0], frames[2])


def test_frames_in_which_nothing_shows_are_not_called_abnormal() -> None:
    still = [IMAGES[0]] * 30
    for kind in ("faster", "reversed", "frozen", "jerky"):
        assert not Anomaly(still, kind, SIDE, (0, 0)).abnormal.any()
    assert Anomaly(IMAGES, "foreign", SIDE, (0, 0)).abnormal.all()
    shown = Anomaly(still, "flickering", SIDE, (0, 0))
    differs = [not np.array_equal(shown.frame(t, 1.0), still[t]) for t in range(30)]
    assert 5 < sum(differs) < 25
    assert shown.abnormal.tolist() == [differs[t] or differs[max(t - 1, 0)] for t in range(30)]


def test_the_usual_pictures_are_left_alone() -> None:
    before = [image.copy() for image in IMAGES]
    for kind in KINDS:
        anomaly = Anomaly(IMAGES, kind, SIDE, (0, 0))
        anomaly.frame(5, 1.0)[:] = 0
    assert np.array_equal(before, IMAGES)


def test_a_picture_smaller_than_what_moves_still_has_a_patch() -> None:
    small = [image[:9, :11] for image in IMAGES[:6]]
    frame = Anomaly(small, "foreign", (30, 30), (0, 0)).frame(2, 1.0)
    assert frame.shape == (9, 11, 3)
