"""A video scored with everything between frame and errors on a device gets the host's scores.

The device is this processor, by ONNX Runtime's IO binding: the very code that runs on a GPU.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from sfn_rt.backends.ort import OrtDevice
from sfn_rt.device_networks import DeviceNetworks
from sfn_rt.evidence import BLOCK, open_networks
from sfn_rt.frames import open_source
from sfn_rt.model import Model, open_model
from sfn_rt.networks import HostNetworks
from sfn_rt.options import LaneOptions
from sfn_rt.pipeline import VideoRun, grouped
from sfn_rt.scores import VideoScores

N_FRAMES = 60


@pytest.fixture(scope="module")
def video(walkway: Path) -> Path:
    return walkway / "testing" / "videos" / "01.mp4"


@pytest.fixture(params=["every:4", "change", "off"])
def pair(request: pytest.FixtureRequest, walkway_bundle: Path) -> Iterator[tuple[Model, Model]]:
    """The same model on the host and on a device."""
    lane = LaneOptions(policy=request.param)
    with (
        open_model(walkway_bundle, threads=1, lane=lane) as host,
        OrtDevice.from_bundle(host.bundle, provider="cpu", threads=1) as device,
    ):
        yield host, replace(host, perception=replace(host.perception, backend=device))


def run(first: Model, then: Model, video: Path, at: int = N_FRAMES) -> VideoScores:
    """Score a video by one model, and from frame `at` on by the other."""
    with open_source(video) as source:
        frames = list(islice(source, N_FRAMES))
        begun, continued = VideoRun(first, source.fps), VideoRun(then, source.fps)
    for images in grouped(frames[:at], BLOCK):
        block = begun.stream.look(images)
        begun.take(block)
    continued.stream.restore(*begun.stream.state(block))
    continued.rows, continued.causal = begun.rows, begun.causal
    for images in grouped(frames[at:], BLOCK):
        continued.take(continued.stream.look(images))
    return continued.finish("01")


def same(found: VideoScores, expected: VideoScores) -> None:
    assert len(found.causal) == len(expected.causal) == N_FRAMES
    for name, column in expected.terms.items():
        np.testing.assert_allclose(found.terms[name], column, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found.box, expected.box, atol=1e-3)


def test_scores_are_the_hosts(pair: tuple[Model, Model], video: Path) -> None:
    host, device = pair
    assert isinstance(open_networks(device.perception, 1), DeviceNetworks)
    assert isinstance(open_networks(host.perception, 1), HostNetworks)
    same(run(device, device, video), run(host, host, video))


def test_a_checkpoint_of_either_continues_on_the_other(
    pair: tuple[Model, Model], video: Path
) -> None:
    host, device = pair
    expected = run(host, host, video)
    same(run(host, device, video, at=24), expected)
    same(run(device, host, video, at=24), expected)


def test_a_block_crosses_once_in_and_once_out(walkway_bundle: Path, video: Path) -> None:
    with (
        open_model(walkway_bundle, threads=1, lane=LaneOptions(policy="off")) as host,
        OrtDevice.from_bundle(host.bundle, provider="cpu", threads=1) as device,
        open_source(video) as source,
    ):
        model = replace(host, perception=replace(host.perception, backend=device))
        scored = VideoRun(model, source.fps)
        counts, crossed = device.memory.counts, []
        for images in grouped(islice(source, 4 * BLOCK), BLOCK):
            before = replace(counts)
            scored.take(scored.stream.look(images))
            crossed.append((counts.uploads - before.uploads, counts.downloads - before.downloads))
    assert crossed[1:] == [(1, 1)] * 3  # the first block brings the camera's matrices
