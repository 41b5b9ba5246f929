"""Frame labels as they are shipped: which of a folder's label files there are, and what they say.

In order of preference, in each place:
    frame_labels.npz, labels.npz       an array (n,) under each video's name
    labels/NAME.npy                    an array (n,) a video
    test_frame_mask/NAME.npy           the same, ShanghaiTech's own
    frame_labels*.npy                  all test videos one after the other, as MNAD ships them
    *.m                                UCSD's own: a line `gt_frame = [61:180];` a video
    *.mat                              `gt`: a cell a video of first and last frames, from 1

A user's own videos may lack labels (npz, labels/). Sets that are shipped whole must be whole:
one that has lost a video would be measured against other labels than anyone else's.

Axes: n frames of one video.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfn_rt.datasets.files import files_in, read_npy, read_npz
from sfn_rt.datasets.matlab import read_mat
from sfn_rt.datasets.video import Labels, Video, frames_of, listed, skipped
from sfn_rt.exceptions import DataError

GT_FRAME = re.compile(r"gt_frame\s*=\s*(.*)")
FIRST_TO_LAST = re.compile(r"(\d{1,9})(?:\s*:\s*(\d{1,9}))?")
CHOOSE = "or choose other labels of this folder with --labels"


@dataclass(frozen=True, eq=False)
class LabelSet:
    """Labels of the test videos, and the file they are from."""

    source: str
    by_video: Mapping[str, Labels]  # (n,) by the video's name
    unmatched: tuple[str, ...] = ()  # labelled, but there is no such video


@dataclass(frozen=True)
class LabelFile:
    """A file or folder that holds labels; reading it is put off until it is chosen."""

    name: str
    path: Path
    read: Callable[[str, Path, list[Video]], LabelSet]


def label_files(places: Sequence[Path]) -> Iterator[LabelFile]:
    """Everything in these places that is meant as frame labels, the preferred first."""
    for place in places:
        for name in ("frame_labels.npz", "labels.npz"):
            if (path := place / name).is_file():
                yield LabelFile(name, path, _named)
        for name, read in (("labels", _folder), ("test_frame_mask", _whole_folder)):
            if files_in(place / name, ".npy"):
                yield LabelFile(f"{name}/", place / name, read)
        for path in files_in(place, ".npy"):
            if path.name.startswith("frame_labels"):
                yield LabelFile(path.name, path, _joined)
        for path in files_in(place, ".m"):
            if b"gt_frame" in path.read_bytes() or path.stem.lower().startswith("ucsd"):
                yield LabelFile(path.name, path, _ucsd)
        for path in files_in(place, ".mat"):
            yield LabelFile(path.name, path, _ranges)


def as_labels(values: NDArray[Any], source: str) -> Labels:
    """Check that values are one 0 or 1 a frame; anything else is no label of ours."""
    flat = values.reshape(-1) if values.size == max(values.shape, default=0) else values
    number = flat.dtype.kind in "buif"
    if flat.ndim != 1 or not number or not flat.size or not np.isin(flat, (0, 1)).all():
        raise DataError(
            f"{source}: labels must be one 0 (normal) or 1 (abnormal) a frame, "
            f"got {values.dtype}{list(values.shape)}"
            + (f" with values up to {flat.max()}" if number and flat.size else "")
        )
    return flat.astype(np.uint8)


def check_names(names: Mapping[str, object], test: Sequence[Video], source: Path) -> None:
    """Refuse labels of which none belongs to a test video."""
    videos = [video.name for video in test]
    if not set(videos) & set(names):
        raise DataError(
            f"{source}: holds {listed(names)}, none of the test videos {listed(videos)}; "
            f"name its entries after the videos"
        )


# ---------------------------------------------------------------------------- by name


def _named(name: str, path: Path, test: list[Video]) -> LabelSet:
    return _by_name(name, path, read_npz(path), test)


def _folder(name: str, path: Path, test: list[Video]) -> LabelSet:
    return _by_name(
        name, path, {file.stem: read_npy(file) for file in files_in(path, ".npy")}, test
    )


def _whole_folder(name: str, path: Path, test: list[Video]) -> LabelSet:
    labels = _folder(name, path, test)
    if missing := [video.name for video in test if video.name not in labels.by_video]:
        raise DataError(
            f"{path}: no {listed(f'{name}.npy' for name in missing)} for a test video of that "
            f"name; copy the labels again, {CHOOSE}"
        )
    if labels.unmatched:
        raise DataError(
            f"{path}: labels of {listed(labels.unmatched)}, but no test videos of that name; copy "
            f"the missing videos again, {CHOOSE}"
        )
    return labels


def _by_name(
    name: str, path: Path, arrays: Mapping[str, NDArray[Any]], test: list[Video]
) -> LabelSet:
    check_names(arrays, test, path)
    labels = {
        video.name: as_labels(arrays[video.name], f"{path}: {video.name}")
        for video in test
        if video.name in arrays
    }
    return LabelSet(name, labels, tuple(key for key in arrays if key not in labels))


# ---------------------------------------------------------------------------- in order


def _joined(name: str, path: Path, test: list[Video]) -> LabelSet:
    """Cut labels of all test videos, one after the other, into a piece a video."""
    joined = as_labels(read_npy(path), str(path))
    counts = [frames_of(video) for video in test]
    if sum(counts) != len(joined):
        raise DataError(
            f"{path}: labels for {len(joined)} frames, but the {len(test)} test videos have "
            f"{sum(counts)}{skipped(test)}; give a labels.npz with one array a video, {CHOOSE}"
        )
    pieces = np.split(joined, np.cumsum(counts)[:-1])
    return LabelSet(name, {video.name: piece for video, piece in zip(test, pieces, strict=True)})


def _ucsd(name: str, path: Path, test: list[Video]) -> LabelSet:
    """Labels from UCSD's `TestVideoFile{end+1}.gt_frame = [5:90, 140:200];`, a line a video.

    It is MATLAB code; only lines of this form are read, and nothing is run.
    """
    events: list[list[tuple[int, int]]] = []
    for number, line in enumerate(path.read_bytes().decode("latin-1").splitlines(), start=1):
        if found := GT_FRAME.search(line.partition("%")[0]):
            listing = re.fullmatch(r"\[([^\[\]]*)\]\s*;?", found.group(1).strip())
            ranges = (
                [] if listing is None else re.findall(r"[^\s,;:]+(?:\s*:\s*[^\s,;]+)*", listing[1])
            )
            matches = [FIRST_TO_LAST.fullmatch(text) for text in ranges]
            if listing is None or not all(matches):
                raise DataError(
                    f"{path}: line {number} must be gt_frame = [first:last, ...], "
                    f"got {line.strip()[:80]!r}"
                )
            events.append([(int(m[1]), int(m[2] or m[1])) for m in matches if m])
    if not events:
        raise DataError(
            f"{path}: no line TestVideoFile{{end+1}}.gt_frame = [first:last] in it; "
            f"copy the file from the archive again"
        )
    _check_count(path, len(events), "lines of gt_frame", test)
    return LabelSet(
        name,
        {
            video.name: _marked(path, video, ranges)
            for video, ranges in zip(test, events, strict=True)
        },
    )


def _ranges(name: str, path: Path, test: list[Video]) -> LabelSet:
    """Labels from `gt`: for each video the first and last frames of its events, (2, events)."""
    gt = read_mat(path, "gt", "a cell of ranges a video").reshape(-1)
    _check_count(path, len(gt), "cells in gt", test)
    if gt.dtype != object:
        raise DataError(f"{path}: gt must be a cell of ranges a video, got {gt.dtype}")
    labels = {}
    for video, held in zip(test, gt, strict=True):
        events = np.asarray(held)
        if events.size == 2:
            events = events.reshape(2, 1)
        if events.size and (
            events.ndim != 2 or events.shape[0] != 2 or events.dtype.kind not in "uif"
        ):
            raise DataError(
                f"{path}: {video.name} must be first and last frames [2, events], "
                f"got {events.dtype}{list(events.shape)}"
            )
        pairs = events.T.astype(int).tolist() if events.size else []
        labels[video.name] = _marked(path, video, [(first, last) for first, last in pairs])
    return LabelSet(name, labels)


def _check_count(path: Path, n_found: int, what: str, test: list[Video]) -> None:
    if n_found != len(test):
        raise DataError(
            f"{path}: {n_found} {what} for {len(test)} test videos{skipped(test)}; there must be "
            f"one for each, in their order"
        )


def _marked(path: Path, video: Video, events: Sequence[tuple[int, int]]) -> Labels:
    """Labels of one video that is abnormal from each first to each last frame, from 1."""
    labels = np.zeros(frames_of(video), dtype=np.uint8)
    for first, last in events:
        if not 1 <= first <= last <= len(labels):
            raise DataError(
                f"{path}: {video.name} has an event from frame {first} to {last}, but the "
                f"video has {len(labels)} frames, counted from 1; give labels made for {video.path}"
            )
        labels[first - 1 : last] = 1
    return labels
