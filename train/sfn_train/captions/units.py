"""Cuts videos into units of work: a batch of clips with the frames they are made of.

The clip for predicting frame t is frames t - T to t - 1, and its caption is kept under t - 1. A
unit is always the same positions of a video, whatever has been done before: a resumed run then
computes batches of the same shape, and so the same captions to the last bit.

Axes: T frames a clip.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sfn_rt.frames import FrameSource, Image
from sfn_train.captions.vlm import FRAMES, Clip


@dataclass(frozen=True, eq=False)
class Unit:
    """What one worker does at a time."""

    video: int  # which of the videos
    ends: tuple[int, ...]  # the last observed frame of each clip
    frames: tuple[Image, ...]  # each once, in order
    clips: tuple[Clip, ...]  # indices into `frames`

    def place(self) -> str:
        """For messages."""
        return f"frames {self.ends[0] - FRAMES + 1} to {self.ends[-1]}"


def positions(n_frames: int, stride: int) -> range:
    """The last observed frame of every clip of a video: a frame must follow to be predicted."""
    return range(FRAMES - 1, n_frames - 1, stride)


def cut_units(
    source: FrameSource, number: int, *, stride: int, batch: int, is_done: Callable[[int], bool]
) -> Iterator[Unit | int]:
    """The units of a video that are not done; its number of frames comes last.

    Reads the video once; holds the frames of one unit.
    """
    held: deque[tuple[int, Image]] = deque()  # frames that a clip to come may need
    ends: list[int] = []
    n_frames = 0
    for frame in source:
        n_frames = frame.index + 1
        # Frame t follows the clip that ends at t - 1, so that clip has a frame to predict.
        end = frame.index - 1
        if end >= FRAMES - 1 and (end - FRAMES + 1) % stride == 0:
            ends.append(end)
            if len(ends) == batch:
                if unit := _unit(number, ends, held, is_done):
                    yield unit
                ends = []
        held.append((frame.index, frame.image))
        first = (ends[0] if ends else frame.index) - FRAMES + 1
        while held[0][0] < first:
            held.popleft()
    if ends and (unit := _unit(number, ends, held, is_done)):
        yield unit
    yield n_frames


def _unit(
    number: int, ends: list[int], held: deque[tuple[int, Image]], is_done: Callable[[int], bool]
) -> Unit | None:
    missing = [end for end in ends if not is_done(end)]
    used = sorted({i for end in missing for i in range(end - FRAMES + 1, end + 1)})
    place = {index: i for i, index in enumerate(used)}
    images = dict(held)
    clips = tuple(tuple(place[i] for i in range(e - FRAMES + 1, e + 1)) for e in missing)
    return Unit(number, tuple(missing), tuple(images[i] for i in used), clips) if missing else None
