"""Where and how much a prediction is wrong, against slow arithmetic."""

import numpy as np
import pytest

from sfn_rt.prediction_error import (
    VisualConfig,
    absolute_error,
    measure_error,
    semantic_error,
)

CONFIG = VisualConfig(box_height=5, box_width=4, pixel_error=1.5, grid_height=4, grid_width=6)


def error_map(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1, size=(20, 30)).astype(np.float32)


def test_absolute_error_is_the_root_mean_square_over_channels() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4, 3, 5, 6)).astype(np.float32)
    expected = np.sqrt(((a.astype(np.float64) - b) ** 2).mean(axis=1))
    actual = absolute_error(a, b)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_box_is_found_by_trying_all(seed: int) -> None:
    error = error_map(seed)
    shares = {
        (x / 30, y / 20): float((error[y : y + 5, x : x + 4] > CONFIG.pixel_error).mean())
        for y in range(20 - 5 + 1)
        for x in range(30 - 4 + 1)
    }
    measured = measure_error(error, CONFIG)
    assert measured.evidence == pytest.approx(max(shares.values()), rel=1e-5)
    x, y, width, height = measured.box
    assert shares[x, y] == pytest.approx(measured.evidence, rel=1e-5)
    assert (width, height) == (4 / 30, 5 / 20)


def test_contrast_does_not_count_only_how_much_is_mispredicted() -> None:
    grey, white = np.zeros((2, 20, 30), np.float32)
    grey[3:8, 6:10] = 2.0
    white[3:8, 6:10] = 6.0
    assert measure_error(white, CONFIG).evidence == measure_error(grey, CONFIG).evidence == 1.0
    half = grey.copy()
    half[3:8, 6:8] = 0.0
    assert measure_error(half, CONFIG).evidence == pytest.approx(0.5)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (0, 26), (15, 0), (15, 26), (7, 11)])
def test_a_box_may_lie_in_any_corner(y: int, x: int) -> None:
    error = np.zeros((20, 30), np.float32)
    error[y : y + 5, x : x + 4] = 2.0
    measured = measure_error(error, CONFIG)
    assert measured.evidence == pytest.approx(1.0)
    assert measured.box == pytest.approx((x / 30, y / 20, 4 / 30, 5 / 20))


def test_one_small_thing_counts_more_in_a_box_than_in_the_mean() -> None:
    quiet = np.full((20, 30), 0.1, np.float32)
    loud = quiet.copy()
    loud[5:10, 5:9] = 1.0
    mean = VisualConfig(measure="mean", box_height=5, box_width=4, pixel_error=0.5)
    boxed = VisualConfig(box_height=5, box_width=4, pixel_error=0.5)
    assert (measure_error(quiet, boxed).evidence, measure_error(loud, boxed).evidence) == (0, 1)
    by_hand = np.mean(np.square(loud.astype(np.float64)))  # equation 13
    assert measure_error(loud, mean).evidence == pytest.approx(by_hand, rel=1e-5)
    assert measure_error(loud, mean).box == pytest.approx((5 / 30, 5 / 20, 4 / 30, 5 / 20))


def test_heat_is_the_mean_of_each_cell() -> None:
    error = error_map()
    heat = measure_error(error, CONFIG).heat
    assert heat.shape == (4, 6)
    assert heat.dtype == np.float16
    cells = error.reshape(4, 5, 6, 5).mean(axis=(1, 3))
    np.testing.assert_allclose(heat, cells, rtol=2e-3)  # 10-bit mantissa


def test_a_box_larger_than_the_frame_is_the_frame() -> None:
    whole = VisualConfig(box_height=99, box_width=99, pixel_error=1.5)
    measured = measure_error(error_map(), whole)
    assert measured.box == (0.0, 0.0, 1.0, 1.0)
    assert measured.evidence == pytest.approx(float((error_map() > 1.5).mean()), rel=1e-5)


def test_no_error_is_zero_not_nan() -> None:
    measured = measure_error(np.zeros((20, 30), np.float32), CONFIG)
    assert measured.evidence == 0.0
    assert np.isfinite(measured.heat).all()


def test_semantic_error_is_one_minus_cosine_whatever_the_length() -> None:
    a = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]], np.float32)
    b = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, -1.0], [1.0, 0.0]], np.float32)
    np.testing.assert_allclose(semantic_error(a, b), [0.0, 1.0, 2.0, 1.0], atol=1e-12)


def test_semantic_error_of_several_windows_is_their_mean() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 7, 3, 5)).astype(np.float32)
    expected = np.mean([semantic_error(a[:, k], b[:, k]) for k in range(3)], axis=0)
    actual = semantic_error(a.reshape(7, 15), b.reshape(7, 15), 3)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    one = semantic_error(a[:, 0], b[:, 0])
    np.testing.assert_array_equal(one, semantic_error(a[:, 0], b[:, 0], 1))


def test_psnr_is_the_mean_in_decibels_and_finite_without_error() -> None:
    error = error_map()
    psnr = VisualConfig(measure="psnr", box_height=5, box_width=4)
    expected = 10 * np.log10(np.mean(error.astype(np.float64) ** 2))
    assert measure_error(error, psnr).evidence == pytest.approx(expected, abs=1e-5)
    assert measure_error(0.1 * error, psnr).evidence == pytest.approx(expected - 20, abs=1e-5)
    assert measure_error(np.zeros((20, 30), np.float32), psnr).evidence == -100.0
    assert (
        measure_error(error, psnr).box
        == measure_error(error, VisualConfig(box_height=5, box_width=4)).box
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [({"measure": "median"}, "measure must be"), ({"box_width": 0}, "box_width must be at least")],
)
def test_settings_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisualConfig(**change)  # type: ignore[arg-type]
