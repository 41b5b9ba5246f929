"""Small normal footage for the tests of calibration: squares that walk over a textured ground."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sfn_rt.normal import SceneModel, thumbnail

SIZE = (40, 60)  # height, width


def walk(n: int, seed: int) -> list[NDArray[np.uint8]]:
    """n frames in which a square walks to the right; the ground is the same for every seed."""
    ground = np.random.default_rng(0).integers(80, 120, (*SIZE, 3), dtype=np.uint8)
    ground[:14] //= 3  # light and dark that every video of the scene shares
    ground[30:, :40] *= 2
    random = np.random.default_rng(seed)
    top, colour = int(random.integers(4, 26)), random.integers(120, 255, 3).tolist()
    frames = []
    for i in range(n):
        image = ground.copy()
        left = (i + seed) % 50
        image[top : top + 10, left : left + 8] = colour
        frames.append(image)
    return frames


def write_video(folder: Path, frames: list[NDArray[np.uint8]]) -> Path:
    """The frames as a folder of pictures."""
    folder.mkdir(parents=True)
    for i, image in enumerate(frames):
        cv2.imwrite(str(folder / f"{i:03}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return folder


def write_data(root: Path, train: dict[str, int], test: dict[str, int] | None = None) -> Path:
    """A data set: name -> frames of its normal and of its test videos, each with other content."""
    for seed, (name, n) in enumerate(train.items()):
        write_video(root / "training" / "frames" / name, walk(n, seed))
    for seed, (name, n) in enumerate((test or {}).items(), start=100):
        write_video(root / "testing" / "frames" / name, walk(n, seed))
    return root


def scene_of(frame: NDArray[np.uint8]) -> SceneModel:
    """What a model knows of a scene that looks like this."""
    return SceneModel(None, None, thumbnail(frame)[None])
