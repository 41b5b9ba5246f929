"""Finds the videos, labels and masks in a data folder as people have them.

    training/frames/01/000.jpg ...  testing/frames/01/000.jpg     the benchmarks' layout
    training/videos/01.avi ...      testing/videos/01.avi         or videos right in these folders
    train/ or normal/ ...           test/                         folders of videos
    day1.mp4 day2.mp4 ...                                         a plain folder: all of it normal

A video is a file or a folder of frame images. Labels belong to test videos, 1 = abnormal, and
lie beside the folders or in the test folder, as one of
    frame_labels.npz, labels.npz       an array (n,) under each video's name
    labels/NAME.npy, test_frame_mask/NAME.npy
    frame_labels*.npy                  all test videos one after the other
    *.mat                              `gt`: a cell a video of first and last frames, from 1
    testing_label_mask/*.mat           `volLabel`: masks, a file a video, in order
Pixel masks: pixel_masks.npz (an array (n, H, W), or its bits packed along W, under each video's
name), test_pixel_mask/NAME.npy, or the volLabel masks.

Axes: n frames of one video, H, W its height and width in pixels.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfn_rt.exceptions import DataError
from sfn_rt.frames import (
    FPS_ASSUMED,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    count_frames,
    files_with_suffix,
    frame_files,
    natural_key,
    open_source,
)

Labels = NDArray[np.uint8]  # (n,), 1 = abnormal

TRAIN_FOLDERS = ("training", "train", "normal", "training_videos")
TEST_FOLDERS = ("testing", "test", "testing_videos")
# What SciPy raises on files that are no MATLAB files, or end too soon.
BROKEN_MAT = (OSError, ValueError, TypeError, EOFError, LookupError, zlib.error)

LABEL_FOLDERS = frozenset({"labels", "test_frame_mask", "test_pixel_mask", "testing_label_mask"})

# Fingerprints of published label sets, for the constants a paper chose on them.
PUBLISHED_FINGERPRINTS = {"5aa29fedb448da1e": "ped2"}


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


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a data folder holds."""

    root: Path
    train: tuple[Video, ...]  # normal footage
    test: tuple[Video, ...]
    fps: float | None  # as given, for every video; None: as each file states
    fingerprint: str | None  # of the test videos' names and labels
    published: str | None  # the benchmark with exactly these labels
    notes: tuple[str, ...]  # for the user: what was found, assumed or left out


def open_dataset(root: Path, *, fps: float | None = None) -> Dataset:
    """Find the videos and labels of a data folder; refuses what does not fit together."""
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; give a folder of videos")
    notes: list[str] = []
    train_folder, test_folder = _subfolder(root, TRAIN_FOLDERS), _subfolder(root, TEST_FOLDERS)
    if train_folder is None and test_folder is None:
        _refuse_parent(root)
        train, test = _find_videos(root), []
    else:
        train = _find_videos(train_folder, notes) if train_folder else []
        test = _find_videos(test_folder, notes) if test_folder else []
    if not train and not test:
        raise DataError(
            f"{root}: a folder without videos; give one with video files "
            f"({' '.join(sorted(VIDEO_SUFFIXES))}) or folders of frame images "
            f"({' '.join(sorted(IMAGE_SUFFIXES))})"
        )
    places = [root] if test_folder is None else [root, test_folder]
    if test:
        test = _with_labels(test, places, notes)
    else:
        notes.append("no test videos: there is nothing to evaluate")
    if fps is None and any(video.path.is_dir() for video in (*train, *test)):
        notes.append(FPS_ASSUMED)
    mark = fingerprint(test)
    published = PUBLISHED_FINGERPRINTS.get(mark) if mark else None
    return Dataset(root, tuple(train), tuple(test), fps, mark, published, tuple(notes))


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


# ---------------------------------------------------------------------------- videos


