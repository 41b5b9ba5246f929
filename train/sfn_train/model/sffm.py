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
than dispatch. At Avenue's R = 3D/4 it would be one of ratio 48, so from `DENSE_RATIO` on each
filter sees the tokens that chose it and no others. The exported graph has forms of its own
(sfn_export/dispatch.py).

Axes: B clips, N tokens, M = B N, D width, R bottleneck, K active of E routed filters, G = E + 1
filters with the shared one, which is the last; G = E where none is shared (a MoFE of the paper's
ablation).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfn_train.model.config import GateRule

DENSE_RATIO = 8  # of all filters' widths to D; up to here computing all beats sorting tokens


class Routing(NamedTuple):
    """What the router decided for each token."""

    probability: Tensor  # (B, N, E) softmax over all routed filters
    gate: Tensor  # (B, N, K) weight of each chosen filter
    chosen: Tensor  # (B, N, K) index of each chosen filter


class Folded(NamedTuple):
    """All filters, LayerNorm folded in; the shared one is the last."""

    down: Tensor  # (G, D, R)
    down_bias: Tensor  # (G, R)
    up: Tensor  # (G, R, D)
    up_bias: Tensor  # (G, D)


class SFFM(nn.Module):
    """Filter (B, N, D) tokens through one shared and K of E bottlenecks; the shape is unchanged."""

    def __init__(
        self,
        dim: int,
        rank: int,
        n_filters: int,
        n_active: int,
        gate: GateRule,
        n_shared: int = 1,
    ) -> None:
        super().__init__()
        self.dim, self.rank, self.n_filters, self.n_active = dim, rank, n_filters, n_active
        self.n_shared, self.gate_rule = n_shared, gate
        total = n_filters + n_shared
        self.router = nn.Linear(dim, n_filters, bias=False)
        self.gamma = nn.Parameter(torch.ones(total, dim))
        self.beta = nn.Parameter(torch.zeros(total, dim))
        self.down = nn.Parameter(torch.empty(total, dim, rank).uniform_(-1, 1) * dim**-0.5)
        self.down_bias = nn.Parameter(torch.zeros(total, rank))
        self.up = nn.Parameter(torch.empty(total, rank, dim).uniform_(-1, 1) * rank**-0.5)
        self.up_bias = nn.Parameter(torch.zeros(total, dim))

    @property
    def dispatches(self) -> bool:
        """Whether training sends tokens to filters, rather than all to all."""
        return (self.n_filters + self.n_shared) * self.rank > DENSE_RATIO * self.dim

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
        down = self.gamma.unsqueeze(-1) * self.down  # (G, D, R)
        down_bias = torch.einsum("gd,gdr->gr", self.beta, self.down) + self.down_bias
        return Folded(down, down_bias, self.up, self.up_bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """Return the filtered tokens (B, N, D) and the routing that made them."""
        routing = self.route(x)
        x_hat = F.layer_norm(x, (self.dim,))  # (B, N, D)
        compute = self._dispatched if self.dispatches else self._dense
        return compute(x_hat, routing, self.folded()), routing

    def _dense(self, x_hat: Tensor, routing: Routing, filters: Folded) -> Tensor:
        """All filters on all tokens; the gates zero what was not chosen."""
        wide_down = filters.down.permute(1, 0, 2).flatten(1)  # (D, G R)
        code = F.silu(x_hat @ wide_down + filters.down_bias.flatten())  # (B, N, G R)
        gates = code.new_zeros((*x_hat.shape[:-1], len(filters.up)))  # (B, N, G)
        gates[..., self.n_filters :] = 1.0
        gates = gates.scatter(-1, routing.chosen, routing.gate.to(code.dtype))
        kept = code.unflatten(-1, (-1, self.rank)) * gates.unsqueeze(-1)  # (B, N, G, R)
        y: Tensor = kept.flatten(-2) @ filters.up.flatten(0, 1) + gates @ filters.up_bias
        return y

    def _dispatched(self, x_hat: Tensor, routing: Routing, filters: Folded) -> Tensor:
        """Each filter on the tokens that chose it.

        Tokens go to filters and back by two permutations of the M K pairs, never by adding to the
        same row twice, so that gradients come out bit for bit the same each time.
        """
        tokens = x_hat.flatten(0, 1)  # (M, D)
        owner = routing.chosen.flatten()  # (M K,)
        order = owner.argsort(stable=True)
        counts = owner.bincount(minlength=self.n_filters).tolist()
        pairs = tokens.unsqueeze(1).expand(-1, self.n_active, -1).flatten(0, 1)  # (M K, D)
        parts = pairs[order].split(counts)
        filtered = torch.cat([_filter(filters, i, part) for i, part in enumerate(parts)])
        by_token = filtered[order.argsort()].unflatten(0, (-1, self.n_active))  # (M, K, D)
        gate = routing.gate.flatten(0, 1).to(by_token.dtype).unsqueeze(1)  # (M, 1, K)
        y: Tensor = (gate @ by_token).squeeze(1)  # (M, D)
        if self.n_shared:
            y = y + _filter(filters, self.n_filters, tokens)
        return y.reshape(x_hat.shape)

    def filter_one_by_one(self, x: Tensor) -> Tensor:
        """Equations (5) and (6) as printed: a loop over filters, each on its own tokens.

        The reference the fast forms are tested and timed against.
        """
        routing = self.route(x)
        y = self._filter(self.n_filters, x) if self.n_shared else torch.zeros_like(x)
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


class Filter(nn.Sequential):
    """One filter of Eq. (5) for all tokens, R of any width: what the ablation sets beside an SFFM.

    Without a residual, as in the SFFM: narrow it is a bottleneck, at R = 4 D a standard MLP.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, rank), nn.SiLU(), nn.Linear(rank, dim))


def _filter(filters: Folded, i: int, x_hat: Tensor) -> Tensor:
    """Filter i on normalised tokens (n, D)."""
    code = F.silu(x_hat @ filters.down[i] + filters.down_bias[i])  # (n, R)
    return code @ filters.up[i] + filters.up_bias[i]


def balance_loss(routing: Routing) -> Tensor:
    """Equation (7) without alpha: sum_i f_i P_i, averaged over the sequences; 1 is balanced."""
    n_filters, n_active = routing.probability.shape[-1], routing.chosen.shape[-1]
    n_tokens = routing.chosen.shape[1]
    counts = torch.zeros_like(routing.probability[:, 0])  # (B, E)
    ones = torch.ones_like(routing.chosen, dtype=counts.dtype).flatten(1)
    counts = counts.scatter_add(1, routing.chosen.flatten(1), ones)
    share = counts * (n_filters / (n_active * n_tokens))
    return (share * routing.probability.mean(dim=1)).sum(dim=-1).mean()
