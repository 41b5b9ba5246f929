"""Whole streams on the GPU: little crosses, replay changes nothing, memory stays as it is."""

from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import pytest

from sfn_rt.backends.base import Array
from sfn_rt.backends.device import DeviceBackend
from sfn_rt.bundle import Bundle
from sfn_rt.networks import NetworkSettings
from sfn_rt.resident import Resident

pytestmark = pytest.mark.gpu

STREAMS, BLOCK = 2, 1
FRAMES, SETTLED = 1000, 50  # of the soak; steps after which nothing new is allocated
MEGABYTE = 1 << 20


def pictures(seed: int, streams: int = STREAMS, block: int = BLOCK) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (block, 60, 90, 3), dtype=np.uint8) for _ in range(streams)]


def test_one_upload_and_one_download_a_step(
    open_backend: Callable, text: Callable, settings: NetworkSettings, route: str
) -> None:
    with (
        open_backend(route) as backend,
        Resident(backend, settings, streams=STREAMS, block=BLOCK) as networks,
    ):
        captions = text(backend, STREAMS, BLOCK)
        networks.step(pictures(0), captions)  # the first brings the resize's matrices, too
        counts = backend.memory.counts
        before = (counts.uploads, counts.downloads)
        for i in range(10):
            networks.step(pictures(i), captions)
        assert (counts.uploads - before[0], counts.downloads - before[1]) == (10, 10)


def test_a_replayed_graph_finds_what_the_parts_find(
    open_backend: Callable, text: Callable, settings: NetworkSettings, route: str, monkeypatch
) -> None:
    with open_backend(route) as backend:
        replayed = rows(backend, settings, text)
        if backend.records and route != "cpu":
            assert backend.memory.counts.replays > 0

        def at_once(key: Hashable, record: Callable[[], None]) -> None:
            record()

        monkeypatch.setattr(backend.memory, "replay", at_once)
        np.testing.assert_array_equal(rows(backend, settings, text), replayed)


def rows(backend: DeviceBackend, settings: NetworkSettings, text: Callable) -> Array:
    captions = text(backend, STREAMS, BLOCK)
    with Resident(backend, settings, streams=STREAMS, block=BLOCK) as networks:
        steps = [networks.step(pictures(i), captions).rows for i in range(12)]
    return np.concatenate(steps, axis=1)


def test_a_stream_finds_what_the_cpu_finds(
    open_backend: Callable, text: Callable, settings: NetworkSettings, bundle: Bundle, route: str
) -> None:
    from sfn_rt.backends.ort import OrtDevice

    with OrtDevice.from_bundle(bundle, provider="cpu") as cpu:
        expected = rows(cpu, settings, text)
    with open_backend(route) as backend:
        actual = rows(backend, settings, text)
    # The heat map's columns, whose values are means: a cell of the box may tie.
    heat = slice(-settings.visual.grid_height * settings.visual.grid_width, None)
    difference = np.abs(actual[..., heat] - expected[..., heat]).max()
    assert difference <= 1e-2, f"the heat map is off by {difference:.2e}"


def test_a_thousand_frames_leave_the_memory_as_it_is(
    open_backend: Callable, text: Callable, settings: NetworkSettings, route: str
) -> None:
    with (
        open_backend(route) as backend,
        Resident(backend, settings, streams=STREAMS, block=BLOCK) as networks,
    ):
        captions, free = text(backend, STREAMS, BLOCK), []
        for i in range(FRAMES):
            measured = networks.step(pictures(i % 7), captions)
            assert np.isfinite(measured.rows).all(), f"frame {i}"
            if i >= SETTLED and i % 50 == 0:
                free.append(free_bytes(backend))
        # Others may use the GPU as well: what counts is that nothing is lost step by step.
        lost = free[0] - free[-1]
        assert lost <= MEGABYTE, f"{lost / MEGABYTE:.1f} MB less are free after {FRAMES} frames"


def free_bytes(backend: DeviceBackend) -> int:
    """Of the GPU; on the CPU of what this process holds, with the sign turned."""
    if hasattr(backend.memory, "free_bytes"):
        return int(backend.memory.free_bytes()[0])
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return -pages * 4096
