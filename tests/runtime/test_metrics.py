import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn import metrics as sk

from sfn_rt.exceptions import InputError
from sfn_rt.metrics import (
    BoxHits,
    PixelAuroc,
    average_precision,
    equal_error_rate,
    event_metrics,
    macro_auc,
    peak_box_hits,
    roc_auc,
    roc_curve,
)


def draws() -> list[tuple[np.ndarray, np.ndarray]]:
    cases = []
    for seed, (n, share, levels) in enumerate(
        [(2000, 0.8, None), (2000, 0.1, 7), (50, 0.5, 2), (500, 0.5, 40), (2, 0.5, None)]
    ):
        rng = np.random.default_rng(seed)
        labels = (rng.random(n) < share).astype(np.uint8)
        labels[:2] = 0, 1
        scores = rng.standard_normal(n) + labels
        cases.append((scores if levels is None else np.round(scores * levels / 6), labels))
    return cases


@pytest.mark.parametrize(("scores", "labels"), draws())
def test_rank_metrics_equal_scikit_learns_with_ties(scores: np.ndarray, labels: np.ndarray):
    assert roc_auc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    expected = sk.average_precision_score(labels, scores)
    assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)

    fpr, tpr, threshold = sk.roc_curve(labels, scores, drop_intermediate=False)
    curve = roc_curve(scores, labels)
    np.testing.assert_allclose(curve.fpr, fpr, atol=1e-12)
    np.testing.assert_allclose(curve.tpr, tpr, atol=1e-12)
    np.testing.assert_array_equal(curve.threshold, threshold)

    eer = equal_error_rate(scores, labels)
    on_curve = np.interp(eer, fpr, tpr)
    if len(np.unique(fpr)) == len(fpr):  # np.interp needs a function
        root = brentq(lambda x: 1 - x - np.interp(x, fpr, tpr), 0, 1, xtol=1e-15)
        assert eer == pytest.approx(root, abs=1e-12)
        assert 1 - on_curve == pytest.approx(eer, abs=1e-12)


def test_known_values():
    labels = np.array([0, 0, 1, 1])
    assert roc_auc(np.array([0.1, 0.4, 0.35, 0.8]), labels) == 0.75
    assert roc_auc(np.zeros(4), labels) == 0.5
    assert equal_error_rate(np.array([0.1, 0.2, 0.3, 0.4]), labels) == 0
    assert equal_error_rate(np.zeros(4), labels) == 0.5
    assert equal_error_rate(np.array([3.0, 2.0, 2.0, 1.0]), labels) == pytest.approx(0.75)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_nan(label: int):
    scores, labels = np.arange(5.0), np.full(5, label)
    assert np.isnan(roc_auc(scores, labels))
    assert np.isnan(equal_error_rate(scores, labels))
    assert np.isnan(average_precision(scores, labels)) == (label == 0)


def test_macro_auc_is_the_mean_over_videos_with_both_classes():
    scores = [np.array([0.0, 1.0]), np.array([1.0, 0.0]), np.array([5.0, 6.0])]
    labels = [np.array([0, 1]), np.array([0, 1]), np.array([1, 1])]
    assert macro_auc(scores, labels) == 0.5
    assert np.isnan(macro_auc(scores[2:], labels[2:]))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros(2), np.array([0.0, 1.0]), "the order of arguments is"),
        (np.zeros(2), np.array([0, 1, 1]), "do not match"),
        (np.array([np.nan, 0.0]), np.array([0, 1]), "1 of 2 are"),
        (np.zeros(2), np.array([0, 255], np.uint8), "up to 255"),
    ],
)
def test_bad_input_is_named(scores: np.ndarray, labels: np.ndarray, message: str):
    with pytest.raises(InputError, match=message):
        roc_auc(scores, labels)


