"""Addressing against plain loops, and the edges of the shrinkage."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sfn_train.dual_memory import DualMemoryConfig
from sfn_train.dual_memory.memory import Memory, entropy, recall
from sfn_train.shrinkage import shrink_hard

LAMBDA = 0.0005


def recall_by_loop(
    queries: NDArray[np.float64], slots: NDArray[np.float64], shrink: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(Q, C) and (S, C) to (Q, C) and (Q, S), a query and a slot at a time."""
    recalled = np.zeros_like(queries)
    weights = np.zeros((len(queries), len(slots)))
    for i, query in enumerate(queries):
        scores = [math.fsum(a * b for a, b in zip(query, slot, strict=True)) for slot in slots]
        total = math.fsum(math.exp(s - max(scores)) for s in scores)
        for j, score in enumerate(scores):
            w = math.exp(score - max(scores)) / total
            weights[i, j] = max(w - shrink, 0) * w / (abs(w - shrink) + 1e-12)
        weights[i] /= max(math.fsum(abs(w) for w in weights[i]), 1e-12)
        for w, slot in zip(weights[i], slots, strict=True):
            recalled[i] += w * slot
    return recalled, weights


@pytest.mark.parametrize("shrink", [0.0, LAMBDA, 0.03])
def test_recall_equals_a_loop_over_queries_and_slots(shrink: float) -> None:
    random = np.random.default_rng(0)
    queries, slots = random.standard_normal((2, 7, 6)), random.standard_normal((2, 40, 6))
    recalled, weights = recall(
        torch.from_numpy(queries).float(), torch.from_numpy(slots).float(), shrink
    )
    cut = 0
    for i in range(2):
        expected, expected_weights = recall_by_loop(queries[i], slots[i], shrink)
        np.testing.assert_allclose(weights[i].numpy(), expected_weights, atol=2e-6)
        np.testing.assert_allclose(recalled[i].numpy(), expected, atol=2e-5)
        cut += int((expected_weights == 0).sum())
    assert (cut > 0) == (shrink > 0), "the case does not exercise the cut"


def test_shrinkage_cuts_up_to_lambda_and_rescales_the_rest() -> None:
    weights = torch.tensor([[0.0, LAMBDA / 2, LAMBDA, 2 * LAMBDA, 1 - 3.5 * LAMBDA]])
    kept = shrink_hard(weights, LAMBDA)
    assert kept[0, :3].tolist() == [0, 0, 0]
    assert kept.sum().item() == pytest.approx(1)
    assert (kept[0, 4] / kept[0, 3]).item() == pytest.approx((1 - 3.5 * LAMBDA) / (2 * LAMBDA))


def test_equal_weights_of_2000_slots_are_lambda_itself_and_leave_nothing() -> None:
    queries = torch.zeros(1, 3, 4, requires_grad=True)
    slots = torch.randn(1, 2000, 4).requires_grad_()
    recalled, weights = recall(queries, slots, LAMBDA)
    assert weights.abs().max() == 0
    assert recalled.abs().max() == 0
    (recalled.sum() + entropy(weights).sum()).backward()
    assert queries.grad is not None
    assert slots.grad is not None
    assert torch.isfinite(queries.grad).all()
    assert torch.isfinite(slots.grad).all()


def test_equal_weights_of_256_slots_are_kept() -> None:
    _, weights = recall(torch.zeros(1, 1, 4), torch.randn(1, 256, 4), LAMBDA)
    np.testing.assert_allclose(weights.numpy(), 1 / 256, rtol=1e-6)


def test_gradients_pass_the_cut_only_where_something_was_kept() -> None:
    weights = torch.tensor([LAMBDA / 2, LAMBDA, 0.3, 0.6], requires_grad=True)
    shrink_hard(weights, LAMBDA)[2].backward()
    assert weights.grad is not None
    assert torch.isfinite(weights.grad).all()
    assert weights.grad[:2].tolist() == [0, 0]
    assert weights.grad[2:].abs().min() > 0


def test_entropy_of_one_slot_and_of_all() -> None:
    weights = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]])
    expected = [0.0, math.log(4), math.log(2)]
    np.testing.assert_allclose(entropy(weights).numpy(), expected, atol=1e-6)


def test_entropy_has_a_slope_where_a_weight_is_zero() -> None:
    weights = torch.tensor([[1.0, 0.0]], requires_grad=True)
    entropy(weights).sum().backward()
    assert weights.grad is not None
    assert torch.isfinite(weights.grad).all()


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_an_untrained_memory_gives_logits_of_the_spread_asked_for(
    width: int, spread: float
) -> None:
    torch.manual_seed(0)
    memory = Memory(2000, width, spread)
    queries = torch.randn(200, width).relu()  # as BatchNorm and ReLU leave them
    assert (queries @ memory.slots.T).std().item() == pytest.approx(spread, rel=0.1)


def test_a_memory_of_2000_slots_is_used_from_the_start() -> None:
    torch.manual_seed(0)
    slots = Memory(2000, 256, DualMemoryConfig().slot_spread).slots
    _, weights = recall(torch.randn(1, 2048, 256).relu(), slots[None], LAMBDA)
    used = (weights[0] > 0).float().mean(dim=1)  # a query
    assert used.min() > 0.002  # four slots
    assert used.mean().item() == pytest.approx(1 / 15, abs=0.02)
    assert used.max() < 0.3
    reached = (weights[0] > 0).any(dim=0).float().mean()  # of the slots, by one clip's queries
    assert reached > 0.97


def test_addressing_is_in_fp32_under_autocast() -> None:
    queries, slots = torch.randn(1, 5, 8), torch.randn(1, 30, 8)
    expected = recall(queries, slots, LAMBDA)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = recall(queries, slots, LAMBDA)[0]
    assert torch.equal(found, expected)
