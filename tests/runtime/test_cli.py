import errno
import json
import os
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sfn_rt.cli import app
from sfn_rt.exceptions import VideoError

runner = CliRunner()


@dataclass
class Summary:
    """What a stand-in for score_video answers."""

    problem: str | None = None
    n_resumed: int = 0

    def text(self) -> str:
        return "300 frames"

    def to_json(self) -> dict[str, object]:
        return {"n_frames": 300}


class Stage:
    """Stands in for a module of the runtime and remembers how it was called."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: object) -> object:
        self.calls.append(arguments)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Replace the function behind a command: stage("pipeline", "score_video", answer)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SFN_BUNDLE", raising=False)
    (tmp_path / "bundle").mkdir()

    def replace(module: str, function: str, answer: object) -> Stage:
        fake = types.ModuleType(f"sfn_rt.{module}")
        called = Stage(answer)
        setattr(fake, function, called)
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
        return called

    return replace


def test_score_passes_what_was_asked(stage) -> None:
    scored = stage("pipeline", "score_video", Summary())
    where = "score walk.mp4 --bundle b --out o --threads 2 --no-report --resume"
    how = "--captions c.jsonl --terms semantic,visual --fps 30"
    done = runner.invoke(app, f"{where} {how}".split())
    assert done.exit_code == 0, done.output
    assert done.stdout == "300 frames\n"
    ((video, bundle, options),) = scored.calls
    assert (video, bundle) == (Path("walk.mp4"), Path("b"))
    assert (options.out, options.threads, options.report) == (Path("o"), 2, False)
    assert (options.captions, options.terms) == (Path("c.jsonl"), ("visual", "semantic"))
    assert (options.fps, options.resume, options.force) == (30, True, False)


def test_results_go_to_a_folder_named_after_the_video(stage) -> None:
    scored = stage("pipeline", "score_video", Summary())
    runner.invoke(app, ["score", "videos/walk.mp4"])
    assert scored.calls[0][2].out == Path("out/walk")


def test_json_alone_is_on_stdout(stage) -> None:
    stage("pipeline", "score_video", Summary())
    done = runner.invoke(app, ["score", "walk.mp4", "--json"])
    assert json.loads(done.stdout) == {"n_frames": 300}
    assert done.stderr == "bundle: bundle (the default)\n"


def test_bundle_is_the_option_else_the_variable_else_the_default(stage, monkeypatch) -> None:
    scored = stage("pipeline", "score_video", Summary())
    runner.invoke(app, ["score", "walk.mp4"])
    monkeypatch.setenv("SFN_BUNDLE", "named")
    said = runner.invoke(app, ["score", "walk.mp4"]).stderr
    runner.invoke(app, ["score", "walk.mp4", "--bundle", "asked"])
    assert [call[1] for call in scored.calls] == [Path("bundle"), Path("named"), Path("asked")]
    assert said == "bundle: named (from SFN_BUNDLE)\n"


def test_no_bundle_says_how_to_get_one(stage) -> None:
    stage("pipeline", "score_video", Summary())
    Path("bundle").rmdir()
    done = runner.invoke(app, ["score", "walk.mp4"])
    assert done.exit_code == 2
    assert "error: no bundle: ./bundle does not exist; pass --bundle, set SFN_BUNDLE" in done.stderr


def test_a_mistake_is_one_line_and_exit_2(stage) -> None:
    stage("pipeline", "score_video", VideoError("walk\n\x1b[2J.mp4: not a video\nsecond line"))
    done = runner.invoke(app, ["score", "walk.mp4"])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[1:] == ["error: walk .mp4: not a video second line"]


def test_letters_that_a_terminal_lacks_are_spelled_out(
    stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Summary, "text", lambda summary: "new in its caption: été, 一辆汽车")
    stage("pipeline", "score_video", Summary())
    done = CliRunner(charset="latin-1").invoke(app, ["score", "walk.mp4"])
    assert done.exit_code == 0, done.exception
    assert done.stdout_bytes.decode("latin-1") == (
        "new in its caption: été, \\u4e00\\u8f86\\u6c7d\\u8f66\n"
    )


def test_a_full_disk_is_a_mistake(stage) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "out/scores.csv")
    stage("pipeline", "score_video", full)
    done = runner.invoke(app, ["score", "walk.mp4"])
    assert done.exit_code == 2
    assert "error: out/scores.csv: No space left on device; choose another --out" in done.stderr


def test_a_bug_stays_a_bug(stage) -> None:
    stage("pipeline", "score_video", ZeroDivisionError("division by zero"))
    done = runner.invoke(app, ["score", "walk.mp4"])
    assert done.exit_code == 1
    assert isinstance(done.exception, ZeroDivisionError)


def test_ctrl_c_is_130(stage) -> None:
    stage("pipeline", "score_video", KeyboardInterrupt())
    done = runner.invoke(app, ["score", "walk.mp4"])
    assert done.exit_code == 130
    assert done.stderr.endswith("interrupted\n")


def test_a_video_that_breaks_off_is_3(stage) -> None:
    stage("pipeline", "score_video", Summary(problem="decoded 120 of about 300 frames"))
    done = runner.invoke(app, ["score", "walk.mp4"])
    assert done.exit_code == 3
    assert done.stdout == "300 frames\n"
    assert "warning: walk.mp4: decoded 120 of about 300 frames" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--threads", "0"], ["--fps", "0"], ["--terms", "audio"], ["--resume", "--force"]]
)
def test_bad_options_are_refused_before_anything_runs(stage, arguments: list[str]) -> None:
    scored = stage("pipeline", "score_video", Summary())
    done = runner.invoke(app, ["score", "walk.mp4", *arguments])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert not scored.calls


def test_eval(stage) -> None:
    evaluated = stage("evaluate", "evaluate_dataset", Summary())
    done = runner.invoke(app, ["eval", "data/ped2", "--terms", "visual"])
    assert done.exit_code == 0, done.output
    ((data, bundle, options),) = evaluated.calls
    assert (data, bundle, options.out) == (Path("data/ped2"), Path("bundle"), Path("out/ped2"))
    assert options.terms == ("visual",)


def test_bench_ends_with_one_line_of_json(stage) -> None:
    measured = stage("bench", "bench", Summary())
    done = runner.invoke(app, ["bench", "walk.mp4", "--frames", "50"])
    assert json.loads(done.stdout.splitlines()[-1]) == {"n_frames": 300}
    assert measured.calls[0][2].frames == 50


def test_doctor_prints_and_succeeds_here() -> None:
    done = runner.invoke(app, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["can_score"] is True


def test_version() -> None:
    assert runner.invoke(app, ["--version"]).stdout.startswith("sfn-rt ")


def test_help_is_quick(repository: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repository / "runtime")}
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "sfn_rt.cli", "--help"],
            capture_output=True,
            text=True,
            env=environment,
        )
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    for command in ("score", "eval", "bench", "inspect", "doctor"):
        assert f"  {command}" in done.stdout
    assert min(seconds) < 0.5
