"""The caption cache: every clip once, whatever interrupts, and nothing made otherwise mixed in."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from captions_data import STRIDE_1, content, make_videos, run
from sfn_rt.datasets import open_dataset
from sfn_rt.exceptions import DataError, InputError, OutputError
from sfn_rt.frames import open_source
from sfn_rt.semantics.cached import CaptionFile, video_sha256
from sfn_train.captions import make
from sfn_train.captions.cache import CaptionCache, read_embeddings
from sfn_train.captions.make import OneProcess
from sfn_train.captions.units import Unit, cut_units, positions
from sfn_train.captions.vlm import Said, full_prompt, model_sha256
from sfn_train.cli import app
from sfn_train.text import TextModel
from tiny_weights import make_internvl, make_sentence_transformers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("captioned"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_internvl(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sentence_transformers(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path, weights: Path, text: Path) -> Path:
    """The cache of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "captions"
    summary = run(data, weights, out, text=text)
    assert (summary.n_videos, summary.n_captions, summary.n_made) == (3, 24, 24)
    return out


class StopsAfter(OneProcess):
    """Ctrl-C when some units are done."""

    n_units = 0

    def run(self, units: Iterator[Unit]) -> Iterator[tuple[Unit, Sequence[Said]]]:
        for number, done in enumerate(super().run(units), start=1):
            yield done
            if number == self.n_units:
                raise KeyboardInterrupt


def interrupted(
    monkeypatch: pytest.MonkeyPatch, n_units: int, data: Path, weights: Path, out: Path, text: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StopsAfter, "n_units", n_units)
        patch.setattr(make, "OneProcess", StopsAfter)
        with pytest.raises(KeyboardInterrupt):
            run(data, weights, out, text=text)


# ------------------------------------------------------------------------------------- clips


def test_a_clip_ends_before_a_frame_that_can_be_predicted() -> None:
    assert list(positions(9, 1)) == [3, 4, 5, 6, 7]
    assert list(positions(12, 4)) == [3, 7]
    assert list(positions(4, 1)) == []


@pytest.mark.parametrize(("stride", "batch"), [(1, 4), (1, 1), (3, 2), (7, 8)])
def test_units_hold_each_clip_with_its_own_frames(data: Path, stride: int, batch: int) -> None:
    path = data / "training" / "frames" / "01"
    with open_source(path) as source:
        images = [frame.image for frame in source]
    with open_source(path) as source:
        *units, n_frames = cut_units(
            source, 0, stride=stride, batch=batch, is_done=lambda end: end == 6
        )
    assert n_frames == len(images) == 15
    ends = []
    for unit in units:
        assert isinstance(unit, Unit)
        assert len(unit.ends) <= batch
        ends += unit.ends
        for end, clip in zip(unit.ends, unit.clips, strict=True):
            shown = [unit.frames[i] for i in clip]
            assert np.array_equal(np.stack(shown), np.stack(images[end - 3 : end + 1]))
    assert ends == [end for end in positions(15, stride) if end != 6]


# ------------------------------------------------------------------------------------- the cache


def test_a_cache_holds_every_position_with_its_embedding(
    whole: Path, data: Path, weights: Path, text: Path
) -> None:
    names = {f"{video}{end}" for video in STRIDE_1 for end in (".json", ".safetensors")}
    assert content(whole).keys() == names
    said: list[str] = []
    for video, n in STRIDE_1.items():
        file = CaptionFile.read(whole / f"{video}.json")
        assert sorted(file.captions) == list(range(3, 3 + n))
        assert (file.n_frames, file.n_made, list(file.cut)) == (n + 4, n, sorted(file.captions))
        folder = {"train": "training", "test": "testing"}[video[:-3]]
        assert file.source is not None
        assert file.source.video == video_sha256(data / folder / "frames" / video[-2:])
        assert file.source.model == model_sha256(weights)
        assert file.source.prompt == full_prompt()
        expected = TextModel(text).encode([file.captions[end] for end in sorted(file.captions)])
        np.testing.assert_allclose(read_embeddings(file), expected, atol=1e-6)
        said += file.captions.values()
    assert len(said) == 24
    assert len({*said}) > 20  # clips differ, so a caption in the wrong place would show


def test_a_second_run_makes_nothing(whole: Path, data: Path, weights: Path, text: Path) -> None:
    before = content(whole)
    assert run(data, weights, whole, text=text).n_made == 0
    assert content(whole) == before


