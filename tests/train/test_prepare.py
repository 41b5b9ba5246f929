"""Preparation: cached, complete or absent, bounded on disk, and honest about what it left out."""

import os
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from sfn_rt.attributes import AttributeModel
from sfn_rt.datasets import Dataset, open_dataset
from sfn_rt.exceptions import DataError, InputError, OutputError, VideoError
from sfn_rt.frames import open_source
from sfn_rt.semantics.captioner import Clip
from sfn_rt.semantics.describe import SceneCaptioner
from sfn_rt.semantics.scene import Scene, SceneAnalyser
from sfn_train.config import Config, parse_config
from sfn_train.data import prepare as module
from sfn_train.data.prepare import Prepared, prepare
from sfn_train.text import TextModel


@pytest.fixture
def config(tiny_yaml: str) -> Config:
    return parse_config(tiny_yaml, "tiny")


@pytest.fixture
def without_text(tiny_yaml: str) -> Config:
    return parse_config(tiny_yaml, "tiny", ["model.use_text=false"])


def run(data: Path | Dataset, config: Config, cache: Path) -> tuple[Prepared, list[str]]:
    said: list[str] = []
    dataset = open_dataset(data) if isinstance(data, Path) else data
    return prepare(dataset, config, cache, say=said.append), said


def write_video(folder: Path, n: int, grey: int = 90) -> Path:
    folder.mkdir(parents=True)
    for i in range(n):
        cv2.imwrite(str(folder / f"{i:03d}.png"), np.full((32, 48, 3), grey, np.uint8))
    return folder


def test_scenes_come_back_from_the_cache_as_they_were_made(
    footage: Path, config: Config, tmp_path: Path
) -> None:
    prepared, _ = run(footage, config, tmp_path)
    analyser = SceneAnalyser(config.semantics.scene, prepared.background)
    with open_source(prepared.videos[0].path) as source:
        expected = [analyser.step(frame.image) for frame in source]
    assert list(prepared.videos[0].scenes) == expected
    assert sum(len(scene.things) for scene in expected) >= 30


