"""What the commands answer where the networks stay on a device: as on the host, and told so.

The device is this processor: ONNX Runtime on a memory of its own, by the code of a GPU.
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from sfn_rt.backends.ort import OrtDevice
from sfn_rt.bench import bench
from sfn_rt.bundle import Bundle
from sfn_rt.options import BackendOptions, BenchOptions, ScoreOptions
from sfn_rt.pipeline import score_video


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[OrtDevice]:
    """Every backend that is opened from here on."""
    opened: list[OrtDevice] = []

    def on_device(
        bundle: Bundle, options: BackendOptions, *, threads: int | None = None
    ) -> OrtDevice:
        opened.append(OrtDevice.from_bundle(bundle, provider="cpu", threads=threads))
        return opened[-1]

    monkeypatch.setattr("sfn_rt.model.open_backend", on_device)
    return opened


def table(folder: Path) -> dict[str, np.ndarray]:
    with (folder / "scores.csv").open() as file:
        rows = [*csv.DictReader(file)]
    numbers = {}
    for name in rows[0]:
        try:
            numbers[name] = np.array([float(row[name] or "nan") for row in rows])
        except ValueError:
            assert name == "caption"
    return numbers


def test_scores_are_the_hosts(
    tiny_bundle: Path, tiny_data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    video = tiny_data / "testing" / "frames" / "01"
    for where in ("host", "device"):
        if where == "device":
            opened = request.getfixturevalue("device")
        options = ScoreOptions(
            out=tmp_path / where, threads=1, report=False, progress=False, fps=25
        )
        score_video(video, tiny_bundle, options)
    assert len(opened) == 1
    assert opened[0].memory.counts.uploads > 0
    host, found = table(tmp_path / "host"), table(tmp_path / "device")
    assert {"visual", "semantic"} <= host.keys() == found.keys()
    for name, column in host.items():
        np.testing.assert_allclose(found[name], column, atol=1e-4, rtol=1e-4)


def test_bench_on_a_device_says_where_time_goes(
    tiny_bundle: Path, tiny_data: Path, device: list[OrtDevice]
) -> None:
    options = BenchOptions(threads=1, frames=16, warmup=8)
    result = bench(tiny_data / "testing" / "frames" / "01", tiny_bundle, options)
    assert len(device) == 1
    assert result.machine["resident"]
    assert "one piece of work, under predict" in result.text()
    assert result.stages["predict"]["mean"] > result.stages["encode"]["mean"]
