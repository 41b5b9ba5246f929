"""What a data folder holds, said before hours are spent on it: `data check`.

Reports the videos, labels and masks that training and evaluation would use, and every reason why
they would not work or not compare with published figures. It downloads nothing; where something
is missing it names the page of the data set's owners.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfn_rt.datasets.dataset import Dataset, label_videos
from sfn_rt.datasets.known import BENCHMARKS, Benchmark, differences, recognise
from sfn_rt.datasets.layout import Layout, find_layout
from sfn_rt.datasets.video import Video, check_length, frames_of, listed
from sfn_rt.exceptions import DataError, SfnError, VideoError
from sfn_rt.frames import FPS_ASSUMED, frame_files, open_source
from sfn_rt.printable import printable
from sfn_rt.progress import Progress

COLUMN = 11  # where the second column of the report begins


@dataclass(frozen=True)
class DataReport:
    """What was found, line by line, and what keeps it from being used as it is."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]

    def text(self) -> str:
        """For people; the problems are for the caller to print."""
        return "\n".join(self.lines)


@dataclass(frozen=True)
class Looked:
    """One video as it was read."""

    n_frames: int
    size: tuple[int, int]  # width, height
    fps: float | None  # None: it does not say
    warnings: tuple[str, ...]


def check_data(
    root: Path,
    *,
    fps: float | None = None,
    labels: str | None = None,
    quick: bool = False,
    progress: bool = True,
) -> DataReport:
    """Look at everything in a data folder; every frame is decoded unless `quick`."""
    try:
        layout = find_layout(root)
    except DataError as error:
        offers = (f"{known.title}: {known.owners}" for known in BENCHMARKS)
        return DataReport(tuple(_line("offered", text) for text in offers), (str(error),))
    problems: list[str] = []
    seen = _look_at_all([*layout.train, *layout.test], fps, quick, problems, progress)
    known = recognise(layout.test)
    try:
        dataset = label_videos(layout, fps=fps, labels=labels)
    except SfnError as error:
        dataset = None
        problems.append(str(error))
    title = known.title if known else "no published data set that is known here"
    lines = [printable(f"{root}: {title}")]
    lines += _videos("training", layout, layout.train, seen)
    lines += _videos("test", layout, layout.test, seen)
    lines.append(_line("fps", _rates(list(seen.values()), fps)))
    if dataset is not None:
        lines += _labels(dataset)
        problems += _label_problems(dataset, seen, known)
        lines += [_line("note", note) for note in _other_notes(dataset)]
    if known is not None:
        expected, lacking = _against_owners(known, layout, seen)
        lines += expected
        problems += lacking
        if problems:
            lines.append(_line("offered", f"{known.title}: {known.owners}"))
    lines += [
        _line("warning", f"{video.name}: {text}")
        for video, look in seen.items()
        for text in look.warnings
    ]
    uses = _uses(layout, dataset) if not problems else "not as it is"
    lines.append(_line("usable", uses))
    return DataReport(tuple(lines), tuple(problems))


def _line(name: str, text: str) -> str:
    return f"{name:<{COLUMN}}{printable(text)}"


# ---------------------------------------------------------------------------- videos


def _look_at_all(
    videos: Sequence[Video],
    fps: float | None,
    quick: bool,
    problems: list[str],
    progress: bool,
) -> dict[Video, Looked]:
    """Every video that can be read; what cannot is a problem."""
    seen = {}
    with Progress("looking", len(videos), enabled=progress) as bar:
        for video in videos:
            try:
                look = _look(video, fps, quick)
            except VideoError as error:
                problems.append(str(error))
            else:
                seen[video] = look
            bar.advance()
    return seen


def _look(video: Video, fps: float | None, quick: bool) -> Looked:
    with open_source(video.path, fps=fps) as source:
        n_frames = frames_of(video) if quick else sum(1 for _ in source)
        if source.problem is not None:
            way_out = (
                "; a copy of the frame before it keeps labels in step, removing it would not"
                if video.path.is_dir()
                else "; copy it again"
            )
            raise VideoError(f"{video.path}: {source.problem}{way_out}")
        warnings = tuple(text for text in source.warnings if text != FPS_ASSUMED)
        size = (source.width, source.height)
        return Looked(n_frames, size, source.fps if source.fps_known else None, warnings)


def _videos(
    name: str, layout: Layout, videos: Sequence[Video], seen: dict[Video, Looked]
) -> list[str]:
    if not videos:
        return [_line(name, "no videos")]
    looks = [seen[video] for video in videos if video in seen]
    sizes = Counter(look.size for look in looks).most_common()
    kinds = Counter(_kind(video) for video in videos).most_common()
    n_frames = sum(look.n_frames for look in looks)
    text = f"{_count(len(videos), 'video')}, {n_frames} frames"
    if sizes:
        text += f" of {listed(f'{width}x{height}' for (width, height), _ in sizes)}"
    first = videos[0].path.relative_to(layout.root).as_posix()
    kind = listed(kind for kind, _ in kinds)
    return [_line(name, text), _line("", f"{kind}, {first} to {videos[-1].path.name}")]


