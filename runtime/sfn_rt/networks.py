"""The networks of one stream: frames in, errors out.

    look     what the networks take of a frame                   may run ahead, in another thread
    encode   each frame and each difference, once                what the lane decides by
    decode   the next frame and its meaning, given the captions  how wrong they were

`HostNetworks` hands arrays to a backend part by part; `resident.py` keeps everything between the
frame and its errors on the device. State is the same in both: a video begun with one of them can be
continued with the other.

Axes: b frames of a block, p of them predicted, T observed frames, h and w the model's frame size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sfn_rt.backends.base import Array, Backend
from sfn_rt.features import Encoded, Predictor
from sfn_rt.frames import Frame
from sfn_rt.prediction_error import (
    VisualConfig,
    VisualError,
    absolute_error,
    measure_error,
    semantic_error,
)
from sfn_rt.preprocess import Preprocessing, preprocess


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What the networks of a stream must know of its model."""

    observed: int  # T
    preprocessing: Preprocessing
    visual: VisualConfig
    n_windows: int  # captions a clip
    on_error: Callable[[Array], None] | None = None  # sees each block's error maps (p, h, w)


@dataclass(frozen=True)
class Errors:
    """How wrong the prediction of the last p frames of a block was."""

    visual: Sequence[VisualError]  # empty without a picture branch
    semantic: NDArray[np.float64] | None  # (p,), by the captions given
    distilled: NDArray[np.float32] | None  # (p,), what the captions were expected to show


class Seen(Protocol):
    """A block after the encoders, with what the lane looks at.

    The tokens and differences are those of the last observed frame of each of the p clips; they
    and the hidden states are there where they were asked for.
    """

    @property
    def n_predicted(self) -> int: ...

    @property
    def tokens(self) -> Array | None: ...

    @property
    def difference(self) -> Array | None: ...

    @property
    def hidden(self) -> Array | None: ...


class Networks(Protocol):
    """One stream's networks and their memory."""

    def look(self, frames: Sequence[Frame]) -> Array:
        """What `encode` takes of these frames. Touches no state."""
        ...

    def encode(self, pictures: Array, *, change: bool, hidden: bool) -> Any:
        """Take the next frames, and show what the lane asks to see: a `Seen`."""
        ...

    def decode(self, seen: Any, pictures: Array, text: Array | None) -> Errors | None:
        """Predict the block's frames, given (p, K S) embeddings of their clips' captions."""
        ...

    def state(self) -> dict[str, Array]:
        """Arrays to continue from, exactly."""
        ...

    def restore(self, state: Mapping[str, Array]) -> None:
        """Continue where `state` was taken."""
        ...


class HostNetworks:
    """Arrays in, arrays out, part by part, through any backend."""

    def __init__(self, backend: Backend, settings: NetworkSettings) -> None:
        self._settings = settings
        self._predictor = Predictor(backend, settings.observed)

    def look(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        """(b, 3, h, w): resized and normalised."""
        return np.stack([preprocess(f.image, self._settings.preprocessing) for f in frames])

    def encode(self, pictures: Array, *, change: bool, hidden: bool) -> Encoded:
        """Take the next frames (b, 3, h, w); everything is at hand, so everything is shown."""
        return self._predictor.encode(pictures)

    def decode(self, seen: Encoded, pictures: Array, text: Array | None) -> Errors | None:
        """Predict the block's frames and compare; None where none has T before it."""
        prediction = self._predictor.decode(seen, text)
        if prediction is None:
            return None
        visual: list[VisualError] = []
        if prediction.next_frame is not None:
            actual = pictures[-len(prediction.next_frame) :]  # (p, 3, h, w)
            visual = measure_errors(absolute_error(prediction.next_frame, actual), self._settings)
        semantic = None
        if prediction.semantic is not None and text is not None:
            semantic = semantic_error(prediction.semantic, text, self._settings.n_windows)
        return Errors(visual, semantic, prediction.distilled)

    def state(self) -> dict[str, Array]:
        """Arrays to continue from, exactly."""
        return dict(self._predictor.state())

    def restore(self, state: Mapping[str, Array]) -> None:
        """Continue where `state` was taken."""
        self._predictor.restore(state)


def measure_errors(errors: NDArray[np.float32], settings: NetworkSettings) -> list[VisualError]:
    """Evidence, box and heat of each error map of a block (p, h, w), and a look at them first."""
    if settings.on_error is not None:
        settings.on_error(errors)
    return [measure_error(error, settings.visual) for error in errors]
