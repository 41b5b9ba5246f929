import csv
import errno
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from sfn_rt.exceptions import DataError, OutputError
from sfn_rt.scores import VideoScores
from sfn_rt.sinks import files
from sfn_rt.sinks.files import (
    LIST_NAME,
    OutputFolder,
    output_errors,
    read_scores,
    to_json,
    write_atomic,
    write_scores,
)

# From Python 3.12 on a fork beside native threads warns; the children here only write files.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def fill(folder: OutputFolder, **contents: str) -> None:
    for name, text in contents.items():
        (folder.files / name).write_text(text)


def put(out: Path, **contents: str) -> None:
    with OutputFolder(out) as folder:
        fill(folder, **contents)
        folder.commit()


def holds(out: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in out.iterdir() if p.name != LIST_NAME}


def siblings(out: Path) -> list[str]:
    return sorted(p.name for p in out.parent.iterdir() if p != out)


def test_nothing_is_seen_before_the_commit_and_nothing_is_left_after(tmp_path: Path):
    out = tmp_path / "deep" / "out"
    with OutputFolder(out) as folder:
        fill(folder, a="1")
        (folder.state / "progress").write_text("12")
        assert not out.exists()
        folder.commit()
    assert holds(out) == {"a": "1"}
    assert siblings(out) == []


def test_an_error_leaves_no_trace(tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError):
        put(out, **{"a": "1", "no such folder/b": "2"})
    assert list(tmp_path.iterdir()) == []


def interrupt(out: Path, resumed: bool) -> None:
    with OutputFolder(out, resume=resumed) as folder:
        assert folder.resumed == resumed
        assert [p.read_text() for p in folder.state.iterdir()] == (["12"] if resumed else [])
        (folder.state / "progress").write_text("12")
        folder.resumable = True
        raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_only_if_asked(tmp_path: Path):
    out = tmp_path / "out"
    for resumed in (False, True, True):
        with pytest.raises(KeyboardInterrupt):
            interrupt(out, resumed)
        assert not out.exists()
    with OutputFolder(out) as folder:
        assert not folder.resumed
        assert list(folder.state.iterdir()) == []
        folder.commit()
    assert siblings(out) == []


def test_resume_without_anything_to_resume_starts_afresh(tmp_path: Path):
    with OutputFolder(tmp_path / "out", resume=True) as folder:
        assert not folder.resumed


def test_an_earlier_result_is_replaced_and_other_files_stay(tmp_path: Path):
    out = tmp_path / "out"
    put(out, scores="old", heatmap="old")
    (out / "notes.txt").write_text("mine")
    put(out, scores="new", report="new")
    assert holds(out) == {"scores": "new", "report": "new", "notes.txt": "mine"}
    with OutputFolder(out) as folder:
        fill(folder, **{"notes.txt": "overwritten"})
        with pytest.raises(OutputError, match="same names from elsewhere"):
            folder.commit()
    assert holds(out)["notes.txt"] == "mine"


def test_folders_inside_a_result_are_replaced(tmp_path: Path):
    out = tmp_path / "out"
    for name in ("01", "02"):
        with OutputFolder(out) as folder:
            (folder.files / "curves").mkdir()
            (folder.files / "curves" / name).write_text(name)
            folder.commit()
    assert [p.name for p in (out / "curves").iterdir()] == ["02"]


def test_a_folder_of_someone_else_is_refused_at_once_unless_forced(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    (out / "report.html").write_text("theirs")
    with pytest.raises(OutputError, match=r"not an earlier result \(report.html, thesis.tex\)"):
        OutputFolder(out)
    assert siblings(out) == []
    with OutputFolder(out, overwrite=True) as folder:
        fill(folder, **{"report.html": "ours"})
        folder.commit()
    assert holds(out) == {"thesis.tex": "years", "report.html": "ours"}


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path: Path):
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    put(tmp_path / "link", a="1")
    assert holds(real) == {"a": "1"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file; --out names a folder"):
        OutputFolder(tmp_path / "out")
    with pytest.raises(OutputError, match="choose another --out"):
        OutputFolder(tmp_path / "out" / "deeper")


def test_a_list_that_points_outside_removes_nothing_there(tmp_path: Path):
    out = tmp_path / "out"
    put(out, a="1")
    (tmp_path / "precious").write_text("x")
    (out / LIST_NAME).write_text("a\n../precious\n/etc/hostname\n")
    put(out, b="2")
    assert (tmp_path / "precious").read_text() == "x"
    assert holds(out) == {"b": "2"}


def hold(out: Path, ready: object, release: object) -> None:
    with OutputFolder(out):
        ready.set()  # type: ignore[attr-defined]
        release.wait(20)  # type: ignore[attr-defined]


def test_two_runs_never_share_a_folder(tmp_path: Path):
    out = tmp_path / "out"
    spawn = multiprocessing.get_context("fork")
    ready, release = spawn.Event(), spawn.Event()
    other = spawn.Process(target=hold, args=(out, ready, release))
    other.start()
    try:
        assert ready.wait(20)
        for spelled in (out, tmp_path / "." / "x" / ".." / "out"):
            with pytest.raises(OutputError, match="another run is writing"):
                OutputFolder(spelled)
    finally:
        release.set()
        other.join(20)
    put(out, a="1")
    assert holds(out) == {"a": "1"}


def test_a_killed_run_blocks_nobody(tmp_path: Path):
    out = tmp_path / "out"
    spawn = multiprocessing.get_context("fork")
    ready, release = spawn.Event(), spawn.Event()
    other = spawn.Process(target=hold, args=(out, ready, release))
    other.start()
    assert ready.wait(20)
    other.kill()
    other.join(20)
    put(out, a="1")
    assert holds(out) == {"a": "1"}
    assert siblings(out) == []


@pytest.mark.parametrize("moves", range(4))
def test_a_commit_cut_short_is_completed_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
):
    out = tmp_path / "out"
    put(out, a="old", gone="old")
    real = Path.replace
    made = 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal made
        if Path(target).parent == out:
            made += 1
            if made > moves:
                os._exit(9)  # as if the power went
        return real(self, target)

    def killed() -> None:
        Path.replace = replace  # type: ignore[method-assign, assignment]
        put(out, a="new", b="new", c="new")

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(20)
    assert process.exitcode == 9
    with pytest.raises(KeyError), OutputFolder(out):
        raise KeyError
    assert holds(out) == {"a": "new", "b": "new", "c": "new"}
    assert siblings(out) == []


