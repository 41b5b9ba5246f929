"""What is normal for the semantic lane: when to caption, and what to assume where none tells.

From the statistics of normal footage alone (normal.npz), so no test video sets any of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from sfn_rt.backends.base import Array
from sfn_rt.normal import NormalFootage
from sfn_rt.scores import Tail

CHANGED = 0.99  # quantile of normal footage from which a change is one
SUSPICIOUS = 0.99  # of the visual evidence


@dataclass(frozen=True)
class Expectation:
    """The semantic error to expect of a frame without its caption.

    The student's estimate, read as the semantic error that is as rare on normal footage as this
    estimate is: so both are on one scale, and a tail or a threshold fitted on the one holds for
    the other. Without a student it is the normal median: nothing unusual is assumed.
    """

    semantic: Tail
    distilled: Tail | None

    def of(self, distilled: float) -> float:
        """From the student's estimate for the frame; NaN where there is none."""
        if self.distilled is None or np.isnan(distilled):
            return self.semantic.quantile(0.5)
        return self.semantic.value(float(self.distilled.surprise(distilled)))


@dataclass(frozen=True, kw_only=True, eq=False)
class NormalLevels:
    """Levels of one model's normal footage."""

    changed: Mapping[str, float]  # signal of change.py -> level above which something changed
    suspicious: float | None  # visual evidence above which a frame is; None: no visual term
    usual: Array | None  # (K S,) embedding that stands where no caption is there yet
    expected: Expectation | None  # None: the model has no semantic term

    @classmethod
    def of(cls, normal: NormalFootage, n_windows: int) -> Self:
        """What the statistics of a bundle say."""
        changed = {
            name: tail.quantile(CHANGED)
            for name, tail in normal.signals.items()
            if name != "distilled"
        }
        visual, semantic = normal.tails.get("visual"), normal.tails.get("semantic")
        said = normal.captions
        return cls(
            changed=changed,
            suspicious=None if visual is None else visual.quantile(SUSPICIOUS),
            usual=None if said is None else np.tile(said.embeddings[0], n_windows),
            expected=Expectation(semantic, normal.signals.get("distilled")) if semantic else None,
        )
