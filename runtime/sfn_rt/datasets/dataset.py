"""A data folder opened: its videos, and which of the labels in it count.

Avenue's frame labels circulate in sets that disagree (97.1 % of frames are alike in two of
them). The paper's rule is that a frame is abnormal where its volLabel mask is not empty, so these
masks decide where they are there; everywhere else the frame labels do. `labels` chooses
otherwise, and a result names what it was measured with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sfn_rt.datasets.known import Benchmark, differences, published_as, recognise
from sfn_rt.datasets.labels import LabelSet, label_files
from sfn_rt.datasets.layout import GROUND_TRUTH, Layout, find_layout
from sfn_rt.datasets.masks import MaskSet, find_masks
from sfn_rt.datasets.video import Video, check_length, fingerprint, frames_of, listed
from sfn_rt.exceptions import DataError
from sfn_rt.frames import FPS_ASSUMED

MASKS, FRAMES = "masks", "frames"  # what --labels takes, beside the name of a label file


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a data folder holds."""

    root: Path
    train: tuple[Video, ...]  # normal footage
    test: tuple[Video, ...]
    fps: float | None  # as given, for every video; None: as each file states
    fingerprint: str | None  # of the test videos' names and labels
    published: str | None  # the benchmark whose published constants belong to these labels
    notes: tuple[str, ...]  # for the user: what was found, assumed or left out
    labels_from: str | None = None  # the file, folder or rule that made the labels
    masks_from: str | None = None
    unmatched: tuple[str, ...] = ()  # labels or masks that belong to no test video
    benchmark: Benchmark | None = None  # the data set it looks like, complete or not


def open_dataset(root: Path, *, fps: float | None = None, labels: str | None = None) -> Dataset:
    """Find the videos and labels of a data folder; refuses what does not fit together.

    `labels` is `masks`, `frames` or the name of one of the folder's label files.
    """
    return label_videos(find_layout(root), fps=fps, labels=labels)


def label_videos(layout: Layout, *, fps: float | None = None, labels: str | None = None) -> Dataset:
    """The second half of `open_dataset`."""
    notes = list(layout.notes)
    test = list(layout.test)
    masks = find_masks(test, layout.places) if test else None
    chosen = _choose_labels(layout, masks, labels, notes) if test else None
    if not test:
        notes.append("no test videos: there is nothing to evaluate")
    elif chosen is None:
        notes.append("no labels: test videos can be scored, not evaluated")
    by_name = {} if chosen is None else chosen.by_video
    pixels = {} if masks is None else masks.by_video
    done = [replace(v, labels=by_name.get(v.name), masks=pixels.get(v.name)) for v in test]
    for video in done:
        if video.path.is_dir():
            check_length(video, frames_of(video))
        elif video.labels is not None and video.masks is not None:
            check_length(Video(video.name, video.path, video.labels), len(video.masks))
    if fps is None and any(video.path.is_dir() for video in (*layout.train, *test)):
        notes.append(FPS_ASSUMED)
    known = recognise(test)
    if known is not None and (lacking := differences(known, test)):
        notes.append(
            f"looks like {known.title}, but {'; '.join(lacking)}: no figure of it compares with "
            f"published ones"
        )
    mark = fingerprint(done)
    spare = dict.fromkeys(
        [*(chosen.unmatched if chosen else ()), *(masks.unmatched if masks else ())]
    )
    return Dataset(
        root=layout.root,
        train=layout.train,
        test=tuple(done),
        fps=fps,
        fingerprint=mark,
        published=published_as(known, done, mark),
        notes=tuple(notes),
        labels_from=chosen.source if chosen else None,
        masks_from=masks.source if masks else None,
        unmatched=tuple(spare),
        benchmark=known,
    )


def _choose_labels(
    layout: Layout, masks: MaskSet | None, asked: str | None, notes: list[str]
) -> LabelSet | None:
    """The labels that count, having told of all others that were found."""
    test = list(layout.test)
    files = list(label_files(layout.places))
    file = files[0] if files else None
    if asked not in (None, MASKS, FRAMES):
        file = next((f for f in files if f.name.rstrip("/") == asked.rstrip("/")), None)
    if asked is not None and (masks is None if asked == MASKS else file is None):
        there = [f.name for f in files] + ([MASKS] if masks else [])
        raise DataError(
            f"{layout.root}: no labels {asked!r} to choose; there is {listed(there) or 'none'}"
        )
    frames = None if file is None else file.read(file.name, file.path, test)
    from_masks = None if masks is None else _from_masks(masks)
    by_rule = masks is not None and masks.decides
    use_masks = asked == MASKS or (asked is None and (by_rule or frames is None))
    chosen = from_masks if use_masks else frames
    if chosen is None:
        notes += _pickled(layout)
        return None
    others = [f"frame labels {f.name}" for f in files if f is not file]
    notes.append(_found(chosen, test))
    if frames is not None and from_masks is not None:
        notes += _disagreement(frames, from_masks, chosen)
    if others:
        notes.append(f"also there, not read: {listed(others)}; --labels NAME takes them instead")
    return chosen


def _from_masks(masks: MaskSet) -> LabelSet:
    labels = {name: mask.any() for name, mask in masks.by_video.items()}
    source = masks.source if masks.decides else f"pixel masks {masks.source}"
    return LabelSet(source, labels, masks.unmatched)


def _found(chosen: LabelSet, test: list[Video]) -> str:
    missing = [video.name for video in test if video.name not in chosen.by_video]
    return (
        f"labels of {len(test) - len(missing)} of {len(test)} test videos from {chosen.source}"
        + (f"; none for {listed(missing)}" if missing else "")
        + (f"; no video for its {listed(chosen.unmatched)}" if chosen.unmatched else "")
    )


def _disagreement(frames: LabelSet, masks: LabelSet, chosen: LabelSet) -> list[str]:
    """By how much two label sets of one folder differ, where they do."""
    differ: Mapping[str, int] = {
        name: int(np.count_nonzero(frames.by_video[name] != labels))
        for name, labels in masks.by_video.items()
        if name in frames.by_video and len(labels) == len(frames.by_video[name])
    }
    if not any(differ.values()):
        return []
    total = sum(len(masks.by_video[name]) for name in differ)
    n_differ = sum(differ.values())
    where = listed(f"{name}: {n}" for name, n in differ.items() if n)
    other = f"--labels {FRAMES}" if chosen is masks else f"--labels {MASKS}"
    return [
        f"{frames.source} and {masks.source} disagree on {n_differ} of {total} frames "
        f"({n_differ / total:.1%}; {where}); {chosen.source} is used, {other} takes the other"
    ]


def _pickled(layout: Layout) -> list[str]:
    """HF2-VAD ships labels as a pickle under a JSON name; opening one can run any code."""
    for place in layout.places:
        for file in (place / "gt_label.json", place / GROUND_TRUTH / "gt_label.json"):
            if file.is_file() and file.read_bytes()[:1] == b"\x80":
                return [
                    f"{file} is a Python pickle, which is never opened; where you trust it, save "
                    f"its arrays as labels.npz"
                ]
    return []
