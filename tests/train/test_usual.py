"""The captions that stand for normal footage: the middle, what is frequent, what is rare."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sfn_rt.datasets import open_dataset
from sfn_rt.normal import NormalFootage, SceneModel
from sfn_rt.semantics.usual import UsualCaptions
from sfn_train.checkpoint import Run
from sfn_train.config import Config, parse_config
from sfn_train.data.prepare import Prepared, prepare
from sfn_train.statistics import fit_statistics
from sfn_train.systems import build_network
from sfn_train.usual import MOST, choose_usual, usual_captions


def at(*degrees: float) -> NDArray[np.float32]:
    """Embeddings on a circle."""
    angle = np.radians(np.array(degrees))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_few_captions_are_all_kept_the_most_central_first() -> None:
    usual = choose_usual(["edge", "middle", "far"], at(0, 10, 80), np.array([20, 1, 1]))
    assert usual.texts == ("edge", "middle", "far")  # the frequent ones pull the middle to them
    usual = choose_usual(["edge", "middle", "far"], at(0, 10, 80), np.array([1, 1, 1]))
    assert usual.texts == ("middle", "edge", "far")
    np.testing.assert_allclose(usual.shares, [1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(usual.embeddings, at(10, 0, 80))


def test_of_many_captions_the_rare_ones_are_covered() -> None:
    random = np.random.default_rng(0)
    crowd = random.normal(0, 5, 400)
    embeddings = at(*crowd, 90, -120)
    texts = [f"crowd {i}" for i in range(400)] + ["a cart", "a dog"]
    counts = np.r_[random.integers(1, 9, 400), 1, 1]
    usual = choose_usual(texts, embeddings, counts, most=16)
    assert len(usual.texts) == len(set(usual.texts)) == 16
    assert {"a cart", "a dog"} <= set(usual.texts)
    assert set(usual.texts) & {texts[i] for i in np.flatnonzero(counts == counts.max())}
    # Nothing that was seen is far from all that are kept.
    assert (embeddings @ usual.embeddings.T).max(axis=1).min() > np.cos(np.radians(3))
    assert usual.texts[0].startswith("crowd")
    assert usual.embeddings[0, 0] > np.cos(np.radians(1))


def test_each_caption_stands_for_the_frames_that_are_told_most_like_it() -> None:
    usual = choose_usual(["a", "b", "c"], at(0, 5, 90), np.array([6, 1, 3]), most=2)
    assert dict(zip(usual.texts, usual.shares.tolist(), strict=True)) == {
        "b": pytest.approx(0.7),
        "c": pytest.approx(0.3),
    }


def test_captions_that_are_embedded_alike_are_chosen_once_each() -> None:
    texts = [f"words of another script {i}" for i in range(20)]
    usual = choose_usual(texts, np.repeat(at(30), 20, axis=0), np.arange(1, 21), most=8)
    assert len(set(usual.texts)) == 8
    assert usual.shares.sum() == pytest.approx(1)
    assert (usual.shares > 0).all()


@pytest.fixture(scope="module")
def config(tiny_yaml: str) -> Config:
    return parse_config(tiny_yaml, "tiny", ["model.windows=[4, 12]"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, footage: Path, config: Config) -> Prepared:
    cache = tmp_path_factory.mktemp("cache")
    return prepare(open_dataset(footage), config, cache, say=lambda text: None, progress=False)


def test_captions_are_those_of_the_training_part_and_the_shortest_window(
    prepared: Prepared,
) -> None:
    usual = usual_captions(prepared)
    assert usual is not None
    spans = [(prepared.videos[span.video], span) for span in prepared.split.train]
    ids = [i for video, span in spans for i in video.caption_ids[span.start : span.stop, 0]]
    counted = {prepared.sentences[i]: ids.count(i) for i in set(ids) if i >= 0}
    told = dict(zip(usual.texts, usual.shares.tolist(), strict=True))
    assert told.keys() == counted.keys()
    n = sum(counted.values())
    assert told == pytest.approx({text: count / n for text, count in counted.items()})
    assert not any("over time" in text for text in usual.texts)  # the longer window's
    lengths = np.linalg.norm(usual.embeddings, axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_held_out_footage_has_no_part_in_it(prepared: Prepared) -> None:
    """So that what is compared with it later is compared with what the model was taught."""
    held = [(span.video, span.start, span.stop) for span in prepared.split.held_out]
    videos = list(prepared.videos)
    for video, start, stop in held:
        ids = videos[video].caption_ids.copy()
        ids[start:stop] = 0
        videos[video] = replace(videos[video], caption_ids=ids)
    changed = replace(prepared, videos=tuple(videos))
    a, b = usual_captions(prepared), usual_captions(changed)
    assert a is not None
    assert b is not None
    assert a.texts == b.texts
    np.testing.assert_array_equal(a.shares, b.shares)


def test_captions_from_files_are_chosen_like_any_others(
    footage: Path, tiny_yaml: str, tmp_path: Path
) -> None:
    for name in ("00", "01"):
        said = {"3": "A man walks.", "7": f"A dog {name}.", "39": "Held out."}
        (tmp_path / f"{name}.json").write_text(json.dumps(said))
    changes = [f"semantics.captions={tmp_path}", "semantics.captioner=cached"]
    config = parse_config(tiny_yaml, "tiny", changes)
    cache = tmp_path / "cache"
    found = prepare(open_dataset(footage), config, cache, say=lambda text: None, progress=False)
    usual = usual_captions(found)
    assert usual is not None
    assert set(usual.texts) == {"A man walks.", "A dog 00.", "A dog 01."}
    assert usual.shares.sum() == pytest.approx(1)


def test_the_end_of_training_keeps_them_with_the_statistics(
    prepared: Prepared, config: Config
) -> None:
    torch.manual_seed(0)
    run = Run(Path("unused"), config, build_network(config), {}, {})
    fitted = NormalFootage.from_arrays(fit_statistics(run, prepared, progress=False).normal)
    expected = usual_captions(prepared)
    assert expected is not None
    assert fitted.captions is not None
    assert fitted.captions.texts == expected.texts


def test_footage_that_was_not_described_has_none(prepared: Prepared) -> None:
    silent = tuple(
        replace(video, caption_ids=np.full_like(video.caption_ids, -1)) for video in prepared.videos
    )
    assert usual_captions(replace(prepared, videos=silent)) is None


def test_a_run_keeps_them_whatever_they_hold() -> None:
    texts = ["", "一辆车", "a\n\x1b[2Jb", "x" * 3000]
    usual = choose_usual(texts, at(0, 30, 60, 90), np.array([1, 2, 3, 4]))
    assert len(usual.texts) <= MOST
    scene = SceneModel(None, None, np.zeros((1, 16, 24), np.float32))
    stored = NormalFootage(scene, {}, {}, 1.0, {}, usual).to_arrays()
    again = UsualCaptions.from_arrays(
        {k.removeprefix("captions/"): v for k, v in stored.items() if k.startswith("captions/")}
    )
    assert again.texts == usual.texts
    np.testing.assert_array_equal(again.shares, usual.shares)