def test_a_second_preparation_reads_no_video_and_gives_the_same(
    footage: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(footage, config, tmp_path)
    files = {file.name: file.stat().st_ino for file in tmp_path.iterdir()}
    monkeypatch.setattr(module, "open_source", None)
    monkeypatch.setattr(TextModel, "encode", None)
    second, _ = run(footage, config, tmp_path)
    assert {file.name: file.stat().st_ino for file in tmp_path.iterdir()} == files
    assert second.sentences == first.sentences
    np.testing.assert_array_equal(second.videos[1].pixels, first.videos[1].pixels)
    np.testing.assert_array_equal(second.embeddings, first.embeddings)


def test_attributes_know_the_training_part_only(
    footage: Path, without_text: Config, tmp_path: Path
) -> None:
    prepared, _ = run(footage, without_text, tmp_path)
    train = [prepared.videos[s.video].scenes[s.start : s.stop] for s in prepared.split.train]
    assert prepared.attributes is not None
    assert prepared.attributes.n_things == AttributeModel.fit(train).n_things
    assert [span.start for _, span in prepared.held_out()] == [32, 32]


def test_an_interrupted_pass_leaves_nothing_and_the_next_one_goes_on(
    footage: Path, without_text: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupt(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 60:  # in the second video
            raise KeyboardInterrupt
        return real(*args)

    real = module.preprocess
    monkeypatch.setattr(module, "preprocess", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(footage, without_text, tmp_path)
    assert len(list(tmp_path.glob("frames-*"))) == 1
    assert not list(tmp_path.glob(".*"))
    run(footage, without_text, tmp_path)
    assert calls == 60 + 40  # the first video is not read again


def test_frames_that_do_not_fit_are_left_out_in_blocks_and_that_is_said(
    tmp_path: Path, without_text: Config, tiny_yaml: str
) -> None:
    write_video(tmp_path / "data" / "a", 300)
    size = 16 * 24 * 3 * 2
    small = parse_config(
        tiny_yaml, "tiny", ["model.use_text=false", f"data.cache_gb={150 * size / 1e9}"]
    )
    prepared, said = run(tmp_path / "data", small, tmp_path / "cache")
    (video,) = prepared.videos
    assert video.n_frames == 300
    assert video.stretches == ((64, 128), (192, 256))
    assert len(video.pixels) == 128
    np.testing.assert_array_equal(video.read(70, 78), video.pixels[6:14])
    with pytest.raises(ValueError, match="are not all kept"):
        video.read(120, 130)
    assert any("50.0% of each video's frames fit" in text for text in said)


def test_the_cache_stays_within_its_limit_by_forgetting_the_oldest(
    tmp_path: Path, footage: Path, without_text: Config
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for name, hours in (("old", 2), ("new", 0)):  # the new one may be another run's just now
        file = cache / f"frames-{name}.f16"
        file.write_bytes(bytes(1000))
        os.utime(file, (time.time() - 3600 * hours,) * 2)
    small = 80 * 16 * 24 * 3 * 2 + 500  # bytes
    limited = replace(without_text, data=replace(without_text.data, cache_gb=small / 1e9))
    run(footage, limited, cache)
    assert not (cache / "frames-old.f16").exists()
    assert (cache / "frames-new.f16").exists()
    assert len(list(cache.glob("frames-*"))) == 3


def test_a_full_disk_is_said_before_anything_is_written(
    footage: Path, without_text: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("U", (), {"free": 1000})())
    with pytest.raises(OutputError, match=r"choose another --cache, or set data\.cache_gb"):
        run(footage, without_text, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_changed_video_is_read_again(tmp_path: Path, without_text: Config) -> None:
    folder = write_video(tmp_path / "data" / "a", 30, grey=90)
    before, _ = run(tmp_path / "data", without_text, tmp_path / "cache")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    write_video(folder, 30, grey=200)
    after, _ = run(tmp_path / "data", without_text, tmp_path / "cache")
    assert after.videos[0].pixels.mean() > before.videos[0].pixels.mean() + 1


def test_footage_where_nothing_moves_trains_only_without_captions(
    tmp_path: Path, config: Config, without_text: Config
) -> None:
    write_video(tmp_path / "data" / "a", 30)
    with pytest.raises(DataError, match=r"nothing moved .* --set model\.use_text=false"):
        run(tmp_path / "data", config, tmp_path / "cache")
    prepared, said = run(tmp_path / "data", without_text, tmp_path / "cache")
    assert prepared.attributes is None
    assert np.isfinite(prepared.videos[0].pixels).all()
    assert any("nothing moved" in text for text in said)


def test_captions_can_come_from_files(footage: Path, tiny_yaml: str, tmp_path: Path) -> None:
    captions = tmp_path / "captions"
    captions.mkdir()
    changes = ["semantics.captioner=cached", f"semantics.captions={captions}"]
    cached = parse_config(tiny_yaml, "tiny", changes)
    with pytest.raises(InputError, match=r"00\.json: cannot read captions"):
        run(footage, cached, tmp_path / "cache")
    for name in ("00", "01"):
        (captions / f"{name}.json").write_text('{"0": "a block stands", "20": "a block moves"}')
    prepared, _ = run(footage, cached, tmp_path / "cache")
    assert prepared.sentences == ("a block stands", "a block moves")
    (ids,) = prepared.videos[0].caption_ids.T
    assert list(ids[:4]) == [-1] * 4
    assert list(ids[4:24]) == [0] * 20  # the caption for frame 24 is made from frames up to 23
    assert list(ids[24:]) == [1] * 16


def test_each_window_has_its_caption(footage: Path, tiny_yaml: str, tmp_path: Path) -> None:
    narrow = parse_config(tiny_yaml, "tiny")
    wide = parse_config(tiny_yaml, "tiny", ["model.windows=[4, 12]"])
    one, _ = run(footage, narrow, tmp_path)
    two, _ = run(footage, wide, tmp_path)
    video = two.videos[0]
    assert video.caption_ids.shape == (40, 2)
    assert (video.caption_ids[:4] == -1).all()
    assert two.attributes is not None
    captioner, stride = SceneCaptioner(two.attributes), wide.semantics.stride
    for t in range(4, 40):
        made = t - (t - 4) % stride
        clip = Clip(made - 1, (), video.scenes[max(0, made - 12) : made], longer=True)
        short, long = (two.sentences[i] for i in video.caption_ids[t])
        assert short == one.sentences[one.videos[0].caption_ids[t, 0]]
        assert long == captioner.caption(clip)


def test_captions_from_files_tell_of_one_window(
    footage: Path, tiny_yaml: str, tmp_path: Path
) -> None:
    captions = tmp_path / "captions"
    captions.mkdir()
    for name in ("00", "01"):
        (captions / f"{name}.json").write_text('{"0": "a block stands"}')
    changes = ["semantics.captioner=cached", f"semantics.captions={captions}"]
    config = parse_config(tiny_yaml, "tiny", [*changes, "model.windows=[4, 8]"])
    with pytest.raises(
        InputError, match=r"this model reads 2 of 4, 8 frames; .*model\.windows=\[\]"
    ):
        run(footage, config, tmp_path / "cache")


DUAL = """
system: dual-memory
model: {frame_height: 16, frame_width: 16, channels: 1, widths: [2, 4], skips: [none], slots: 4}
data: {run_length: 16}
visual: {measure: psnr}
train: {steps: 1}
"""


def test_a_system_that_knows_pictures_only_does_not_look_for_things(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SceneAnalyser", None)
    monkeypatch.setattr(module, "estimate_background", None)
    config = parse_config(DUAL, "dual")
    prepared, said = run(footage, config, tmp_path)
    assert (prepared.attributes, prepared.background, prepared.sentences) == (None, None, ())
    video = prepared.videos[0]
    assert set(video.scenes) == {Scene(96, 64, ())}
    assert 0 <= video.pixels.min() < video.pixels.max() <= 1  # standardised inside the network
    assert not any("scene" in text for text in said)


def test_an_unreadable_video_stops_training_by_name(tmp_path: Path, without_text: Config) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bad.mp4").write_text("this is no video")
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        run(tmp_path / "data", without_text, tmp_path / "cache")


def test_an_encoder_of_another_width_is_refused(
    footage: Path, tiny_yaml: str, tmp_path: Path
) -> None:
    wide = parse_config(tiny_yaml, "tiny", ["model.text_dim=768"])
    with pytest.raises(DataError, match=r"embeds to 384 numbers, the model expects 768; set model"):
        run(footage, wide, tmp_path)


def test_videos_of_one_scene_share_a_background(
    footage: Path, without_text: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = np.full((2, 16, 24), (16 * 24) ** -0.5, np.float32)
    monkeypatch.setattr("sfn_train.data.prepare._thumbnails", lambda *_: alike)
    prepared, _ = run(footage, without_text, tmp_path / "cache")
    assert prepared.background is not None


def test_videos_of_different_scenes_share_none_in_training_or_on_the_device(
    footage: Path, without_text: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    different = np.zeros((2, 16, 24), np.float32)
    different[0, 3, 4] = different[1, 9, 9] = 1.0
    monkeypatch.setattr("sfn_train.data.prepare._thumbnails", lambda *_: different)
    prepared, said = run(footage, without_text, tmp_path / "cache")
    assert prepared.background is None
    assert any("different scenes" in text for text in said)
