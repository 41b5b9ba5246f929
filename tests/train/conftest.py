"""A model small enough to train in a test."""

import pytest
import torch

from sfn_train.model import SFN, ModelConfig

TINY = {
    "frame_height": 16,
    "frame_width": 24,
    "patch": 8,
    "dim": 16,
    "appearance_dim": 16,
    "appearance_depth": 1,
    "motion_dim": 16,
    "motion_depth": 1,
    "heads": 2,
    "decoder_depth": 2,
    "reduction": 4,
    "n_filters": 5,
    "n_active": 2,
    "head_channels": 4,
}


@pytest.fixture
def tiny() -> ModelConfig:
    return ModelConfig(**TINY)


@pytest.fixture
def model(tiny: ModelConfig) -> SFN:
    torch.manual_seed(0)
    return SFN(tiny).eval()
