"""The SFFM against its equations as printed, worked out in numpy or filter by filter."""

import numpy as np
import pytest
import torch

from sfn_train.model.sffm import SFFM, Routing, balance_loss

D, R, E, K = 12, 3, 9, 4
B, N = 2, 7
GATES = ("raw", "renormalised", "renormalised_x2")


def make(gate: str = "renormalised_x2") -> SFFM:
    torch.manual_seed(0)
    sffm = SFFM(D, R, E, K, gate).double()  # type: ignore[arg-type]
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
