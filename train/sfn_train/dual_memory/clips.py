"""Clips of 16 frames for the dual-memory system, some of them pseudo-anomalies.

A pseudo-anomaly shows every s-th frame, as if everything went s times as fast. Which clips are, and
with which s, depends on seed and epoch alone, like the order of the clips: training resumes at any
step with the batch it would have had. A clip is a pseudo-anomaly anew in each epoch, so that in
time every place of the footage is seen both ways.

Axes: T = 16 frames of a clip.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sfn_train.data.clips import Place, StepSampler
from sfn_train.data.prepare import Prepared
from sfn_train.data.split import Span
from sfn_train.dual_memory.config import CLIP, DualMemoryConfig

PSEUDO_STREAM = 1  # keeps the draws of pseudo-anomalies apart from those of the order


class DualClips(Dataset[dict[str, Tensor]]):
    """Indexed by video, first frame and stride: frames (T, 3, h, w) and whether it is pseudo ().

    Without a stride, as for validation, every frame is shown.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared

    def __getitem__(self, place: Place) -> dict[str, Tensor]:
        number, start, stride = place if len(place) == 3 else (*place, 1)
        video = self._prepared.videos[number]
        pixels = video.read(start, start + reach(stride))[::stride]
        frames = torch.from_numpy(pixels.astype(np.float32))
        return {"frames": frames, "pseudo": torch.tensor(stride > 1)}


class DualSampler(StepSampler):
    """As StepSampler, with a stride for each clip; `clips` is the model's `clip_step`."""

    def __init__(self, spans: Sequence[Span], model: DualMemoryConfig, **settings: Any) -> None:
        super().__init__(spans, run_length=CLIP, clips=model.clip_step, **settings)
        self._model = model

    def epoch(self, epoch: int) -> list[Place]:
        """All clips of one epoch, shuffled, as (video, first frame, stride)."""
        places = super().epoch(epoch)
        random = np.random.default_rng([self._seed, epoch, PSEUDO_STREAM])
        marked = random.random(len(places)) < self._model.pseudo_probability
        strides = self._model.pseudo_strides
        return [
            (video, start, self._stride(video, start, int(random.choice(strides))) if mark else 1)
            for (video, start), mark in zip(places, marked, strict=True)
        ]

    def _stride(self, video: int, start: int, wanted: int) -> int:
        """`wanted`, or the largest below it that fits into the span; 1 where none does."""
        (stop,) = {s.stop for s in self._spans if s.video == video and s.start <= start < s.stop}
        fitting = [s for s in self._model.pseudo_strides if start + reach(s) <= stop]
        return max((s for s in fitting if s <= wanted), default=1)


def reach(stride: int) -> int:
    """Frames of footage from a clip's first to its last."""
    return (CLIP - 1) * stride + 1
