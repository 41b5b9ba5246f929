"""Which normal footage trains and which is held out, decided by order alone.

Neighbouring frames are nearly equal, so what is held out is whole videos, or else the end of each;
never frames between others that were trained on. The choice is saved in the run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sfn_rt.exceptions import DataError

ENOUGH_VIDEOS = 5  # from here on whole videos are held out


@dataclass(frozen=True)
class Span:
    """Frames start .. stop - 1 of one video."""

    video: int  # its place among the normal videos
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Split:
    """Every normal frame is in one of the two."""

    train: tuple[Span, ...]
    held_out: tuple[Span, ...]


def split_footage(lengths: Sequence[int], share: float, run_length: int) -> Split:
    """Hold out about `share` of the frames: videos spread over all, or the end of each of a few.

    Spread, because recordings drift: the last ones alone would be a quieter or busier hour.

    Spans shorter than a run are of no use to either side and stay with training.
    """
    if len(lengths) >= ENOUGH_VIDEOS:
        n_held = min(max(1, round(share * len(lengths))), len(lengths) - 1)
        held_out = {int((i + 0.5) * len(lengths) / n_held) for i in range(n_held)}
        cuts = [0 if i in held_out else n for i, n in enumerate(lengths)]
    else:
        cuts = []
        for n in lengths:
            held = max(run_length, math.ceil(share * n))
            cuts.append(n - held if n - held >= run_length else n)
    train = [Span(i, 0, cut) for i, cut in enumerate(cuts) if cut]
    ends = [
        Span(i, cut, n) for i, (cut, n) in enumerate(zip(cuts, lengths, strict=True)) if cut < n
    ]
    for part, what in ((train, "train on"), (ends, "hold out for validation")):
        if not any(len(span) >= run_length for span in part):
            raise DataError(
                f"too little normal footage: {sum(lengths)} frames in {len(lengths)} videos leave "
                f"no {run_length} consecutive frames to {what}; give more, or lower data.run_length"
            )
    return Split(tuple(train), tuple(ends))
