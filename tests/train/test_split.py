"""Held-out footage: whole videos where there are enough, else the end of each."""

import pytest

from sfn_rt.exceptions import DataError
from sfn_train.data.split import Span, split_footage


def test_five_videos_or_more_hold_out_whole_ones_spread_over_all() -> None:
    split = split_footage([50] * 10, 0.2, 8)
    assert split.train == tuple(Span(i, 0, 50) for i in (0, 1, 3, 4, 5, 6, 8, 9))
    assert split.held_out == (Span(2, 0, 50), Span(7, 0, 50))
    assert split_footage([50] * 5, 0.01, 8).held_out == (Span(2, 0, 50),)


def test_fewer_videos_hold_out_the_end_of_each() -> None:
    split = split_footage([100, 50], 0.2, 8)
    assert split.train == (Span(0, 0, 80), Span(1, 0, 40))
    assert split.held_out == (Span(0, 80, 100), Span(1, 40, 50))


def test_what_is_held_out_holds_at_least_one_run() -> None:
    assert split_footage([20], 0.1, 8).held_out == (Span(0, 12, 20),)


def test_a_video_too_short_to_divide_trains_whole() -> None:
    split = split_footage([100, 12], 0.2, 8)
    assert split.train == (Span(0, 0, 80), Span(1, 0, 12))
    assert split.held_out == (Span(0, 80, 100),)


@pytest.mark.parametrize("lengths", [[], [7], [15], [4, 4, 4], [30, 30, 5, 30, 30]])
def test_too_little_footage_is_refused(lengths: list[int]) -> None:
    with pytest.raises(DataError, match="too little normal footage"):
        split_footage(lengths, 0.2, 8)


@pytest.mark.parametrize("lengths", [[40], [33, 20, 9], [16] * 7])
def test_every_frame_is_in_exactly_one_part(lengths: list[int]) -> None:
    split = split_footage(lengths, 0.3, 8)
    spans = (*split.train, *split.held_out)
    frames = sorted((s.video, i) for s in spans for i in range(s.start, s.stop))
    assert frames == [(v, i) for v, n in enumerate(lengths) for i in range(n)]