def test_a_coarser_stride_is_a_part_of_a_finer_one(
    whole: Path, data: Path, weights: Path, text: Path, tmp_path: Path
) -> None:
    run(data, weights, tmp_path / "c", text=text, stride=3, split="train", batch=2)
    coarse = CaptionFile.read(tmp_path / "c" / "train" / "01.json")
    fine = CaptionFile.read(whole / "train" / "01.json")
    assert sorted(coarse.captions) == [3, 6, 9, 12]
    assert all(fine.captions[end] == caption for end, caption in coarse.captions.items())
    assert not (tmp_path / "c" / "test").exists()


@pytest.mark.parametrize("n_units", [1, 3, 4])
def test_an_interrupted_run_goes_on_and_ends_the_same(
    whole: Path,
    data: Path,
    weights: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_units: int,
) -> None:
    out = tmp_path / "c"
    interrupted(monkeypatch, n_units, data, weights, out, text)
    n_done = {1: 4, 3: 11, 4: 15}[n_units]  # captions of the units that were done
    assert run(data, weights, out, text=text).n_made == 24 - n_done
    assert content(out) == content(whole)


@pytest.mark.parametrize("damage", ["cut", "cut in the middle", "garbled", "doubled newline"])
def test_what_a_power_cut_left_half_written_is_done_again_and_no_more(
    whole: Path,
    data: Path,
    weights: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    out = tmp_path / "c"
    interrupted(monkeypatch, 2, data, weights, out, text)
    (journal,) = (out / ".captions").glob("*.jsonl")
    head, first, second = journal.read_bytes().splitlines(keepends=True)
    written = {
        "cut": head + first + second[:-1],
        "cut in the middle": head + first + second[:40],
        "garbled": head + first[:60] + b"XX" + first[62:] + second,
        "doubled newline": head + first + b"\n" + second,
    }
    journal.write_bytes(written[damage])
    n_kept = 8 if damage == "doubled newline" else 4
    assert run(data, weights, out, text=text).n_made == 24 - n_kept
    assert content(out) == content(whole)


def test_a_run_that_ended_before_a_video_was_put_in_place_does_only_that(
    whole: Path, data: Path, weights: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    shutil.copytree(whole, out)
    (out / "train" / "01.json").unlink()
    source = CaptionFile.read(whole / "train" / "01.json").source
    assert source is not None
    with CaptionCache(out) as cache:
        said = CaptionFile.read(whole / "train" / "01.json").captions
        video = cache.open("train", "01", source)
        video.add({end: Said(caption, True) for end, caption in said.items()})
        with pytest.raises(RuntimeError, match="frame 5 was captioned twice"):
            video.add({5: Said("again", False)})
    assert run(data, weights, out, text=text).n_made == 0
    assert content(out) == content(whole)


def test_two_runs_never_write_one_cache(whole: Path, data: Path, weights: Path, text: Path) -> None:
    before = content(whole)
    with (
        CaptionCache(whole),
        pytest.raises(OutputError, match=r"another run is writing .* just now; wait for it"),
    ):
        run(data, weights, whole, text=text)
    assert content(whole) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 2}, "stride is '1' where it should be '2'"),
        ({"max_tokens": 13}, "max_tokens is '12' where it should be '13'"),
        ({"question": "Who?"}, r"prompt is '.*Describe the scene.*' where it should be '.*Who\?'"),
    ],
)
@pytest.mark.parametrize("half", [False, True], ids=["finished", "half made"])
def test_captions_made_otherwise_are_named_and_refused(
    whole: Path,
    data: Path,
    weights: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    words: str,
    half: bool,
) -> None:
    out = whole
    if half:
        out = tmp_path / "c"
        interrupted(monkeypatch, 1, data, weights, out, text)
    before = content(out)
    with pytest.raises(DataError, match=rf"01\.json.*: {words}\. Choose another --out"):
        run(data, weights, out, text=text, **options)
    assert content(out) == before


def test_captions_of_another_model_or_video_are_refused(
    whole: Path, data: Path, weights: Path, text: Path, tmp_path: Path
) -> None:
    other = make_internvl(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match=r"01\.json: made with other settings: model is '"):
        run(data, other, whole, text=text)
    changed = shutil.copytree(data, tmp_path / "data")
    (changed / "training" / "frames" / "02" / "005.png").unlink()
    with pytest.raises(DataError, match=r"02\.json: made with other settings: video is '"):
        run(changed, weights, whole, text=text)


