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

from sfn_train.shrinkage import shrink_hard


class Memory(nn.Module):
    """Recall (B, N, D) tokens from slots; the shape is unchanged, and nothing goes around."""

    def __init__(self, dim: int, n_slots: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.slots = nn.Parameter(torch.randn(n_slots, dim))

    def address(self, x: Tensor) -> Tensor:
        """Weights (B, N, M) of the slots, not negative, summing to 1; uniform ones stay."""
        weights = (self.norm(x) @ self.slots.t() * x.shape[-1] ** -0.5).float().softmax(dim=-1)
        kept = shrink_hard(weights, 1 / len(self.slots))
        return torch.where(kept.sum(dim=-1, keepdim=True) > 0, kept, weights)

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
