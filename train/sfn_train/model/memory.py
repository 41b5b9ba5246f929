"""Memory of normal patterns: what the paper's ablation puts in the place of the SFFM.

Every token is replaced by what the slots can say of it, as in MemAE (Gong et al., 2019):

    w = softmax(norm(x) m_j / sqrt(D))      addressing, one weight a slot
    w <- relu(w - l) w / (|w - l| + eps)    hard shrinkage, l = 1 / M: below the uniform weight
    y = sum_j w_j m_j / sum_j w_j

One memory holds visual patterns (class and patch tokens), one the meaning (text token).

Axes: B clips, N tokens, D width, M slots.
"""

import torch
from torch import Tensor, nn

EPSILON = 1e-12


class Memory(nn.Module):
    """Recall (B, N, D) tokens from slots; the shape is unchanged, and nothing goes around."""

    def __init__(self, dim: int, n_slots: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.slots = nn.Parameter(torch.randn(n_slots, dim))

    def address(self, x: Tensor) -> Tensor:
        """Weights (B, N, M) of the slots, not negative, summing to 1."""
        weights = (self.norm(x) @ self.slots.t() * x.shape[-1] ** -0.5).float().softmax(dim=-1)
        return shrink(weights, 1 / len(self.slots))

    def forward(self, x: Tensor) -> Tensor:
        """The weighted sum of slots."""
        return self.address(x).to(x.dtype) @ self.slots.to(x.dtype)


class Memories(nn.Module):
    """A visual memory and, where there is a text token, a semantic one."""

    def __init__(self, dim: int, n_slots: int, *, picture: bool, text: bool) -> None:
        super().__init__()
        self.semantic = Memory(dim, n_slots) if text else None
        self.visual = Memory(dim, n_slots) if picture else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) tokens, the text token first, to the same shape."""
        parts = []
        if self.semantic is not None:
            parts.append(self.semantic(x[:, :1]))
            x = x[:, 1:]
        if self.visual is not None:
            parts.append(self.visual(x))
        return torch.cat(parts, dim=1)


def shrink(weights: Tensor, limit: float) -> Tensor:
    """Drop weights up to `limit` and scale the rest to sum 1; uniform weights stay as they are.

    As a choice and not as the quotient above: exporters take `+ eps` for `+ 0` and drop it, and a
    weight of exactly `limit` is then 0 / 0.
    """
    kept = torch.where(weights > limit, weights, 0.0)
    total = kept.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp(min=EPSILON), weights)
