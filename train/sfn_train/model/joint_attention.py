"""Joint attention of appearance to text and motion: the variant of the follow-up (ICME 2026).

    x = x + a_l Attn(norm(x); [K_t t, K_m m], [V_t t, V_m m])
    x = x + b_l MLP(norm(x))                                    a, b scalars that start at 0

Text and motion have a LayerNorm and key and value projections of their own; their keys and values
are put side by side, so one softmax weighs the sentence against every patch that moves. With
all gains 0 the layers are the identity, so the variant starts as the paper's model.

Axes: B clips, N tokens, H heads, D width, d = D / H.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MLP_RATIO = 2


class Context(nn.Module):
    """Keys and values of one modality."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, D) to keys and values of the same shape."""
        normed = self.norm(tokens)
        return self.key(normed), self.value(normed)


class JointAttention(nn.Module):
    """One layer; `n_contexts` modalities are attended to together."""

    def __init__(self, dim: int, heads: int, n_contexts: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.contexts = nn.ModuleList(Context(dim) for _ in range(n_contexts))
        self.mlp = nn.Sequential(
            nn.Linear(dim, MLP_RATIO * dim), nn.GELU(), nn.Linear(MLP_RATIO * dim, dim)
        )
        self.attention_gain = nn.Parameter(torch.zeros(()))
        self.mlp_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        """Tokens (B, N, D) that have looked at every (B, n, D) of `contexts`."""
        pairs = [context(c) for context, c in zip(self.contexts, contexts, strict=True)]
        k = self._split(torch.cat([key for key, _ in pairs], dim=1))  # (B, H, sum n, d)
        v = self._split(torch.cat([value for _, value in pairs], dim=1))  # (B, H, sum n, d)
        q = self._split(self.query(self.norm1(x)))  # (B, H, N, d)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attention_gain * self.out(attended)
        out: Tensor = x + self.mlp_gain * self.mlp(self.norm2(x))
        return out

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads
