"""What is kept of each frame, and that an interruption loses none of it."""

from pathlib import Path

import numpy as np
import pytest

from sfn_rt.evidence import FrameEvidence
from sfn_rt.rows import Rows
from sfn_rt.semantics.scene import Scene

GRID = (2, 3)
TERMS = ("visual", "semantic")


def frame(i: int) -> FrameEvidence:
    """The first four frames have no evidence."""
    scene = Scene(30, 20, ())
    if i < 4:
        return FrameEvidence(i, i / 25, scene, {}, None, None, None)
    terms = {"visual": 0.1 * i, "semantic": 1 / (i + 1)}
    heat = np.full(GRID, i, np.float16)
    return FrameEvidence(i, i / 25, scene, terms, f"caption {i // 8}", (0.1, 0.2, 0.3, 0.4), heat)


def fill(rows: Rows, start: int, stop: int) -> Rows:
    for i in range(start, stop):
        score = float("nan") if i < 4 else float(i)
        box = None if i < 4 else (1.0 * i, 2.0, 3.0, 4.0)
        rows.append(frame(i), score, box)
    return rows


def test_columns_hold_what_was_appended() -> None:
    rows = fill(Rows(TERMS, GRID), 0, 20)
    result = rows.result("walk", 25.0, np.zeros(20))
    assert rows.n_frames == 20
    assert list(result.terms) == list(TERMS)
    assert np.isnan(result.terms["visual"][:4]).all()
    np.testing.assert_array_equal(result.terms["visual"][4:], 0.1 * np.arange(4, 20))
    np.testing.assert_array_equal(result.box[5], [5, 2, 3, 4])
    assert np.isnan(result.box[3]).all()
    assert result.captions == ("caption 0", "caption 1", "caption 2")
    assert result.caption_id.tolist() == [-1] * 4 + [0] * 4 + [1] * 8 + [2] * 4


def test_heat_maps_are_on_disk_one_a_frame(tmp_path: Path) -> None:
    rows = fill(Rows(TERMS, GRID, tmp_path / "heat"), 0, 150)  # more than are held back
    heat = rows.heat()
    assert isinstance(heat, np.memmap)
    assert heat.shape == (150, *GRID)
    assert np.isnan(heat[:4]).all()
    np.testing.assert_array_equal(heat[4:, 0, 0], np.arange(4, 150))


def test_few_heat_maps_are_in_memory_at_a_time(tmp_path: Path) -> None:
    rows = fill(Rows(TERMS, GRID, tmp_path / "heat"), 0, 1000)
    assert len(rows._pending) < 64
    assert (tmp_path / "heat").stat().st_size >= (1000 - 64) * 2 * 3 * 2


def test_a_frame_takes_a_hundred_bytes() -> None:
    def size(n: int) -> int:
        rows = fill(Rows(TERMS, GRID), 0, n)
        return sum(column.buffer_info()[1] * column.itemsize for column in rows._columns.values())

    assert (size(1100) - size(100)) / 1000 <= 100


def test_state_continues_to_the_same_rows(tmp_path: Path) -> None:
    whole = fill(Rows(TERMS, GRID, tmp_path / "whole"), 0, 200)
    first = fill(Rows(TERMS, GRID, tmp_path / "heat"), 0, 90)
    arrays, plain = first.state()
    fill(first, 90, 170).heat()  # goes on, and is interrupted far behind its checkpoint
    again = Rows(TERMS, GRID, tmp_path / "heat")
    again.restore(arrays, plain)
    fill(again, 90, 200)
    paper = np.zeros(200)
    a, b = whole.result("x", 25.0, paper), again.result("x", 25.0, paper)
    for name in ("time_s", "causal", "box", "caption_id"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for term in TERMS:
        np.testing.assert_array_equal(a.terms[term], b.terms[term])
    assert a.captions == b.captions
    np.testing.assert_array_equal(whole.heat(), again.heat())


def test_what_a_killed_run_left_is_no_part_of_a_new_one(tmp_path: Path) -> None:
    """Killed before its first checkpoint, it leaves heat maps that nothing refers to."""
    fill(Rows(TERMS, GRID, tmp_path / "heat"), 0, 70)
    rows = fill(Rows(TERMS, GRID, tmp_path / "heat"), 0, 100)
    assert rows.heat().shape == (100, *GRID)
    np.testing.assert_array_equal(rows.heat()[4:, 0, 0], np.arange(4, 100))


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65])
def test_any_number_of_frames(tmp_path: Path, n: int) -> None:
    rows = fill(Rows(TERMS, GRID, tmp_path / "heat"), 0, n)
    if n:  # an empty file cannot be mapped, and no video is empty
        assert rows.heat().shape == (n, *GRID)
    assert rows.column("causal").shape == (n,)
