"""The published data sets this project names: what belongs to them, and where they are offered.

A result may carry a paper's constants only if it was measured on that paper's data. Ped2 is
told by the fingerprint of its labels; Avenue and ShanghaiTech, whose labels circulate in several
forms, by their test videos.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sfn_rt.datasets.video import Video, frames_of, listed, numbered
from sfn_rt.exceptions import VideoError
from sfn_rt.frames import open_source

UCSD = "http://www.svcl.ucsd.edu/projects/anomaly/dataset.htm"
AVENUE = "https://www.cse.cuhk.edu.hk/leojia/projects/detectabnormal/dataset.html"
SHANGHAITECH = "https://svip-lab.github.io/dataset/campus_dataset.html"

LOOKS_ALIKE = 0.6  # share of test videos of the right length that makes a folder this data set
SCENE_AND_CLIP = re.compile(r"\d\d_\d{4}")  # ShanghaiTech's names of test videos


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One published data set; counts are of its training and test part."""

    key: str  # also the name of its published constants, where it has any
    title: str
    owners: str  # the page where they offer it
    videos: tuple[int, int]
    frames: tuple[int, int]
    test_frames: tuple[int, ...] = ()  # of each test video, by number
    size: tuple[int, int] | None = None  # width, height, where counts alone could be anyone's
    fingerprints: frozenset[str] = frozenset()  # of its labels, where they are known
    published: bool = True  # the paper gives constants for it


BENCHMARKS = (
    Benchmark(
        key="ped1",
        title="UCSD Ped1",
        owners=UCSD,
        videos=(34, 36),
        frames=(6800, 7200),
        test_frames=(200,) * 36,
        size=(238, 158),
        published=False,
    ),
    Benchmark(
        key="ped2",
        title="UCSD Ped2",
        owners=UCSD,
        videos=(16, 12),
        frames=(2550, 2010),
        test_frames=(180, 180, 150, 180, 150, 180, 180, 180, 120, 150, 180, 180),
        # The same labels under the names 01 and Test001.
        fingerprints=frozenset({"5aa29fedb448da1e", "f8fa623e1a54e9d8"}),
    ),
    Benchmark(
        key="avenue",
        title="CUHK Avenue",
        owners=AVENUE,
        videos=(16, 21),
        frames=(15328, 15324),
        test_frames=(
            *(1439, 1211, 923, 947, 1007, 1283, 605, 36, 1175, 841, 472),
            *(1271, 549, 507, 1001, 740, 426, 294, 248, 273, 76),
        ),
    ),
    Benchmark(
        key="shanghaitech",
        title="ShanghaiTech Campus",
        owners=SHANGHAITECH,
        videos=(330, 107),
        frames=(274515, 40791),  # its paper counts 42883 test frames; 40791 are in the archive
    ),
)


def recognise(test: Sequence[Video]) -> Benchmark | None:
    """The data set that these test videos are of, even if some are missing or cut short."""
    return next((known for known in BENCHMARKS if _looks_like(known, test)), None)


def _looks_like(known: Benchmark, test: Sequence[Video]) -> bool:
    most = max(known.videos[1], len(test))
    if min(known.videos[1], len(test)) < LOOKS_ALIKE * most:
        return False
    if not known.test_frames:
        return all(SCENE_AND_CLIP.fullmatch(video.name) for video in test)
    if not numbered(test) or most - len(wrong_videos(known, test)) < LOOKS_ALIKE * most:
        return False
    return known.size is None or known.size == _size(test[0])


def differences(known: Benchmark, test: Sequence[Video]) -> list[str]:
    """What is missing from the data set's test videos, or other than its owners' archive has it."""
    if wrong := wrong_videos(known, test):
        names = {number: video.name for number, video in numbered(test).items()}
        gone = [f"{number:02}" for number in wrong if number not in names]
        other = [names[number] for number in wrong if number > known.videos[1]]
        said = [
            f"test video {names[number]} has {found} frames, not {expected}"
            for number, (expected, found) in wrong.items()
            if number in names and expected
        ]
        if gone:
            said.insert(0, f"test video {listed(gone)} is missing")
        if other:
            said.append(f"it has no test video {listed(other)}")
        return said
    said = []
    if len(test) != known.videos[1]:
        said.append(f"{len(test)} test videos, not {known.videos[1]}")
    elif (found := sum(map(stated_frames, test))) != known.frames[1]:
        said.append(f"{found} frames of test videos, not {known.frames[1]}")
    return said


def wrong_videos(known: Benchmark, test: Sequence[Video]) -> dict[int, tuple[int, int]]:
    """Test videos by number whose frames are not what the data set has: expected, found."""
    if not known.test_frames:
        return {}
    expected = dict(enumerate(known.test_frames, start=1))
    found = {number: stated_frames(video) for number, video in numbered(test).items()}
    return {
        number: (expected.get(number, 0), found.get(number, 0))
        for number in sorted(expected | found)
        if expected.get(number) != found.get(number)
    }


def published_as(known: Benchmark | None, test: Sequence[Video], mark: str | None) -> str | None:
    """The name of the constants a paper gives for exactly these test videos and labels."""
    if known is None or not known.published or mark is None:
        return None
    if known.fingerprints:
        return known.key if mark in known.fingerprints else None
    labelled = all(video.labels is not None for video in test)
    return known.key if labelled and not differences(known, test) else None


def stated_frames(video: Video) -> int:
    """Frames of a video as its folder or its header states them; nothing more is decoded."""
    if video.path.is_dir():
        return frames_of(video)
    try:
        with open_source(video.path, threads=1) as source:
            return source.n_frames or 0
    except VideoError:  # whoever needs its frames says what is wrong with it
        return 0


def _size(video: Video) -> tuple[int, int] | None:
    try:
        with open_source(video.path, threads=1) as source:
            return source.width, source.height
    except VideoError:
        return None
