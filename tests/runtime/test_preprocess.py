"""Preprocessing against PIL and plain arithmetic."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from sfn_rt.exceptions import InputError
from sfn_rt.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, preprocess, resize_matrix

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SHAPES = [
    pytest.param((240, 360), (448, 448), id="grow"),  # Ped2 into the paper's square
    pytest.param((360, 640), (448, 448), id="grow-and-shrink"),  # Avenue
    pytest.param((480, 856), (448, 448), id="shrink-to-square"),  # ShanghaiTech
    pytest.param((432, 768), (160, 256), id="shrink"),
    pytest.param((1080, 100), (56, 300), id="shrink-and-grow"),
    pytest.param((13, 17), (13, 40), id="one-axis"),
    pytest.param((101, 51), (33, 7), id="odd"),
    pytest.param((2, 3000), (65, 1), id="extreme"),
    pytest.param((64, 48), (64, 48), id="same"),
]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("source", "target"), SHAPES)
def test_bicubic_equals_pil_before_its_rounding(source, target):
    image = noise(*source)
    actual = preprocess(
        image, Preprocessing(height=target[0], width=target[1], resize="bicubic", **PLAIN)
    )
    expected = [
        np.asarray(
            Image.fromarray(image[:, :, channel].astype(np.float32)).resize(
                target[::-1], Image.Resampling.BICUBIC
            )
        )
        for channel in range(3)
    ]
    assert actual.shape == (3, *target)
    np.testing.assert_allclose(actual, np.stack(expected) / 255, atol=1e-5, rtol=0)


def test_area_averages_whole_blocks():
    image = noise(60, 90)
    actual = preprocess(image, Preprocessing(height=20, width=30, resize="area", **PLAIN))
    expected = image.reshape(20, 3, 30, 3, 3).mean(axis=(1, 3)) / 255  # (h, w, 3)
    np.testing.assert_allclose(actual, expected.transpose(2, 0, 1), atol=1e-6, rtol=0)


def test_area_weighs_partly_covered_pixels():
    row = np.array([0, 255, 0, 255, 255], dtype=np.uint8)
    image = np.repeat(row[None, :, None], 3, axis=2)  # (1, 5, 3)
    actual = preprocess(image, Preprocessing(height=1, width=2, resize="area", **PLAIN))
    # Each output covers 2.5 inputs.
    np.testing.assert_allclose(actual[0, 0], [1 / 2.5, 2 / 2.5], atol=1e-6)


@pytest.mark.parametrize(
    ("source", "target"), [((20, 30), (41, 77)), ((20, 300), (41, 77)), ((200, 30), (41, 77))]
)
def test_area_grows_bilinearly_and_shrinks_by_area_axis_by_axis(source, target):
    image = noise(*source)
    actual = preprocess(
        image, Preprocessing(height=target[0], width=target[1], resize="area", **PLAIN)
    )
    expected = image.astype(np.float32)
    if source[1] > target[1]:
        expected = cv2.resize(expected, (target[1], source[0]), interpolation=cv2.INTER_AREA)
    if source[0] > target[0]:
        expected = cv2.resize(
            expected, (expected.shape[1], target[0]), interpolation=cv2.INTER_AREA
        )
    expected = cv2.resize(expected, target[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(actual, expected.transpose(2, 0, 1) / 255, atol=1e-6, rtol=0)


@pytest.mark.parametrize("resize", ["area", "bicubic"])
def test_normalises_each_channel_and_keeps_rgb_order(resize):
    image = np.full((50, 70, 3), (255, 0, 51), dtype=np.uint8)
    actual = preprocess(image, Preprocessing(height=16, width=24, resize=resize))
    expected = (np.array([1.0, 0.0, 0.2]) - IMAGENET_MEAN) / IMAGENET_STD
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    np.testing.assert_allclose(
        actual, np.broadcast_to(expected[:, None, None], (3, 16, 24)), atol=1e-5
    )


@pytest.mark.parametrize(("height", "width"), [(240, 360), (360, 640)])
def test_the_papers_input_equals_pils_within_1e_5(height, width):
    image = noise(height, width)
    actual = preprocess(image, Preprocessing(height=448, width=448, resize="bicubic"))
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        plane = Image.fromarray(image[:, :, channel].astype(np.float32))
        resized = np.asarray(plane.resize((448, 448), Image.Resampling.BICUBIC), dtype=np.float64)
        expected = (resized / 255 - mean) / std
        np.testing.assert_allclose(actual[channel], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("resize", ["area", "bicubic"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        *SHAPES,
        pytest.param((240, 360), (160, 240), id="edge"),  # Ped2 into `edge`
        pytest.param((1000, 1001), (999, 1000), id="slivers"),
        pytest.param((5, 4096), (7, 4095), id="long"),
        pytest.param((1, 1), (3, 2), id="pixel"),
    ],
)
def test_the_matrices_of_a_resize_are_what_preprocess_does(source, target, resize):
    image = noise(*source)
    spec = Preprocessing(height=target[0], width=target[1], resize=resize)
    rows = resize_matrix(source[0], target[0], resize)
    columns = resize_matrix(source[1], target[1], resize)
    planes = image.transpose(2, 0, 1).astype(np.float32)  # (3, H, W)
    resized = rows @ planes @ columns.T  # (3, h, w)
    mean, std = (np.array(x, np.float32)[:, None, None] for x in (spec.mean, spec.std))
    np.testing.assert_allclose(
        (resized / 255 - mean) / std, preprocess(image, spec), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("resize", ["area", "bicubic"])
def test_leaves_the_frame_alone_and_repeats_exactly(resize):
    image = noise(48, 64)
    before = image.copy()
    spec = Preprocessing(height=48, width=64, resize=resize)
    first = preprocess(image, spec)
    second = preprocess(image, spec)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(first, second)
    assert not np.shares_memory(first, second)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), dtype=np.uint8),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((4, 4, 3), dtype=np.float32),
        np.zeros((0, 4, 3), dtype=np.uint8),
    ],
    ids=["grey", "alpha", "float", "empty"],
)
def test_refuses_what_is_no_rgb_frame(bad):
    with pytest.raises(InputError, match=r"uint8\[height, width, 3\], got"):
        preprocess(bad, Preprocessing(height=8, width=8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "height must be a positive whole number, got 0"),
        ({"width": 2.5}, "width must be a positive whole number"),
        ({"height": True}, "height must be a positive whole number"),
        ({"resize": "nearest"}, "resize must be 'area' or 'bicubic', got 'nearest'"),
        ({"mean": (0.5, 0.5)}, "mean must be three finite numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean must be three finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be above 0"),
    ],
)
def test_settings_refuse_nonsense(change, message):
    with pytest.raises(ValueError, match=message):
        replace(Preprocessing(height=8, width=8), **change)
