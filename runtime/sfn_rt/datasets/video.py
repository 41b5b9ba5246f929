"""One video of a data set with its labels and masks, and what tells label sets apart.

Axes: n frames of one video, H, W its height and width in pixels.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfn_rt.exceptions import DataError
from sfn_rt.frames import count_frames

Labels = NDArray[np.uint8]  # (n,), 1 = abnormal


@dataclass(frozen=True, eq=False)
class PixelMasks:
    """Where the abnormal pixels of one video are."""

    data: NDArray[Any]  # (n, H, W), or (n, H, W/8) with the bits packed
    width: int  # W

    def __len__(self) -> int:
        return len(self.data)

    def frame(self, index: int) -> NDArray[np.bool_]:
        """The mask of one frame, (H, W)."""
        mask = self.data[index]
        if mask.shape[-1] != self.width:
            mask = np.unpackbits(mask, axis=-1, count=self.width)
        return np.asarray(mask, dtype=bool)

    def any(self) -> Labels:
        """Which frames have any abnormal pixel, (n,)."""
        return np.array([bool(np.any(mask)) for mask in self.data], dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Video:
    """One video of a data set; labels and masks where they are known."""

    name: str
    path: Path  # a video file or a folder of frame images
    labels: Labels | None = None  # (n,)
    masks: PixelMasks | None = None
    pictures: int | None = None  # in a folder of them, where they have been counted


def frames_of(video: Video) -> int:
    """How many frames a video has, without decoding it."""
    return count_frames(video.path) if video.pictures is None else video.pictures


def check_length(video: Video, n_frames: int) -> None:
    """Refuse labels and masks that are not one for each of the video's frames."""
    for what, values in (("labels", video.labels), ("masks", video.masks)):
        if values is not None and len(values) != n_frames:
            raise DataError(
                f"{video.name}: {what} for {len(values)} frames, but the video has {n_frames}; "
                f"give {what} made for {video.path}"
            )


def fingerprint(videos: Sequence[Video]) -> str | None:
    """Names the labels a result was measured with: data sets circulate with several."""
    labelled = [video for video in videos if video.labels is not None]
    if not labelled:
        return None
    digest = hashlib.sha256()
    for video in sorted(labelled, key=lambda video: video.name):
        assert video.labels is not None
        digest.update(f"{video.name}\0{len(video.labels)}\0".encode())
        digest.update(np.ascontiguousarray(video.labels, dtype=np.uint8).tobytes())
    return digest.hexdigest()[:16]


def listed(names: Iterable[str]) -> str:
    """Names for a message: the first four of them."""
    ordered = list(names)
    return ", ".join(ordered[:4]) + (", ..." if len(ordered) > 4 else "")


def number_of(name: str) -> int | None:
    """The number a name ends in, or begins with: 7 of `07`, `Test007` and `7_label`."""
    found = re.search(r"(\d+)$", name) or re.match(r"\d+", name)
    return int(found.group()[-9:]) if found else None


def numbered(videos: Sequence[Video]) -> dict[int, Video]:
    """Videos by number; empty where their names do not number them (`01_0014`, `day a`)."""
    parts = [re.fullmatch(r"(\D*)(\d+)", video.name) for video in videos]
    prefixes = {part.group(1) if part else None for part in parts}
    if len(prefixes) != 1 or None in prefixes:
        return {}
    by_number = {int(part.group(2)[-9:]): v for part, v in zip(parts, videos, strict=True) if part}
    return by_number if len(by_number) == len(videos) else {}


def skipped(videos: Sequence[Video]) -> str:
    """Says which numbers the videos' names jump over; empty where none is, or they have none."""
    found = numbered(videos)
    missing = [f"{n:02}" for n in range(1, max(found, default=0)) if n not in found]
    return f" (the videos' numbers jump over {listed(missing)})" if missing else ""
