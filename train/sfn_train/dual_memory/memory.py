"""Memory: what a query is replaced by is made of what the memory holds, and of nothing else.

    w = softmax(q M^T)                                      over the slots
    w <- relu(w - l) w / (|w - l| + 1e-12),  w <- w / |w|_1  hard shrinkage, l = 0.0005
    z = w M

The shrinkage keeps a weight above l as it is and cuts one up to l to 0. Two things follow. With
2000 slots equal weights are exactly 1/2000 = l: all are cut, nothing is left to rescale, and z is 0
without a gradient. And the cut is a step, so weights within rounding of l may differ by l between
two correct programs (export/sfn_export/parity.py).

So what trains depends on how a memory begins. Slots that are small against the queries address
alike: each z is the mean of the memory, and the cut takes or leaves all slots at once. Slots that
are large pick one each, and the others never learn. Entries of deviation
`slot_spread` / (sqrt(C) rms(q)), where a query after BatchNorm and ReLU has a root mean square
of about sqrt(1/2), give logits of deviation `slot_spread`. With 3 a query addresses a
fifteenth of the slots, and nearly each slot is addressed by some query.

Axes: B clips, Q queries of a clip, S slots, C width.
"""

import math

import torch
from torch import Tensor, nn

from sfn_train.shrinkage import TINY, shrink_hard

QUERY_RMS = math.sqrt(0.5)  # of a standard normal number after ReLU


class Memory(nn.Module):
    """S slots of width C."""

    def __init__(self, slots: int, width: int, spread: float) -> None:
        super().__init__()
        scale = spread / (math.sqrt(width) * QUERY_RMS)
        self.slots = nn.Parameter(scale * torch.randn(slots, width))  # (S, C)


def recall(queries: Tensor, slots: Tensor, shrink: float) -> tuple[Tensor, Tensor]:
    """Queries (B, Q, C) to what the slots (B, S, C) make of them, and the weights (B, Q, S).

    In fp32 throughout: in bf16 weights around l = 0.0005 lie 0.000004 apart, logits of 10 by 0.06.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, slots = queries.float(), slots.float()
        weights = torch.einsum("bqc,bsc->bqs", queries, slots).softmax(dim=-1)
        weights = shrink_hard(weights, shrink)
        return torch.einsum("bqs,bsc->bqc", weights, slots), weights


def entropy(weights: Tensor) -> Tensor:
    """Of each query's weights (..., S), in nats: from 0, one slot has all, to log S."""
    # Not torch.special.entr, whose slope at 0 is infinite: times the cut's 0 it would be NaN.
    return -(weights * (weights + TINY).log()).sum(dim=-1)
