"""Which normal footage calibrates, and which the gate holds out; recorded by identity and hash.

Test videos are refused wherever they come from: the data set's own test part, a folder of it given
as if it were a data set, a published test part under any name, a copy among the normal videos.

The gate prefers footage that the model was not trained on, where the run or training's default
rule tells which that was. Calibration and gate never share a video, unless there are too few
videos for that: then each video's beginning calibrates and its end is for the gate.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sfn_calib.exceptions import CalibrationError
from sfn_rt.bundle import Provenance
from sfn_rt.datasets import Dataset, Video
from sfn_rt.datasets.known import recognise
from sfn_rt.datasets.labels import label_files
from sfn_rt.datasets.layout import TEST_FOLDERS
from sfn_rt.datasets.video import frames_of
from sfn_rt.frames import frame_files, open_source
from sfn_rt.normal import SAME_SCENE, SceneModel
from sfn_rt.semantics.cached import file_sha256, video_sha256
from sfn_train.config import DataConfig
from sfn_train.data.split import split_footage

RUN = 8  # clips of consecutive frames: neighbours share encoder work, runs bring variety
STRETCH = 100  # frames the gate scores in one go; all of them are in memory
LEAST_STRETCH = 30  # frames
LEAST_GATE = 90  # frames held out
ENOUGH_VIDEOS = 3  # from here on calibration and gate have videos of their own
CALIBRATES = 0.25  # share of the videos, or of each of a few videos, that calibrates
SHARED = 0.1  # of a folder's pictures also in a test video's make it a copy of that


@dataclass(frozen=True)
class Stretch:
    """Frames start .. stop - 1 of one normal video."""

    video: str
    path: Path
    sha256: str  # of the video's content
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def to_json(self) -> dict[str, Any]:
        """Without the path, which names a machine."""
        return {name: value for name, value in asdict(self).items() if name != "path"}


@dataclass(frozen=True)
class Clips:
    """What a precision is calibrated and judged on."""

    calibration: tuple[Stretch, ...]  # each gives as many clips as it has frames behind the first T
    gate: tuple[Stretch, ...]
    notes: tuple[str, ...]  # for the user: what was found, assumed or left out

    @property
    def gate_frames(self) -> int:
        """All frames held out for the gate."""
        return sum(map(len, self.gate))

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "calibration": [stretch.to_json() for stretch in self.calibration],
            "gate": [stretch.to_json() for stretch in self.gate],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class HeldOut:
    """What the model was not trained on: frames by video name, and how that is known."""

    spans: Mapping[str, tuple[int, int]]
    why: str


def choose_clips(
    dataset: Dataset,
    scene: SceneModel,
    held_out: HeldOut | None,
    *,
    observed: int,
    clips: int,
    gate_frames: int,
) -> Clips:
    """Clips for calibration and stretches for the gate, always the same for the same footage."""
    refuse_test_part(dataset)
    notes: list[str] = []
    videos = _of_the_scene(dataset, scene, notes)
    hashes = _hash_all(videos, dataset.test, notes)
    videos = [video for video in videos if video.name in hashes]
    lengths = {video.name: frames_of(video) for video in videos}
    unseen = held_out.spans if held_out is not None else {}
    notes.append(
        f"the gate prefers what the model was not trained on, {held_out.why}"
        if held_out is not None
        else "which footage the model was trained on is not known here; --run names its run"
    )
    if len(videos) >= ENOUGH_VIDEOS:
        ours, theirs = _by_video(videos, lengths, unseen)
    else:
        notes.append(
            f"only {len(videos)} normal video{'' if len(videos) == 1 else 's'}: the beginning "
            f"calibrates, the end is held out for the gate"
        )
        ours, theirs = _by_time(videos, lengths)
    by_name = {video.name: video for video in videos}

    def stretch(name: str, start: int, stop: int) -> Stretch:
        return Stretch(name, by_name[name].path, hashes[name], start, stop)

    calibration = [stretch(*span) for span in spread_runs(ours, observed, clips)]
    gate = [stretch(*span) for span in _cut(theirs, gate_frames)]
    found = sum(len(part) - observed for part in calibration)
    if found < clips:
        raise CalibrationError(
            f"{dataset.root}: its normal footage has room for {found} calibration clips, {clips} "
            f"are wanted; give more footage, or lower --clips"
        )
    chosen = Clips(tuple(calibration), tuple(gate), tuple(notes))
    if chosen.gate_frames < LEAST_GATE:
        raise CalibrationError(
            f"{dataset.root}: {chosen.gate_frames} normal frames are left for the gate, which "
            f"needs {LEAST_GATE} in stretches of {LEAST_STRETCH}; give more normal footage"
        )
    return chosen


def known_held_out(
    dataset: Dataset, provenance: Provenance, run: Mapping[str, Any] | None
) -> HeldOut | None:
    """What the model was not trained on: from its run's split, else by training's default rule."""
    if run is not None:
        spans = {s["video"]: (s["start"], s["stop"]) for s in run["split"]["held_out"]}
        return HeldOut(spans, "as its run says")
    lengths = [frames_of(video) for video in dataset.train]
    if (provenance.n_videos, provenance.n_frames) != (len(lengths), sum(lengths)):
        return None
    defaults = DataConfig()
    split = split_footage(lengths, defaults.held_out, defaults.run_length)
    spans = {dataset.train[s.video].name: (s.start, s.stop) for s in split.held_out}
    return HeldOut(spans, "by training's default rule for these videos; --run would tell for sure")


# --- test videos ------------------------------------------------------------------------------


def refuse_test_part(dataset: Dataset) -> None:
    """Refuse a data set without normal videos, and a test part that is given as if it were one."""
    root = dataset.root
    if not dataset.train:
        raise CalibrationError(
            f"{root}: no normal videos to calibrate on, only {len(dataset.test)} test videos, "
            f"which take no part; put normal footage into a folder `training`"
        )
    if not dataset.test:
        place = root.resolve()
        place = place.parent if place.name.lower() in ("frames", "videos") else place
        if place.name.lower() in TEST_FOLDERS:
            raise _test_videos(f"{root} is the test part of a data set")
        for file in label_files([root]):
            raise _test_videos(f"{root} holds labels ({file.name}), as only test parts do")
    if (known := recognise(dataset.train)) is not None:
        raise _test_videos(f"{root}: these are the test videos of {known.title}")


def _test_videos(found: str) -> CalibrationError:
    return CalibrationError(
        f"{found}; a precision is calibrated and gated on normal videos alone, never on test "
        f"videos: give the data set's folder, or one of normal footage"
    )


def _hash_all(videos: Sequence[Video], test: Sequence[Video], notes: list[str]) -> dict[str, str]:
    """sha256 by name of the videos to use; one whose content is a test video's is refused."""
    test_videos = {video_sha256(video.path): video.name for video in test}
    pictures = {sha: v.name for v in test for sha in _pictures(v)}
    found: dict[str, str] = {}
    by_sha: dict[str, str] = {}
    for video in videos:
        sha = video_sha256(video.path)
        own = _pictures(video)
        shared = [pictures[picture] for picture in own if picture in pictures]
        copied = test_videos.get(sha) or (shared[0] if len(shared) > SHARED * len(own) else None)
        if copied is not None:
            raise _test_videos(f"{video.path} has the content of the test video {copied}")
        if sha in by_sha:
            notes.append(f"{video.name} is left out: its content is that of {by_sha[sha]}")
            continue
        by_sha[sha] = video.name
        found[video.name] = sha
    return found


def _pictures(video: Video) -> list[str]:
    """sha256 of each picture of a folder of them, whatever they are called."""
    if not video.path.is_dir():
        return []
    return [file_sha256(file) for file in frame_files(video.path)]


# --- which frames -----------------------------------------------------------------------------


def _of_the_scene(dataset: Dataset, scene: SceneModel, notes: list[str]) -> list[Video]:
    """The videos that show the scene the model was trained on."""
    found: list[tuple[Video, float]] = []
    others: list[tuple[Video, float]] = []
    for video in dataset.train:
        with open_source(video.path, fps=dataset.fps) as source:
            first = next(iter(source))
        likeness = scene.likeness(first.image)
        (found if likeness >= SAME_SCENE else others).append((video, likeness))
    if not found:
        best = max(likeness for _, likeness in others)
        raise CalibrationError(
            f"{dataset.root}: none of its {len(others)} normal videos shows the scene that the "
            f"model was trained on (likeness {best:.2f} at most, expected above {SAME_SCENE}); "
            f"give footage of that camera"
        )
    if others:
        names = ", ".join(video.name for video, _ in others)
        notes.append(f"left out, as they show another scene than the model's: {names}")
    return [video for video, _ in found]


Spans = list[tuple[str, int, int]]  # video, start, stop


def _by_video(
    videos: Sequence[Video], lengths: Mapping[str, int], unseen: Mapping[str, tuple[int, int]]
) -> tuple[Spans, Spans]:
    """Videos of their own for calibration, spread over the recording, and for the gate."""
    seen = [video.name for video in videos if video.name not in unseen]
    preferred = [video.name for video in videos if video.name in unseen]
    if not seen:  # all in one: no preference is possible
        seen, preferred = preferred, []
    n = max(1, round(CALIBRATES * len(videos)))
    n = min(n, len(seen) if preferred else len(seen) - 1)
    picked = [seen[int((i + 0.5) * len(seen) / n)] for i in range(n)]
    rest = [name for name in seen if name not in picked]
    unseen_first = [(name, *_within(unseen[name], lengths[name])) for name in preferred]
    return (
        [(name, 0, lengths[name]) for name in picked],
        [*unseen_first, *((name, 0, lengths[name]) for name in rest)],
    )


def _within(span: tuple[int, int], length: int) -> tuple[int, int]:
    return min(span[0], length), min(span[1], length)


def _by_time(videos: Sequence[Video], lengths: Mapping[str, int]) -> tuple[Spans, Spans]:
    """The beginning of each video for calibration, the rest for the gate."""
    cuts = {video.name: round(CALIBRATES * lengths[video.name]) for video in videos}
    return (
        [(name, 0, cut) for name, cut in cuts.items()],
        [(name, cut, lengths[name]) for name, cut in cuts.items()],
    )


def spread_runs(spans: Spans, observed: int, clips: int) -> Spans:
    """Runs of consecutive clips spread evenly over the spans; the last one may be shorter."""
    length = observed + RUN
    places = [
        (name, at) for name, start, stop in spans for at in range(start, stop - length + 1, length)
    ]
    n = min(len(places), -(-clips // RUN))
    runs = [
        (name, at, at + length)
        for name, at in (places[int((i + 0.5) * len(places) / n)] for i in range(n))
    ]
    over = sum(stop - start - observed for _, start, stop in runs) - clips
    if runs and over > 0:
        name, start, stop = runs[-1]
        runs[-1] = (name, start, stop - over)
    return runs


def _cut(spans: Spans, frames: int) -> Iterable[tuple[str, int, int]]:
    """Stretches of bounded length, from the front, until there are enough frames."""
    left = frames
    for name, start, stop in spans:
        parts = max(1, -(-(stop - start) // STRETCH))
        edges = [start + (stop - start) * i // parts for i in range(parts + 1)]
        for first, end in pairwise(edges):
            if left <= 0:
                return
            if end - first >= LEAST_STRETCH:
                left -= end - first
                yield name, first, end