def _kind(video: Video) -> str:
    if not video.path.is_dir():
        return f"{video.path.suffix.lower()} files"
    return f"folders of {frame_files(video.path)[0].suffix.lower()}"


def _rates(looks: Sequence[Looked], given: float | None) -> str:
    if given is not None:
        return f"{given:g}, as given"
    stated = sorted({round(look.fps, 3) for look in looks if look.fps is not None})
    text = listed(f"{rate:g}" for rate in stated)
    if any(look.fps is None for look in looks):
        return f"{text}; {FPS_ASSUMED}" if text else FPS_ASSUMED
    return text or "no video could be read"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# ---------------------------------------------------------------------------- labels


def _labels(dataset: Dataset) -> list[str]:
    labelled = [video.labels for video in dataset.test if video.labels is not None]
    if not labelled:
        return [_line("labels", "none")] if dataset.test else []
    frames = sum(map(len, labelled))
    abnormal = sum(int(labels.sum()) for labels in labelled)
    whole = sum(bool(labels.all()) for labels in labelled)
    masked = sum(video.masks is not None for video in dataset.test)
    constants = (
        f"the paper's for {dataset.published}" if dataset.published else "default, none published"
    )
    return [
        _line(
            "labels", f"{dataset.labels_from}, {len(labelled)} of {len(dataset.test)} test videos"
        ),
        _line(
            "",
            f"{abnormal} of {frames} frames abnormal, {(frames - abnormal) / frames:.1%} normal; "
            f"{_count(whole, 'video')} abnormal throughout",
        ),
        _line("", f"fingerprint {dataset.fingerprint}; constants {constants}"),
        _line(
            "masks",
            f"{dataset.masks_from}, {masked} of {len(dataset.test)} test videos"
            if masked
            else "none: no localisation figures",
        ),
    ]


def _other_notes(dataset: Dataset) -> list[str]:
    """Notes that no other line of the report has said."""
    said = ("labels of ", "no labels", "no test videos", "looks like ", FPS_ASSUMED)
    return [note for note in dataset.notes if not note.startswith(said)]


def _label_problems(
    dataset: Dataset, seen: dict[Video, Looked], known: Benchmark | None
) -> list[str]:
    problems = []
    without = [video.name for video in dataset.test if video.labels is None]
    if without and (dataset.labels_from is not None or known is not None):
        problems.append(
            f"{dataset.root}: no labels for {listed(without)}, so evaluation leaves "
            f"{'it' if len(without) == 1 else 'them'} out; add what the owners ship, or one array "
            f"of 0 and 1 a video in frame_labels.npz"
        )
    if dataset.unmatched:
        problems.append(
            f"{dataset.root}: labels or masks of {listed(dataset.unmatched)}, but no test video of "
            f"that name; add what is missing, or remove the labels"
        )
    looked = {video.path: look for video, look in seen.items()}
    for video in dataset.test:
        if video.path in looked:
            try:
                check_length(video, looked[video.path].n_frames)
            except DataError as error:
                problems.append(str(error))
    labelled = [video.labels for video in dataset.test if video.labels is not None]
    if labelled and len(np.unique(np.concatenate(labelled))) == 1:
        problems.append(f"{dataset.root}: all labels are {labelled[0][0]}; AUC needs both classes")
    return problems


# ---------------------------------------------------------------------------- owners


def _against_owners(
    known: Benchmark, layout: Layout, seen: dict[Video, Looked]
) -> tuple[list[str], list[str]]:
    """What the owners' archive has beside what is here: lines, and problems."""
    trained = sum(seen[video].n_frames for video in layout.train if video in seen)
    problems = [
        f"{layout.root}: {known.title}, but {text}; copy it from the owners' archive again"
        for text in differences(known, layout.test)
    ]
    if len(layout.train) != known.videos[0]:
        problems.append(
            f"{layout.root}: {known.title}, but {_count(len(layout.train), 'training video')}, not "
            f"{known.videos[0]}; copy them from the owners' archive again"
        )
    text = (
        f"{known.videos[0]} + {known.videos[1]} videos, {known.frames[0]} + {known.frames[1]} "
        f"frames in the owners' archive"
    )
    if not problems:
        # Extraction tools differ by a frame or so; no label depends on training frames.
        off = trained - known.frames[0]
        text += f"; training has {off:+} frames" if off else "; all here"
    return [_line("expected", text)], problems


def _uses(layout: Layout, dataset: Dataset | None) -> str:
    uses = ["training"] if layout.train else []
    uses += ["scoring"] if layout.test else []
    uses += ["evaluation"] if dataset is not None and dataset.labels_from else []
    return f"for {', '.join(uses)}"
