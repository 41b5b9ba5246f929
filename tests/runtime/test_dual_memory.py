"""The second system through every command: late rows, unscored ends, its own constants, its words.

Its graph is written by hand (tests/conftest.py), so nothing here needs the network or its training.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from sfn_rt import pipeline
from sfn_rt.cli import app
from sfn_rt.exceptions import InputError, VideoError
from sfn_rt.frames import open_source
from sfn_rt.model import Model, open_model
from sfn_rt.options import ScoreOptions
from sfn_rt.pipeline import ScoreSummary, VideoRun, score_video
from sfn_rt.scores import PUBLISHED, Tail, minmax
from sfn_rt.semantics.scene import SceneAnalyser
from sfn_rt.sinks.files import read_scores


@pytest.fixture(scope="module")
def video(walkway: Path) -> Path:
    return walkway / "testing" / "videos" / "01.mp4"


@pytest.fixture
def opened(dual_bundle: Path) -> Iterator[Model]:
    with open_model(dual_bundle, threads=1) as model:
        yield model


def score(video: Path, bundle: Path, out: Path, **changes: Any) -> ScoreSummary:
    settings = {"threads": 1, "report": False, "progress": False} | changes
    return score_video(video, bundle, ScoreOptions(out=out, **settings))


def short(walkway: Path, folder: Path, n: int) -> Path:
    """The first frames of a video, as pictures."""
    import cv2

    folder.mkdir()
    with open_source(walkway / "testing" / "videos" / "01.mp4") as source:
        for frame in source:
            if frame.index == n:
                break
            cv2.imwrite(str(folder / f"{frame.index:03}.png"), frame.image[..., ::-1])
    return folder


def test_a_video_is_scored_but_for_its_ends(
    tmp_path: Path, video: Path, dual_bundle: Path, opened: Model
) -> None:
    summary = score(video, dual_bundle, tmp_path / "out")
    assert (summary.n_frames, summary.n_scored) == (90, 75)
    assert "90 frames, 75 scored, at" in summary.text()
    table = read_scores(tmp_path / "out" / "scores.csv")
    scored = np.zeros(90, dtype=bool)
    scored[8:83] = True
    assert list(table.terms) == ["visual"]
    for values in (table.terms["visual"], table.paper, table.causal):
        np.testing.assert_array_equal(np.isfinite(values), scored)
    assert (table.caption_id == -1).all()
    np.testing.assert_allclose(table.time_s, np.arange(90) / 25, atol=1e-9)
    # The published rule of this system: PSNR scaled over the video, and nothing else.
    np.testing.assert_array_equal(table.paper[8:83], minmax(table.terms["visual"][8:83]))
    tail = opened.tails["visual"].surprise(table.terms["visual"][8])
    assert table.causal[8] == pytest.approx(float(tail))


def test_nothing_is_looked_for_and_nothing_told(
    tmp_path: Path, video: Path, dual_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SceneAnalyser, "step", None)
    score(video, dual_bundle, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "captions.json").read_text()) == {}
    captions = tmp_path / "captions.json"
    captions.write_text('{"0": "people walk"}')
    with pytest.raises(InputError, match="--lane: dual-memory takes none"):
        score(video, dual_bundle, tmp_path / "again", captions=captions)
    with pytest.raises(InputError, match="no 'attribute' term; it has visual"):
        score(video, dual_bundle, tmp_path / "again", terms=("attribute",))


@pytest.mark.parametrize("blocks", [1, 2, 9])
def test_an_interrupted_run_continues_to_the_same_bytes(
    tmp_path: Path, video: Path, dual_bundle: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    take, taken = VideoRun.take, 0

    def counted(run: VideoRun, block: pipeline.Looked) -> Any:
        nonlocal taken
        if taken == blocks:
            raise KeyboardInterrupt
        taken += 1
        return take(run, block)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "CHECKPOINT_S", 0.0)
        patch.setattr(VideoRun, "take", counted)
        with pytest.raises(KeyboardInterrupt):
            score(video, dual_bundle, tmp_path / "a", report=True)
    summary = score(video, dual_bundle, tmp_path / "a", report=True, resume=True)
    assert summary.n_resumed == 8 * blocks
    score(video, dual_bundle, tmp_path / "b", report=True)
    for name in ("scores.csv", "events.json", "curve.svg", "heatmap.mp4"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_report_shows_every_frame_and_says_how_many_were_scored(
    tmp_path: Path, video: Path, dual_bundle: Path
) -> None:
    score(video, dual_bundle, tmp_path / "out", report=True)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "90, 75 scored" in page
    assert "dual-memory" in page
    assert "constants dual-memory: visual 1, semantic 0" in page
    assert "7 frames: the evidence of a frame sees those after it" in page
    assert "NaN" not in page
    assert "nan" not in (tmp_path / "out" / "curve.svg").read_text()
    with av.open(str(tmp_path / "out" / "heatmap.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 90


def test_events_are_explained_in_decibels(opened: Model, video: Path) -> None:
    run = VideoRun(opened, 25.0)
    usual = opened.tails["visual"].quantile(0.999)
    assert (
        run._looks(usual + 2.34) == "is reconstructed 2.3 dB worse than 999 of 1000 normal frames"
    )
    assert "0.5 dB better than" in run._looks(usual - 0.5)
    with open_source(video) as source:
        for block in run.blocks(source):
            for row in run.take(block):
                if row.terms:
                    box = run._box(row, {"visual": 5.0})
                    said = run._say(row, {"visual": 5.0}, box)
                    assert said.caption == ""
                    assert "dB" in said.explanation
                    assert said.box is not None
                    assert 0 <= said.box[0] < 180


def test_a_scene_is_compared_once_even_before_the_first_row(opened: Model) -> None:
    from sfn_rt.frames import Frame

    run = VideoRun(opened, 25.0)
    noise = np.random.default_rng(0).integers(0, 255, (120, 180, 3), dtype=np.uint8)
    for i in range(9):
        run.take(run.stream.look([Frame(i, i / 25, noise)]))
    assert len(run.warnings) == 1
    assert run.n_taken == 9
    assert run.rows.n_frames == 2


@pytest.mark.parametrize("n", [5, 15])
def test_a_video_shorter_than_a_clip_is_refused(
    tmp_path: Path, walkway: Path, dual_bundle: Path, n: int
) -> None:
    folder = short(walkway, tmp_path / "short", n)
    with pytest.raises(VideoError, match=f"{n} frames are too few; dual-memory needs at least 16"):
        score(folder, dual_bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_video_of_one_clip_has_one_score(
    tmp_path: Path, walkway: Path, dual_bundle: Path
) -> None:
    summary = score(short(walkway, tmp_path / "short", 16), dual_bundle, tmp_path / "out")
    assert summary.n_scored == 1


def test_a_number_that_is_none_is_not_taken_for_an_unscored_frame(
    opened: Model, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = opened.perception.backend.infer
    monkeypatch.setattr(
        opened.perception.backend,
        "infer",
        lambda *args: {name: array * np.nan for name, array in infer(*args).items()},
    )
    run = VideoRun(opened, 25.0)
    with open_source(video) as source:
        block = run.stream.look(list(source)[:20])
    with pytest.raises(InputError, match=r"frame 8: the model's evidence is .* no number"):
        run.take(block)


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_command_says_which_system_the_bundle_holds(video: Path, dual_bundle: Path) -> None:
    assert "dual-memory, profile mean" in invoke("inspect", str(dual_bundle))
    assert f"{dual_bundle} holds dual-memory" in invoke("doctor", "--bundle", str(dual_bundle))
    arguments = ["bench", str(video), "--bundle", str(dual_bundle), "--threads", "1"]
    told = invoke(*arguments, "--frames", "24", "--warmup", "16")
    assert told.startswith("dual-memory on ")
    last = json.loads(told.splitlines()[-1])
    assert last["system"] == "dual-memory"
    assert list(last["stages_ms"]) == ["decode", "preprocess", "reconstruct", "score"]


def test_a_labelled_set_is_measured_on_the_scored_frames(
    tmp_path: Path, walkway: Path, dual_bundle: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["eval", str(walkway), "--bundle", str(dual_bundle), "--threads", "1"]
    told = " ".join(invoke(*arguments, "--out", str(out)).split())
    assert "the first 8 and the last 7 frames of each video are left out" in told
    assert "constants published for dual-memory (visual 1, semantic 0" in told
    assert "the evidence of a frame sees the 7 after it, so scores come late" in told
    answer = json.loads((out / "evaluation.json").read_text())
    assert answer["labels"]["scored_frames"] == 2 * 75
    assert [row["terms"] for row in answer["rows"] if row["kind"] != "baseline"] == [["visual"]] * 2
    assert all(row["paper"]["micro_auc"] is not None for row in answer["rows"])
    assert answer["localisation"] is None or answer["localisation"]["frames"] <= 2 * 75


def test_its_constants_are_those_of_its_publication() -> None:
    c = PUBLISHED["dual-memory"]
    assert (c.visual, c.semantic, c.sigma, c.minmax) == (1, 0, 0, True)
    assert Tail.fit(np.linspace(-40.0, -30.0, 500)).surprise(-20.0) > 10  # decibels are negative
