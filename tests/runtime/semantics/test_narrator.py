"""Captions of windows: made of the right frames, held for a stride, exact after a stop."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from sfn_rt.exceptions import InputError
from sfn_rt.frames import Frame
from sfn_rt.semantics.captioner import Clip
from sfn_rt.semantics.narrator import Narrator, check_windows, embed, tell
from sfn_rt.semantics.scene import Scene, Thing

T = 4


class Listing:
    """A captioner that says what it was shown."""

    name = "listing"
    needs_scenes = True

    def __init__(self) -> None:
        self.clips: list[Clip] = []

    def caption(self, clip: Clip) -> str:
        self.clips.append(clip)
        first, last = clip.scenes[0].width, clip.scenes[-1].width  # a scene's width is its index
        return f"{first}..{last} {'long' if clip.longer else 'short'}"


def frame(i: int) -> Frame:
    return Frame(i, i / 25, np.full((2, 2, 3), i, np.uint8))


def scene(i: int) -> Scene:
    return Scene(i, 2, (Thing(1.0, 2.0, 3.0, 4.0, 12.0, 0.1 * i, 0.0, 0.0),))


def narrate(
    narrator: Narrator, indices: Sequence[int], sizes: Sequence[int] = (8,)
) -> list[tuple[str, ...]]:
    told, at, turn = [], 0, 0
    while at < len(indices):
        block = indices[at : at + sizes[turn % len(sizes)]]
        told += narrator.step([frame(i) for i in block], [scene(i) for i in block])
        at, turn = at + len(block), turn + 1
    return told


def make(captioner: Listing, windows: Sequence[int], stride: int = 3) -> Narrator:
    return Narrator(captioner, observed=T, stride=stride, windows=windows)


@pytest.mark.parametrize("sizes", [(1,), (5, 2), (8,), (99,)], ids=str)
def test_a_window_ends_just_before_its_frame(sizes: Sequence[int]) -> None:
    told = narrate(make(Listing(), (2, 4, 8, 16)), range(24), sizes)
    assert len(told) == 20
    for t, captions in enumerate(told, start=T):
        made = t - (t - T) % 3
        assert captions == tuple(
            f"{max(0, made - w)}..{made - 1} {'long' if w > T else 'short'}" for w in (2, 4, 8, 16)
        )


def test_frames_are_those_observed_even_of_longer_windows() -> None:
    listing = Listing()
    narrate(make(listing, (2, 4, 16)), range(24))
    for clip in listing.clips:
        held = min(len(clip.scenes), T)
        indices = [f.index for f in clip.frames]
        assert indices == list(range(clip.end_frame - held + 1, clip.end_frame + 1))


def test_training_tells_the_same_as_a_stream() -> None:
    scenes = [scene(i) for i in range(24)]
    told = narrate(make(Listing(), (4, 9), stride=1), range(24))
    for t in range(T, 24):
        assert told[t - T] == tell(Listing(), t, (4, 9), T, scenes[max(0, t - 9) : t])


def test_a_stretch_of_a_video_begins_with_what_it_has() -> None:
    told = narrate(make(Listing(), (4, 8)), range(21, 33))
    assert told[0] == ("21..24 short", "21..24 long")
    assert told[-1] == ("27..30 short", "23..30 long")  # made at 31, the last of 4, 7, 10, ...


@pytest.mark.parametrize("done", [2, 4, 7, 16, 23])
def test_state_continues_to_the_same_captions(done: int) -> None:
    whole = narrate(make(Listing(), (4, 8, 16)), range(30), (done, 5))
    first = make(Listing(), (4, 8, 16))
    told = narrate(first, range(done), (done,))
    arrays, plain = first.state()
    again = make(Listing(), (4, 8, 16))
    again.restore({k: v.copy() for k, v in arrays.items()}, json.loads(json.dumps(plain)))
    assert told + narrate(again, range(done, 30), (5,)) == whole


def test_only_scenes_are_kept_of_the_longer_windows_and_no_more_than_those() -> None:
    for windows, scenes in (((4,), 4), ((4, 32), 32), ((2,), 4)):
        narrator = make(Listing(), windows)
        narrate(narrator, range(100))
        arrays, plain = narrator.state()
        assert len(arrays) == len(plain["recent"]) == T
        assert len(plain["scenes"]) == scenes


def test_without_a_captioner_nothing_is_told_but_frames_are_counted() -> None:
    narrator = Narrator(None, observed=T, stride=3, windows=(4,))
    assert narrate(narrator, range(10)) == [()] * 6


def test_embeddings_of_a_clips_captions_lie_side_by_side() -> None:
    class Numbers:
        def encode(self, sentences: Sequence[str]) -> np.ndarray:
            return np.array([[float(text), -float(text)] for text in sentences], np.float32)

    both = embed(Numbers(), [("1", "2"), ("3", "4"), ("5", "6")])
    np.testing.assert_array_equal(both, [[1, -1, 2, -2], [3, -3, 4, -4], [5, -5, 6, -6]])


def test_captions_from_a_file_serve_one_window() -> None:
    class FromFile(Listing):
        name = "cached"

    check_windows(FromFile(), (4,))
    check_windows(Listing(), (4, 8))
    with pytest.raises(InputError, match=r"captions from a file .* reads 2 of 4, 8 frames; leave"):
        check_windows(FromFile(), (4, 8))
