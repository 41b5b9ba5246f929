"""A run on disk: read back equal, never from a pickle, never half."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from sfn_train.checkpoint import Run, load_config, load_run, save_run
from sfn_train.config import parse_config
from sfn_train.exceptions import RunError
from sfn_train.model import SFN


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def run(tmp_path: Path, tiny_yaml: str) -> Run:
    config = parse_config(tiny_yaml, "tiny")
    torch.manual_seed(3)
    run = Run(tmp_path / "run", config, SFN(config.model), {"a": np.arange(3)}, {"seed": 3})
    save_run(run)
    return run


def test_a_run_is_read_back_as_it_was(run: Run) -> None:
    loaded = load_run(run.path)
    assert loaded.config == run.config
    assert loaded.info == {"seed": 3}
    np.testing.assert_array_equal(loaded.normal["a"], [0, 1, 2])
    assert not loaded.model.training
    expected = run.model.state_dict()
    for name, tensor in loaded.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    assert {file.name for file in run.path.iterdir()} == {
        "config.yaml",
        "model.safetensors",
        "normal.npz",
        "run.json",
    }


@pytest.mark.parametrize("form", ["torch", "bare pickle"])
@pytest.mark.parametrize("place", ["given itself", "as the weights"])
def test_a_pickle_is_refused_and_not_opened(
    run: Run, tmp_path: Path, form: str, place: str
) -> None:
    trap = tmp_path / "executed"
    file = tmp_path / "model.pt" if place == "given itself" else run.path / "model.safetensors"
    if form == "torch":
        torch.save({"model": Evil(trap)}, file)
    else:
        file.write_bytes(pickle.dumps(Evil(trap)))
    given = file if place == "given itself" else run.path
    with pytest.raises(RunError, match=f"{file.name} is a pickle, and loading one can run"):
        load_run(given)
    assert not trap.exists()


def test_an_unfinished_run_says_how_to_finish_it(run: Run) -> None:
    (run.path / "model.safetensors").unlink()
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(RunError, match=r"training is not finished; .* --resume"):
        load_run(run.path)


def test_weights_of_another_model_are_refused(run: Run) -> None:
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("head_channels: 4", "head_channels: 8"))
    with pytest.raises(RunError, match=r"model\.safetensors is not the model that config\.yaml"):
        load_run(run.path)


def test_damaged_files_are_named(run: Run) -> None:
    weights = run.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        load_run(run.path)


def test_normal_statistics_are_never_unpickled(run: Run) -> None:
    np.savez(run.path / "normal.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(RunError, match=r"normal\.npz: cannot be read"):
        load_run(run.path)


def test_what_is_no_run_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist; give a run folder"):
        load_run(tmp_path / "absent")
    with pytest.raises(
        RunError, match=r"config\.yaml does not exist; is .* a folder that training"
    ):
        load_run(tmp_path)
    with pytest.raises(RunError, match=r"config\.yaml does not exist"):
        load_config(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(RunError, match="is a file; give the run folder"):
        load_run(text)
