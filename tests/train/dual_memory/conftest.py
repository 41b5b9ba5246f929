"""A dual-memory model small enough to train in a test."""

from typing import Any

import pytest
import torch
import yaml

from sfn_train.config import Config, parse_config
from sfn_train.dual_memory import DualMemory, DualMemoryConfig

TINY: dict[str, Any] = {
    "frame_height": 16,
    "frame_width": 24,
    "widths": [4, 6, 8],
    "skips": ["none", "concatenate"],
    "slots": 10,
    "clip_step": 3,
}
TRAIN = {
    "steps": 6,
    "batch": 2,
    "log_every": 1,
    "validate_every": 4,
    "validation_batches": 2,
    "checkpoint_every": 2,
    "precision": "32-true",
    "accelerator": "cpu",
    "learning_rate": 0.001,
}
BATCH, T, H, W = 3, 16, 16, 24


@pytest.fixture(scope="session")
def tiny_yaml() -> str:
    settings = {
        "system": "dual-memory",
        "model": TINY,
        "data": {"run_length": 16},
        "visual": {"measure": "psnr"},
        "train": TRAIN,
    }
    return str(yaml.safe_dump(settings))


@pytest.fixture
def config(tiny_yaml: str) -> Config:
    return parse_config(tiny_yaml, "tiny")


@pytest.fixture
def model(config: Config) -> DualMemoryConfig:
    assert isinstance(config.model, DualMemoryConfig)
    return config.model


@pytest.fixture
def network(model: DualMemoryConfig) -> DualMemory:
    torch.manual_seed(0)
    return DualMemory(model)


@pytest.fixture
def settled(network: DualMemory, clips: torch.Tensor) -> DualMemory:
    """In eval mode, with the running statistics of a batch: no clip sees another, none fades."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = None  # the running statistics are the mean over batches
    with torch.no_grad():
        network.train()(clips, torch.tensor([False, True, False]))
    return network.eval()


@pytest.fixture
def clips() -> torch.Tensor:
    """(B, T, 3, H, W) of RGB in 0..1."""
    return torch.rand(BATCH, T, 3, H, W, generator=torch.Generator().manual_seed(1))
