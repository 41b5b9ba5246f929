"""A graph that is wrong is caught, and the message says where."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sfn_export.exceptions import ParityError
from sfn_export.parity import (
    TOLERANCE,
    Rerouted,
    assert_parity,
    check_parts,
    check_rerouted,
    count_rerouted,
    first_changes,
    routing_changes,
)
from sfn_export.path_parity import auc_difference, compare_paths
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import load_bundle
from sfn_train.checkpoint import load_run
from sfn_train.text import TextModel
from sfn_train.torch_backend import TorchBackend

PERTURBED = {  # one weight of each part, and what the message must name
    "appearance": ("appearance.project.bias", r"^appearance\.tokens: max\|Δ\| .* at \(\d"),
    "motion": ("motion.vit.norm.bias", r"^motion\.tokens: max\|Δ\| .* at \(\d"),
    "frame head": (
        "decoder.mjad.frame_head.refine.2.bias",
        r"^decoder\.next_frame: max\|Δ\| .* \(budget 5e-05\) at \(\d+, \d+, \d+, \d+\)",
    ),
    "text head": ("decoder.mjad.text_head.2.bias", r"^decoder\.semantic: max\|Δ\| "),
    "router": ("decoder.mjad.filters.0.router.weight", r"^decoder\.routing at clip \d+, layer 0"),
    "filter": ("decoder.mjad.filters.1.up_bias", r"^decoder\.(next_frame|semantic): max\|Δ\| "),
}


@pytest.mark.parametrize("what", PERTURBED)
def test_perturbed_weight_is_caught(tiny_run: Path, tiny_bundle: Path, what: str) -> None:
    model, (name, message) = load_run(tiny_run).model, PERTURBED[what]
    weight = model.get_parameter(name)
    torch.manual_seed(0)
    with torch.no_grad():
        weight.add_((1.0 if what == "router" else 1e-2) * torch.randn_like(weight))
    part = name.partition(".")[0]
    graph = load_bundle(tiny_bundle).graph(part)
    with (
        TorchBackend(model, None) as reference,
        OrtBackend({part: graph}, threads=1) as exported,
        pytest.raises(ParityError, match=message) as caught,
    ):
        check_parts(reference, exported)
    assert "budget reason: " in str(caught.value)


def test_perturbed_text_encoder_is_caught(tiny_run: Path, tiny_bundle: Path) -> None:
    text = TextModel()
    module = text.module()
    weight = next(p for n, p in module.named_parameters() if n.endswith("LayerNorm.bias"))
    with torch.no_grad():
        weight.add_(0.01 * torch.randn_like(weight))
    graph = load_bundle(tiny_bundle).graph("text")
    with (
        TorchBackend(load_run(tiny_run).model, text) as reference,
        OrtBackend({"text": graph}, threads=1) as exported,
        pytest.raises(ParityError, match=r"^text\.sentence_embedding: max\|Δ\| "),
    ):
        check_parts(reference, exported, tokenizer=text.tokenizer_json, max_tokens=text.max_tokens)


def test_message_locates_the_fault() -> None:
    expected = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4)
    actual = expected.copy()
    actual[1, 2, 0] += 0.1
    with pytest.raises(ParityError) as caught:
        assert_parity("decoder.semantic", expected, actual, TOLERANCE["fp32"], "unit input")
    assert str(caught.value) == (
        "decoder.semantic: max|Δ| 5.00e-02 (budget 5e-05) at (1, 2, 0), SQNR 35.4 dB "
        "(floor 90 dB), unit input; budget reason: same arithmetic, other kernel order"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_a_number_is_a_failure(bad: float) -> None:
    actual = np.ones((2, 2), np.float32)
    actual[0, 1] = bad
    with pytest.raises(ParityError, match=r"max\|Δ\| inf .* at \(0, 1\)"):
        assert_parity("x.y", np.ones((2, 2), np.float32), actual, TOLERANCE["fp32"], "unit")


def test_another_shape_is_a_failure() -> None:
    with pytest.raises(ParityError, match=r"x.y: expected shape \(2,\), got \(3,\)"):
        assert_parity("x.y", np.ones(2), np.ones(3), TOLERANCE["fp32"], "unit")


def test_order_of_the_chosen_filters_does_not_matter() -> None:
    before = np.array([[[[1, 2], [3, 4]]]])
    after = np.array([[[[2, 1], [3, 5]]]])
    assert routing_changes(before, after).tolist() == [[[False, True]]]


def test_later_layers_follow_from_the_first_change() -> None:
    changed = np.array([[[0, 0], [1, 0], [1, 1]], [[0, 1], [0, 0], [1, 1]]], bool)
    kept = first_changes(changed)
    assert kept.astype(int).tolist() == [[[0, 0], [1, 0], [0, 0]], [[0, 1], [0, 0], [0, 0]]]


def test_rerouting_has_a_budget() -> None:
    check_rerouted(Rerouted(case="unit", tokens=5000, differ=5, first=""))
    changed = np.zeros((2, 4, 250), bool)
    changed[1, 2, 7:10] = True
    with pytest.raises(ParityError, match=r"clip 1, layer 2, token 7: 3 of 2000 .*budget 0.1%"):
        check_rerouted(count_rerouted("decoder", changed, "unit"))


def test_whole_path_budgets() -> None:
    series = {"v": {"visual": np.array([np.nan, 1.0, 2.0])}}
    other = {"v": {"visual": np.array([np.nan, 1.0, 2.1])}}
    report = compare_paths(series, series, ([], []), None)
    assert report.max_score == 0
    with pytest.raises(ParityError, match=r"visual of v, frame 2: differs by 1.00e-01"):
        compare_paths(series, other, ([], []), None)
    with pytest.raises(ParityError, match=r"AUC differs by 1.000 points"):
        compare_paths(series, series, ([], []), 0.01)
    shorter = {"v": {"visual": np.array([1.0, 1.0, 2.0])}}
    with pytest.raises(ParityError, match="other frames have a score"):
        compare_paths(series, shorter, ([], []), None)


def test_auc_difference() -> None:
    labels = {"v": np.array([0, 0, 1, 1], np.uint8)}
    good = {"v": {"visual": np.array([0.0, 1.0, 2.0, 3.0])}}
    bad = {"v": {"visual": np.array([0.0, 2.5, 2.0, 3.0])}}
    assert auc_difference(good, bad, labels) == pytest.approx(0.25)
    assert auc_difference(good, bad, {}) is None
    assert auc_difference(good, bad, {"v": np.zeros(4, np.uint8)}) is None
