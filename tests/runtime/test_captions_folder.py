"""Scoring with captions from a folder: each video's own, and none of another's."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sfn_rt.bundle import CaptionOrigin
from sfn_rt.evaluate import evaluate_dataset
from sfn_rt.exceptions import InputError
from sfn_rt.model import Model, open_model, with_captions
from sfn_rt.options import EvalOptions, ScoreOptions
from sfn_rt.pipeline import score_video
from sfn_rt.semantics.cached import CaptionFile, CaptionSource, EmbeddingsFile, video_sha256

SAID = {3: "One person walks on the path.", 15: "A truck crashes into a wall."}


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A second test video, so that captions could be mixed up."""
    import numpy as np

    root = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    frames = root / "testing" / "frames"
    shutil.copytree(frames / "01", frames / "02")
    (frames / "02" / "029.png").unlink()
    labels = dict(np.load(root / "frame_labels.npz"))
    np.savez(root / "frame_labels.npz", **labels, **{"02": labels["01"][:29]})
    return root


@pytest.fixture
def captions(data: Path, tmp_path: Path) -> Path:
    """As `python -m sfn_train captions` lays them out."""
    folder = tmp_path / "captions"
    (folder / "test").mkdir(parents=True)
    for name in ("01", "02"):
        source = CaptionSource(
            video=video_sha256(data / "testing" / "frames" / name), model="m", prompt="p",
            frames=4, stride=4, max_tokens=9, tile={},
        )  # fmt: skip
        embeddings = EmbeddingsFile(file="-", sha256="-", width=1, encoder="-", name="-")
        said = {end: f"{text} {name}" for end, text in SAID.items()}
        path = folder / "test" / f"{name}.json"
        file = CaptionFile(path, said, source, (), 30, len(said), embeddings)
        path.write_text(json.dumps(file.to_json()))
    return folder


def test_each_test_video_is_told_by_its_own_captions(
    data: Path, captions: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = EvalOptions(out=out, threads=1, captions=captions, progress=False)
    evaluate_dataset(data, tiny_bundle, options)
    with_folder = {name: (out / "scores" / f"{name}.csv").read_text() for name in ("01", "02")}
    for name in with_folder:
        alone = tmp_path / name
        asked = ScoreOptions(
            out=alone, threads=1, captions=captions / "test" / f"{name}.json", report=False
        )
        score_video(data / "testing" / "frames" / name, tiny_bundle, asked)
        said = json.loads((alone / "captions.json").read_text())
        assert list(said.values()) == [f"{text} {name}" for text in SAID.values()]
        semantic = [row.split(",")[3] for row in (alone / "scores.csv").read_text().split()]
        assert [row.split(",")[3] for row in with_folder[name].split()] == semantic


def test_captions_of_another_video_end_the_evaluation_before_it_begins(
    data: Path, captions: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    shutil.copy(captions / "test" / "01.json", captions / "test" / "02.json")
    options = EvalOptions(out=tmp_path / "out", threads=1, captions=captions, progress=False)
    with pytest.raises(InputError, match=r"02\.json: captions of another video than .*02; give"):
        evaluate_dataset(data, tiny_bundle, options)
    (captions / "test" / "02.json").unlink()
    with pytest.raises(InputError, match=r"02\.json: cannot read captions: No such file"):
        evaluate_dataset(data, tiny_bundle, options)
    assert not (tmp_path / "out").exists()


def test_a_model_trained_on_captions_from_files_is_not_told_what_moves(
    data: Path, captions: Path, tiny_bundle: Path
) -> None:
    video = data / "testing" / "frames" / "01"
    with open_model(tiny_bundle, threads=1) as opened:
        assert with_captions(opened, None, video, "01") is opened
        model = trained_on_files(opened)
        with pytest.raises(InputError, match=r"so it needs those of .*01 too; give --captions"):
            with_captions(model, None, video, "01")
        assert with_captions(model, captions, video, "01").perception.captioner is not None


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (CaptionOrigin(model="other", prompt="p"), "model is 'm' where it should be 'other'"),
        (CaptionOrigin(model="m", prompt="why?"), r"prompt is 'p' where it should be 'why\?'"),
    ],
)
def test_captions_by_another_model_or_prompt_than_trained_on_are_refused(
    data: Path, captions: Path, tiny_bundle: Path, origin: CaptionOrigin, words: str
) -> None:
    video = data / "testing" / "frames" / "01"
    with open_model(tiny_bundle, threads=1) as opened:
        same = trained_on_files(opened, CaptionOrigin(model="m", prompt="p"))
        assert with_captions(same, captions, video, "01").perception.captioner is not None
        with pytest.raises(InputError, match=rf"01\.json: not made like .*: {words}; make them"):
            with_captions(trained_on_files(opened, origin), captions, video, "01")


def trained_on_files(model: Model, origin: CaptionOrigin | None = None) -> Model:
    manifest = model.bundle.manifest
    assert manifest.semantics is not None
    semantics = replace(manifest.semantics, captioner="cached", captions=origin)
    assert model.captioning is not None
    return replace(
        model,
        bundle=replace(model.bundle, manifest=replace(manifest, semantics=semantics)),
        captioning=replace(model.captioning, who="file"),
    )
