"""What captions are made of, how a captioner is asked for them, and how they become numbers.

The caption of window w for predicting frame t tells of the frames max(0, t - w) .. t - 1; a
stretch of a video begins with what it has. At which frames captions are made is lane.py's matter.

Kept are the last T frames, and of what moved as many frames as the longest window needs: pictures
of the longer windows would be most of a stream's memory, and only what moved in them is told.

Axes: b frames of a block, p of them predicted, T observed frames, K windows, S text width, N
patches and C width of the vision tower.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

import numpy as np

from sfn_rt.backends.base import Array
from sfn_rt.exceptions import InputError
from sfn_rt.frames import Frame
from sfn_rt.semantics.captioner import Captioner, Clip, Moment
from sfn_rt.semantics.scene import Scene, Thing


class SentenceEncoder(Protocol):
    """Embeds sentences: the device's TextEncoder, or the trainer's."""

    def encode(self, sentences: Sequence[str]) -> Array:
        """n sentences to (n, S) float32, each row of length 1."""
        ...


def tell(
    captioner: Captioner,
    t: int,
    windows: Sequence[int],
    observed: int,
    scenes: Sequence[Scene],
    frames: Sequence[Frame] = (),
) -> tuple[str, ...]:
    """The caption of each window for predicting frame t; `scenes` and `frames` end just before."""
    return tuple(
        captioner.caption(Clip(t - 1, frames[-w:], scenes[-w:], longer=w > observed))
        for w in windows
    )


def embed(text: SentenceEncoder, captions: Sequence[Sequence[str]]) -> Array:
    """K captions of each of p clips to (p, K S), windows side by side."""
    rows = text.encode([caption for told in captions for caption in told])  # (p K, S)
    return rows.reshape(len(captions), -1)


def check_windows(captioner: Captioner, windows: Sequence[int]) -> None:
    """Refuse captions that were made of one window where the model reads several."""
    if len(windows) > 1 and captioner.name == "cached":
        raise InputError(
            f"captions from a file tell of one window of frames, this model reads "
            f"{len(windows)} of {', '.join(map(str, windows))} frames; leave the captions out so "
            f"that the scene is described, or train with model.windows=[]"
        )


class Recent:
    """The latest frames of one stream, and what moved in them: what captions are made of."""

    def __init__(self, observed: int, windows: Sequence[int]) -> None:
        self._observed, self._longest = observed, max(observed, *windows)
        self._frames: list[Frame] = []  # the last T
        self._hidden: list[Array] = []  # of those, (1+N, C) each; none where none are given
        self._scenes: list[Scene] = []  # of the longest window

    def step(
        self, frames: Sequence[Frame], scenes: Sequence[Scene], hidden: Array | None = None
    ) -> list[tuple[Frame, Callable[[], Moment]]]:
        """Take the next b frames; those that have T before them, each with how to see these.

        `hidden` (b, 1+N, C) is what the model's own tower made of the frames.
        """
        seen, moved = [*self._frames, *frames], [*self._scenes, *scenes]
        deep = [*self._hidden, *(() if hidden is None else hidden)]
        first = max(self._observed, len(self._frames))
        predicted: list[tuple[Frame, Callable[[], Moment]]] = [
            (seen[at], partial(self._moment, seen, moved, deep, at))
            for at in range(first, len(seen))
        ]
        self._frames, self._scenes = seen[-self._observed :], moved[-self._longest :]
        self._hidden = deep[-self._observed :]
        return predicted

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays and JSON to continue from, exactly."""
        plain = {
            "recent": [{"index": frame.index, "time_s": frame.time_s} for frame in self._frames],
            "scenes": [asdict(scene) for scene in self._scenes],
        }
        arrays = {f"image/{i}": frame.image for i, frame in enumerate(self._frames)}
        arrays |= {f"hidden/{i}": array for i, array in enumerate(self._hidden)}
        return arrays, plain

    def restore(self, arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._frames = [
            Frame(raw["index"], raw["time_s"], arrays[f"image/{i}"])
            for i, raw in enumerate(plain["recent"])
        ]
        self._hidden = [
            arrays[f"hidden/{i}"] for i in range(len(self._frames)) if f"hidden/{i}" in arrays
        ]
        self._scenes = [_scene(raw) for raw in plain["scenes"]]

    def _moment(self, seen: list[Frame], moved: list[Scene], deep: list[Array], at: int) -> Moment:
        newer = len(seen) - at
        scenes = moved[:-newer][-self._longest :]
        hidden = np.stack(deep[at - self._observed : at]) if len(deep) == len(seen) else None
        frame, frames = seen[at], seen[at - self._observed : at]
        return Moment(frame.index, frame.time_s, frames, scenes, hidden)


def pack_moments(moments: Sequence[Moment]) -> tuple[dict[str, Array], list[dict[str, Any]]]:
    """Arrays, each picture once however many moments hold it, and JSON."""
    arrays: dict[str, Array] = {}
    packed = []
    for i, moment in enumerate(moments):
        arrays |= {f"image/{frame.index}": frame.image for frame in moment.frames}
        if moment.hidden is not None:
            arrays[f"hidden/{i}"] = moment.hidden
        packed.append(
            {
                "t": moment.t,
                "time_s": moment.time_s,
                "frames": [[frame.index, frame.time_s] for frame in moment.frames],
                "scenes": [asdict(scene) for scene in moment.scenes],
            }
        )
    return arrays, packed


def unpack_moments(
    arrays: Mapping[str, Array], packed: Sequence[Mapping[str, Any]]
) -> list[Moment]:
    """The inverse of `pack_moments`; a picture that moments share is one array again."""
    return [
        Moment(
            raw["t"],
            raw["time_s"],
            [Frame(index, time_s, arrays[f"image/{index}"]) for index, time_s in raw["frames"]],
            [_scene(scene) for scene in raw["scenes"]],
            arrays.get(f"hidden/{i}"),
        )
        for i, raw in enumerate(packed)
    ]


def _scene(raw: Mapping[str, Any]) -> Scene:
    return Scene(raw["width"], raw["height"], tuple(Thing(**thing) for thing in raw["things"]))
