"""The network: shapes, standardising, routing clip by clip, size, and the one scored frame."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from sfn_train.config import read_config
from sfn_train.dual_memory import DualMemory, DualMemoryConfig
from sfn_train.dual_memory.config import SCORED

PSEUDO = torch.tensor([False, True, False])


def count_by_hand(c: DualMemoryConfig) -> int:
    """Every number that is trained, from the description alone."""
    batch_norm = 2
    total = 27 * c.channels * c.widths[0] + 27 * c.widths[0] ** 2 + 2 * batch_norm * c.widths[0]
    for fine, coarse in pairwise(c.widths):
        total += 27 * fine * coarse + 2 * 27 * coarse**2 + 3 * batch_norm * coarse  # down
    total += 2 * c.slots * c.widths[-1]
    for (fine, coarse), skip in zip(pairwise(c.widths), c.skips, strict=True):
        joined = 2 * fine if skip == "concatenate" else fine
        total += 27 * coarse * fine + 27 * joined * fine + 27 * fine**2 + 3 * batch_norm * fine
    return total + 27 * c.widths[0] * c.channels + c.channels


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "parameters"), [("dual_memory_ped2", 9_186_049), ("dual_memory_small", 544_001)]
)
def test_parameters_to_the_unit(name: str, parameters: int) -> None:
    model = read_config(name).model
    assert isinstance(model, DualMemoryConfig)
    found = count(DualMemory(model))
    print(f"{name}: {found:,} trainable parameters")
    assert found == count_by_hand(model) == parameters


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels": 3},
        {"skips": ("concatenate", "concatenate", "concatenate")},
        {"skips": ("none", "concatenate", "none"), "slots": 7},
        {"widths": (8, 16), "skips": ("none",)},
    ],
)
def test_parameters_of_every_switch(changes: dict[str, Any]) -> None:
    small = read_config("dual_memory_small").model
    assert isinstance(small, DualMemoryConfig)
    changed = replace(small, **changes)
    assert count(DualMemory(changed)) == count_by_hand(changed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "skips", [("none", "none"), ("concatenate", "none"), ("none", "concatenate")]
)
def test_shapes(model: DualMemoryConfig, clips: torch.Tensor, channels: int, skips: Any) -> None:
    network = DualMemory(replace(model, channels=channels, skips=skips))
    found = network(clips, PSEUDO)
    assert found.target.shape == found.picture.shape == (3, channels, 16, 16, 24)
    assert found.weights.shape == (3, 4 * 4 * 6, 10)
    assert found.as_normal is None
    assert network.eval().error(clips).shape == (3, 16, 24)


def test_levels_halve_frames_rows_and_columns(network: DualMemory, clips: torch.Tensor) -> None:
    levels = network.encode(network.standardise(clips))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (4, 16, 16, 24),
        (6, 8, 8, 12),
        (8, 4, 4, 6),
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_each_frame_is_standardised_by_itself(
    model: DualMemoryConfig, clips: torch.Tensor, channels: int
) -> None:
    network = DualMemory(replace(model, channels=channels))
    clips = clips * torch.linspace(0.2, 1, 16)[:, None, None, None] + 0.1
    standard = network.standardise(clips)  # (B, C, T, H, W)
    picture = clips.numpy().transpose(0, 2, 1, 3, 4)
    if channels == 1:
        luma = np.array([0.299, 0.587, 0.114], np.float32).reshape(1, 3, 1, 1, 1)
        picture = (picture * luma).sum(axis=1, keepdims=True)
    for b in range(3):
        for t in range(16):
            frame = picture[b, :, t].astype(np.float64)
            expected = (frame - frame.mean()) / frame.std()
            np.testing.assert_allclose(standard[b, :, t].numpy(), expected, atol=2e-4)


def test_a_constant_frame_is_zeros(network: DualMemory, clips: torch.Tensor) -> None:
    clips[:, 3] = 0.5
    clips[:, 4] = 0.0
    standard = network.standardise(clips)
    assert torch.isfinite(standard).all()
    assert standard[:, :, 3:5].abs().max() < 1e-4
    clips[:, 3:5] += 1e-4 * torch.randn_like(clips[:, 3:5])
    assert network.standardise(clips)[:, :, 3:5].std() < 0.1, "noise was stretched to a picture"


def test_each_clip_passes_its_own_memory(settled: DualMemory, clips: torch.Tensor) -> None:
    with torch.inference_mode():
        normal = settled(clips, torch.tensor([False, False, False]))
        anomalous = settled(clips, torch.tensor([True, True, True]))
        mixed = settled(clips, PSEUDO)
        unmarked = settled(clips)
    assert not torch.allclose(normal.weights, anomalous.weights)
    for i, expected in enumerate((normal, anomalous, normal)):
        torch.testing.assert_close(mixed.picture[i], expected.picture[i])
        torch.testing.assert_close(mixed.weights[i], expected.weights[i])
    torch.testing.assert_close(unmarked.picture, normal.picture)


def test_only_the_memory_of_a_clip_is_asked(settled: DualMemory, clips: torch.Tensor) -> None:
    for pseudo, slots in ((True, settled.normal.slots), (False, settled.anomalous.slots)):
        settled.zero_grad()
        settled(clips[:1], torch.tensor([pseudo])).picture.square().sum().backward()
        assert slots.grad is None or slots.grad.abs().max() == 0


def test_marked_clips_are_rebuilt_as_normal_ones_too(
    settled: DualMemory, clips: torch.Tensor
) -> None:
    with torch.inference_mode():
        found = settled(clips, PSEUDO, also_as_normal=True)
        assert found.picture.shape[0] == 3
        torch.testing.assert_close(found.picture, settled(clips, PSEUDO).picture)
        torch.testing.assert_close(found.as_normal, settled(clips).picture[1:2])
        none = settled(clips, torch.zeros(3, dtype=torch.bool), also_as_normal=True)
    assert none.as_normal.shape[0] == 0


@pytest.mark.parametrize("skips", [("none", "none"), ("concatenate", "concatenate")])
def test_the_scored_frame_alone_is_what_the_whole_clip_gives(
    model: DualMemoryConfig, clips: torch.Tensor, skips: Any
) -> None:
    torch.manual_seed(0)
    network = DualMemory(replace(model, skips=skips)).train()
    network(clips)  # running statistics other than 0 and 1
    network.eval()
    with torch.inference_mode():
        whole = network(clips)
        error = network.error(clips)
    expected = (whole.picture - whole.target)[:, :, SCORED].square().mean(dim=1)
    torch.testing.assert_close(error, expected, rtol=1e-5, atol=1e-6)
    assert SCORED == 8


def test_the_anomaly_memory_takes_no_part_in_the_score(
    settled: DualMemory, clips: torch.Tensor
) -> None:
    with torch.inference_mode():
        before = settled.error(clips)
        settled.anomalous.slots.add_(1.0)
        assert torch.equal(settled.error(clips), before)
        settled.normal.slots.add_(1.0)
        assert not torch.allclose(settled.error(clips), before)


def test_an_untrained_network_neither_fades_nor_explodes() -> None:
    torch.manual_seed(0)
    small = read_config("dual_memory_small").model
    assert isinstance(small, DualMemoryConfig)
    network = DualMemory(replace(small, frame_height=32, frame_width=32)).eval()
    pictures = torch.rand(1, 16, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        levels = network.encode(network.standardise(pictures))
        picture = network(pictures).picture
    assert all(0.02 < level.square().mean().sqrt() < 2 for level in levels)
    assert 0.002 < picture.std() < 2  # 1e-7 with torch's own