def test_another_sentence_encoder_embeds_the_same_captions_again(
    whole: Path, data: Path, weights: Path, text: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "c"))
    other = make_sentence_transformers(tmp_path / "encoder", seed=1)
    before = CaptionFile.read(out / "train" / "01.json")
    assert run(data, weights, out, text=other).n_made == 0
    after = CaptionFile.read(out / "train" / "01.json")
    assert after.captions == before.captions
    assert after.embeddings != before.embeddings
    assert run(data, weights, out, text=text).n_made == 0
    assert content(out) == content(whole)


def test_embeddings_that_were_lost_or_changed_are_made_again(
    whole: Path, data: Path, weights: Path, text: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "c"))
    (out / "test" / "01.safetensors").unlink()
    (out / "train" / "02.safetensors").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"not the file that 02\.json states; copy both again"):
        read_embeddings(CaptionFile.read(out / "train" / "02.json"))
    assert run(data, weights, out, text=text).n_made == 0
    assert content(out) == content(whole)


def test_a_video_too_short_for_a_clip_has_an_empty_file(
    weights: Path, text: Path, tmp_path: Path
) -> None:
    data = make_videos(tmp_path / "data", {"training": {"short": 4, "long": 6}})
    summary = run(data, weights, tmp_path / "c", text=text)
    assert summary.n_captions == 2
    file = CaptionFile.read(tmp_path / "c" / "train" / "short.json")
    assert (file.captions, file.n_frames) == ({}, 4)
    assert read_embeddings(file).shape == (0, 32)


# ------------------------------------------------------------------------------------- the command


def test_the_command_says_what_it_does(
    whole: Path, data: Path, weights: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    how = f"--weights {weights} --text {text} --out {out} --batch 4 --max-tokens 12 --fps 25"
    done = CliRunner().invoke(app, ["captions", str(data), *how.split()])
    assert done.exit_code == 0, done.output
    assert f"{data}: 3 videos, about 24 captions at stride 1, 0 done before" in done.output
    assert f"{out}: 24 captions of 3 videos, 24 made now" in done.output
    assert "note: 24 were cut at --max-tokens" in done.output
    assert content(out) == content(whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--stride 0", "--stride must be at least 1, got 0"),
        ("--batch -1", "--batch must be at least 1, got -1"),
        ("--split val", "--split must be train, test or all, got val"),
        ("--workers 2", "add --ray, as in --ray local"),
        ("--text nowhere", "nowhere"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    data: Path, weights: Path, tmp_path: Path, arguments: str, words: str
) -> None:
    out = tmp_path / "c"
    how = ["captions", str(data), "--weights", str(weights), "--out", str(out)]
    done = CliRunner().invoke(app, [*how, *arguments.split()])
    assert done.exit_code == 2
    assert words in done.output
    assert not out.exists()


def test_a_split_without_videos_is_refused(data: Path, weights: Path, tmp_path: Path) -> None:
    alone = open_dataset(data / "training")
    with pytest.raises(DataError, match="no test videos; choose another --split"):
        run(alone, weights, tmp_path / "c", split="test")
    with pytest.raises(InputError, match="must not hold <image> itself"):
        run(alone, weights, tmp_path / "c", question="<image>?")


def test_a_damaged_head_of_a_journal_says_what_to_delete(
    data: Path, weights: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, 1, data, weights, tmp_path / "c", text)
    (journal,) = (tmp_path / "c" / ".captions").glob("*.jsonl")
    journal.write_bytes(b"x" + journal.read_bytes())
    with pytest.raises(DataError, match=r"train_01\.jsonl is damaged; delete it"):
        run(data, weights, tmp_path / "c", text=text)


def test_the_journal_is_plain_text_that_states_its_settings(
    data: Path, weights: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, 1, data, weights, tmp_path / "c", text)
    (journal,) = (tmp_path / "c" / ".captions").glob("*.jsonl")
    head, unit = (line.partition(" ")[2] for line in journal.read_text("ascii").splitlines())
    assert json.loads(head)["model"] == model_sha256(weights)
    assert list(json.loads(unit)) == ["3", "4", "5", "6"]
