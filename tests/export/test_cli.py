"""Mistakes end in one line with a way out and exit code 2, and leave nothing behind."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sfn_export.cli import app

runner = CliRunner()


def test_no_such_run(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    result = runner.invoke(app, ["bundle", str(tmp_path / "none"), "--out", str(out)])
    assert result.exit_code == 2
    assert "none does not exist; give a run folder that training wrote" in result.stderr
    assert not out.exists()


def test_pickled_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.ckpt"
    torch.save({"weights": torch.ones(1)}, checkpoint)
    result = runner.invoke(app, ["bundle", str(checkpoint), "--out", str(tmp_path / "bundle")])
    assert result.exit_code == 2
    assert "is a pickle" in result.stderr
    assert not (tmp_path / "bundle").exists()


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    result = runner.invoke(app, ["trace", str(tmp_path), "--out", str(tmp_path / "graphs")])
    assert result.exit_code == 2
    assert "a folder that training wrote?" in result.stderr
    assert not (tmp_path / "graphs").exists()


def test_too_few_frames(tiny_run: Path, tmp_path: Path) -> None:
    asked = ["bundle", str(tiny_run), "--out", str(tmp_path / "b"), "--frames", "3"]
    result = runner.invoke(app, asked)
    assert result.exit_code == 2
    assert "--frames must be at least 8, got 3" in result.stderr


def test_parity_of_a_bundle(tiny_run: Path, tiny_bundle: Path) -> None:
    result = runner.invoke(app, ["parity", str(tiny_run), str(tiny_bundle), "--frames", "12"])
    assert result.exit_code == 0, result.output
    assert "decoder.next_frame" in result.stdout
    assert "real clips, 16 frames" in result.stdout


@pytest.mark.parametrize("command", ["bundle", "trace", "parity", "rtx"])
def test_help(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout
