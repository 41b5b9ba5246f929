"""A run's folder: begun, continued and replaced only where that is meant and safe."""

import pickle
from pathlib import Path

import pytest
import torch

from sfn_rt.exceptions import OutputError
from sfn_train.config import parse_config
from sfn_train.exceptions import RunError
from sfn_train.run_folder import check_out, resumed_config


@pytest.fixture
def begun(tiny_yaml: str, tmp_path: Path) -> Path:
    """A folder with the settings of a run."""
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "config.yaml").write_text(parse_config(tiny_yaml, "tiny").to_yaml())
    return folder


def test_a_run_is_replaced_only_when_asked(begun: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"exists; --resume continues it, --force replaces it"):
        check_out(begun, resume=False, force=False)
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").touch()
    (out / "notes.txt").touch()
    check_out(out, resume=False, force=True)
    assert [file.name for file in out.iterdir()] == ["notes.txt"]  # not ours to delete
    with pytest.raises(OutputError, match="cannot write"):
        check_out(out / "notes.txt" / "run", resume=False, force=False)


def test_resume_needs_a_run_and_its_settings(begun: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.yaml does not exist"):
        check_out(tmp_path, resume=True, force=False)
    with pytest.raises(RunError, match=r"last\.ckpt does not exist: nothing to resume"):
        check_out(begun, resume=True, force=False)
    with pytest.raises(RunError, match=r"may change only train\.steps"):
        resumed_config(begun, ["model.dim=32"])


def test_a_checkpoint_that_would_run_code_is_refused(begun: Path, tmp_path: Path) -> None:
    (begun / "checkpoints").mkdir()
    checkpoint = begun / "checkpoints" / "last.ckpt"
    torch.save({"state": Path}, tmp_path / "zipped")
    zipped = (tmp_path / "zipped").read_bytes()
    for content in (zipped, pickle.dumps({"state": Path}), b"", zipped[:100]):
        checkpoint.write_bytes(content)
        with pytest.raises(RunError, match=r"last\.ckpt cannot be resumed from"):
            check_out(begun, resume=True, force=False)


def test_a_resumed_run_keeps_the_clips_of_a_step(begun: Path) -> None:
    def shared(*changes: str) -> tuple[int, int, int]:
        c = resumed_config(begun, [f"train.{change}" for change in changes]).train
        return c.batch, c.accumulate, c.devices

    assert shared("batch=1", "accumulate=2") == (1, 2, 1)
    assert shared("batch=1", "devices=2") == (1, 1, 2)
    with pytest.raises(
        RunError,
        match=r"learns from 8 clips, with these settings it would from 16; .* devices stays 2",
    ):
        shared("devices=2")
