"""Pixel masks as they are shipped: any pixel that is not 0 is abnormal.

In order of preference, in each place:
    pixel_masks.npz                    an array (n, H, W), or its bits packed along W, a video
    test_pixel_mask/NAME.npy           an array (n, H, W) a video, ShanghaiTech's own
    testing_label_mask/7_label.mat     `volLabel`: Avenue's own, numbered as the videos
    NAME_gt/001.bmp ...                a picture a frame, UCSD's own, beside the video
    pixel_masks/NAME/ or masks/NAME/   a picture a frame

Axes: n frames of one video, H, W its height and width in pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sfn_rt.datasets.files import files_in, map_npy, read_npz
from sfn_rt.datasets.labels import check_names
from sfn_rt.datasets.matlab import read_mat
from sfn_rt.datasets.video import PixelMasks, Video, frames_of, listed, number_of
from sfn_rt.exceptions import DataError
from sfn_rt.frames import frame_files, open_source

VOL_LABEL = "volLabel"
PICTURE_FOLDERS = ("test_pixel_mask", "pixel_masks", "masks")


@dataclass(frozen=True, eq=False)
class MaskSet:
    """Masks of test videos, and where they are from."""

    source: str
    by_video: Mapping[str, PixelMasks]
    unmatched: tuple[str, ...] = ()  # masked, but there is no such video
    decides: bool = False  # a frame is abnormal where its mask is not empty, whatever else is said


def find_masks(test: list[Video], places: Sequence[Path]) -> MaskSet | None:
    """The first kind of masks there is."""
    for place in places:
        if (path := place / "pixel_masks.npz").is_file():
            return _named(path.name, path, read_npz(path), test)
        folder = place / "test_pixel_mask"
        if files := files_in(folder, ".npy"):
            arrays = {file.stem: map_npy(file) for file in files}
            return _named(f"{folder.name}/", folder, arrays, test)
        if files := files_in(place / "testing_label_mask", ".mat"):
            return _vol_labels(files, test)
    return _pictures(test, places)


def _named(name: str, path: Path, arrays: Mapping[str, NDArray[Any]], test: list[Video]) -> MaskSet:
    check_names(arrays, test, path)
    masks = {v.name: _as_masks(arrays[v.name], v, path) for v in test if v.name in arrays}
    return MaskSet(name, masks, tuple(key for key in arrays if key not in masks))


def _as_masks(data: NDArray[Any], video: Video, source: Path) -> PixelMasks:
    height, width = _size(video)
    packed = data.dtype == np.uint8 and data.shape[1:] == (height, -(-width // 8))
    if not packed and (data.shape[1:] != (height, width) or data.dtype.kind not in "buif"):
        raise DataError(
            f"{source}: {video.name} must be masks [n, {height}, {width}], or their bits "
            f"packed, as the video is {width}x{height}; got {data.dtype}{list(data.shape)}"
        )
    if not packed and not isinstance(data, np.memmap):  # an eighth of the memory
        data = np.packbits(data != 0, axis=-1)
    return PixelMasks(data, width)


def _packed(masks: Iterator[tuple[str, NDArray[Any]]], video: Video, source: Path) -> PixelMasks:
    """Masks (H, W) one by one: a whole video of them unpacked would fill a gigabyte."""
    height, width = _size(video)
    rows = []
    for where, mask in masks:
        if mask.shape != (height, width) or mask.dtype.kind not in "buif":
            raise DataError(
                f"{source}: {where} must be a mask [{height}, {width}], as {video.name} is "
                f"{width}x{height}; got {mask.dtype}{list(mask.shape)}"
            )
        rows.append(np.packbits(mask != 0, axis=-1))
    return PixelMasks(np.stack(rows), width)


def _size(video: Video) -> tuple[int, int]:
    with open_source(video.path, threads=1) as frames:
        return frames.height, frames.width


# ---------------------------------------------------------------------------- Avenue


def _vol_labels(files: list[Path], test: list[Video]) -> MaskSet:
    """Masks from Avenue's files, 7_label.mat being that of 07.avi."""
    folder = files[0].parent
    by_number = {number_of(file.stem): file for file in files}
    numbers = {video.name: number_of(video.name) for video in test}
    if len(by_number) != len(files) or len(set(numbers.values())) != len(test):
        raise DataError(
            f"{folder}: files and videos must be numbered, as 7_label.mat for 07.avi; there are "
            f"{listed(file.name for file in files)} for {listed(numbers)}"
        )
    if missing := [name for name, number in numbers.items() if number not in by_number]:
        raise DataError(
            f"{folder}: {len(files)} label files for {len(test)} test videos, none for "
            f"{listed(missing)}; copy them from the archive again"
        )
    spare = [f.name for n, f in by_number.items() if n not in numbers.values()]
    if spare:
        raise DataError(
            f"{folder}: {listed(spare)} belong to no test video; copy the missing videos from "
            f"the archive again"
        )
    masks = {}
    for video in test:
        file = by_number[numbers[video.name]]
        masks[video.name] = _packed(_volume(file), video, file)
    return MaskSet(f"{VOL_LABEL} masks ({folder.name}/)", masks, decides=True)


