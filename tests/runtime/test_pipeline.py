"""One video to results: the same bits after an interruption, captions that count, events."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sfn_rt import pipeline
from sfn_rt.events import Event
from sfn_rt.evidence import FrameEvidence
from sfn_rt.exceptions import InputError, OutputError
from sfn_rt.frames import Frame, open_source
from sfn_rt.model import Model, choose_terms, open_model
from sfn_rt.normal import SAME_SCENE
from sfn_rt.options import ScoreOptions
from sfn_rt.pipeline import ScoreSummary, VideoRun, grouped, score_video
from sfn_rt.scores import TERMS
from sfn_rt.semantics.scene import Scene, Thing
from sfn_rt.sinks.files import read_scores


@pytest.fixture(scope="module")
def video(walkway: Path) -> Path:
    return walkway / "testing" / "videos" / "01.mp4"


@pytest.fixture(scope="module")
def opened(walkway_bundle: Path) -> Iterator[Model]:
    with open_model(walkway_bundle, threads=1) as model:
        yield model


def score(video: Path, bundle: Path, out: Path, **changes: Any) -> ScoreSummary:
    settings = {"threads": 1, "report": False, "progress": False} | changes
    return score_video(video, bundle, ScoreOptions(out=out, **settings))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, video: Path, walkway_bundle: Path) -> Path:
    out = tmp_path_factory.mktemp("scored") / "out"
    score(video, walkway_bundle, out)
    return out


# ----------------------------------------------------------------------------- interruptions

INTERRUPTED = """
import os, signal, sys
import sfn_rt.pipeline as pipeline
from sfn_rt.cli import app

pipeline.CHECKPOINT_S = float(sys.argv.pop(1))
blocks_until = int(sys.argv.pop(1))
take, taken = pipeline.VideoRun.take, 0

def counted(run, block):
    global taken
    if taken == blocks_until:
        os.kill(os.getpid(), signal.SIGINT)
    taken += 1
    return take(run, block)

