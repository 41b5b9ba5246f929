"""Who describes a video, and when: every answer to the options, and every refusal."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sfn_rt.bundle import load_bundle, write_manifest
from sfn_rt.cli import app
from sfn_rt.exceptions import BundleError, InputError, SfnError
from sfn_rt.model import Model, open_model, with_captions
from sfn_rt.normal import NormalFootage
from sfn_rt.options import LaneOptions
from sfn_rt.scores import Tail
from sfn_rt.semantics.captioning import VLM_LATENCY
from sfn_rt.semantics.usual import UsualCaptions
from sfn_rt.sinks.files import read_scores

TELLING = ("nothing moves", "somebody walks", "a car")


@pytest.fixture(scope="module")
def judged(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with the statistics that captions now and then are judged by."""
    return with_statistics(tiny_bundle, tmp_path_factory.mktemp("judged") / "bundle")


@pytest.fixture(scope="module")
def trained_on_vlm(vlm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As if its model had been trained on the captions of the VLM in it."""
    folder = with_statistics(vlm_bundle, tmp_path_factory.mktemp("on_vlm") / "bundle")
    manifest = load_bundle(folder).manifest
    assert manifest.vlm is not None
    assert manifest.semantics is not None
    semantics = replace(manifest.semantics, captioner="cached", captions=manifest.vlm.origin)
    vlm = replace(manifest.vlm, max_tokens=8)
    write_manifest(folder, replace(manifest, semantics=semantics, vlm=vlm, files={}))
    return folder


def with_statistics(bundle: Path, out: Path) -> Path:
    shutil.copytree(bundle, out)
    with open_model(bundle, threads=1) as opened:
        assert opened.perception.text is not None
        embeddings = opened.perception.text.encode(TELLING)
    manifest = load_bundle(out).manifest
    with np.load(out / manifest.normal) as arrays:
        normal = NormalFootage.from_arrays(dict(arrays))
    shares = np.full(len(TELLING), 1 / len(TELLING), np.float32)
    tail = Tail.fit(np.linspace(0, 1e-3, 200))
    normal = replace(
        normal,
        captions=UsualCaptions(TELLING, embeddings, shares),
        signals={"motion": tail, "appearance": tail},
    )
    np.savez(out / manifest.normal, **normal.to_arrays())
    write_manifest(out, replace(manifest, files={}))
    return out


def chosen(model: Model) -> tuple[str, str, int, bool, bool]:
    assert model.captioning is not None
    found = model.captioning
    return (
        found.who, str(found.settings.policy), found.settings.latency, found.counts,
        "semantic" in model.perception.terms,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (LaneOptions(), ("scene", "every:4", 0, True, True)),
        (LaneOptions(captioner="scene"), ("scene", "every:4", 0, True, True)),
        (LaneOptions(policy="change"), ("scene", "change", 0, True, True)),
        (LaneOptions(policy="suspicion", latency=7), ("scene", "suspicion", 7, True, True)),
        (LaneOptions(policy="off"), ("none", "off", 0, False, False)),
    ],
)
def test_a_model_trained_on_what_moves(
    judged: Path, options: LaneOptions, expected: tuple[str, str, int, bool, bool]
) -> None:
    with open_model(judged, threads=1, lane=options) as model:
        assert chosen(model) == expected


def test_a_vlm_that_the_model_was_not_trained_on_only_explains(
    vlm_bundle: Path, tmp_path: Path
) -> None:
    vlm_bundle = with_statistics(vlm_bundle, tmp_path / "bundle")
    with open_model(vlm_bundle, threads=1) as model:  # nobody asked for it
        assert chosen(model)[0] == "scene"
    with open_model(
        vlm_bundle, threads=1, lane=LaneOptions(captioner="vlm", policy="every:9")
    ) as m:
        assert chosen(m) == ("vlm", "every:9", VLM_LATENCY, False, False)
        assert m.captioning is not None
        note = m.captioning.note(m.perception.terms)
        assert note == "the model was not trained on captions like these: they explain events"


def test_a_model_trained_on_the_vlm_is_told_by_it(trained_on_vlm: Path) -> None:
    with open_model(trained_on_vlm, threads=1) as model:
        assert chosen(model) == ("vlm", "change", VLM_LATENCY, True, True)
        assert model.captioning is not None
        assert model.captioning.note(model.perception.terms) is None
    with open_model(trained_on_vlm, threads=1, lane=LaneOptions(captioner="scene", policy="off")):
        pass  # off is off, whoever it is


def test_a_model_trained_on_files_asks_for_them(judged: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(judged, folder)
    manifest = load_bundle(folder).manifest
    assert manifest.semantics is not None
    semantics = replace(manifest.semantics, captioner="cached")
    write_manifest(folder, replace(manifest, semantics=semantics, files={}))
    with (
        open_model(folder, threads=1) as model,
        pytest.raises(
            InputError, match=r"give --captions FOLDER .*, or score without .*--lane off"
        ),
    ):
        with_captions(model, None, tmp_path, "01")
    with open_model(folder, threads=1, lane=LaneOptions(policy="off")) as model:
        assert with_captions(model, None, tmp_path, "01") is model
        assert chosen(model) == ("none", "off", 0, False, False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"captioner": "vlm"}, r"holds no VLM; add one with `python -m sfn_export vlm WEIGHTS --b"),
        ({"captioner": "student"}, r"trained without a student; `python -m sfn_train distil RUN`"),
        ({"policy": "sometimes"}, r"'sometimes' is no policy .* every:N .* change, suspicion or"),
        ({"policy": "every:0"}, r"'every:0' is no policy"),
        ({"captioner": "parrot"}, r"--captioner must be one of scene, vlm, student, got 'parrot'"),
        ({"latency": -1}, r"--lane-latency must be 0 or more frames, got -1"),
        ({"clock": "sundial"}, r"--lane-clock must be frames or seconds, got 'sundial'"),
        ({"clock": "seconds", "latency": 3}, r"leave one of the two options out"),
        ({"captioner": "student", "policy": "change"}, r"makes no captions, so it has no policy"),
        ({"captioner": "student", "policy": "off"}, r"makes no captions, so it has no policy"),
        ({"policy": "off", "latency": 3}, r"leave --lane-latency out"),
    ],
)
def test_what_cannot_be_is_refused(judged: Path, options: dict[str, object], words: str) -> None:
    with (
        pytest.raises(SfnError, match=words),
        open_model(judged, threads=1, lane=LaneOptions(**options)),  # type: ignore[arg-type]
    ):
        pass


def test_a_file_and_a_captioner_are_two_answers(judged: Path, tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    file.write_text('{"3": "two people walk"}')
    asked = LaneOptions(captioner="scene")
    with (
        pytest.raises(InputError, match="--captions and --captioner scene are two answers"),
        open_model(judged, threads=1, captions=file, lane=asked),
    ):
        pass
    with open_model(judged, threads=1, captions=file, lane=LaneOptions(policy="every:8")) as model:
        assert chosen(model) == ("file", "every:8", 0, True, True)
        assert model.captioning is not None
        note = model.captioning.note(model.perception.terms)
        assert "where they are worded otherwise than its own, that alone looks abnormal" in str(
            note
        )


def test_no_captions_no_semantic_term(judged: Path) -> None:
    with (
        pytest.raises(InputError, match="let the student tell it: --captioner student"),
        open_model(judged, threads=1, terms=("semantic",), lane=LaneOptions(policy="off")),
    ):
        pass


@pytest.mark.parametrize("policy", ["change", "every:8", "suspicion", "off"])
def test_a_bundle_of_an_earlier_training_says_how_to_mend_it(
    tiny_bundle: Path, policy: str
) -> None:
    options = LaneOptions(policy=policy, latency=None if policy == "off" else 1)
    with (
        pytest.raises(
            BundleError, match=r"lack what captions now and then .* sfn_train distil RUN"
        ),
        open_model(tiny_bundle, threads=1, lane=options),
    ):
        pass


def test_scoring_with_the_vlm(trained_on_vlm: Path, tiny_data: Path, tmp_path: Path) -> None:
    """The whole way: a process of its own, ages and weights in the table, counts in the answer."""
    video = tiny_data / "testing" / "frames" / "01"
    asked = ["score", str(video), "--bundle", str(trained_on_vlm), "--threads", "1", "--fps", "25"]
    asked += ["--lane", "every:10", "--lane-latency", "4", "--no-report"]
    answers = []
    for out in (tmp_path / "one", tmp_path / "two"):
        done = CliRunner().invoke(app, [*asked, "--out", str(out), "--json"])
        assert done.exit_code == 0, done.output
        answers.append((out / "scores.csv").read_bytes())
    assert answers[0] == answers[1]
    lane = json.loads(done.stdout)["lane"]
    assert (lane["captioner"], lane["policy"], lane["asked"], lane["made"]) == (
        "vlm",
        "every:10",
        3,
        2 + 1,
    )
    assert lane["cut"] + lane["empty"] >= 0
    table = read_scores(out / "scores.csv")
    assert np.isnan(table.caption_age[:8]).all()
    assert table.caption_age[8:12].tolist() == [4, 5, 6, 7]
    assert table.caption_weight[4:8].tolist() == [0, 0, 0, 0]
    assert 0 < table.caption_weight[17] < table.caption_weight[8] < 1
    said = json.loads((out / "captions.json").read_text())
    assert len(said) == len(set(said.values())) >= 2


def test_with_the_lane_off_the_visual_score_stands_alone(
    judged: Path, tiny_data: Path, tmp_path: Path
) -> None:
    video, out = tiny_data / "testing" / "frames" / "01", tmp_path / "out"
    asked = ["score", str(video), "--bundle", str(judged), "--threads", "1", "--fps", "25"]
    done = CliRunner().invoke(app, [*asked, "--lane", "off", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "captions: none; the lane is off: no captions, and no semantic term" in done.stdout
    table = read_scores(out / "scores.csv")
    assert set(table.terms) == {"visual"}
    assert (table.caption_id == -1).all()
    assert "the lane is off: no captions, and no semantic term" in (out / "report.html").read_text()
