"""The SFFM in the two forms that are exported, from the same parameters as the training module.

    y = F_0(x) + sum over i in top-K(s) of g_i F_i(x)           paper Eq. (5), (6)

LayerNorm is folded into each filter's first map (exact), and a filter's biases ride along as one
more row and column: the normalised token gets a constant 1 that multiplies c_i, and one more code
whose value is silu(c) = 1 multiplies b_i, so that a filter is exactly two products.

`DispatchSFFM` computes only what was chosen, with static shapes. Each filter's tokens fill whole
blocks of `block` rows; since every filter leaves at most one block unfilled, floor(M K / block) + E
blocks are enough for any routing and no token is ever dropped. Weights are gathered once a block,
results are gathered back and summed by gate: no scatter-add, so the sum has one order.

`DenseSFFM` computes all filters as two wide products and zeroes what was not chosen.

Axes: B clips, N tokens, M = B N, D width, R bottleneck, E routed filters, G filters with the shared
one (which some ablations lack), K active, Q blocks.
"""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfn_train.model.sffm import SFFM, Folded, Routing
from sfn_train.model.sfn import Decoder

Form = Literal["fastest", "dispatch", "dense"]
FASTEST: Form = "fastest"  # of the two, by the size of the filters
# Products a token that the dense form may cost. On one CPU core (benchmarks/sffm.py, ONNX Runtime)
# dense is 1.0 to 1.5 times as fast as dispatch at the edge profile's 2**14, the two are equal at
# paper_ped2's 2**17, and dispatch is 2.1 times as fast at paper_shanghaitech's 2**18 and 3.1 times
# at paper_avenue's 3 * 2**20.
DENSE_PRODUCTS = 2**17
BLOCK = 48  # rows; 24 is as good for one clip, 48 better for the eight that run together
SILU_ONE = 1.2784645427610738  # silu(SILU_ONE) = 1


class ExportedSFFM(nn.Module):
    """What both forms share: the router, and the constants made from the trained parameters."""

    def __init__(self, sffm: SFFM) -> None:
        super().__init__()
        self.router, self.route = sffm.router, sffm.route  # named as in the trained model
        self.dim, self.rank = sffm.dim, sffm.rank
        self.n_filters, self.n_active = sffm.n_filters, sffm.n_active
        self.n_shared = sffm.n_shared

    def constant(self, name: str, value: Tensor) -> None:
        """Keep a tensor, folded in double precision, as the parameters' own dtype."""
        dtype = self.router.weight.dtype
        self.register_buffer(name, value.detach().to(dtype).contiguous(), persistent=False)