pipeline.VideoRun.take = counted
app()
"""


def interrupted(
    every_s: float, blocks: int, arguments: list[str], repository: Path
) -> subprocess.CompletedProcess[str]:
    """`sfn-rt` in a process of its own, with Ctrl-C after some blocks."""
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(every_s), str(blocks), *arguments],
        capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": str(repository / "runtime"), "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip


def test_ctrl_c_and_resume_give_the_same_bytes(
    tmp_path: Path, repository: Path, video: Path, walkway_bundle: Path, scored: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["score", str(video), "--bundle", str(walkway_bundle), "--out", str(out)]
    arguments += ["--threads", "1", "--no-report"]
    done = interrupted(0.0, 5, arguments, repository)
    assert (done.returncode, done.stdout) == (130, "")
    said = "the same command with --resume continues at the last checkpoint"
    assert done.stderr.splitlines()[-1] == f"interrupted at frame 40; {said}"
    assert not out.exists()

    summary = score(video, walkway_bundle, out, resume=True)
    assert summary.n_resumed == 5 * 8
    assert summary.n_frames == 90
    for name in ("scores.csv", "captions.json"):
        assert (out / name).read_bytes() == (scored / name).read_bytes()
    first, second = (json.loads((f / "events.json").read_text()) for f in (out, scored))
    assert first == second
    assert not list(tmp_path.glob(".*"))


def test_ctrl_c_before_the_first_checkpoint_leaves_nothing(
    tmp_path: Path, repository: Path, video: Path, walkway_bundle: Path
) -> None:
    arguments = ["score", str(video), "--bundle", str(walkway_bundle), "--threads", "1"]
    done = interrupted(1e9, 3, [*arguments, "--out", str(tmp_path / "out")], repository)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


class Cut(Exception):
    """Stands for a power cut in these tests."""


def cut_after(
    monkeypatch: pytest.MonkeyPatch, blocks: int, video: Path, bundle: Path, out: Path, **how: Any
) -> None:
    """Score until `blocks` have been taken and checkpointed."""
    take, taken = VideoRun.take, []

    def counted(run: VideoRun, block: pipeline.Looked) -> list[FrameEvidence]:
        if len(taken) == blocks:
            raise Cut
        taken.append(block)
        return take(run, block)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "CHECKPOINT_S", 0.0)
        patch.setattr(VideoRun, "take", counted)
        with contextlib.suppress(Cut):
            score(video, bundle, out, **how)


@pytest.mark.parametrize("blocks", [1, 7, 11])
def test_heat_maps_too_are_continued(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    video: Path,
    walkway_bundle: Path,
    blocks: int,
) -> None:
    heats = []
    write = pipeline.write_results

    def keep(*arguments: Any) -> tuple[str, ...]:
        heats.append(np.array(arguments[3].rows.heat()))
        return write(*arguments)

    cut_after(monkeypatch, blocks, video, walkway_bundle, tmp_path / "a")
    monkeypatch.setattr(pipeline, "write_results", keep)
    assert score(video, walkway_bundle, tmp_path / "a", resume=True).n_resumed == 8 * blocks
    score(video, walkway_bundle, tmp_path / "b")
    np.testing.assert_array_equal(heats[0], heats[1])
    a, b = (tmp_path / name / "scores.csv" for name in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_what_changed_since_the_interruption_is_named_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, video: Path, walkway_bundle: Path
) -> None:
    out = tmp_path / "out"
    cut_after(monkeypatch, 3, video, walkway_bundle, out)
    with pytest.raises(OutputError, match="--resume: the interrupted run had another --terms"):
        score(video, walkway_bundle, out, resume=True, terms=("visual",))
    assert score(video, walkway_bundle, out, resume=True).n_resumed == 24


def test_without_resume_an_interrupted_run_starts_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, video: Path, walkway_bundle: Path
) -> None:
    cut_after(monkeypatch, 3, video, walkway_bundle, tmp_path / "out")
    assert score(video, walkway_bundle, tmp_path / "out").n_resumed == 0


def test_resume_without_an_interrupted_run_starts_from_the_beginning(
    tmp_path: Path, video: Path, walkway_bundle: Path
) -> None:
    summary = score(video, walkway_bundle, tmp_path / "out", resume=True)
    assert (summary.n_resumed, summary.n_frames) == (0, 90)


def test_an_open_event_survives_an_interruption(opened: Model) -> None:
    raw = {
        "start_frame": 1, "end_frame": 2, "peak_frame": 1, "start_s": 0.1, "end_s": 0.2,
        "peak_s": 0.1, "score": 5.0, "caption": "a", "explanation": "b", "box": [1.0, 2, 3, 4],
    }  # fmt: skip
    event = Event.of(raw)
    assert event.box == (1.0, 2, 3, 4)
    assert Event.of(raw | {"box": None}).box is None


# ----------------------------------------------------------------------------- what counts


def test_two_threads_of_decoding_and_scoring_are_deterministic(
    tmp_path: Path, video: Path, walkway_bundle: Path, scored: Path
) -> None:
    score(video, walkway_bundle, tmp_path / "again")
    again = (tmp_path / "again" / "scores.csv").read_bytes()
    assert again == (scored / "scores.csv").read_bytes()


def test_swapping_two_clips_captions_changes_the_score(
    tmp_path: Path, video: Path, walkway_bundle: Path
) -> None:
    captions = {"3": "One person walks on the path.", "40": "A truck crashes into a wall."}
    swapped = {"3": captions["40"], "40": captions["3"]}
    tables = []
    for number, table in enumerate((captions, swapped)):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(table), "utf-8")
        out = tmp_path / f"out{number}"
        score(video, walkway_bundle, out, captions=file)
        said = json.loads((out / "captions.json").read_text("utf-8"))
        assert list(said.values()) == list(table.values())
        tables.append(read_scores(out / "scores.csv"))
    a, b = tables
    assert (a.terms["semantic"][4:] != b.terms["semantic"][4:]).all()
    assert (a.causal[4:] != b.causal[4:]).all()
    np.testing.assert_array_equal(a.terms["attribute"], b.terms["attribute"])


@pytest.mark.parametrize("terms", [("visual",), ("semantic",), ("attribute",), TERMS[:2]], ids=str)
def test_terms_that_are_off_are_empty_and_the_others_stay(
    tmp_path: Path, video: Path, walkway_bundle: Path, scored: Path, terms: tuple[str, ...]
) -> None:
    score(video, walkway_bundle, tmp_path / "out", terms=terms)
    table, whole = read_scores(tmp_path / "out" / "scores.csv"), read_scores(scored / "scores.csv")
    assert tuple(table.terms) == terms
    for term in terms:
        np.testing.assert_array_equal(table.terms[term], whole.terms[term])
    assert np.isfinite(table.causal[4:]).all()


def test_each_choice_of_terms_has_its_own_threshold(walkway_bundle: Path) -> None:
    found = []
    for terms in (("visual",), ("attribute",), None):
        with open_model(walkway_bundle, threads=1, terms=terms) as model:
            found.append(model.threshold.value)
            assert tuple(model.tails) == (terms or TERMS)
    assert len(set(found)) == 3


def test_terms_are_those_of_the_bundle_in_one_order() -> None:
    assert choose_terms(None, TERMS, ("visual", "semantic")) == ("visual", "semantic")
    assert choose_terms(("semantic", "visual"), TERMS, TERMS) == ("visual", "semantic")
    with pytest.raises(InputError, match="this bundle has no 'attribute' term; it has visual"):
        choose_terms(("attribute",), ("visual", "attribute"), ("visual",))


# ----------------------------------------------------------------------------- words and boxes


def row(model: Model, thing: Thing | None, **terms: float) -> FrameEvidence:
    scene = Scene(180, 120, () if thing is None else (thing,))
    box = (0.5, 0.25, 0.1, 0.2)
    return FrameEvidence(9, 0.36, scene, terms, "a caption", box, None)


def surprises(model: Model, found: FrameEvidence) -> dict[str, float]:
    return {t: float(model.tails[t].surprise(e)) for t, e in found.terms.items()}


def test_an_event_is_explained_by_its_most_surprising_term(opened: Model) -> None:
    run = VideoRun(opened, 25.0)
    thing = Thing(20.0, 60.0, 10.0, 20.0, 150.0, 40.0, 40.0, 0.0)
    evidence = opened.perception.scene.attributes.evidence(Scene(180, 120, (thing,)))  # type: ignore[union-attr]
    fast = row(opened, thing, visual=0.0, semantic=0.0, attribute=evidence)
    surprise = surprises(opened, fast)
    box = run._box(fast, surprise)
    said = run._say(fast, surprise, box)
    assert said.caption == "a caption"
    assert "times faster than 999 of 1000 things seen here" in said.explanation
    assert said.box == box == thing.box

    odd = row(opened, None, visual=99.0, semantic=0.0, attribute=0.0)
    surprise = surprises(opened, odd)
    box = run._box(odd, surprise)
    assert box == pytest.approx((90.0, 30.0, 18.0, 24.0))  # source pixels
    assert run._say(odd, surprise, box).explanation.startswith("looks ")


def test_nothing_surprising_still_has_words(opened: Model) -> None:
    run = VideoRun(opened, 25.0)
    dull = row(opened, None, visual=0.0, semantic=0.0, attribute=0.0)
    assert run._say(dull, surprises(opened, dull), None).explanation


def test_events_are_found_where_the_score_is_high(
    tmp_path: Path, video: Path, walkway_bundle: Path, scored: Path
) -> None:
    table = read_scores(scored / "scores.csv")
    answer = json.loads((scored / "events.json").read_text("utf-8"))
    above = np.flatnonzero(table.causal >= answer["threshold"]["value"])
    covered = {
        i for event in answer["events"] for i in range(event["start_frame"], event["end_frame"] + 1)
    }
    assert set(above.tolist()) <= covered
    for event in answer["events"]:
        assert event["score"] == table.causal[event["peak_frame"]]


# ----------------------------------------------------------------------------- the scene


def test_another_scene_is_scored_with_a_plain_warning(tmp_path: Path, walkway_bundle: Path) -> None:
    rng = np.random.default_rng(5)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    blocks = rng.integers(0, 255, (4, 6, 3), dtype=np.uint8)
    picture = cv2.resize(blocks, (180, 120), interpolation=cv2.INTER_NEAREST)
    for i in range(8):
        cv2.imwrite(str(folder / f"{i}.png"), np.roll(picture, i, axis=1))
    summary = score(folder, walkway_bundle, tmp_path / "out")
    (warning,) = [text for text in summary.warnings if "scene" in text]
    assert "does not look like the scene the model was trained on" in warning
    answer = json.loads((tmp_path / "out" / "events.json").read_text("utf-8"))
    assert warning in answer["warnings"]


def test_the_scene_itself_is_no_reason_to_warn(walkway: Path, opened: Model, scored: Path) -> None:
    assert json.loads((scored / "events.json").read_text("utf-8"))["warnings"] == []
    for video in sorted((walkway / "testing" / "videos").iterdir()):
        with open_source(video) as source:
            image = next(iter(source)).image
        assert opened.normal.scene.likeness(image) > SAME_SCENE + 0.2


# ----------------------------------------------------------------------------- memory


def test_state_does_not_grow_with_the_video(opened: Model) -> None:
    """Rows of scores apart, what a run holds after 120 frames is what it holds after 40."""

    def endless(n: int) -> Iterator[Frame]:
        rng = np.random.default_rng(0)
        images = rng.integers(90, 96, (8, 120, 180, 3), dtype=np.uint8)
        return (Frame(i, i / 25, images[i % 8]) for i in range(n))

    def held(n: int) -> int:
        terms = ("visual", "semantic")  # the heat maps are on disk in a real run
        run = VideoRun(replace(opened, perception=replace(opened.perception, terms=terms)), 25.0)
        run.causal = pipeline.CausalScore({t: opened.tails[t] for t in terms}, 0.2)
        for frames in grouped(endless(n), 8):
            block = run.stream.look(frames)
            run.take(block)
        arrays, _ = run.stream.state(block)
        return sum(array.nbytes for array in arrays.values())

    assert held(40) == held(120)


def test_grouped_keeps_order_and_the_rest() -> None:
    frames = [Frame(i, 0.0, np.zeros((1, 1, 3), np.uint8)) for i in range(10)]
    groups = list(grouped(iter(frames), 4))
    assert [[f.index for f in group] for group in groups] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(grouped([], 4)) == []


def test_the_answer_is_json_and_text(tmp_path: Path, video: Path, walkway_bundle: Path) -> None:
    summary = score(video, walkway_bundle, tmp_path / "out")
    answer = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert (answer["n_frames"], answer["problem"]) == (90, None)
    assert answer["highest"] == pytest.approx(
        np.nanmax(read_scores(tmp_path / "out" / "scores.csv").causal)
    )
    assert str(tmp_path / "out") in summary.text()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
