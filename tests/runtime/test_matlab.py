"""MATLAB files as SciPy writes them, read without it; damaged ones are refused, never crash."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from sfn_rt.datasets.matlab import read_mat
from sfn_rt.exceptions import DataError

scipy_io = pytest.importorskip("scipy.io")

ARRAYS = {
    "matrix": np.arange(12.0).reshape(3, 4),
    "volume": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "logical": np.eye(3, dtype=bool),
    "single": np.array([[0.5, -1.5]], dtype=np.float32),
    "small": np.array([[7]], dtype=np.int16),
    "large": np.array([[2**40, -1]], dtype=np.int64),
    "empty": np.zeros((0, 0)),
}


def cell(*items: object) -> np.ndarray:
    array = np.empty((1, len(items)), dtype=object)
    for index, item in enumerate(items):
        array[0, index] = item
    return array


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_are_those_that_scipy_wrote(tmp_path: Path, compressed: bool) -> None:
    file = tmp_path / "all.mat"
    text = {"title": "a title", "deep": {"field": 1.0}, "z": np.array([[1 + 2j]])}
    scipy_io.savemat(str(file), text | ARRAYS, do_compression=compressed)
    for name, expected in ARRAYS.items():
        actual = read_mat(file, name, "an array")
        np.testing.assert_array_equal(actual, expected, strict=name not in ("logical", "empty"))
    for name, reason in (("title", "class 4"), ("deep", "class 2"), ("z", "not of real numbers")):
        with pytest.raises(DataError, match=reason):
            read_mat(file, name, "an array")
    with pytest.raises(DataError, match=r"holds \['deep', 'empty', .*, not gt; give gt, ranges"):
        read_mat(file, "gt", "ranges")


@pytest.mark.parametrize("compressed", [False, True])
def test_cells_hold_arrays_in_order(tmp_path: Path, compressed: bool) -> None:
    items = [ARRAYS["matrix"], ARRAYS["empty"], cell(ARRAYS["volume"])]
    file = tmp_path / "cell.mat"
    scipy_io.savemat(str(file), {"gt": cell(*items)}, do_compression=compressed)
    held = read_mat(file, "gt", "ranges")
    assert held.shape == (1, 3)
    np.testing.assert_array_equal(held[0, 0], items[0])
    assert held[0, 1].size == 0
    np.testing.assert_array_equal(held[0, 2][0, 0], ARRAYS["volume"])


def test_the_other_byte_order_is_read(tmp_path: Path) -> None:
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    flags, shape = element(6, struct.pack(">II", 6, 0)), element(5, struct.pack(">ii", 1, 2))
    matrix = flags + shape + element(1, b"gt") + element(9, struct.pack(">dd", 3.0, 4.0))
    header = b"MATLAB 5.0".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    (tmp_path / "big.mat").write_bytes(header + element(14, matrix))
    np.testing.assert_array_equal(read_mat(tmp_path / "big.mat", "gt", "ranges"), [[3.0, 4.0]])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no MATLAB header"),
        (b"MATLAB 7.3".ljust(124) + b"\0\2IM" + bytes(400), "of version 7.3"),
        (b"MATLAB 5.0".ljust(124) + b"\0\7IM", "of no known version"),
        (b"MATLAB 5.0".ljust(124) + b"\0\1IM" + b"\x0e\0\0\0\xff\xff\0\0", "inside an element"),
        (b"MATLAB 5.0".ljust(124) + b"\0\1IM" + b"\x0e\0", "inside a tag"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(DataError, match=f"x.mat: not a readable .mat file .*{reason}"):
        read_mat(tmp_path / "x.mat", "gt", "ranges")


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere_is_an_error_or_read(tmp_path: Path, compressed: bool) -> None:
    """SciPy 1.17 ends the process on some of these."""
    file = tmp_path / "cell.mat"
    marks = cell(*(np.ones((5, 6), dtype=np.uint8) for _ in range(4)))
    scipy_io.savemat(str(file), {"volLabel": marks}, do_compression=compressed)
    whole = file.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.randrange(1, 4) if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged)
        try:
            read_mat(file, "volLabel", "a cell of masks")
        except DataError:
            refused += 1
    assert 0 < refused < 300
