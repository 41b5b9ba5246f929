"""The whole path as a user walks it: data, training, export, scoring, evaluation."""

import csv
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from sfn_rt.cli import app
from sfn_rt.sinks.files import SCORE_COLUMNS, read_scores

runner = CliRunner()
N_FRAMES = 90


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, walkway: Path, walkway_bundle: Path) -> Path:
    """The folder that `sfn-rt score` writes for the first test video."""
    out = tmp_path_factory.mktemp("scored") / "01"
    video = walkway / "testing" / "videos" / "01.mp4"
    arguments = ["score", str(video), "--bundle", str(walkway_bundle), "--out", str(out)]
    done = runner.invoke(app, [*arguments, "--threads", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"{N_FRAMES} frames, {N_FRAMES - 4} scored, at" in done.stdout
    return out


@pytest.fixture(scope="module")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory, walkway: Path, walkway_bundle: Path
) -> Path:
    """The folder that `sfn-rt eval` writes; what it prints for programs is in it, too."""
    out = tmp_path_factory.mktemp("evaluated") / "walkway"
    arguments = ["eval", str(walkway), "--bundle", str(walkway_bundle), "--out", str(out)]
    done = runner.invoke(app, [*arguments, "--json", "--threads", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads((out / "evaluation.json").read_text("utf-8")) == json.loads(done.stdout)
    return out


def schema_of(name: str) -> Draft202012Validator:
    text = resources.files("sfn_rt").joinpath(f"schemas/{name}.schema.json").read_text("utf-8")
    return Draft202012Validator(json.loads(text))


def test_the_evaluation_names_its_labels(evaluated: Path) -> None:
    labels = json.loads((evaluated / "evaluation.json").read_text("utf-8"))["labels"]
    assert labels["source"] == "frame_labels.npz"
    assert "from frame_labels.npz." in (evaluated / "table.txt").read_text("utf-8")


def test_training_left_a_run_and_not_a_pickle_among_what_is_shipped(walkway_run: Path) -> None:
    names = {file.name for file in walkway_run.iterdir()}
    assert {"config.yaml", "model.safetensors", "normal.npz", "run.json", "metrics.csv"} <= names


def test_the_bundle_says_what_it_was_trained_on(walkway: Path, walkway_bundle: Path) -> None:
    done = runner.invoke(app, ["inspect", str(walkway_bundle), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    provenance = json.loads(done.stdout)["manifest"]["provenance"]
    assert (provenance["data"], provenance["n_videos"]) == (walkway.name, 3)
    assert provenance["n_frames"] == 300
    for part in ("appearance", "motion", "decoder", "text"):
        assert part in done.stdout
    with np.load(walkway_bundle / "normal.npz", allow_pickle=False) as normal:
        thresholds = [name for name in normal.files if name.startswith("threshold/")]
    assert len(thresholds) == 7  # every choice of three terms


def test_scoring_writes_every_file(scored: Path) -> None:
    names = {file.name for file in scored.iterdir()}
    assert {"scores.csv", "events.json", "captions.json", "curve.svg", "report.html"} <= names
    assert any(name.endswith(".mp4") for name in names)
    assert not list(scored.parent.glob(".*")), "a working folder was left behind"


def test_scores_are_complete(scored: Path) -> None:
    with (scored / "scores.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == SCORE_COLUMNS
    assert [int(row[0]) for row in rows] == list(range(N_FRAMES))
    table = read_scores(scored / "scores.csv")
    assert set(table.terms) == {"visual", "semantic", "attribute"}
    for values in (*table.terms.values(), table.paper, table.causal):
        assert np.isnan(values[:4]).all()
        assert np.isfinite(values[4:]).all()
    np.testing.assert_allclose(np.diff(table.time_s), 1 / 25, atol=1e-9)


def test_captions_say_what_moves_and_hold_for_a_stride(scored: Path) -> None:
    captions = json.loads((scored / "captions.json").read_text("utf-8"))
    assert all("move" in text for text in captions.values())
    numbers = read_scores(scored / "scores.csv").caption_id
    assert numbers[:4].tolist() == [-1] * 4
    strides = numbers[4:88].reshape(-1, 4)
    assert (strides == strides[:, :1]).all()
    assert {str(i) for i in set(numbers[4:].tolist())} == set(captions)


def test_events_follow_their_schema(scored: Path) -> None:
    answer = json.loads((scored / "events.json").read_text("utf-8"))
    schema_of("events").validate(answer)
    assert answer["threshold"]["value"] > 0
    for event in answer["events"]:
        assert event["start_s"] <= event["peak_s"] <= event["end_s"]
        assert event["score"] >= answer["threshold"]["value"]


def test_the_report_needs_nothing_from_outside(scored: Path) -> None:
    text = (scored / "report.html").read_text("utf-8")
    assert "<svg" in text
    for outside in ('src="http', "src='http", '<link rel="stylesheet" href="http', "@import"):
        assert outside not in text


def test_evaluation_writes_the_table_and_its_json(evaluated: Path) -> None:
    answer = json.loads((evaluated / "evaluation.json").read_text("utf-8"))
    schema_of("evaluation").validate(answer)
    evidence = [row["evidence"] for row in answer["rows"]]
    for name in ("visual", "semantic", "attribute", "all terms", "place in the video"):
        assert name in evidence
    assert "visual + semantic (the paper's two)" in evidence
    assert answer["labels"]["scored_frames"] == 2 * (N_FRAMES - 4)
    assert answer["localisation"]["frames"] > 0
    files = [file for file in evaluated.rglob("*") if file.is_file()]
    names = {file.relative_to(evaluated).as_posix() for file in files}
    expected = {"table.txt", "roc_causal.svg", "roc_paper.svg", "scores/01.csv", "curves/02.svg"}
    assert expected <= names


def test_evaluation_and_scoring_agree_on_every_frame(evaluated: Path, scored: Path) -> None:
    a = read_scores(scored / "scores.csv")
    b = read_scores(evaluated / "scores" / "01.csv")
    np.testing.assert_array_equal(a.causal, b.causal)
    for term, values in a.terms.items():
        np.testing.assert_array_equal(values, b.terms[term])


def test_bench_ends_with_one_line_of_json(walkway: Path, walkway_bundle: Path) -> None:
    video = walkway / "testing" / "videos" / "02.mp4"
    arguments = ["bench", str(video), "--bundle", str(walkway_bundle), "--threads", "1"]
    done = runner.invoke(
        app, [*arguments, "--frames", "32", "--warmup", "8"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["frames_per_second"] > 0
    stages = {"decode", "preprocess", "scene", "encode", "caption", "predict", "score"}
    assert set(answer["stages_ms"]) == stages
    assert all(times["p99"] >= times["p50"] > 0 for times in answer["stages_ms"].values())
    assert answer["machine"]["threads"] == 1
