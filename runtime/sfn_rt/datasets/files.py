"""Reads NumPy's files. Nothing in them is ever run: no pickles."""

import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfn_rt.exceptions import DataError
from sfn_rt.frames import files_with_suffix

# What NumPy raises on files that are not what their names say, or end too soon; a broken
# header may also ask for more memory than there is.
BROKEN_NUMPY = (OSError, ValueError, EOFError, SyntaxError, TokenError, MemoryError)
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def files_in(folder: Path, suffix: str) -> list[Path]:
    """The visible files with a suffix, in natural order; none where there is no such folder."""
    return files_with_suffix(folder, frozenset({suffix})) if folder.is_dir() else []


def read_npz(file: Path) -> dict[str, NDArray[Any]]:
    """Every array of an archive."""
    held = _load_arrays(file, ".npz of plain arrays")
    if isinstance(held, np.ndarray):
        raise DataError(f"{file}: a single array; rename it to .npy")
    return held


def read_npy(file: Path) -> NDArray[Any]:
    """One array."""
    held = _load_arrays(file, ".npy of a plain array")
    if not isinstance(held, np.ndarray):
        raise DataError(f"{file}: an archive of arrays; rename it to .npz")
    return held


def map_npy(file: Path) -> NDArray[Any]:
    """An array that stays on disk: masks of a long video fill gigabytes."""
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except BROKEN_NUMPY as error:
        raise DataError(f"{file}: not a readable .npy of a plain array ({error})") from None


def _load_arrays(file: Path, expected: str) -> dict[str, NDArray[Any]] | NDArray[Any]:
    try:
        with file.open("rb") as opened:
            held: Any = np.load(opened, allow_pickle=False)
            return held if isinstance(held, np.ndarray) else dict(held)
    except (*BROKEN_NUMPY, *BROKEN_ZIP) as error:
        raise DataError(f"{file}: not a readable {expected} ({error})") from None
