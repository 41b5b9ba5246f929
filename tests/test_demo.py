"""The demo's own decisions; tests/test_end_to_end.py runs the stages themselves."""

import importlib.util
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest

from sfn_rt.datasets import Dataset, Video
from sfn_rt.exceptions import SfnError

STAGES = ["demo-data", "train", "bundle", "score", "eval"]


@pytest.fixture
def demo(repository: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("demo", repository / "scripts/demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dataset(*labels: list[int] | None) -> Dataset:
    test = tuple(
        Video(str(i), Path(f"{i}.mp4"), None if these is None else np.array(these, np.uint8))
        for i, these in enumerate(labels)
    )
    train = (Video("a", Path("a.mp4")), Video("b", Path("b.mp4")))
    return Dataset(Path("data"), train, test, None, None, None, ())


def test_the_example_shows_an_anomaly_where_there_is_one(demo) -> None:
    assert demo.example(dataset([0, 0], [0, 1], [1, 1])).name == "1"
    assert demo.example(dataset(None, None)).name == "1"
    assert demo.example(dataset()).name == "b"


def test_a_foreign_folder_is_never_emptied(demo, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(SfnError, match="not a folder of the demo"):
        demo.empty(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_data_inside_its_own_folder_is_kept(demo, tmp_path: Path) -> None:
    demo.empty(tmp_path / "demo")
    data = tmp_path / "demo" / "data"
    data.mkdir()
    with pytest.raises(SfnError, match="move it elsewhere"):
        demo.demo(data, tmp_path / "demo", "edge")
    assert data.exists()


def test_its_own_folder_starts_from_nothing(demo, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    demo.empty(out)
    (out / "run").mkdir()
    demo.empty(out)
    assert [path.name for path in out.iterdir()] == [demo.OWNED]


def test_every_stage_runs_and_what_was_made_is_named(
    demo, tmp_path: Path, monkeypatch, capsys
) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(demo, "open_dataset", lambda data: dataset([0, 1]))
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    demo.demo(None, tmp_path / "demo", "edge")
    assert [next(word for word in command if word in STAGES) for command in ran] == STAGES
    said = capsys.readouterr().out
    for made in ("bundle", "curve.svg", "heatmap.mp4", "report.html", "AUC"):
        assert made in said