def test_event_metrics_count_alarms_events_and_delay():
    fps = 10
    score, label = np.zeros(3600), np.zeros(3600, np.uint8)
    label[600:700] = 1  # found at once
    score[598:650] = 2.0  # rung 0.2 s early: not false
    label[1200:1300] = 1  # found 5 s late
    score[1250:1260] = 2.0
    label[2000:2050] = 1  # missed
    score[3000:3010] = 2.0  # false
    result = event_metrics([score], [label], 1.0, fps)
    assert (result.false_alarms, result.events, result.found) == (1, 3, 2)
    assert result.normal_hours == pytest.approx((3600 - 250) / 36000)
    assert result.false_alarms_per_hour == pytest.approx(36000 / 3350)
    assert result.share_found == pytest.approx(2 / 3)
    assert result.delay_s == pytest.approx(2.5)
    assert result.normal_alarmed == pytest.approx(12 / 3350)


def test_an_alarm_that_always_rings_is_one_false_alarm_and_all_frames_alarmed():
    label = np.r_[np.zeros(500, np.uint8), np.ones(100, np.uint8)]
    result = event_metrics([np.full(600, 9.0)], [label], 1.0, 10.0)
    assert (result.false_alarms, result.normal_alarmed, result.share_found) == (1, 1.0, 1.0)
    assert result.delay_s == 0


def test_event_metrics_skip_unscored_frames_and_allow_a_rate_a_video():
    nan = np.full(4, np.nan)
    scores = [np.r_[nan, np.zeros(6)], np.r_[nan, np.ones(6)]]
    labels = [np.zeros(10, np.uint8), np.ones(10, np.uint8)]
    result = event_metrics(scores, labels, 1.0, [1.0, 2.0])
    assert result.normal_hours == pytest.approx(6 / 3600)
    assert (result.events, result.found, result.false_alarms) == (1, 1, 0)


def test_event_metrics_of_one_class_are_nan():
    normal = event_metrics([np.zeros(9)], [np.zeros(9, np.uint8)], 1.0, 1.0)
    assert np.isnan(normal.share_found)
    assert np.isnan(normal.delay_s)
    abnormal = event_metrics([np.zeros(9)], [np.ones(9, np.uint8)], 1.0, 1.0)
    assert np.isnan(abnormal.false_alarms_per_hour)
    assert np.isnan(abnormal.normal_alarmed)


class Marked:
    def __init__(self, masks: np.ndarray) -> None:
        self.masks = masks

    def __len__(self) -> int:
        return len(self.masks)

    def frame(self, index: int) -> np.ndarray:
        return self.masks[index]


def test_a_box_hits_if_its_centre_is_marked():
    masks = np.zeros((8, 20, 30), bool)
    masks[2:7, 5:10, 5:10] = True
    boxes = np.full((8, 4), np.nan, np.float32)
    boxes[3] = 0, 0, 4, 4  # unscored frame, never counted
    boxes[4] = 4, 4, 6, 6  # centre 7, 7
    boxes[5] = 0, 0, 30, 20  # covers everything, points elsewhere
    boxes[7] = 5, 5, 1, 1  # nothing marked here
    hits = peak_box_hits(boxes, Marked(masks))
    assert (hits.hits, hits.frames) == (1, 3)
    assert hits.share == pytest.approx(1 / 3)
    assert hits.chance == pytest.approx(25 / 600)
    assert (hits + hits).frames == 6
    assert np.isnan(BoxHits().share)
    with pytest.raises(InputError, match="do not match"):
        peak_box_hits(boxes[:5], Marked(masks))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_pixel_auroc_matches_scikit_learn(scale: float):
    rng = np.random.default_rng(0)
    total, heats, masks = PixelAuroc(), [], []
    assert np.isnan(total.value())
    for _ in range(4):
        mask = rng.random((40, 60)) < 0.1
        heat = (rng.standard_normal((40, 60)) + mask) * scale
        total.update(heat, mask)
        heats.append(heat.ravel())
        masks.append(mask.ravel())
    expected = sk.roc_auc_score(np.concatenate(masks), np.concatenate(heats))
    # Values within 0.2 % of one another tie in the histogram.
    assert total.value() == pytest.approx(expected, abs=1e-4)
    assert total.pixels == 4 * 2400


def test_pixel_auroc_resizes_heat_to_the_mask():
    mask = np.zeros((40, 40), bool)
    mask[20:, 20:] = True
    total = PixelAuroc()
    total.update(np.array([[0.0, 0.0], [0.0, 1.0]]), mask)
    assert total.value() > 0.95
    with pytest.raises(InputError, match="finite heat"):
        total.update(np.array([[np.nan]]), mask)
