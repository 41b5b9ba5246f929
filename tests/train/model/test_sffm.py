"""The SFFM against its equations as printed, worked out in numpy or filter by filter."""

import numpy as np
import pytest
import torch

from sfn_train.model.sffm import DENSE_RATIO, SFFM, Filter, Routing, balance_loss

D, R, E, K = 12, 3, 9, 4
B, N = 2, 7
WIDE = DENSE_RATIO * D // E + 1  # a bottleneck at which all filters together are too wide
GATES = ("raw", "renormalised", "renormalised_x2")


def make(gate: str = "renormalised_x2", rank: int = R, n_shared: int = 1) -> SFFM:
    torch.manual_seed(0)
    sffm = SFFM(D, rank, E, K, gate, n_shared).double()  # type: ignore[arg-type]
    with torch.no_grad():  # norms and biases start at one and zero, where mistakes do not show
        for parameter in sffm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return sffm


def tokens(scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return scale * torch.randn(B, N, D, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0], ids=["faint", "unit", "outliers"])
def test_the_fast_form_is_the_loop_over_filters(gate: str, scale: float) -> None:
    sffm, x = make(gate), tokens(scale)
    with torch.inference_mode():
        y, _ = sffm(x)
        torch.testing.assert_close(y, sffm.filter_one_by_one(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_shared", [0, 1], ids=["none shared", "one shared"])
@pytest.mark.parametrize("rank", [R, WIDE], ids=["dense", "dispatched"])
def test_both_ways_to_train_are_the_loop_and_have_its_gradients(rank: int, n_shared: int) -> None:
    sffm, x = make(rank=rank, n_shared=n_shared), tokens().requires_grad_()
    assert sffm.dispatches == (rank == WIDE)
    wanted = torch.randn_like(x)

    def gradients(y: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((y * wanted).sum(), [x, *sffm.parameters()]))

    y, reference = sffm(x)[0], sffm.filter_one_by_one(x)
    torch.testing.assert_close(y, reference, rtol=0, atol=1e-6)
    for ours, theirs in zip(gradients(y), gradients(reference), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_dispatch_takes_routings_that_leave_filters_without_a_token() -> None:
    sffm, x = make(rank=WIDE), tokens()[:1, :1]  # one token: K filters of E
    torch.testing.assert_close(sffm(x)[0], sffm.filter_one_by_one(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("i", range(E + 1))
def test_the_norm_folds_into_the_first_map_exactly(i: int) -> None:
    sffm, x = make(), tokens(3.0)
    with torch.inference_mode():
        folded = sffm.folded()
        x_hat = torch.nn.functional.layer_norm(x, (D,))
        ours = x_hat @ folded.down[i] + folded.down_bias[i]
        norm = torch.nn.functional.layer_norm(x, (D,), sffm.gamma[i], sffm.beta[i])
        assert (ours - (norm @ sffm.down[i] + sffm.down_bias[i])).abs().max() < 1e-12


def test_a_lone_filter_has_no_path_around_it_and_is_equation_5() -> None:
    torch.manual_seed(0)
    alone = Filter(D, R).double()
    sffm = make()
    with torch.no_grad():
        norm, down, _, up = alone
        norm.weight.copy_(sffm.gamma[E])
        norm.bias.copy_(sffm.beta[E])
        down.weight.copy_(sffm.down[E].t())
        down.bias.copy_(sffm.down_bias[E])
        up.weight.copy_(sffm.up[E].t())
        up.bias.copy_(sffm.up_bias[E])
        torch.testing.assert_close(alone(tokens()), sffm._filter(E, tokens()), rtol=0, atol=1e-12)


def test_one_token_by_hand() -> None:
    sffm = make()
    x = tokens()
    with torch.inference_mode():
        y, _ = sffm(x)
    p = {name: value.detach().numpy() for name, value in sffm.named_parameters()}
    token = x[1, 3].numpy()
    norm = (token - token.mean()) / np.sqrt(token.var() + 1e-5)

    def filtered(i: int) -> np.ndarray:
        code = (p["gamma"][i] * norm + p["beta"][i]) @ p["down"][i] + p["down_bias"][i]
        return code / (1 + np.exp(-code)) @ p["up"][i] + p["up_bias"][i]

    logits = p["router.weight"] @ token  # before any norm
    share = np.exp(logits) / np.exp(logits).sum()
    chosen = np.argsort(-share)[:K]
    gates = 2 * share[chosen] / share[chosen].sum()
    expected = filtered(E) + sum(g * filtered(i) for g, i in zip(gates, chosen, strict=True))
    np.testing.assert_allclose(y[1, 3].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("gate", "total"), [("renormalised", 1.0), ("renormalised_x2", 2.0)])
def test_renormalised_gates_sum_to(gate: str, total: float) -> None:
    routing = make(gate).route(tokens())
    torch.testing.assert_close(routing.gate.sum(-1), torch.full((B, N), total))


def test_raw_gates_are_the_routers_probabilities() -> None:
    routing = make("raw").route(tokens())
    picked = routing.probability.gather(-1, routing.chosen)
    torch.testing.assert_close(routing.gate, picked, rtol=0, atol=0)
    assert (routing.gate.sum(-1) < 1).all()


def test_the_chosen_are_k_different_filters_and_the_most_probable() -> None:
    routing = make().route(tokens())
    assert routing.chosen.shape == (B, N, K)
    for row in routing.chosen.flatten(0, 1).tolist():
        assert len(set(row)) == K
    rest = routing.probability.scatter(-1, routing.chosen, -1.0).amax(-1)
    least = routing.probability.gather(-1, routing.chosen).amin(-1)
    assert (least >= rest).all()


def test_there_is_no_path_around_the_filters() -> None:
    sffm = make()
    with torch.no_grad():
        sffm.up.zero_()
        sffm.up_bias.zero_()
        y, _ = sffm(tokens())
    assert not y.any()


def balance_by_hand(probability: np.ndarray, chosen: np.ndarray) -> float:
    """Equation (7), summed as printed for each sequence."""
    losses = []
    for p, c in zip(probability, chosen, strict=True):  # (N, E), (N, K)
        n_tokens, n_filters = p.shape
        total = 0.0
        for i in range(n_filters):
            f = n_filters / (c.shape[1] * n_tokens) * sum(i in row for row in c.tolist())
            total += f * p[:, i].mean()
        losses.append(total)
    return float(np.mean(losses))


@torch.no_grad()
def test_balance_loss_is_equation_7() -> None:
    routing = make().route(tokens(scale=2.0))
    expected = balance_by_hand(routing.probability.double().numpy(), routing.chosen.numpy())
    assert float(balance_loss(routing)) == pytest.approx(expected, rel=1e-6)
    assert expected > 1.01  # this router has favourites, so the formula is put to use


def test_balance_loss_is_1_where_all_filters_share_the_work() -> None:
    probability = torch.full((1, E, E), 1 / E)
    chosen = torch.stack([(torch.arange(K) + n) % E for n in range(E)]).unsqueeze(0)
    gate = torch.full((1, E, K), 1 / K)
    assert float(balance_loss(Routing(probability, gate, chosen))) == pytest.approx(1.0)


def test_balance_loss_is_averaged_over_sequences_and_trains_the_router() -> None:
    sffm, x = make(), tokens()
    whole = balance_loss(sffm.route(x))
    parts = [balance_loss(sffm.route(x[i : i + 1])).item() for i in range(B)]
    assert whole.item() == pytest.approx(np.mean(parts), rel=1e-6)
    whole.backward()
    assert sffm.router.weight.grad is not None
    assert sffm.router.weight.grad.abs().sum() > 0
