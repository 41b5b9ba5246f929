"""A stream's memory: every frame and every frame difference is encoded once and kept.

Consecutive clips share all but one of their frames. Only what the next predictions still need is
kept: the tokens of the last T frames, of the last T - 1 differences, the last skip and the last
frame. That is the whole state of the networks, whatever the video's length.

Axes: b frames of a block, p of them predicted, T observed frames of a clip, N patches, D width,
K captions a clip of S numbers each.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfn_rt.backends.base import Backend

FloatArray = NDArray[np.float32]
OUTPUTS = ("next_frame", "semantic", "distilled")  # of the decoder


@dataclass(frozen=True)
class Encoded:
    """A block's frames after the encoders: what the decoder needs of them besides captions."""

    n_predicted: int  # p: frames of the block that have T before them
    feeds: Mapping[str, FloatArray]  # decoder inputs (p, ...); empty where p is 0
    tokens: FloatArray | None  # (p, 1 + N, D) of the last observed frame of each clip
    difference: FloatArray  # (p, 3, h, w) between the last two observed frames of each clip
    hidden: FloatArray | None  # (b, 1 + N, C) of the block's frames, by the vision tower


@dataclass(frozen=True)
class Prediction:
    """What the model expected of the last p frames of a block."""

    next_frame: FloatArray | None  # (p, 3, h, w); None: the model has no picture branch
    semantic: FloatArray | None  # (p, K S), as the captions it was given
    distilled: FloatArray | None  # (p,) semantic error that the captions would have shown


class Predictor:
    """Encodes a video's frames block by block and predicts each from the T before it."""

    def __init__(self, backend: Backend, observed: int) -> None:
        self._backend, self._observed = backend, observed
        decoder = backend.parts["decoder"]
        self._inputs = {spec.name for spec in decoder.inputs}
        self._outputs = [s.name for s in decoder.outputs if s.name in OUTPUTS]
        self._kept: dict[str, FloatArray] = {}

    def encode(self, frames: FloatArray) -> Encoded:
        """Take the next frames (b, 3, h, w), each run through the encoders once.

        p is b, less the frames of the video's beginning that have fewer than T before them.
        """
        before = len(self._kept["frame"]) if "frame" in self._kept else 0
        known = self._extend("frame", frames)
        feeds: dict[str, FloatArray] = {}
        tokens = hidden = None
        t, n = self._observed, max(0, len(known) - self._observed)
        if "appearance" in self._inputs:
            seen = {"frame": frames}
            if "vision" in self._backend.parts:
                seen = self._backend.infer("vision", seen)
                hidden = seen["hidden"]
            encoded = self._backend.infer("appearance", seen)
            tokens = self._extend("tokens", encoded["tokens"])
            skips = self._extend("skip", encoded["skip"])
            feeds["appearance"] = _clips(tokens[:-1], t)
            feeds["skip"] = skips[t - 1 : -1]
        if "motion" in self._inputs:
            first = max(before, 1)
            difference = known[first:] - known[first - 1 : -1]
            if len(difference):
                pairs = self._backend.infer("motion", {"difference": difference})["tokens"]
                motion = self._extend("motion", pairs)
                feeds["motion"] = _clips(motion[:-1], t - 1)
        if "last_frame" in self._inputs:
            feeds["last_frame"] = known[t - 1 : -1]
        self._forget()
        if n == 0:
            return Encoded(0, {}, None, known[:0], hidden)
        last = None if tokens is None else tokens[t - 1 : -1]
        return Encoded(n, feeds, last, known[t - 1 : -1] - known[t - 2 : -2], hidden)

    def decode(self, encoded: Encoded, text: FloatArray | None) -> Prediction | None:
        """Predict the block's frames, given (p, K S) embeddings of their clips' captions."""
        n = encoded.n_predicted
        if n == 0:
            return None
        feeds = dict(encoded.feeds)
        if "text" in self._inputs:
            if text is None or len(text) != n:
                raise ValueError(f"{n} clips need as many embeddings, got {text}")
            feeds["text"] = text
        whole = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        predicted = self._backend.infer("decoder", whole, self._outputs)
        return Prediction(*(predicted.get(name) for name in OUTPUTS))

    def state(self) -> dict[str, FloatArray]:
        """Arrays to continue from, exactly."""
        return dict(self._kept)

    def restore(self, state: Mapping[str, FloatArray]) -> None:
        """Continue where `state` was taken."""
        self._kept = dict(state)

    def _extend(self, name: str, new: FloatArray) -> FloatArray:
        old = self._kept.get(name)
        joined = new if old is None else np.concatenate([old, new])
        self._kept[name] = joined
        return joined

    def _forget(self) -> None:
        keep = {"motion": self._observed - 1}
        for name, array in self._kept.items():
            self._kept[name] = array[-keep.get(name, self._observed) :].copy()


def _clips(features: FloatArray, length: int) -> FloatArray:
    """Sliding windows (L, ...) to (L - length + 1, length, ...)."""
    if len(features) < length:
        return features[:0]
    windows = np.lib.stride_tricks.sliding_window_view(features, length, axis=0)
    return np.moveaxis(windows, -1, 1)
