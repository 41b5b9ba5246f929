"""The stream of dual-memory: a clip is seen whole, and a frame in its middle is scored.

    clip      frames t - T + 1 .. t
    scored    frame t - lag, by how badly the normal memory reconstructs it       -PSNR in dB

So a frame's row comes out `lag` frames late, and the last `lag` frames of a video are never scored,
nor are those before the first clip's middle. Nothing is described and nothing looks for what moves.

A clip is run on its own: clips share frames but no computation, since every layer looks along time,
and one full-size clip fills the processor as it is.

Axes: b frames of a block, T frames of a clip, h and w the model's frame size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfn_rt.backends.base import Array
from sfn_rt.evidence import FrameEvidence, Looked, Perception, empty_scene, unscored
from sfn_rt.frames import Frame
from sfn_rt.networks import NetworkSettings, measure_errors
from sfn_rt.preprocess import preprocess
from sfn_rt.semantics.scene import Scene

Late = tuple[int, float, Scene]  # index, time and size of a frame whose row has not come out


class ReconstructionStream:
    """The evidence of one video, `lag` frames behind it."""

    def __init__(self, perception: Perception) -> None:
        self._p = perception
        p = perception.preprocessing
        self._settings = NetworkSettings(
            observed=perception.observed, preprocessing=p, visual=perception.visual,
            n_windows=0, on_error=perception.on_error,
        )  # fmt: skip
        self._clip = np.empty((0, 3, p.height, p.width), np.float32)  # the last T - 1 frames
        self._late: list[Late] = []

    @property
    def pending(self) -> int:
        """Frames taken whose rows have not come out."""
        return len(self._late)

    @property
    def counts(self) -> None:
        """No captions are made."""
        return

    def look(self, frames: Sequence[Frame]) -> Looked:
        """First stage: may run ahead of `predict`, in another thread."""
        pictures = np.stack([preprocess(f.image, self._p.preprocessing) for f in frames])
        return Looked(frames, pictures, [empty_scene(frame) for frame in frames], {})

    def predict(self, block: Looked) -> list[FrameEvidence]:
        """Second stage: the rows of the frames that lie `lag` before those of the block."""
        seen = np.concatenate([self._clip, block.pictures])
        n_before = len(self._clip)
        rows = []
        for i, (frame, scene) in enumerate(zip(block.frames, block.scenes, strict=True)):
            self._late.append((frame.index, frame.time_s, scene))
            if len(self._late) > self._p.lag:
                stop = n_before + i + 1
                clip = seen[max(stop - self._p.observed, 0) : stop]
                rows.append(self._row(*self._late.pop(0), clip))
        self._clip = seen[-(self._p.observed - 1) :].copy()
        return rows

    def finish(self) -> list[FrameEvidence]:
        """The last `lag` frames: no clip has them in its middle."""
        rows = [unscored(*late) for late in self._late]
        self._late = []
        return rows

    def state(self, block: Looked) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays and JSON to continue from, exactly, after `predict(block)`."""
        late = [
            {"index": index, "time_s": time_s, "width": scene.width, "height": scene.height}
            for index, time_s, scene in self._late
        ]
        return {"clip": self._clip}, {"late": late}

    def restore(self, arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._clip = arrays["clip"]
        self._late = [
            (raw["index"], raw["time_s"], Scene(raw["width"], raw["height"], ()))
            for raw in plain["late"]
        ]

    def _row(
        self, index: int, time_s: float, scene: Scene, clip: NDArray[np.float32]
    ) -> FrameEvidence:
        if len(clip) < self._p.observed:
            return unscored(index, time_s, scene)
        feeds = {"clip": np.ascontiguousarray(clip[None])}  # (1, T, 3, h, w)
        squared = self._p.backend.infer("autoencoder", feeds, ["error"])["error"]  # (1, h, w)
        (error,) = measure_errors(np.sqrt(squared), self._settings)
        return FrameEvidence(
            index, time_s, scene, {"visual": error.evidence}, None, error.box, error.heat
        )
