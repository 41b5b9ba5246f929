"""The lane's signals: what they see, what they do not, and that they continue exactly."""

import numpy as np
import pytest

from sfn_rt.semantics.change import PERIOD, ChangeSignals

GRID, WIDTH = (6, 10), 8
N = GRID[0] * GRID[1]


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1 + N, WIDTH)).astype(np.float32)


def still() -> np.ndarray:
    return np.zeros((3, 60, 100), np.float32)


def test_a_still_picture_has_no_change() -> None:
    signals = ChangeSignals(GRID)
    for _ in range(3):
        found = signals.measure(tokens(), still())
    assert found == pytest.approx({"motion": 0.0, "appearance": 0.0}, abs=1e-6)


def test_one_small_thing_counts_as_much_in_a_large_picture() -> None:
    moved = still()
    moved[:, 10:20, 10:20] = 1.0  # one of 60 cells
    assert ChangeSignals(GRID).measure(None, moved) == {"motion": pytest.approx(0.25)}  # of four
    signals = ChangeSignals(GRID)
    signals.measure(tokens(), still())
    other = tokens()
    other[1 + 7] *= -1  # the opposite: 1 - cosine is 2
    assert signals.measure(other, still())["appearance"] == pytest.approx(0.5)
    other = tokens()
    other[0] *= -1  # the class token is of no place
    assert signals.measure(other, still())["appearance"] == pytest.approx(0.0, abs=1e-6)


def test_change_is_from_the_reference_not_from_the_frame_before() -> None:
    signals = ChangeSignals(GRID)
    signals.measure(tokens(0), still())
    first = signals.measure(tokens(1), still())["appearance"]
    assert first > 0.5
    assert signals.measure(tokens(1), still())["appearance"] == first
    signals.renew()
    assert signals.measure(tokens(1), still())["appearance"] == pytest.approx(0.0, abs=1e-6)


def test_a_reference_does_not_grow_old() -> None:
    signals = ChangeSignals(GRID)
    signals.measure(tokens(0), still())
    found = [signals.measure(tokens(1), still())["appearance"] for _ in range(PERIOD)]
    assert all(value > 0.5 for value in found[:-1])
    assert found[-1] == pytest.approx(0.0, abs=1e-6)


def test_brightness_of_tokens_is_no_change() -> None:
    signals = ChangeSignals(GRID)
    signals.measure(tokens(), still())
    assert signals.measure(3 * tokens(), still())["appearance"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("at", [1, 7, PERIOD, PERIOD + 3])
def test_state_continues_to_the_same_numbers(at: int) -> None:
    whole, again = ChangeSignals(GRID), ChangeSignals(GRID)
    for i in range(at):
        whole.measure(tokens(i), still())
        if i == 4:
            whole.renew()
    again.restore(*whole.state())
    for i in range(at, at + PERIOD + 2):
        assert whole.measure(tokens(i), still()) == again.measure(tokens(i), still())
