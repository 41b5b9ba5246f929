"""Training on captions that were made elsewhere: checked, and no sentence encoder needed."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from captions_data import make_videos, run
from sfn_rt.datasets import open_dataset
from sfn_rt.exceptions import DataError, InputError
from sfn_rt.semantics.cached import CaptionFile
from sfn_train.captions.known import KnownSentences, open_text, read_captions
from sfn_train.config import Config, parse_config
from sfn_train.data.prepare import Prepared, prepare
from sfn_train.text import TextModel
from tiny_weights import make_internvl, make_sentence_transformers


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, weights, and captions of every frame, as they are copied to another machine."""
    root = tmp_path_factory.mktemp("shipped")
    make_videos(root / "data", {"training": {"01": 24, "02": 24}, "testing": {"01": 12}})
    make_internvl(root / "vlm")
    make_sentence_transformers(root / "text")
    run(root / "data", root / "vlm", root / "captions", text=root / "text", batch=8)
    return root


def settings(tiny_yaml: str, captions: Path, text: Path, *more: str) -> Config:
    changes = ["semantics.captioner=cached", f"semantics.captions={captions}"]
    changes += [f"semantics.text={text}", "model.text_dim=32", *more]
    return parse_config(tiny_yaml, "tiny", changes)


def prepared(place: Path, config: Config, cache: Path) -> tuple[Prepared, list[str]]:
    said: list[str] = []
    dataset = open_dataset(place / "data", fps=25)
    return prepare(dataset, config, cache, say=said.append, progress=False), said


def check(done: Prepared, captions: Path, stride: int) -> None:
    """Every frame has the caption made for its clip, or for the last one a stride back."""
    for video in done.videos:
        file = CaptionFile.read(captions / "train" / f"{video.name}.json")
        for t in range(4, video.n_frames):
            made_at = t - (t - 4) % stride
            (number,) = video.caption_ids[t]
            assert done.sentences[number] == file.captions[made_at - 1]


@pytest.mark.parametrize("stride", [1, 4])
def test_captions_and_their_embeddings_are_taken_as_they_are(
    place: Path, tiny_yaml: str, tmp_path: Path, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tiny_yaml, place / "captions", place / "text", f"semantics.stride={stride}")
    expected = TextModel(place / "text")

    def asked(self: TextModel, sentences: Sequence[str]) -> None:
        raise AssertionError(f"{sentences} are embedded already")

    with monkeypatch.context() as patch:
        patch.setattr(TextModel, "encode", asked)
        done, _ = prepared(place, config, tmp_path)
    check(done, place / "captions", stride)
    assert done.captions == CaptionFile.read(place / "captions" / "train" / "01.json").source
    np.testing.assert_allclose(done.embeddings, expected.encode(done.sentences), atol=1e-6)


def test_a_machine_without_the_encoder_trains_on_the_embeddings_that_came_along(
    place: Path, tiny_yaml: str, tmp_path: Path
) -> None:
    config = settings(tiny_yaml, place / "captions", tmp_path / "not_here")
    done, said = prepared(place, config, tmp_path / "cache")
    expected = TextModel(place / "text").encode(done.sentences)
    np.testing.assert_allclose(done.embeddings, expected, atol=1e-6)
    (note,) = [line for line in said if "the sentence encoder is not here" in line]
    assert "made by text (" in note
    assert "Exporting the model needs the encoder" in note


def test_another_encoder_embeds_the_captions_itself(
    place: Path, tiny_yaml: str, tmp_path: Path
) -> None:
    other = make_sentence_transformers(tmp_path / "other", seed=1)
    config = settings(tiny_yaml, place / "captions", other)
    done, _ = prepared(place, config, tmp_path / "cache")
    expected = TextModel(other).encode(done.sentences)
    np.testing.assert_allclose(done.embeddings, expected, atol=1e-6)


def test_statistics_need_no_encoder_either(place: Path, tiny_yaml: str, tmp_path: Path) -> None:
    config = settings(tiny_yaml, place / "captions", tmp_path / "not_here")
    dataset = open_dataset(place / "data", fps=25)
    text, note = open_text(config, read_captions(dataset.train, config).values())
    assert isinstance(text, KnownSentences)
    assert note is not None
    with pytest.raises(DataError, match=r"no embedding of 'Never said\.' came with the captions"):
        text.encode(["Never said."])


def test_an_encoder_that_is_nowhere_is_an_error(
    place: Path, tiny_yaml: str, tmp_path: Path
) -> None:
    by_hand = tmp_path / "captions"
    by_hand.mkdir()
    for name in ("01", "02"):
        (by_hand / f"{name}.json").write_text('{"0": "Two people walk."}')
    config = settings(tiny_yaml, by_hand, tmp_path / "not_here")
    with pytest.raises(DataError, match="not_here"):
        prepared(place, config, tmp_path / "cache")


def test_a_stride_that_the_captions_do_not_serve_is_refused(
    place: Path, tiny_yaml: str, tmp_path: Path
) -> None:
    coarse = tmp_path / "coarse"
    run(place / "data", place / "vlm", coarse, text=place / "text", stride=3, split="train")
    words = r"01\.json: a caption every 3 frames, one every 4 is asked for; make captions with"
    with pytest.raises(InputError, match=words):
        prepared(place, settings(tiny_yaml, coarse, place / "text"), tmp_path / "cache")
    config = settings(tiny_yaml, coarse, place / "text", "semantics.stride=6")
    done, _ = prepared(place, config, tmp_path / "cache")
    check(done, coarse, 6)


def test_captions_of_another_video_or_of_two_models_are_refused(
    place: Path, tiny_yaml: str, tmp_path: Path
) -> None:
    mixed = Path(shutil.copytree(place / "captions", tmp_path / "mixed"))
    shutil.copy(mixed / "train" / "01.json", mixed / "train" / "02.json")
    config = settings(tiny_yaml, mixed, place / "text")
    with pytest.raises(InputError, match=r"02\.json: captions of another video than .*02; give"):
        prepared(place, config, tmp_path / "cache")
    raw = json.loads((place / "captions" / "train" / "02.json").read_text("utf-8"))
    raw["source"]["prompt"] = raw["source"]["prompt"].replace("Describe", "Do not describe")
    (mixed / "train" / "02.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match=r"02\.json: not made as .*01\.json was: prompt is '"):
        prepared(place, config, tmp_path / "cache")
