"""The look-ahead thread: order, bounds, errors, and no thread left behind."""

import threading
import time
from collections.abc import Iterator

import pytest

from sfn_rt.prefetch import prefetch


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_everything_arrives_in_order() -> None:
    assert list(prefetch(range(100))) == list(range(100))
    assert list(prefetch([])) == []
    assert threads() == 0


def test_none_is_an_item_like_any_other() -> None:
    assert list(prefetch([1, None, 2])) == [1, None, 2]


def test_it_runs_ahead_in_another_thread_but_not_far() -> None:
    made: list[int] = []
    names: set[str] = set()

    def source() -> Iterator[int]:
        for i in range(50):
            names.add(threading.current_thread().name)
            made.append(i)
            yield i

    items = prefetch(source(), depth=2)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)  # would run on if nothing held it
    assert made == [0, 1, 2, 3]  # one taken, two waiting, one in hand
    assert names == {"prefetch"}
    items.close()  # type: ignore[attr-defined]


def test_an_error_is_raised_here_after_what_came_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    items = prefetch(source())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)
    assert threads() == 0


def test_leaving_early_stops_the_thread() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    for _ in prefetch(endless()):
        break
    assert threads() == 0


def test_an_interruption_of_the_consumer_stops_the_thread() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    def consume() -> None:
        for _ in prefetch(endless()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert threads() == 0
