"""Which captions stand for all of normal footage: chosen at the end of training.

Taken are the captions of the training part, of the shortest window where there are several, and
how many frames each was in force at. If there are too many to keep, kept are the most central one,
then the most frequent, and then, one by one, whichever is least like all that are kept: what is
rare and still normal is what an event must not be called new for.

Axes: m different captions, n of them kept, S text width.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sfn_rt.semantics.usual import UsualCaptions
from sfn_train.data.prepare import Prepared

MOST = 256  # kept
FREQUENT = 0.25  # of those that are kept, chosen for being said often
BLOCK = 4096  # captions compared at a time: bounds memory


def usual_captions(prepared: Prepared) -> UsualCaptions | None:
    """Those of prepared footage; None where it was not described."""
    ids = [
        prepared.videos[span.video].caption_ids[span.start : span.stop, 0]
        for span in prepared.split.train
    ]
    said = np.concatenate(ids)
    numbers, counts = np.unique(said[said >= 0], return_counts=True)
    if not len(numbers):
        return None
    texts = [prepared.sentences[number] for number in numbers]
    return choose_usual(texts, prepared.embeddings[numbers], counts)


def choose_usual(
    texts: Sequence[str],
    embeddings: NDArray[np.float32],
    counts: NDArray[np.int64],
    most: int = MOST,
) -> UsualCaptions:
    """At most `most` of m different captions, embedded as (m, S), said `counts` (m,) times."""
    middle = counts @ embeddings.astype(np.float64)  # (S,)
    central = (embeddings @ middle / counts.sum()).astype(np.float32)  # (m,) mean likeness to all
    chosen = list(range(len(texts)))
    if len(texts) > most:
        chosen = _spread(embeddings, central, counts, most)
    # float32 sums differ between machines in their last digits: equally central by the text.
    chosen.sort(key=lambda i: (-round(float(central[i]), 5), texts[i]))
    shares = _shares(embeddings, chosen, counts)
    return UsualCaptions(tuple(texts[i] for i in chosen), embeddings[chosen], shares)


def _spread(
    embeddings: NDArray[np.float32],
    central: NDArray[np.float32],
    counts: NDArray[np.int64],
    most: int,
) -> list[int]:
    """The most central caption, the most frequent ones, and what is least like them."""
    often = np.argsort(-counts, kind="stable")[: int(FREQUENT * most)]
    chosen = list(dict.fromkeys([int(central.argmax()), *often.tolist()]))
    likeness = (embeddings @ embeddings[chosen].T).max(axis=1)  # (m,) to the nearest chosen one
    while len(chosen) < most:
        likeness[chosen] = np.inf  # texts may differ and mean the same: none is chosen twice
        chosen.append(int(likeness.argmin()))
        likeness = np.maximum(likeness, embeddings @ embeddings[chosen[-1]])
    return chosen


def _shares(
    embeddings: NDArray[np.float32], chosen: Sequence[int], counts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(n,) of all frames, those whose caption is most like each that is kept."""
    nearest = np.concatenate(
        [
            (embeddings[start : start + BLOCK] @ embeddings[chosen].T).argmax(axis=1)
            for start in range(0, len(embeddings), BLOCK)
        ]
    )
    nearest[chosen] = np.arange(len(chosen))
    frames = np.bincount(nearest, weights=counts, minlength=len(chosen))
    return np.asarray(frames / counts.sum(), dtype=np.float32)
