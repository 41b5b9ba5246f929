"""Hard shrinkage of a memory's addressing weights, of both systems' memories (MemAE, 2019)."""

import torch
from torch import Tensor

TINY = 1e-12


def shrink_hard(weights: Tensor, limit: float) -> Tensor:
    """Cut weights (..., M) up to `limit`, and rescale the rest to sum 1; all 0 where none is.

        w <- relu(w - l) w / (|w - l| + eps),   w <- w / |w|_1

    As a choice and not as this quotient: exporters take `+ eps` for `+ 0` and drop it, and a
    weight of exactly `limit` is then 0 / 0.
    """
    kept = torch.where(weights > limit, weights, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True).clamp_min(TINY)
