"""Weights and videos small enough to caption in a test; no two clips look alike."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from sfn_rt.datasets import Dataset, open_dataset
from sfn_train.captions.make import CaptionOptions, CaptionSummary, make_captions

N_FRAMES = {"training": {"01": 15, "02": 12}, "testing": {"01": 9}}
STRIDE_1 = {"train/01": 11, "train/02": 8, "test/01": 5}  # captions of each video


def make_videos(root: Path, n_frames: Mapping[str, Mapping[str, int]] = N_FRAMES) -> Path:
    random = np.random.default_rng(0)
    for split, videos in n_frames.items():
        for name, n in videos.items():
            folder = root / split / "frames" / name
            folder.mkdir(parents=True)
            for i in range(n):
                image = random.integers(0, 256, (24, 36, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f"{i:03}.png"), image)
    return root


def run(data: Path | Dataset, weights: Path, out: Path, **options: object) -> CaptionSummary:
    """One run of the command with settings that suit a test."""
    dataset = open_dataset(data, fps=25) if isinstance(data, Path) else data
    settings: dict[str, object] = {"batch": 4, "max_tokens": 12}
    asked = CaptionOptions(weights=weights, out=out, **(settings | options))  # type: ignore[arg-type]
    return make_captions(dataset, asked, say=lambda text: None, progress=False)


def content(cache: Path) -> dict[str, bytes]:
    """Every file that a user sees, byte for byte."""
    files = (f for f in cache.rglob("*") if f.is_file() and ".captions" not in f.parts)
    return {str(file.relative_to(cache)): file.read_bytes() for file in sorted(files)}
