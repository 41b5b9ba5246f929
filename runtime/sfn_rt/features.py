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


@dataclass(frozen=True)
class Prediction:
    """What the model expected of the last p frames of a block."""

    next_frame: FloatArray | None  # (p, 3, h, w); None: the model has no picture branch
    semantic: FloatArray | None  # (p, K S), as the captions it was given


class Predictor:
    """Encodes a video's frames block by block and predicts each from the T before it."""

    def __init__(self, backend: Backend, observed: int) -> None:
        self._backend, self._observed = backend, observed
        decoder = backend.parts["decoder"]
        self._inputs = {spec.name for spec in decoder.inputs}
        self._outputs = [s.name for s in decoder.outputs if s.name in ("next_frame", "semantic")]
        self._kept: dict[str, FloatArray] = {}

    def step(self, frames: FloatArray, text: FloatArray | None) -> Prediction | None:
        """Take the next frames (b, 3, h, w), and (p, K S) embeddings of their clips' captions.

        p is b, less the frames of the video's beginning that have fewer than T before them.
        """
        before = len(self._kept["frame"]) if "frame" in self._kept else 0
        known = self._extend("frame", frames)
        feeds: dict[str, FloatArray] = {}
        t = self._observed
        if "appearance" in self._inputs:
            encoded = self._backend.infer("appearance", {"frame": frames})
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
        n_predicted = max(0, len(known) - t)
        self._forget()
        if n_predicted == 0:
            return None
        if "text" in self._inputs:
            if text is None or len(text) != n_predicted:
                raise ValueError(f"{n_predicted} clips need as many embeddings, got {text}")
            feeds["text"] = text
        whole = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        predicted = self._backend.infer("decoder", whole, self._outputs)
        return Prediction(predicted.get("next_frame"), predicted.get("semantic"))

    def n_predicted(self, n_frames: int) -> int:
        """How many of the next `n_frames` frames will be predicted."""
        known = len(self._kept["frame"]) if "frame" in self._kept else 0
        return max(0, known + n_frames - self._observed)

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
