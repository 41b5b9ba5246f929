"""The picture of score against score."""

import cv2
import numpy as np
import pytest

from sfn_calib.gate import compare
from sfn_calib.report import picture, ticks
from test_gate import SCORING, changed, make_pairs


def test_the_picture_is_a_png_that_shows_both_classes() -> None:
    pairs = make_pairs()
    variant = changed(pairs, 0.2)
    figures = compare(pairs, variant, SCORING)
    data = picture(pairs, variant, SCORING, "int8", figures.protocols)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape[1] > image.shape[0] > 400
    for colour in ((0xB4, 0x69, 0x00), (0x0C, 0x41, 0xC2)):  # BGR of normal, of anomalous
        assert (np.abs(image.astype(int) - colour).max(axis=-1) < 12).sum() > 200


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 47.0), (0.0, 1e-4)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 9
    assert found[0] >= low
    assert found[-1] <= high * 1.0001
