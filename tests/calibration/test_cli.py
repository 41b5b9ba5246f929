"""`python -m sfn_calib`: mistakes are one line and exit code 2, and leave everything as it was."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import sfn_calib.calibrate
from footage import walk, write_data
from sfn_calib.cli import app
from sfn_rt.bundle import load_bundle, write_manifest
from sfn_rt.normal import NormalFootage, SceneModel, thumbnail


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def mistake(result: Result) -> str:
    """The one line of a mistake."""
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = [x for x in result.stderr.splitlines() if not x.startswith("note:")]
    assert line.startswith("error: ")
    return line


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    videos = {f"{n:02}": 40 for n in range(1, 7)}
    return write_data(tmp_path_factory.mktemp("data") / "squares", videos, {"01": 40})


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_bundle` that knows the squares' scene."""
    copy = tmp_path_factory.mktemp("squares") / "bundle"
    shutil.copytree(tiny_bundle, copy)
    opened = load_bundle(copy)
    normal = NormalFootage.from_arrays(opened.normal())
    scene = SceneModel(None, None, thumbnail(walk(1, 0)[0])[None])
    np.savez(copy / "normal.npz", **replace(normal, scene=scene).to_arrays())
    write_manifest(copy, replace(opened.manifest, files={}))
    return copy


def test_help_loads_nothing_heavy() -> None:
    done = run("--help")
    assert done.exit_code == 0
    assert "--precision" in done.output


def test_what_is_no_normal_footage_is_refused(bundle: Path, data: Path, tmp_path: Path) -> None:
    before = content(bundle)
    (tmp_path / "empty").mkdir()
    assert "without videos" in mistake(run(bundle, "--data", tmp_path / "empty"))
    assert "does not exist" in mistake(run(bundle, "--data", tmp_path / "nowhere"))
    assert "test part" in mistake(run(bundle, "--data", data / "testing"))
    few = write_data(tmp_path / "few", {"01": 20})
    assert "calibration clips" in mistake(run(bundle, "--data", few))
    assert content(bundle) == before


def test_another_scene_is_refused(tiny_bundle: Path, data: Path) -> None:
    assert "shows the scene" in mistake(run(tiny_bundle, "--data", data))


def test_the_second_system_is_refused(dual_bundle: Path, data: Path) -> None:
    line = mistake(run(dual_bundle, "--data", data, "--precision", "fp16"))
    assert "dual-memory" in line
    assert "fp32" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precision", "int3"], "no recipe 'int3'"),
        (["--clips", "0"], "--clips"),
        (["--gate-frames", "0"], "--gate-frames"),
        (["--threads", "0"], "--threads"),
        (["--run", "nowhere"], "not a run folder"),
    ],
)
def test_options_are_checked(bundle: Path, data: Path, arguments: list[str], said: str) -> None:
    assert said in mistake(run(bundle, "--data", data, *arguments))


def test_a_recipe_may_not_take_the_name_of_another_file(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    for name in ("parity", "fp32"):
        recipe = tmp_path / f"{name}.yaml"
        budget = {"auc_points": 1.0, "spearman": 0.9, "rerouted": 0.5}
        recipe.write_text(json.dumps({"precision": "fp16", "budget": budget}))  # JSON is YAML
        assert "name" in mistake(run(bundle, "--data", data, "--precision", recipe))


def test_a_run_of_another_bundle_is_refused(bundle: Path, data: Path, tmp_path: Path) -> None:
    split = {"held_out": [{"video": "01", "start": 0, "stop": 40}]}
    info = {"config_sha256": "other", "split": split}
    (tmp_path / "run.json").write_text(json.dumps(info))
    assert "not the one" in mistake(run(bundle, "--data", data, "--run", tmp_path))


def test_an_out_that_cannot_be_written_is_told_before_the_work(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    for out, said in (("file", "is a file"), ("mine", "not a bundle")):
        done = run(bundle, "--data", data, "--clips", "16", "--out", tmp_path / out)
        assert said in mistake(done)


def test_a_model_of_random_weights_gets_no_precision(bundle: Path, data: Path) -> None:
    """Whether it sees the anomalies by chance or not: nothing is packed."""
    before = content(bundle)
    arguments = ("--clips", "16", "--threads", "1", "--gate-frames", "90")
    said = mistake(run(bundle, "--data", data, *arguments))
    assert "no gate can be built" in said or "does not hold its gate" in said
    assert content(bundle) == before


def test_ctrl_c_leaves_no_trace(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        assert list(tmp_path.iterdir())  # work has begun
        raise KeyboardInterrupt

    monkeypatch.setattr(sfn_calib.calibrate, "find_trials", interrupted)
    done = run(bundle, "--data", data, "--out", tmp_path / "new", "--clips", "16")
    assert done.exit_code == 130
    assert done.stderr == "interrupted\n"
    assert not list(tmp_path.iterdir())