def _volume(file: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """The masks in a cell (1, n) of them, or in one array (H, W, n)."""
    volume = read_mat(file, VOL_LABEL, "a cell of masks")
    frames = volume.reshape(-1) if volume.dtype == object else np.moveaxis(volume, -1, 0)
    if not len(frames):
        raise DataError(f"{file}: {VOL_LABEL} is empty; copy the file from the archive again")
    for index, mask in enumerate(frames):
        yield f"mask {index + 1}", np.asarray(mask)


# ---------------------------------------------------------------------------- pictures


def _pictures(test: list[Video], places: Sequence[Path]) -> MaskSet | None:
    """Masks as pictures, a folder a video. Ped1 has them for some videos only."""
    masks = {}
    used: set[Path] = set()
    names: set[str] = set()
    for video in test:
        stem = video.path.name if video.path.is_dir() else video.path.stem
        folders = [video.path.parent / f"{stem}_gt"]
        folders += [place / name / stem for place in places for name in PICTURE_FOLDERS]
        folder = next((folder for folder in folders if folder.is_dir()), None)
        if folder is not None:
            masks[video.name] = _packed(_read_pictures(folder, video), video, folder)
            used.add(folder)
            names.add("*_gt/" if folder == folders[0] else f"{folder.parent.name}/")
    if not masks:
        return None
    parents = {folder.parent for folder in used}
    spare = [
        child.name
        for parent in sorted(parents)
        for child in sorted(parent.iterdir())
        if child.is_dir() and child not in used and not child.name.startswith(".")
        if child.name.endswith("_gt") or parent.name in PICTURE_FOLDERS
    ]
    return MaskSet(" and ".join(sorted(names)), masks, tuple(spare))


def _read_pictures(folder: Path, video: Video) -> Iterator[tuple[str, NDArray[Any]]]:
    files = frame_files(folder)
    n_frames = frames_of(video)
    if len(files) != n_frames:
        raise DataError(
            f"{folder}: {len(files)} masks, but {video.name} has {n_frames} frames"
            f"{_difference(files, video)}; copy the folder again, or remove it"
        )
    read: Callable[..., Any] = cv2.imdecode
    for file in files:
        coded = np.fromfile(file, dtype=np.uint8)
        mask = read(coded, cv2.IMREAD_GRAYSCALE) if coded.size else None
        if mask is None:
            raise DataError(f"{file}: not a readable picture; copy it again")
        yield file.name, np.asarray(mask)


def _difference(files: Sequence[Path], video: Video) -> str:
    """Names the frames without a mask where masks are named as the frames are."""
    if not video.path.is_dir():
        return ""
    frames = [file.stem for file in frame_files(video.path)]
    masks = {file.stem for file in files}
    missing = [name for name in frames if name not in masks]
    return f", none for {listed(missing)}" if missing and masks & set(frames) else ""
