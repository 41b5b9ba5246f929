"""The losses by hand, sample by sample, and where their gradients go."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfn_train.config import Config
from sfn_train.dual_memory import DualMemory, DualMemoryConfig, dual_losses
from sfn_train.exceptions import ConfigError

PSEUDO = torch.tensor([False, True, False])


def with_model(config: Config, **changes: object) -> Config:
    assert isinstance(config.model, DualMemoryConfig)
    return replace(config, model=replace(config.model, **changes))  # type: ignore[arg-type]


def losses_of(
    network: DualMemory, clips: torch.Tensor, config: Config, pseudo: torch.Tensor = PSEUDO
) -> Mapping[str, torch.Tensor]:
    return dual_losses(network, {"frames": clips, "pseudo": pseudo}, config)


def test_each_loss_by_hand(settled: DualMemory, clips: torch.Tensor, config: Config) -> None:
    with torch.no_grad():
        losses = losses_of(settled, clips, config)
        errors, entropies = [], []
        for i, pseudo in enumerate(PSEUDO.tolist()):
            found = settled(clips[i : i + 1], torch.tensor([pseudo]))
            errors.append(np.square((found.picture - found.target).numpy()).mean())
            w = found.weights[0].numpy().astype(np.float64)  # (Q, S)
            entropies.append(-(w * np.log(np.where(w > 0, w, 1))).sum(axis=1).mean())
    assert losses["reconstruction"].item() == pytest.approx(np.mean(errors), rel=1e-4)
    assert losses["entropy"].item() == pytest.approx(np.mean(entropies), rel=1e-4)
    a, b = settled.normal.slots.detach().numpy(), settled.anomalous.slots.detach().numpy()
    distances = [np.linalg.norm(m - n) for m in a for n in b]
    assert losses["distance"].item() == pytest.approx(np.mean(distances), rel=1e-4)
    total = np.mean(errors) + 2e-4 * np.mean(entropies) - 2e-5 * np.mean(distances)
    assert losses["total"].item() == pytest.approx(total, rel=1e-5)
    assert "pseudo" not in losses


def test_gradients_reach_both_memories_and_every_weight(
    network: DualMemory, clips: torch.Tensor, config: Config
) -> None:
    losses_of(network, clips, config)["total"].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_batch_without_pseudo_anomalies_still_moves_the_anomaly_memory_apart(
    network: DualMemory, clips: torch.Tensor, config: Config
) -> None:
    none = torch.zeros(3, dtype=torch.bool)
    losses_of(network, clips, config, none)["total"].backward()
    anomalous = network.anomalous.slots.grad
    assert anomalous is not None
    # From the distance alone, whose gradient a slot is at most the loss's weight / S.
    assert 0 < anomalous.norm(dim=1).max() <= 1.001 * 2e-5 / 10
    with torch.no_grad():
        before = losses_of(network, clips, config, none)["distance"]
        network.anomalous.slots -= 1000 * anomalous
        assert losses_of(network, clips, config, none)["distance"] > before


def test_one_clips_flag_does_not_decide_for_the_batch(
    settled: DualMemory, clips: torch.Tensor, config: Config
) -> None:
    with torch.no_grad():
        flags = [[False] * 3, [True, False, False], [True] * 3]
        found = [
            losses_of(settled, clips, config, torch.tensor(f))["reconstruction"] for f in flags
        ]
    assert len({round(float(f), 6) for f in found}) == 3


def test_maximising_raises_the_normal_memorys_error_on_pseudo_anomalies(
    settled: DualMemory, clips: torch.Tensor, config: Config
) -> None:
    on = with_model(config, maximise_pseudo=True, entropy=0.0, distance=0.0)
    losses = losses_of(settled, clips, on)
    with torch.no_grad():
        found = settled(clips[1:2])
        expected = (found.picture - found.target).square().mean().clamp(max=1) / 3
    assert losses["pseudo"].item() == pytest.approx(expected.item(), rel=1e-4)
    total = losses["reconstruction"] - losses["pseudo"]
    assert losses["total"].item() == pytest.approx(total.item(), rel=1e-5)


def test_the_raised_error_is_bounded_by_a_blank_pictures(
    settled: DualMemory, clips: torch.Tensor, config: Config
) -> None:
    on = with_model(config, maximise_pseudo=True)
    with torch.no_grad():
        settled.picture.weight *= 1000
    losses = losses_of(settled, clips, on)
    assert losses["reconstruction"] > 1
    assert losses["pseudo"].item() == pytest.approx(1 / 3)  # one of three clips
    settled.zero_grad()
    losses["pseudo"].backward()
    assert settled.picture.weight.grad is not None
    assert settled.picture.weight.grad.abs().max() == 0, "more than blank earns nothing"


def test_without_a_pseudo_anomaly_there_is_nothing_to_raise(
    network: DualMemory, clips: torch.Tensor, config: Config
) -> None:
    on = with_model(config, maximise_pseudo=True)
    losses = losses_of(network, clips, on, torch.zeros(3, dtype=torch.bool))
    assert losses["pseudo"] == 0
    losses["total"].backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_half_precision_on_the_cpu_is_refused(
    network: DualMemory, clips: torch.Tensor, config: Config
) -> None:
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ConfigError, match=r"set train\.precision=32-true"),
    ):
        losses_of(network, clips, config)


def test_a_few_steps_learn(network: DualMemory, clips: torch.Tensor, config: Config) -> None:
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    still = clips[:1, :1].expand(-1, 16, -1, -1, -1)
    found = []
    for _ in range(12):
        losses = losses_of(network, still, config, PSEUDO[:1])
        optimiser.zero_grad()
        losses["total"].backward()
        optimiser.step()
        found.append(losses["reconstruction"].item())
    assert found[-1] < 0.85 * found[0]
