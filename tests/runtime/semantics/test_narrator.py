"""What captions are made of: the right frames of every window, kept no longer than needed."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from sfn_rt.exceptions import InputError
from sfn_rt.frames import Frame
from sfn_rt.semantics.captioner import Clip, Moment
from sfn_rt.semantics.narrator import (
    Recent,
    check_windows,
    embed,
    pack_moments,
    tell,
    unpack_moments,
)
from sfn_rt.semantics.scene import Scene, Thing

T = 4


class Listing:
    """A captioner that says what it was shown."""

    name = "listing"
    needs_scenes = True

    def caption(self, clip: Clip) -> str:
        first, last = clip.scenes[0].width, clip.scenes[-1].width  # a scene's width is its index
        return f"{first}..{last} {'long' if clip.longer else 'short'}"


def frame(i: int) -> Frame:
    return Frame(i, i / 25, np.full((2, 2, 3), i, np.uint8))


def scene(i: int) -> Scene:
    return Scene(i, 2, (Thing(1.0, 2.0, 3.0, 4.0, 12.0, 0.1 * i, 0.0, 0.0),))


def hidden(indices: Sequence[int]) -> np.ndarray:
    return np.array(indices, np.float32)[:, None, None] + np.zeros((2, 3), np.float32)


def moments(
    recent: Recent, indices: Sequence[int], sizes: Sequence[int] = (8,), deep: bool = False
) -> list[Moment]:
    seen, at, turn = [], 0, 0
    while at < len(indices):
        block = indices[at : at + sizes[turn % len(sizes)]]
        frames, scenes = [frame(i) for i in block], [scene(i) for i in block]
        step = recent.step(frames, scenes, hidden(block) if deep else None)
        for predicted, moment in step:
            seen.append(moment())
            assert (seen[-1].t, seen[-1].time_s) == (predicted.index, predicted.time_s)
        at, turn = at + len(block), turn + 1
    return seen


def shown(moment: Moment) -> tuple[object, ...]:
    """All of a moment, comparable."""
    frames = [(f.index, f.time_s, f.image.tolist()) for f in moment.frames]
    deep = None if moment.hidden is None else moment.hidden.tolist()
    return moment.t, moment.time_s, frames, list(moment.scenes), deep


@pytest.mark.parametrize("sizes", [(1,), (5, 2), (8,), (99,)], ids=str)
def test_a_moment_is_of_the_frames_just_before(sizes: Sequence[int]) -> None:
    seen = moments(Recent(T, (2, 4, 16)), range(24), sizes, deep=True)
    assert [moment.t for moment in seen] == list(range(T, 24))
    for moment in seen:
        t = moment.t
        expected = Moment(
            t,
            t / 25,
            [frame(i) for i in range(t - T, t)],
            [scene(i) for i in range(max(0, t - 16), t)],
            hidden(range(t - T, t)),
        )
        assert shown(moment) == shown(expected)


def test_what_the_tower_did_not_see_is_not_there() -> None:
    assert {moment.hidden for moment in moments(Recent(T, (4,)), range(20))} == {None}


def test_a_stretch_of_a_video_begins_with_what_it_has() -> None:
    first = moments(Recent(T, (4, 8)), range(21, 33))[0]
    assert first.t == 25
    assert [one.width for one in first.scenes] == [21, 22, 23, 24]


@pytest.mark.parametrize("done", [2, 4, 7, 16, 23])
@pytest.mark.parametrize("deep", [True, False])
def test_state_continues_to_the_same_moments(done: int, deep: bool) -> None:
    whole = moments(Recent(T, (4, 8, 16)), range(30), (done, 5), deep)
    first = Recent(T, (4, 8, 16))
    seen = moments(first, range(done), (done,), deep)
    arrays, plain = first.state()
    again = Recent(T, (4, 8, 16))
    again.restore({k: v.copy() for k, v in arrays.items()}, json.loads(json.dumps(plain)))
    seen += moments(again, range(done, 30), (5,), deep)
    assert [shown(one) for one in seen] == [shown(one) for one in whole]


def test_only_scenes_are_kept_of_the_longer_windows_and_no_more_than_those() -> None:
    for windows, scenes in (((4,), 4), ((4, 32), 32), ((2,), 4)):
        recent = Recent(T, windows)
        moments(recent, range(100), deep=True)
        arrays, plain = recent.state()
        assert sorted(arrays) == [f"{kind}/{i}" for kind in ("hidden", "image") for i in range(T)]
        assert len(plain["recent"]) == T
        assert len(plain["scenes"]) == scenes


def test_packed_moments_are_the_same_again_and_share_their_pictures() -> None:
    seen = moments(Recent(T, (4, 8)), range(12), deep=True)[2:5]
    seen[1] = moments(Recent(T, (4, 8)), range(12))[3]
    arrays, plain = pack_moments(seen)
    pictures = [name for name in arrays if name.startswith("image/")]
    assert len(pictures) == T + 2  # three moments in a row
    again = unpack_moments(arrays, json.loads(json.dumps(plain)))
    assert [shown(one) for one in again] == [shown(one) for one in seen]


def test_every_window_is_told_of_its_own_scenes() -> None:
    scenes = [scene(i) for i in range(4, 20)]
    assert tell(Listing(), 20, (2, 4, 9, 16), T, scenes) == (
        "18..19 short",
        "16..19 short",
        "11..19 long",
        "4..19 long",
    )


def test_frames_are_those_observed_even_of_longer_windows() -> None:
    clips: list[Clip] = []

    class Keeping(Listing):
        def caption(self, clip: Clip) -> str:
            clips.append(clip)
            return super().caption(clip)

    for moment in moments(Recent(T, (2, 4, 16)), range(24)):
        tell(Keeping(), moment.t, (2, 4, 16), T, moment.scenes, moment.frames)
    for clip in clips:
        held = min(len(clip.scenes), T)
        indices = [f.index for f in clip.frames]
        assert indices == list(range(clip.end_frame - held + 1, clip.end_frame + 1))


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
