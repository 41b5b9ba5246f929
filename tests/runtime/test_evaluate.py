"""A labelled set to its table: what runs beside the scoring stops with it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sfn_rt import evaluate
from sfn_rt.datasets import open_dataset
from sfn_rt.evaluate import Stopped, evaluate_dataset, measure_baselines
from sfn_rt.frames import Frame, open_source
from sfn_rt.options import EvalOptions
from sfn_rt.pipeline import VideoRun


def test_baselines_stop_at_the_next_frame(walkway: Path) -> None:
    dataset = open_dataset(walkway)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        measure_baselines(dataset, dataset.test, stop)


def test_ctrl_c_does_not_wait_for_the_baselines(
    tmp_path: Path, walkway: Path, dual_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0

    @contextmanager
    def slow(*args: Any, **settings: Any) -> Iterator[Iterator[Frame]]:
        """480 frames for the baselines, so 24 s for them all."""

        def frames() -> Iterator[Frame]:
            nonlocal read
            for frame in source:
                time.sleep(0.05)
                read += 1
                yield frame

        with open_source(*args, **settings) as source:
            yield frames()

    def interrupted(*_: Any) -> None:
        while not read:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "open_source", slow)
    monkeypatch.setattr(evaluate, "_score_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_dataset(walkway, dual_bundle, EvalOptions(out=tmp_path / "out", progress=False))
    assert read < 100
    assert not (tmp_path / "out").exists()


def test_what_scoring_raises_is_what_is_told(
    tmp_path: Path, walkway: Path, dual_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Exception):
        pass

    def broken(*_: Any) -> None:
        raise Broken

    monkeypatch.setattr(VideoRun, "take", broken)
    before = set(threading.enumerate())  # other tests' libraries may keep threads
    with pytest.raises(Broken):
        evaluate_dataset(walkway, dual_bundle, EvalOptions(out=tmp_path / "out", progress=False))
    assert set(threading.enumerate()) <= before
