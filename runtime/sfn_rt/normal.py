"""What a bundle knows of normal footage: the arrays of normal.npz, and what they mean.

Fitted once, at the end of training, on normal videos that were held out; nothing here ever sees
an abnormal frame. A scene's thumbnails tell whether a video shows the scene at all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from sfn_rt.attributes import AttributeModel
from sfn_rt.exceptions import BundleError
from sfn_rt.scores import TERMS, Tail
from sfn_rt.semantics.usual import UsualCaptions
from sfn_rt.threshold import Threshold

UInt8 = NDArray[np.uint8]
THUMBNAIL = (24, 16)  # width, height
SAME_SCENE = 0.5  # correlation of thumbnails; different views of one street stay below
MOST_THUMBNAILS = 32
# What the lane looks at to decide when to caption, and what stands in for the semantic term.
SIGNALS = ("appearance", "motion", "distilled")


@dataclass(frozen=True, eq=False)
class SceneModel:
    """What training learns of the scene before the networks: needed to describe any frame of it."""

    attributes: AttributeModel | None  # None: nothing moved in training
    background: UInt8 | None  # (h, w) grey at analysis size; None: videos of different scenes
    thumbnails: NDArray[np.float32]  # (n, 16, 24) one a training video

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For normal.npz; `from_arrays` gives the same model back."""
        arrays: dict[str, NDArray[Any]] = {"thumbnails": self.thumbnails}
        if self.background is not None:
            arrays["background"] = self.background
        if self.attributes is not None:
            stored = self.attributes.to_arrays()
            arrays |= {f"attributes/{name}": array for name, array in stored.items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `to_arrays`."""
        if "thumbnails" not in arrays:
            raise BundleError("the statistics of normal footage lack thumbnails; train again")
        own = _under(arrays, "attributes/")
        attributes = AttributeModel.from_arrays(own) if own else None
        background = arrays.get("background")
        return cls(attributes, background, np.asarray(arrays["thumbnails"], np.float32))

    def likeness(self, image: UInt8) -> float:
        """Correlation of a frame (H, W, 3) with the most similar training video, at most 1."""
        return float((self.thumbnails * thumbnail(image)).sum(axis=(1, 2)).max())


@dataclass(frozen=True, eq=False)
class NormalFootage:
    """How large each term is on held-out normal footage, and the thresholds that follow."""

    scene: SceneModel
    tails: Mapping[str, Tail]
    thresholds: Mapping[tuple[str, ...], Threshold]  # by the terms that are switched on
    heat_scale: float  # 99.9th percentile of a heat map cell
    signals: Mapping[str, Tail] = field(default_factory=dict)  # some of SIGNALS
    captions: UsualCaptions | None = None  # None: the model was trained without captions

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All of normal.npz."""
        arrays = self.scene.to_arrays()
        for term, tail in self.tails.items():
            arrays |= {f"tails/{term}/{name}": value for name, value in tail.to_arrays().items()}
        for signal, tail in self.signals.items():
            stored = tail.to_arrays()
            arrays |= {f"signals/{signal}/{name}": value for name, value in stored.items()}
        if self.captions is not None:
            stored = self.captions.to_arrays()
            arrays |= {f"captions/{name}": value for name, value in stored.items()}
        for terms, threshold in self.thresholds.items():
            key = "+".join(terms)
            numbers = [threshold.value, threshold.false_alarms_per_hour]
            arrays[f"threshold/{key}"] = np.array(numbers)
            arrays[f"rule/{key}"] = np.array(threshold.rule)
        arrays["heat_scale"] = np.array(self.heat_scale)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `to_arrays`."""
        tails = {
            term: Tail.from_arrays(own)
            for term in TERMS
            if (own := _under(arrays, f"tails/{term}/"))
        }
        thresholds = {}
        for key, numbers in _under(arrays, "threshold/").items():
            rule = str(arrays[f"rule/{key}"])
            thresholds[tuple(key.split("+"))] = Threshold(
                float(numbers[0]), rule, float(numbers[1])
            )
        if not tails or not thresholds or "heat_scale" not in arrays:
            raise BundleError("the statistics of normal footage are incomplete; train again")
        signals = {
            signal: Tail.from_arrays(own)
            for signal in SIGNALS
            if (own := _under(arrays, f"signals/{signal}/"))
        }
        said = _under(arrays, "captions/")
        return cls(
            SceneModel.from_arrays(arrays), tails, thresholds, float(arrays["heat_scale"]),
            signals, UsualCaptions.from_arrays(said) if said else None,
        )  # fmt: skip


def term_subsets(terms: Sequence[str]) -> list[tuple[str, ...]]:
    """Every choice of terms that can be switched on, in the order of TERMS."""
    ordered = [term for term in TERMS if term in terms]
    return [s for size in range(1, len(ordered) + 1) for s in combinations(ordered, size)]


def thumbnail(image: UInt8) -> NDArray[np.float32]:
    """A frame (H, W, 3) as (16, 24) of grey with mean 0 and length 1; zeros where it is flat."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
    small -= small.mean()
    length = float(np.sqrt(np.sum(np.square(small))))
    return np.asarray(small / length if length > 1e-6 else small * 0, dtype=np.float32)


def same_scene(thumbnails: Iterable[NDArray[np.float32]]) -> bool:
    """Whether all videos look at one scene, so that one background serves them all."""
    flat = np.stack([thumbnail.ravel() for thumbnail in thumbnails])  # (n, 384)
    likeness = np.einsum("ad,bd->ab", flat, flat)  # (n, n)
    # All like the most central one. The mean will not do: even two scenes are like their mean.
    return bool(likeness.min(axis=1).max() >= SAME_SCENE)


def _under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
