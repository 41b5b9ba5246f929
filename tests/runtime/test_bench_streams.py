"""Several streams measured together: what is counted, what is scored, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sfn_rt.bench_streams import _Scores, bench_streams
from sfn_rt.bundle import load_bundle
from sfn_rt.cli import app
from sfn_rt.exceptions import InputError, VideoError
from sfn_rt.networks import NetworkSettings
from sfn_rt.normal import NormalFootage
from sfn_rt.options import BenchOptions, LaneOptions
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.preprocess import Preprocessing
from sfn_rt.resident import Measured
from sfn_rt.scores import CausalScore
from sfn_rt.semantics.levels import NormalLevels


@pytest.fixture
def video(tiny_data: Path) -> Path:
    return tiny_data / "testing" / "frames" / "01"


@pytest.mark.parametrize("block", [1, 3])
def test_streams_are_counted_together(tiny_bundle: Path, video: Path, block: int) -> None:
    options = BenchOptions(threads=1, streams=3, block=block, frames=40, warmup=5)
    result = bench_streams(video, tiny_bundle, options)
    assert result.frames >= 40
    assert result.frames % (3 * block) == 0
    assert (result.uploads_per_step, result.downloads_per_step) == (1, 1)
    assert result.frames_per_second > 0
    assert result.step_ms["p50"] <= result.step_ms["p99"]
    assert result.terms == ("visual", "semantic")
    assert "3 streams on host" in result.text()
    assert "a step: 1 upload, 1 download" in result.text()


def test_the_command_answers_in_json(tiny_bundle: Path, video: Path) -> None:
    arguments = ["bench", str(video), "--bundle", str(tiny_bundle), "--streams", "2", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--frames", "6", "--warmup", "0"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["streams"] == 2
    assert answer["machine"]["backend"] == "ort-cpu"


def test_scores_are_those_of_every_stream_alone(tiny_bundle: Path) -> None:
    normal = NormalFootage.from_arrays(load_bundle(tiny_bundle).normal())
    rows = np.abs(np.random.default_rng(0).standard_normal((3, 10, 2))).astype(np.float32)
    settings = NetworkSettings(
        observed=4, preprocessing=Preprocessing(height=8, width=8), visual=VisualConfig(),
        n_windows=1,
    )  # fmt: skip
    layout = {"visual": slice(0, 1), "distilled": slice(1, 2)}
    scores = _Scores(normal, 1, 0.2)
    found = [
        scores.take(Measured(rows[:, a:z], (min(z - a, max(z - 4, 0)),) * 3, layout, settings))
        for a, z in ((0, 3), (3, 6), (6, 10))
    ]
    actual = np.concatenate(found, axis=1)
    assert actual.shape == (3, 6)  # the first four of ten have no T before them
    expected = NormalLevels.of(normal, 1).expected
    assert expected is not None
    for stream in range(3):
        causal = CausalScore({t: normal.tails[t] for t in ("visual", "semantic")}, 0.2)
        for row, score in zip(rows[stream, 4:], actual[stream], strict=True):
            evidence = {"visual": float(row[0]), "semantic": expected.of(float(row[1]))}
            assert score == pytest.approx(causal.update(evidence))


def test_what_is_refused(tiny_bundle: Path, dual_bundle: Path, video: Path) -> None:
    with pytest.raises(InputError, match="dual-memory runs one clip at a time"):
        bench_streams(video, dual_bundle, BenchOptions(streams=2))
    with pytest.raises(VideoError, match="30 frames do not fill a block of 31; lower --block"):
        bench_streams(video, tiny_bundle, BenchOptions(streams=2, block=31))
    with pytest.raises(InputError, match="--streams measures without captions"):
        BenchOptions(streams=2, lane=LaneOptions(captioner="scene"))
    with pytest.raises(InputError, match="--block is for --streams"):
        BenchOptions(block=2)
    with pytest.raises(InputError, match="--streams must be at least 1, got 0"):
        BenchOptions(streams=0)


def test_a_backend_that_is_not_there_is_an_error(tiny_bundle: Path, video: Path) -> None:
    arguments = ["bench", str(video), "--bundle", str(tiny_bundle), "--streams", "2"]
    done = CliRunner().invoke(app, [*arguments, "--backend", "cuda"])
    if done.exit_code == 0:
        pytest.skip("a GPU is here")
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "pip install 'sfn-rt[gpu]'" in line or "GPU" in line
