"""Features of the frozen tower on disk: announced, complete, resumable, never mixed up."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from sfn_rt.datasets import open_dataset
from sfn_rt.exceptions import DataError, OutputError
from sfn_rt.frames import open_source
from sfn_rt.preprocess import preprocess
from sfn_rt.sinks.files import hold_lock
from sfn_train.cli import app
from sfn_train.config import Config, parse_config
from sfn_train.data import feature_cache
from sfn_train.data.clips import Runs
from sfn_train.data.feature_cache import FeatureCache, make_features
from sfn_train.data.prepare import prepare
from sfn_train.model.tower import VisionTower
from sfn_train.systems import build_network, training_losses
from tiny_weights import make_internvl

FRAME_BYTES = (1 + 2 * 16) * 64 * 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_internvl(tmp_path_factory.mktemp("internvl"))


@pytest.fixture
def text(tiny_yaml: str, weights: Path) -> str:
    raw = yaml.safe_load(tiny_yaml)
    raw["model"] |= {"frame_height": 56, "frame_width": 56, "patch": 14, "appearance_dim": 64}
    raw["model"] |= {"tower": str(weights), "use_text": False}
    return yaml.safe_dump(raw)


@pytest.fixture
def config(text: str) -> Config:
    return parse_config(text, "test")


def make(footage: Path, config: Config, out: Path, **options: object) -> tuple[str, list[str]]:
    said: list[str] = []
    done = make_features(open_dataset(footage), config, out, say=said.append, **options)
    return done, said


def test_frames_come_back_as_the_tower_gave_them(
    footage: Path, config: Config, weights: Path, tmp_path: Path
) -> None:
    done, said = make(footage, config, tmp_path / "f", dtype="float16", batch=7)
    assert "80 frames computed, 0 videos were there" in done
    assert said == [said[0]]
    assert "2 videos to do, about 80 frames of 4.2 kB: 337.9 kB to write" in said[0]

    video = open_dataset(footage).train[1]
    cache = FeatureCache(tmp_path / "f", config)
    cache.check(video.name, video.path, 40)
    cache = pickle.loads(pickle.dumps(cache))  # as a process that loads batches gets it
    hidden, embedded = cache.read(video.name, 5, 9)
    assert hidden.shape == (4, 17, 64)
    assert embedded.shape == (4, 16, 64)
    with open_source(video.path) as source:
        images = [frame.image for frame in source][5:9]
    pixels = np.stack([preprocess(image, config.preprocessing) for image in images])
    with torch.inference_mode():
        expected = VisionTower.load(str(weights))(torch.from_numpy(pixels))
    for stored, given in zip((hidden, embedded), expected, strict=True):
        assert stored.dtype == torch.float16
        torch.testing.assert_close(stored.float(), given, rtol=1e-3, atol=1e-4)  # 11 bits


def test_training_reads_them_in_the_towers_place(
    footage: Path, config: Config, text: str, tmp_path: Path
) -> None:
    make(footage, config, tmp_path / "f")
    cached = parse_config(text, "test", [f"data.features={tmp_path / 'f'}"])
    prepared = prepare(open_dataset(footage), cached, tmp_path / "c", say=lambda text: None)
    torch.manual_seed(0)
    network = build_network(config).eval()
    losses = []
    for settings in (config, cached):
        item = Runs(prepared, settings)[1, 3]
        batch = {name: tensor[None] for name, tensor in item.items()}
        with torch.inference_mode():
            losses.append(float(training_losses(network, batch, settings)["total"]))
    assert item["hidden"].shape == (7, 17, 64)  # of a run of 8 frames; the last is a target
    assert item["hidden"].dtype == torch.bfloat16
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)  # bfloat16


def test_an_interrupted_run_goes_on_inside_a_video(
    footage: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(footage, config, tmp_path / "whole", batch=4)
    compute, calls = feature_cache._features_of, []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 14:  # of 10 a video
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(feature_cache, "_features_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(footage, config, tmp_path / "f", batch=4)
    assert (tmp_path / "f" / "00.features").exists()
    assert not (tmp_path / "f" / "01.features").exists()
    (partial,) = (tmp_path / "f").glob(".01.*.partial")
    assert partial.stat().st_size == 12 * FRAME_BYTES
    with partial.open("ab") as file:
        file.write(b"part of a frame")

    done, said = make(footage, config, tmp_path / "f", batch=4)
    assert "28 frames computed, 1 videos were there" in done
    assert "1 videos to do, about 40 frames" in said[0]
    for name in ("00", "01"):
        whole = (tmp_path / "whole" / f"{name}.features").read_bytes()
        assert (tmp_path / "f" / f"{name}.features").read_bytes() == whole
    assert not list((tmp_path / "f").glob("*.partial"))
    assert "0 frames computed, 2 videos" in make(footage, config, tmp_path / "f")[0]


def test_a_changed_video_is_done_again_and_refused_until_then(
    footage: Path, config: Config, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(footage, data)
    make(data, config, tmp_path / "f")
    frames = data / "training" / "frames" / "01"
    cache = FeatureCache(tmp_path / "f", config)
    for frame in frames.iterdir():  # a copy has other times and the same content
        frame.touch()
    cache.check("01", frames, 40)
    shutil.copyfile(frames / "000.png", frames / "007.png")
    with pytest.raises(DataError, match="its features of 01 are of another video"):
        cache.check("01", frames, 40)
    with pytest.raises(DataError, match="has no features of video 02"):
        cache.check("02", frames, 40)
    assert "40 frames computed, 1 videos were there" in make(data, config, tmp_path / "f")[0]
    cache.check("01", frames, 40)
    with pytest.raises(DataError, match="features of 40 frames of 01, the video has 41"):
        cache.check("01", frames, 41)


def test_a_cache_made_otherwise_is_named_and_refused(
    footage: Path, config: Config, text: str, tmp_path: Path
) -> None:
    make(footage, config, tmp_path / "f")
    other = make_internvl(tmp_path / "other", seed=1)
    changed = parse_config(text, "test", [f"model.tower={other}"])
    named = r"of another tower, .*internvl.* asked for are those of .*other"
    with pytest.raises(DataError, match=named):
        make(footage, changed, tmp_path / "f")
    with pytest.raises(DataError, match=named):
        FeatureCache(tmp_path / "f", changed)
    with pytest.raises(DataError, match="made with dtype bfloat16, asked for is float16"):
        make(footage, config, tmp_path / "f", dtype="float16")
    bicubic = parse_config(text, "test", ["data.resize=bicubic"])
    with pytest.raises(DataError, match=r"made with preprocessing .*'area'.*, asked for is"):
        FeatureCache(tmp_path / "f", bicubic)
    with pytest.raises(DataError, match=r"features\.json does not exist; make the features"):
        FeatureCache(tmp_path / "absent", config)
    with pytest.raises(OutputError, match="holds files that are no features"):
        make(footage, config, other)


def test_damaged_features_are_refused(footage: Path, config: Config, tmp_path: Path) -> None:
    make(footage, config, tmp_path / "f")
    with (tmp_path / "f" / "00.features").open("ab") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"00\.features is missing or cut short; remove"):
        FeatureCache(tmp_path / "f", config).read("00", 0, 1)
    (tmp_path / "f" / "01.json").write_text("{")
    with pytest.raises(DataError, match=r"01\.json cannot be read"):
        FeatureCache(tmp_path / "f", config).check("01", footage, 40)
    (tmp_path / "f" / "features.json").write_text('{"version": 1}')
    with pytest.raises(DataError, match=r"features\.json cannot be read"):
        FeatureCache(tmp_path / "f", config)


def test_what_does_not_fit_is_refused_before_a_byte_is_written(
    footage: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300_000))
    with pytest.raises(OutputError, match=r"features need 337\.9 kB, 300\.0 kB are free; choose"):
        make(footage, config, tmp_path / "f")
    assert not list((tmp_path / "f").glob("*.partial"))
    assert not list((tmp_path / "f").glob("*.features"))


def test_a_second_run_is_refused_while_one_writes(
    footage: Path, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "f").mkdir()
    lock = hold_lock(tmp_path / "f" / ".lock", tmp_path / "f")  # another run, so to speak
    try:
        with pytest.raises(OutputError, match=r"another run is writing .* just now; wait for it"):
            make(footage, config, tmp_path / "f")
    finally:
        os.close(lock)
    assert "80 frames computed" in make(footage, config, tmp_path / "f")[0]


def test_features_that_are_no_numbers_are_not_kept(
    footage: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = VisionTower.forward
    monkeypatch.setattr(
        VisionTower, "forward", lambda self, frame: tuple(1e6 * x for x in forward(self, frame))
    )
    with pytest.raises(DataError, match="no finite float16; use --dtype bfloat16"):
        make(footage, config, tmp_path / "f", dtype="float16")
    assert "80 frames" in make(footage, config, tmp_path / "g")[0]  # bfloat16 reaches that far


def test_out_of_memory_names_the_batch_to_try(
    footage: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: VisionTower, frame: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VisionTower, "forward", full)
    with pytest.raises(Exception, match="out of memory with 8 frames at once; try --batch 4"):
        make(footage, config, tmp_path / "f")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_and_says_what_comes_next(
    footage: Path, text: str, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    common = ("features", footage, "--config", tmp_path / "c.yaml", "--out", tmp_path / "f")
    result = invoke(*common, "--batch", 16)
    assert result.exit_code == 0, result.output
    assert "337.9 kB to write" in result.stdout
    assert f"--set data.features={tmp_path / 'f'}" in result.stdout
    assert json.loads((tmp_path / "f" / "features.json").read_text())["dtype"] == "bfloat16"
    for extra, message in (
        (["--dtype", "int8"], "--dtype int8 is none of bfloat16, float16"),
        (["--set", "model.tower=null"], "features are those of a frozen vision tower"),
        (["--set", f"model.tower={tmp_path / 'absent'}"], "absent does not exist"),
    ):
        refused = invoke(*common, *extra)
        assert refused.exit_code == 2
        assert refused.stderr.count("\n") == 1
        assert message in refused.stderr