class DispatchSFFM(ExportedSFFM):
    """Each chosen filter on its own tokens, by gather and batched products."""

    down: Tensor
    up: Tensor
    shared_down: Tensor
    shared_up: Tensor

    def __init__(self, sffm: SFFM, block: int = BLOCK) -> None:
        super().__init__(sffm)
        self.block = block
        filters = folded_exactly(sffm)
        down = with_bias_row(filters.down, filters.down_bias)  # (G, D + 1, R + 1)
        up = torch.cat([filters.up, filters.up_bias.unsqueeze(1)], dim=1)  # (G, R + 1, D)
        self.constant("down", down[: self.n_filters])
        self.constant("up", up[: self.n_filters])
        if self.n_shared:
            self.constant("shared_down", down[-1])
            self.constant("shared_up", up[-1])

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """Return the filtered tokens (B, N, D) and the routing, as SFFM does."""
        tokens = x.flatten(0, 1)  # (M, D)
        routing = self.route(tokens)
        source, filter_of_block, slot = self.assign(routing.chosen, routing.probability)

        x_hat = F.layer_norm(tokens, (self.dim,))  # (M, D)
        with_one = F.pad(x_hat, (0, 1), value=1.0)  # (M, D + 1)
        rows = with_one.index_select(0, source).unflatten(0, (-1, self.block))  # (Q, block, D + 1)
        code = F.silu(torch.bmm(rows, self.down.index_select(0, filter_of_block)))
        filtered = torch.bmm(code, self.up.index_select(0, filter_of_block)).flatten(0, 1)
        chosen = filtered.index_select(0, slot).unflatten(0, (-1, self.n_active))  # (M, K, D)
        y = torch.matmul(routing.gate.to(x.dtype).unsqueeze(1), chosen).squeeze(1)  # (M, D)

        if self.n_shared:
            shared = F.silu(with_one @ self.shared_down)  # (M, R + 1)
            y = torch.addmm(y, shared, self.shared_up)
        shape = x.shape[:2]
        return y.unflatten(0, shape), Routing(*(t.unflatten(0, shape) for t in routing))

    def assign(self, chosen: Tensor, probability: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lay the M K (token, filter) pairs out in blocks of one filter each.

        Returns the token of every row (Q block,), the filter of every block (Q,), and the row of
        every pair (M K,). Counting is in floats, exact below 2**24: cumulative sums of integers
        are missing from some backends. Rows without a pair repeat token 0 and are never read.
        """
        n_tokens = chosen.shape[0]
        one = torch.ones_like(chosen, dtype=torch.float32)
        mask = torch.zeros_like(probability, dtype=torch.float32).scatter(-1, chosen, one)  # (M, E)
        rank = torch.cumsum(mask, dim=0)  # 1-based, of each token among its filter's
        blocks = torch.ceil(rank[-1] / self.block)  # (E,)
        end = torch.cumsum(blocks, dim=0)  # (E,) first block that belongs to a later filter
        start = (end - blocks) * self.block  # (E,) first row
        slot = (rank + (start - 1)).gather(1, chosen).to(torch.int64).flatten()  # (M K,)
        n_blocks = (n_tokens * self.n_active) // self.block + self.n_filters  # Q
        number = torch.arange(n_blocks, dtype=torch.float32, device=chosen.device).unsqueeze(1)
        owner = (number >= end.unsqueeze(0)).sum(dim=1).clamp(max=self.n_filters - 1)  # (Q,)
        token = torch.arange(n_tokens, device=chosen.device).unsqueeze(1)
        token = token.expand(-1, self.n_active).flatten()  # (M K,)
        source = torch.zeros(n_blocks * self.block, dtype=torch.int64, device=chosen.device)
        return source.scatter(0, slot, token), owner, slot


class DenseSFFM(ExportedSFFM):
    """Every filter on every token; the gates zero the rest.

    The codes are laid out bottleneck by bottleneck, R x G, so that the gates multiply them in rows
    of G and not of R: three times faster in ONNX Runtime.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    shared_up_bias: Tensor

    def __init__(self, sffm: SFFM) -> None:
        super().__init__(sffm)
        filters = folded_exactly(sffm)
        self.constant("down", filters.down.permute(1, 2, 0).flatten(1))  # (D, R G)
        self.constant("down_bias", filters.down_bias.t().flatten())  # (R G,)
        self.constant("up", filters.up.transpose(0, 1).flatten(0, 1))  # (R G, D)
        routed, shared = filters.up_bias.split([self.n_filters, self.n_shared])
        self.constant("up_bias", routed)  # (E, D)
        self.constant("shared_up_bias", shared.sum(dim=0))  # (D,)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """Return the filtered tokens (B, N, D) and the routing, as SFFM does."""
        tokens = x.flatten(0, 1)  # (M, D)
        routing = self.route(tokens)
        gates = torch.zeros_like(routing.probability).scatter(-1, routing.chosen, routing.gate)
        gates = gates.to(x.dtype)  # (M, E)
        x_hat = F.layer_norm(tokens, (self.dim,))
        code = F.silu(torch.addmm(self.down_bias, x_hat, self.down))  # (M, R G)
        all_gates = F.pad(gates, (0, self.n_shared), value=1.0).unsqueeze(1)  # (M, 1, G)
        kept = (code.unflatten(-1, (self.rank, -1)) * all_gates).flatten(1)  # (M, R G)
        bias = torch.addmm(self.shared_up_bias, gates, self.up_bias)  # (M, D)
        y = torch.addmm(bias, kept, self.up)  # (M, D)
        shape = x.shape[:2]
        return y.unflatten(0, shape), Routing(*(t.unflatten(0, shape) for t in routing))


def folded_exactly(sffm: SFFM) -> Folded:
    """The filters with their LayerNorm folded in, computed in double precision."""
    with torch.no_grad():
        return copy.deepcopy(sffm).double().folded()


def with_bias_row(down: Tensor, bias: Tensor) -> Tensor:
    """(E, D, R) and (E, R) to (E, D + 1, R + 1): biases below, and a code that is silu^-1(1)."""
    n, dim, rank = down.shape
    whole = down.new_zeros(n, dim + 1, rank + 1)
    whole[:, :dim, :rank], whole[:, dim, :rank] = down, bias
    whole[:, dim, rank] = SILU_ONE
    return whole


def fastest_form(sffm: SFFM) -> Form:
    """The form that takes less time; both compute the same."""
    products = (sffm.n_filters + sffm.n_shared) * sffm.rank * sffm.dim
    return "dense" if products <= DENSE_PRODUCTS else "dispatch"


def written_form(decoder: Decoder, form: Form) -> Form | None:
    """The form that a decoder is written in when `form` is asked for; None without filters."""
    filters = [module for module in decoder.mjad.filters if isinstance(module, SFFM)]
    if not filters:
        return None
    return fastest_form(filters[0]) if form == FASTEST else form


def exported_sffm(sffm: SFFM, form: Form, block: int = BLOCK) -> ExportedSFFM:
    """`sffm` in the form asked for."""
    if form == "fastest":
        form = fastest_form(sffm)
    return DispatchSFFM(sffm, block) if form == "dispatch" else DenseSFFM(sffm)


def exported_decoder(decoder: Decoder, form: Form, block: int = BLOCK) -> Decoder:
    """A copy of the decoder with every SFFM in the form asked for."""
    exported = copy.deepcopy(decoder)
    for i, module in enumerate(exported.mjad.filters):
        if isinstance(module, SFFM):
            exported.mjad.filters[i] = exported_sffm(module, form, block)
    return exported.eval()