def test_a_commit_that_fails_midway_is_completed_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    put(out, a="old")
    real = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target) == out / "b":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="no permission"):
        put(out, a="new", b="new")
    monkeypatch.undo()
    OutputFolder(out).abandon()
    assert holds(out) == {"a": "new", "b": "new"}
    assert siblings(out) == []


def test_a_mounted_volume_is_filled_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self == out)
    with OutputFolder(out) as folder:
        assert folder.files.is_relative_to(out)
        fill(folder, a="1")
        folder.commit()
    put(out, a="2")
    assert holds(out) == {"a": "2"}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "no space left there; free some, or choose another --out"),
        (errno.EROFS, "no permission to write there"),
        (errno.EACCES, "no permission to write there"),
        (errno.EIO, "Input/output error; choose another --out"),
    ],
)
def test_what_the_system_refuses_is_one_clear_line(number: int, text: str, tmp_path: Path):
    with pytest.raises(OutputError, match=text), output_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_a_full_disk_is_told_from_a_real_write():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(OutputError, match="/dev/full: no space left"),
        output_errors(Path("/dev/full")),
        open("/dev/full", "w") as file,
    ):
        file.write("x")


def test_a_read_only_place_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission to write there"):
        OutputFolder(tmp_path / "out")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "events.json"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match="no space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["events.json"]


def scores(n_frames: int, terms: tuple[str, ...], seed: int = 0) -> VideoScores:
    rng = np.random.default_rng(seed)

    def column() -> np.ndarray:
        values = rng.exponential(size=n_frames) * 10.0 ** rng.integers(-12, 12, n_frames)
        values[:4] = np.nan
        return values

    return VideoScores(
        name="walk",
        fps=29.97,
        time_s=np.arange(n_frames) / 29.97,
        terms={term: column() for term in terms},
        paper=column(),
        causal=column(),
        box=np.full((n_frames, 4), np.nan, dtype=np.float32),
        caption_id=np.arange(n_frames, dtype=np.int32) // 8 - 1,
        captions=("one thing moves",),
        caption_age=column(),
        caption_weight=column(),
    )


@pytest.mark.parametrize("terms", [("visual", "semantic", "attribute"), ("semantic",), ()])
@pytest.mark.parametrize("n_frames", [0, 3, 50])
def test_scores_read_back_bit_for_bit(tmp_path: Path, terms: tuple[str, ...], n_frames: int):
    result = scores(n_frames, terms)
    write_scores(tmp_path / "scores.csv", result)
    back = read_scores(tmp_path / "scores.csv")
    assert set(back.terms) == {t for t in terms if n_frames > 4}
    for name, values in back.terms.items():
        np.testing.assert_array_equal(values, result.terms[name])
    for name in ("time_s", "paper", "causal", "caption_id", "caption_age", "caption_weight"):
        np.testing.assert_array_equal(getattr(back, name), getattr(result, name))
    assert back.caption_id.dtype == np.int32


def test_scores_have_the_documented_columns_and_empty_cells(tmp_path: Path):
    write_scores(tmp_path / "scores.csv", scores(6, ("visual",)))
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    documented = "frame,time_s,visual,semantic,attribute,paper,causal,caption_id,caption_age"
    assert ",".join(rows[0]) == f"{documented},caption_weight"
    assert rows[1] == ["0", "0.0", *[""] * 8]
    assert rows[6][3:5] == ["", ""]
    assert "\r" not in (tmp_path / "scores.csv").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns must be frame,time_s"),
        ("time,score\n1,2\n", "columns must be frame,time_s"),
        ("HEAD\n0,0.0,,,,,,,,\n2,0.1,,,,,,,,\n", "line 3: expected frame 1"),
        ("HEAD\n0,0.0,,,,\n", "line 2: expected frame 0 in 10 columns"),
        ("HEAD\n0,0.0,high,,,,,,,\n", "line 2: could not convert"),
    ],
)
def test_a_table_that_is_not_ours_is_refused_by_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "scores.csv"
    path.write_text(text.replace("HEAD", ",".join(files.SCORE_COLUMNS)))
    with pytest.raises(DataError, match=message):
        read_scores(path)


def test_a_missing_table_says_where_it_comes_from(tmp_path: Path):
    with pytest.raises(DataError, match="sfn-rt score"):
        read_scores(tmp_path / "scores.csv")


def test_json_keeps_every_text_and_steers_no_terminal():
    text = 'é 日本 \x1b[31m \x9b2J \x7f \u202e \ud800 \u2028 " \\ \n'
    written = to_json({"caption": text})
    assert json.loads(written) == {"caption": text}
    assert "é 日本" in written
    assert all(char.isprintable() or char == "\n" for char in written)
    written.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(float("nan"))
