"""What captions of normal footage say: the few hundred that stand for all of them.

Kept in a bundle to compare with what is said of an event, and to stand in where nothing has been
said yet. Chosen at the end of training; no test video has a part in them.

Axes: n captions, S text width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sfn_rt.exceptions import BundleError

NAMES = ("texts", "embeddings", "shares")


@dataclass(frozen=True, eq=False)
class UsualCaptions:
    """Captions that normal footage is told in, the one that is most like all others first."""

    texts: tuple[str, ...]
    embeddings: NDArray[np.float32]  # (n, S), rows of length 1
    shares: NDArray[np.float32]  # (n,) of normal clips that each stands for

    def __post_init__(self) -> None:
        n = len(self.texts)
        if not n or self.embeddings.shape[:1] != (n,) or self.shares.shape != (n,):
            raise BundleError(
                f"the captions of normal footage do not fit together: {n} texts, embeddings "
                f"{self.embeddings.shape}, shares {self.shares.shape}; train again"
            )

    def nearest(self, embedding: NDArray[np.float32]) -> tuple[int, float]:
        """Index of the caption most like an embedding (S,), and the cosine of the two."""
        likeness = self.embeddings @ embedding  # (n,)
        best = int(likeness.argmax())
        return best, float(likeness[best])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For normal.npz; `from_arrays` gives the same back."""
        return {
            "texts": np.array(self.texts, dtype=np.str_),
            "embeddings": self.embeddings,
            "shares": self.shares,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `to_arrays`."""
        if missing := sorted(set(NAMES) - arrays.keys()):
            raise BundleError(f"the captions of normal footage lack {missing[0]}; train again")
        texts = tuple(str(text) for text in arrays["texts"])
        embeddings, shares = (np.asarray(arrays[name], np.float32) for name in NAMES[1:])
        return cls(texts, embeddings, shares)
