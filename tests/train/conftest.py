"""A model small enough to train in a test, and footage small enough to prepare in one."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

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
TRAIN = {
    "steps": 6,
    "batch": 2,
    "log_every": 2,
    "validate_every": 4,
    "validation_batches": 2,
    "checkpoint_every": 2,
    "precision": "32-true",
    "accelerator": "cpu",
    "learning_rate": 0.001,
}


@pytest.fixture
def tiny() -> ModelConfig:
    return ModelConfig(**TINY)


@pytest.fixture
def model(tiny: ModelConfig) -> SFN:
    torch.manual_seed(0)
    return SFN(tiny).eval()


@pytest.fixture(scope="session")
def tiny_yaml() -> str:
    return yaml.safe_dump({"model": TINY, "train": TRAIN})


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 40 frames in which a block moves, as folders of frames."""
    root = tmp_path_factory.mktemp("footage")
    random = np.random.default_rng(0)
    for number in range(2):
        folder = root / "training" / "frames" / f"{number:02d}"
        folder.mkdir(parents=True)
        for i in range(40):
            image = random.integers(118, 122, (64, 96, 3), dtype=np.uint8)
            x = (2 * i + 9 * number) % 80
            image[20:44, x : x + 14] = (200, 60, 30)
            cv2.imwrite(str(folder / f"{i:03d}.png"), image)
    return root
