"""Finds the training and test videos of a data folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfn_rt.datasets.video import Video
from sfn_rt.exceptions import DataError
from sfn_rt.frames import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    files_with_suffix,
    frame_files,
    natural_key,
)

TRAIN_FOLDERS = ("training", "train", "normal", "training_videos")
TEST_FOLDERS = ("testing", "test", "testing_videos")
BENCHMARK_FOLDERS = ("training", "train", "training_videos", "testing", "test", "testing_videos")
GROUND_TRUTH = "ground_truth_demo"  # Avenue's second archive, and HF2-VAD's place for labels
LABEL_FOLDERS = frozenset(
    {"labels", "masks", "pixel_masks", "test_frame_mask", "test_pixel_mask", "testing_label_mask"}
)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the videos of a data folder are, and where labels may be."""

    root: Path  # the folder that holds the videos' folders
    train: tuple[Video, ...]
    test: tuple[Video, ...]
    places: tuple[Path, ...]  # of labels, the first that has any counts
    notes: tuple[str, ...]


def find_layout(root: Path) -> Layout:
    """The videos of a data folder; their labels are still to be found."""
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; give a folder of videos")
    notes: list[str] = []
    given, root = root, _archive_inside(root)
    train_folder, test_folder = subfolder(root, TRAIN_FOLDERS), subfolder(root, TEST_FOLDERS)
    train: list[Video] = []
    test: list[Video] = []
    if train_folder is None and test_folder is None:
        _refuse_parent(root)
        train = find_videos(root, notes)
    if train_folder is not None:
        train = find_videos(train_folder, notes)
    if test_folder is not None:
        test = find_videos(test_folder, notes)
    if not train and not test:
        raise DataError(
            f"{given}: a folder without videos; give one with video files "
            f"({' '.join(sorted(VIDEO_SUFFIXES))}) or folders of frame images "
            f"({' '.join(sorted(IMAGE_SUFFIXES))})"
        )
    places = [root]
    if test_folder is not None:
        places.append(test_folder)
        places.append(root / GROUND_TRUTH)
        if test_folder.name.lower() == "testing_videos":  # Avenue's two archives, side by side
            places.append(root.parent / GROUND_TRUTH)
    there = tuple(place for place in places if place.is_dir())
    return Layout(root, tuple(train), tuple(test), there, tuple(notes))


def subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these names that is a folder, whatever its case."""
    found = {entry.name.lower(): entry for entry in folder.iterdir() if entry.is_dir()}
    return next((found[name] for name in names if name in found), None)


def find_videos(folder: Path, notes: list[str]) -> list[Video]:
    """Every video below a folder, named by its path from there, in natural order."""
    frames, files = subfolder(folder, ("frames",)), subfolder(folder, ("videos",))
    if frames is not None and files is not None:
        notes.append(f"{folder.name}: both frames and videos; frames are read")
    base = frames or files or folder
    by_name: dict[str, Video] = {}
    for path, pictures in _walk(base, frozenset()):
        inner = path.relative_to(base)
        parts = inner.parts if path.is_dir() else (*inner.parts[:-1], inner.stem)
        name = "_".join(parts) or path.resolve().name  # frames right in the folder
        if name in by_name:
            other = by_name[name].path
            raise DataError(f"{path} and {other} are both named {name}; rename one")
        by_name[name] = Video(name, path, pictures=pictures)
    return [by_name[name] for name in sorted(by_name, key=lambda name: natural_key(Path(name)))]


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[tuple[Path, int | None]]:
    """Video files, and folders of frames with their number; those are not searched further.

    Links are followed, as data sets are often linked together from several disks, except one
    that leads back to a folder it is in.
    """
    here = folder.resolve()
    if here in above:
        return
    if pictures := frame_files(folder):
        yield folder, len(pictures)
        return
    yield from ((file, None) for file in files_with_suffix(folder, VIDEO_SUFFIXES))
    for child in sorted(folder.iterdir(), key=natural_key):
        name = child.name.lower()
        masks = name in LABEL_FOLDERS or name.endswith("_gt")
        if child.is_dir() and not masks and not name.startswith("."):
            yield from _walk(child, above | {here})


def _data_sets(root: Path) -> list[Path]:
    return [
        child
        for child in sorted(root.iterdir(), key=natural_key)
        if child.is_dir() and subfolder(child, BENCHMARK_FOLDERS)
    ]


def _archive_inside(root: Path) -> Path:
    """The data set in a folder that two archives were unpacked into: videos, and labels apart."""
    found = [] if subfolder(root, (*TRAIN_FOLDERS, *TEST_FOLDERS)) else _data_sets(root)
    return found[0] if len(found) == 1 and (root / GROUND_TRUTH).is_dir() else root


def _refuse_parent(root: Path) -> None:
    if found := _data_sets(root):
        raise DataError(f"{root}: a folder of data sets; give one of them, such as {found[0]}")