def _subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these names that is a folder, whatever its case."""
    found = {entry.name.lower(): entry for entry in folder.iterdir() if entry.is_dir()}
    return next((found[name] for name in names if name in found), None)


def _refuse_parent(root: Path) -> None:
    for child in sorted(root.iterdir(), key=natural_key):
        if child.is_dir() and _subfolder(child, (*TRAIN_FOLDERS[:2], *TEST_FOLDERS[:2])):
            raise DataError(f"{root}: a folder of data sets; give one of them, such as {child}")


def _find_videos(folder: Path, notes: list[str] | None = None) -> list[Video]:
    """Every video below a folder, named by its path from there, in natural order."""
    frames, files = _subfolder(folder, ("frames",)), _subfolder(folder, ("videos",))
    if frames is not None and files is not None and notes is not None:
        notes.append(f"{folder.name}: both frames and videos; frames are read")
    base = frames or files or folder
    by_name: dict[str, Path] = {}
    for path in _walk(base):
        inner = path.relative_to(base)
        parts = inner.parts if path.is_dir() else (*inner.parts[:-1], inner.stem)
        name = "_".join(parts) or path.resolve().name  # frames right in the folder
        if name in by_name:
            raise DataError(f"{path} and {by_name[name]} are both named {name}; rename one")
        by_name[name] = path
    ordered = sorted(by_name, key=lambda name: natural_key(Path(name)))
    return [Video(name, by_name[name]) for name in ordered]


def _walk(folder: Path) -> Iterator[Path]:
    """Video files and folders of frames; a folder with frames is not searched further."""
    if any(frame_files(folder)):
        yield folder
        return
    yield from files_with_suffix(folder, VIDEO_SUFFIXES)
    for child in sorted(folder.iterdir(), key=natural_key):
        name = child.name.lower()
        masks = name in LABEL_FOLDERS or name.endswith("_gt")
        if child.is_dir() and not masks and not name.startswith(".") and not child.is_symlink():
            yield from _walk(child)


# ---------------------------------------------------------------------------- labels


def _with_labels(test: list[Video], places: Sequence[Path], notes: list[str]) -> list[Video]:
    labels, source = _find_labels(test, places)
    masks = _find_masks(test, places)
    if not labels and masks:
        labels = {name: mask.any() for name, mask in masks.items()}
        source = "pixel masks"
    if not labels:
        notes.append("no labels: test videos can be scored, not evaluated")
    else:
        notes.append(f"labels of {len(labels)} of {len(test)} test videos from {source}")
    done = []
    for video in test:
        full = Video(video.name, video.path, labels.get(video.name), masks.get(video.name))
        if full.path.is_dir():
            check_length(full, count_frames(full.path))
        if full.labels is not None and full.masks is not None:
            check_length(Video(full.name, full.path, full.labels), len(full.masks))
            differing = int(np.count_nonzero(full.labels != full.masks.any()))
            if differing:
                notes.append(f"{full.name}: labels and masks disagree on {differing} frames")
        done.append(full)
    return done


def _find_labels(test: list[Video], places: Sequence[Path]) -> tuple[dict[str, Labels], str]:
    """The first kind of labels there is, under the names of the test videos; and its place."""
    for place in places:
        for name in ("frame_labels.npz", "labels.npz"):
            if (file := place / name).is_file():
                return _for_videos(_read_npz(file), test, file), name
        for name in ("labels", "test_frame_mask"):
            if files := _files_in(place / name, ".npy"):
                found = {path.stem: _read_npy(path) for path in files}
                return _for_videos(found, test, place / name), f"{name}/"
        for file in _files_in(place, ".npy"):
            if file.name.startswith("frame_labels"):
                return _split(file, test), file.name
        for file in _files_in(place, ".mat"):
            return _ranges(file, test), file.name
    return {}, ""


def _find_masks(test: list[Video], places: Sequence[Path]) -> dict[str, PixelMasks]:
    for place in places:
        if (file := place / "pixel_masks.npz").is_file():
            arrays = _read_npz(file)
            return _masks_for_videos(arrays, test, file)
        if files := _files_in(place / "test_pixel_mask", ".npy"):
            arrays = {path.stem: _map_npy(path) for path in files}
            return _masks_for_videos(arrays, test, place / "test_pixel_mask")
        if files := _vol_label_files(place):
            arrays = _vol_labels(files, test)
            return _masks_for_videos(arrays, test, files[0].parent)
    return {}


def _files_in(folder: Path, suffix: str) -> list[Path]:
    return files_with_suffix(folder, frozenset({suffix})) if folder.is_dir() else []


def _for_videos(
    arrays: Mapping[str, NDArray[Any]], test: list[Video], source: Path
) -> dict[str, Labels]:
    _check_names(arrays, test, source)
    return {
        video.name: _as_labels(arrays[video.name], f"{source}: {video.name}")
        for video in test
        if video.name in arrays
    }


def _check_names(arrays: Mapping[str, object], test: list[Video], source: Path) -> None:
    names = [video.name for video in test]
    if not set(names) & set(arrays):
        raise DataError(
            f"{source}: holds {_listed(arrays)}, none of the test videos {_listed(names)}; "
            f"name its entries after the videos"
        )


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    ordered = list(names)
    return ", ".join(ordered[:4]) + (", ..." if len(ordered) > 4 else "")


def _as_labels(values: NDArray[Any], source: str) -> Labels:
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


def _split(file: Path, test: list[Video]) -> dict[str, Labels]:
    """Cut labels of all test videos, one after the other, into a piece a video."""
    joined = _as_labels(_read_npy(file), str(file))
    counts = [count_frames(video.path) for video in test]
    if sum(counts) != len(joined):
        raise DataError(
            f"{file}: labels for {len(joined)} frames, but the {len(test)} test videos have "
            f"{sum(counts)}; give a labels.npz with one array a video"
        )
    pieces = np.split(joined, np.cumsum(counts)[:-1])
    return {video.name: piece for video, piece in zip(test, pieces, strict=True)}


def _masks_for_videos(
    arrays: Mapping[str, NDArray[Any]], test: list[Video], source: Path
) -> dict[str, PixelMasks]:
    _check_names(arrays, test, source)
    masks = {}
    for video in test:
        if video.name not in arrays:
            continue
        with open_source(video.path) as frames:
            height, width = frames.height, frames.width
        data = arrays[video.name]
        packed = data.dtype == np.uint8 and data.shape[1:] == (height, -(-width // 8))
        if not packed and data.shape[1:] != (height, width):
            raise DataError(
                f"{source}: {video.name} must be masks [n, {height}, {width}], or their bits "
                f"packed, as the video is {width}x{height}; got {data.dtype}{list(data.shape)}"
            )
        if not packed and not isinstance(data, np.memmap):  # an eighth of the memory
            data = np.packbits(data != 0, axis=-1)
        masks[video.name] = PixelMasks(data, width)
    return masks


# ---------------------------------------------------------------------------- files


def _read_npz(file: Path) -> dict[str, NDArray[Any]]:
    held = _load_arrays(file, ".npz of plain arrays")
    if isinstance(held, np.ndarray):
        raise DataError(f"{file}: a single array; rename it to .npy")
    return held


def _read_npy(file: Path) -> NDArray[Any]:
    held = _load_arrays(file, ".npy of a plain array")
    if not isinstance(held, np.ndarray):
        raise DataError(f"{file}: an archive of arrays; rename it to .npz")
    return held


def _map_npy(file: Path) -> NDArray[Any]:
    """An array that stays on disk: masks of a long video fill gigabytes."""
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file}: not a readable .npy of a plain array ({error})") from None


def _load_arrays(file: Path, expected: str) -> dict[str, NDArray[Any]] | NDArray[Any]:
    try:
        with file.open("rb") as opened:
            held: Any = np.load(opened, allow_pickle=False)
            return held if isinstance(held, np.ndarray) else dict(held)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file}: not a readable {expected} ({error})") from None


def _read_mat(file: Path) -> dict[str, Any]:
    try:
        from scipy.io import loadmat  # imported late: only labels in MATLAB files need it
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise DataError(f"{file}: MATLAB files need scipy; pip install scipy") from None
    try:
        return dict(loadmat(str(file)))
    except NotImplementedError:
        raise DataError(f"{file}: MATLAB 7.3 format; save it again with -v7") from None
    except (MatReadError, *BROKEN_MAT) as error:
        raise DataError(f"{file}: not a readable .mat file ({error})") from None


def _ranges(file: Path, test: list[Video]) -> dict[str, Labels]:
    """Labels from `gt`: for each video the first and last frames of its events, (2, events)."""
    held = _read_mat(file)
    if "gt" not in held:
        keys = sorted(key for key in held if not key.startswith("__"))
        raise DataError(f"{file}: holds {keys}, not gt; give gt, a cell of ranges a video")
    cells = np.asarray(held["gt"]).reshape(-1)
    if cells.dtype != object or len(cells) != len(test):
        raise DataError(f"{file}: gt has {len(cells)} cells for {len(test)} test videos")
    labels = {}
    for video, cell in zip(test, cells, strict=True):
        events = np.asarray(cell)
        labels[video.name] = np.zeros(count_frames(video.path), dtype=np.uint8)
        if not events.size:
            continue
        if events.size == 2:
            events = events.reshape(2, 1)
        if events.ndim != 2 or events.shape[0] != 2:
            raise DataError(
                f"{file}: {video.name} must be first and last frames [2, events], "
                f"got {list(events.shape)}"
            )
        for first, last in events.T.astype(int).tolist():
            if not 1 <= first <= last <= len(labels[video.name]):
                raise DataError(
                    f"{file}: {video.name} has an event from frame {first} to {last}, but the "
                    f"video has {len(labels[video.name])} frames, counted from 1"
                )
            labels[video.name][first - 1 : last] = 1
    return labels


def _vol_label_files(place: Path) -> list[Path]:
    inner = ("testing_label_mask", "ground_truth_demo/testing_label_mask")
    return next((files for name in inner if (files := _files_in(place / name, ".mat"))), [])


def _vol_labels(files: list[Path], test: list[Video]) -> dict[str, NDArray[Any]]:
    """Masks from Avenue's files, 1_label.mat being the first video's."""
    if len(files) != len(test):
        raise DataError(
            f"{files[0].parent}: {len(files)} label files for {len(test)} test videos; "
            f"there must be one for each"
        )
    masks = {}
    for video, file in zip(test, files, strict=True):
        held = _read_mat(file)
        if "volLabel" not in held:
            raise DataError(f"{file}: holds no volLabel")
        volume = np.asarray(held["volLabel"])
        # A cell (1, n) of masks, or one array (H, W, n).
        frames = volume.reshape(-1) if volume.dtype == object else np.moveaxis(volume, -1, 0)
        if len({np.shape(mask) for mask in frames}) != 1 or np.ndim(frames[0]) != 2:
            raise DataError(f"{file}: volLabel must be masks of one size, got {volume.shape}")
        masks[video.name] = np.stack([np.asarray(mask) != 0 for mask in frames])  # (n, H, W)
    return masks
