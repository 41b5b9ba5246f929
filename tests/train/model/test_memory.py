"""Memories against MemAE's formulas, written out in numpy slot by slot."""

import numpy as np
import torch

from sfn_train.model.memory import Memories, Memory

D, M = 8, 6


def make() -> Memory:
    torch.manual_seed(0)
    memory = Memory(D, M).double()
    with torch.no_grad():
        memory.norm.weight.add_(0.3 * torch.randn(D))
        memory.norm.bias.add_(0.3 * torch.randn(D))
    return memory


@torch.no_grad()
def test_recall_is_the_formula() -> None:
    memory = make()
    x = torch.randn(2, 5, D, dtype=torch.float64)
    slots = memory.slots.numpy()
    norm = memory.norm(x).numpy()
    recalled = memory(x).numpy()
    for b in range(2):
        for n in range(5):
            logits = np.array([norm[b, n] @ slot / np.sqrt(D) for slot in slots])
            w = np.exp(logits) / np.exp(logits).sum()
            kept = np.array([v if v > 1 / M else 0.0 for v in w])
            expected = sum(v / kept.sum() * slot for v, slot in zip(kept, slots, strict=True))
            np.testing.assert_allclose(recalled[b, n], expected, atol=1e-6)


@torch.no_grad()
def test_some_slots_are_left_out_and_weights_sum_to_1() -> None:
    weights = make().address(torch.randn(2, 5, D, dtype=torch.float64))
    assert (weights == 0).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))


def test_equal_weights_stay_equal_rather_than_vanish() -> None:
    memory = make()
    with torch.no_grad():
        memory.slots.zero_()  # every product is the same, and every weight exactly the limit
    weights = memory.address(torch.randn(1, 2, D, dtype=torch.float64))
    torch.testing.assert_close(weights, torch.full((1, 2, M), 1 / M))


@torch.no_grad()
def test_the_sentence_and_the_picture_have_a_memory_each() -> None:
    torch.manual_seed(0)
    memories, x = Memories(D, M, picture=True, text=True), torch.randn(2, 5, D)
    assert memories.semantic is not None
    assert memories.visual is not None
    y = memories(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y[:, :1], memories.semantic(x[:, :1]))
    torch.testing.assert_close(y[:, 1:], memories.visual(x[:, 1:]))
    assert Memories(D, M, picture=False, text=True).visual is None
    assert Memories(D, M, picture=True, text=False).semantic is None
