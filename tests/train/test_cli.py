"""`python -m sfn_train`: what it prints, and what it exits with."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sfn_train import loop
from sfn_train.checkpoint import load_run
from sfn_train.cli import app


@pytest.fixture(autouse=True)
def statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics have tests of their own; here they only cost time."""
    monkeypatch.setattr(loop, "fit_statistics", lambda run, prepared: run)


@pytest.fixture
def settings(tiny_yaml: str, tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny_yaml)
    return file


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_mistake(result: Result, message: str) -> None:
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_train_writes_a_run_and_names_the_next_command(
    footage: Path, settings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "first"
    result = invoke("train", footage, "--config", settings, "--out", out, "--set", "train.steps=2")
    assert result.exit_code == 0, result.output
    assert "2 normal videos, 80 frames" in result.stdout
    assert "note: frames a second not stated, 25 assumed; pass --fps" in result.stdout
    assert "trained  2 steps" in result.stdout
    assert result.stdout.endswith(f"next     make export RUN={out}\n")
    assert load_run(out).info["steps"] == 2
    assert (tmp_path / "runs" / "cache").is_dir()

    again = invoke("train", footage, "--config", settings, "--out", out)
    assert_mistake(again, "--resume continues it, --force replaces it")
    more = invoke("train", footage, "--out", out, "--resume", "--set", "train.steps=4")
    assert more.exit_code == 0, more.output
    assert load_run(out).info["steps"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "{tmp}/absent"], "does not exist"),
        (["train", "{data}", "--config", "egde"], "no config 'egde'"),
        (["train", "{data}", "--set", "model.dimm=3"], "did you mean 'dim'?"),
        (["train", "{data}", "--devices", "0"], "devices must be at least 1"),
        (["train", "{data}", "--max-minutes", "0"], "minutes must be above 0"),
        (["train", "{data}", "--out", "{data}"], "exists; --resume continues it"),
        (["train", "{data}", "--out", "{tmp}/new", "--resume"], "config.yaml does not exist"),
        (["demo-data", "{data}"], "exists and is not empty"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    footage: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = invoke(*(text.format(tmp=tmp_path, data=footage) for text in arguments))
    assert_mistake(result, message)
    assert not (tmp_path / "new").exists()


def test_help_is_there_without_torch() -> None:
    code = (
        "import sys; from sfn_train.cli import app\n"
        "try: app(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'lightning', 'cv2'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=paths())
    assert done.returncode == 0, done.stderr
    assert "--max-minutes" in done.stdout


def test_ctrl_c_exits_130_and_says_how_to_resume(
    footage: Path, settings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "sfn_train", "train", str(footage), "--config", str(settings)]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--set", "train.steps=1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=paths(),
    )
    checkpoint = out / "checkpoints" / "last.ckpt"
    waited_until = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < waited_until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr == (
        "interrupted; everything is saved: repeat the command with --resume to continue, as in: "
        f"python -m sfn_train train {footage} --out {out} --resume\n"
    )
    assert not (out / "model.safetensors").exists()


def paths() -> dict[str, str]:
    """The environment of a child process that imports what this one does."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
