"""Pseudo-anomalies: every s-th frame, as often as asked, and the same ones after a resume."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from sfn_train.data.clips import Place
from sfn_train.data.prepare import Prepared
from sfn_train.data.split import Span
from sfn_train.dual_memory import DualClips, DualMemoryConfig, DualSampler

SPANS = (Span(0, 0, 400), Span(2, 5, 45), Span(3, 0, 16), Span(0, 500, 700))
LONG = Span(0, 0, 2000)


def make(first_step: int = 0, **changes: Any) -> DualSampler:
    settings = {"batch": 2, "seed": 0, "begin": lambda: (first_step, 0)}
    return DualSampler(SPANS, replace(DualMemoryConfig(clip_step=2), **changes), **settings)


def take(sampler: DualSampler, n: int) -> list[list[Place]]:
    return list(islice(sampler, n))


def test_an_epoch_has_every_clip_once() -> None:
    places = make().epoch(0)
    assert len({place[:2] for place in places}) == len(places) == make().n_runs


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_as_many_pseudo_anomalies_as_asked(probability: float) -> None:
    sampler = make(pseudo_probability=probability)
    epochs = (place for epoch in range(10) for place in sampler.epoch(epoch))
    share = np.mean([stride > 1 for video, start, stride in epochs if video == 0 and start < 320])
    assert share == pytest.approx(probability, abs=0.05)


def test_strides_are_drawn_evenly_and_only_from_those_asked_for() -> None:
    # Of clips that have room for any of them.
    found = Counter(
        stride
        for epoch in range(30)
        for video, start, stride in make(pseudo_strides=(2, 5)).epoch(epoch)
        if video == 0 and start < 320
    )
    assert found.keys() == {1, 2, 5}
    assert found[2] / (found[2] + found[5]) == pytest.approx(0.5, abs=0.07)


def test_a_clip_never_leaves_its_span() -> None:
    seen = set()
    for epoch in range(20):
        for video, start, stride in make(pseudo_probability=1.0).epoch(epoch):
            stop = start + 15 * stride + 1
            assert any(s.video == video and s.start <= start and stop <= s.stop for s in SPANS)
            seen.add((video, stride))
    assert {stride for video, stride in seen if video == 0} == {1, 2, 3, 4, 5}
    assert {stride for video, stride in seen if video == 2} == {1, 2}  # 40 frames: 46 are needed
    assert {stride for video, stride in seen if video == 3} == {1}


def test_the_largest_stride_that_fits_is_taken() -> None:
    settings = {"batch": 1, "seed": 0, "begin": lambda: (0, 0)}
    model = DualMemoryConfig(pseudo_probability=1.0, pseudo_strides=(2, 5))
    (place,) = DualSampler([Span(0, 0, 16)], model, **settings).epoch(0)
    assert place == (0, 0, 1)
    places = DualSampler([Span(0, 0, 31)], model, **settings).epoch(0)
    assert [stride for _, start, stride in places if start == 0] == [2]


@pytest.mark.parametrize("step", [1, 7, 400])
def test_a_resumed_run_gets_the_same_clips(step: int) -> None:
    assert take(make(step), 5) == take(make(), step + 5)[step:]


def test_seed_and_epoch_change_which_draws_are_pseudo_anomalies() -> None:
    def marked(epoch: int, seed: int) -> NDArray[np.bool_]:
        model = DualMemoryConfig(pseudo_strides=(2,))
        sampler = DualSampler([LONG], model, batch=2, seed=seed, begin=lambda: (0, 0))
        return np.array([stride > 1 for _, _, stride in sampler.epoch(epoch)])

    first = marked(0, seed=0)
    assert (first == marked(0, seed=0)).all()
    # Independent draws at 0.2 agree on 0.68; the same draws on all but clips without room.
    assert (first == marked(1, seed=0)).mean() < 0.8
    assert (first == marked(0, seed=1)).mean() < 0.8


class Numbered:
    """Footage whose frame i is filled with i."""

    def read(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        frames = np.arange(start, stop, dtype=np.float16)[:, None, None, None]
        return np.broadcast_to(frames, (stop - start, 3, 2, 2))


@pytest.mark.parametrize("stride", [None, 1, 2, 3, 5])
def test_a_clip_shows_every_sth_frame(stride: int | None) -> None:
    prepared = cast(Prepared, SimpleNamespace(videos=[None, Numbered()]))
    place = (1, 4) if stride is None else (1, 4, stride)
    item = DualClips(prepared)[place]
    assert item["frames"].shape == (16, 3, 2, 2)
    step = stride or 1
    assert item["frames"][:, 0, 0, 0].tolist() == list(range(4, 4 + 16 * step, step))
    assert item["pseudo"].item() == (step > 1)
