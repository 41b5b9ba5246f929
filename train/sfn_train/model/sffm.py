"""Sparse Feature Filtering Module (SFFM).

Every token passes one shared and K of E routed bottleneck filters, with no path around them:
what does not fit through a bottleneck is gone, so abnormal content predicts badly.

    F_i(x) = U_i silu(V_i norm_i(x) + c_i) + b_i               paper Eq. (5)
    y = F_0(x) + sum over i in top-K(s) of g_i F_i(x)           paper Eq. (6)
    s = softmax(W x),  g = s over the chosen K by the gate rule
    balance = sum_i f_i P_i                                     paper Eq. (7)

The normalised token is the same for every filter but for norm_i's affine part, which folds into
V_i exactly: V_i diag(gamma_i) and V_i beta_i + c_i. Training therefore computes all filters as two
wide products and lets the gates zero the rest: at R = D/16 that is one MLP of ratio 4, cheaper
than dispatch. The exported graph may dispatch instead (sfn_export/dispatch.py).

Axes: B clips, N tokens, D width, R bottleneck, K active of E routed filters; index E is the
shared one.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfn_train.model.config import GateRule


class Routing(NamedTuple):
    """What the router decided for each token."""

    probability: Tensor  # (B, N, E) softmax over all routed filters
    gate: Tensor  # (B, N, K) weight of each chosen filter
    chosen: Tensor  # (B, N, K) index of each chosen filter


class Folded(NamedTuple):
    """All filters, LayerNorm folded in; index E is the shared filter."""

    down: Tensor  # (E + 1, D, R)
    down_bias: Tensor  # (E + 1, R)
    up: Tensor  # (E + 1, R, D)
    up_bias: Tensor  # (E + 1, D)


class SFFM(nn.Module):
    """Filter (B, N, D) tokens through one shared and K of E bottlenecks; the shape is unchanged."""

    def __init__(self, dim: int, rank: int, n_filters: int, n_active: int, gate: GateRule) -> None:
        super().__init__()
        self.dim, self.rank, self.n_filters, self.n_active = dim, rank, n_filters, n_active
        self.gate_rule = gate
        total = n_filters + 1
        self.router = nn.Linear(dim, n_filters, bias=False)
        self.gamma = nn.Parameter(torch.ones(total, dim))
        self.beta = nn.Parameter(torch.zeros(total, dim))
        self.down = nn.Parameter(torch.empty(total, dim, rank).uniform_(-1, 1) * dim**-0.5)
        self.down_bias = nn.Parameter(torch.zeros(total, rank))
        self.up = nn.Parameter(torch.empty(total, rank, dim).uniform_(-1, 1) * rank**-0.5)
        self.up_bias = nn.Parameter(torch.zeros(total, dim))

    def route(self, x: Tensor) -> Routing:
        """Choose K filters a token; the router sees x as it comes, before any norm."""
        probability = self.router(x).float().softmax(dim=-1)  # (B, N, E)
        gate, chosen = probability.topk(self.n_active, dim=-1)  # (B, N, K), (B, N, K)
        if self.gate_rule != "raw":
            gate = gate / gate.sum(dim=-1, keepdim=True)
        if self.gate_rule == "renormalised_x2":
            gate = gate * 2.0
        return Routing(probability, gate, chosen)

    def folded(self) -> Folded:
        """Every filter's LayerNorm folded into its first linear map; exact."""
        down = self.gamma.unsqueeze(-1) * self.down  # (E + 1, D, R)
        down_bias = torch.einsum("ed,edr->er", self.beta, self.down) + self.down_bias
        return Folded(down, down_bias, self.up, self.up_bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """Return the filtered tokens (B, N, D) and the routing that made them."""
        routing = self.route(x)
        filters = self.folded()
        x_hat = F.layer_norm(x, (self.dim,))  # (B, N, D)
        wide_down = filters.down.permute(1, 0, 2).flatten(1)  # (D, (E + 1) R)
        code = F.silu(x_hat @ wide_down + filters.down_bias.flatten())  # (B, N, (E + 1) R)
        gates = code.new_zeros((*x.shape[:-1], self.n_filters + 1))  # (B, N, E + 1)
        gates[..., self.n_filters] = 1.0
        gates = gates.scatter(-1, routing.chosen, routing.gate.to(code.dtype))
        kept = code.unflatten(-1, (-1, self.rank)) * gates.unsqueeze(-1)  # (B, N, E + 1, R)
        return kept.flatten(-2) @ filters.up.flatten(0, 1) + gates @ filters.up_bias, routing

    def filter_one_by_one(self, x: Tensor) -> Tensor:
        """Equations (5) and (6) as printed: a loop over filters, each on its own tokens.

        The reference the fast forms are tested and timed against.
        """
        routing = self.route(x)
        y = self._filter(self.n_filters, x)
        for i in range(self.n_filters):
            batch, token, slot = torch.nonzero(routing.chosen == i, as_tuple=True)
            if len(batch):
                weight = routing.gate[batch, token, slot].unsqueeze(-1).to(x.dtype)
                update = weight * self._filter(i, x[batch, token])
                y = y.index_put((batch, token), update, accumulate=True)
        return y

    def _filter(self, i: int, x: Tensor) -> Tensor:
        normed = F.layer_norm(x, (self.dim,), self.gamma[i], self.beta[i])
        code = F.silu(normed @ self.down[i] + self.down_bias[i])
        return code @ self.up[i] + self.up_bias[i]


def balance_loss(routing: Routing) -> Tensor:
    """Equation (7) without alpha: sum_i f_i P_i, averaged over the sequences; 1 is balanced."""
    n_filters, n_active = routing.probability.shape[-1], routing.chosen.shape[-1]
    n_tokens = routing.chosen.shape[1]
    counts = torch.zeros_like(routing.probability[:, 0])  # (B, E)
    ones = torch.ones_like(routing.chosen, dtype=counts.dtype).flatten(1)
    counts = counts.scatter_add(1, routing.chosen.flatten(1), ones)
    share = counts * (n_filters / (n_active * n_tokens))
    return (share * routing.probability.mean(dim=1)).sum(dim=-1).mean()
