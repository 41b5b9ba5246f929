"""Reads numbers and cells of numbers from MATLAB files of versions 5 to 7.

SciPy's reader ends the whole process on some damaged files, and a device has no SciPy; labels need
a fraction of the format. A file is a header of 128 bytes and then elements, each a tag of type and
size with its data padded to 8 bytes:

    miMATRIX = flags, shape, name, then the numbers in column order, or for a cell one miMATRIX each
    miCOMPRESSED = a whole element, deflated

Everything else (text, structures, sparse arrays) is passed over where it is not asked for.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfn_rt.exceptions import DataError

HEADER = 128
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
CELL, NUMBERS = 1, range(6, 16)  # classes of arrays: double, single, then integers
COMPLEX = 0x0800
DTYPES = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
DEEPEST = 4  # cells inside cells; labels have one level


class _Damaged(Exception):
    """The bytes do not say what the format asks for."""


@dataclass(frozen=True)
class _Element:
    kind: int
    data: memoryview


def read_mat(file: Path, key: str, meaning: str) -> NDArray[Any]:
    """One variable: an array of numbers, or of objects where it is a cell."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    try:
        order = _byte_order(content)
        names = []
        for matrix in _matrices(memoryview(content)[HEADER:], order):
            name, parts = _opened(matrix, order)
            if name == key:
                return _array(parts, order, depth=0)
            names.append(name)
    except (_Damaged, zlib.error, MemoryError) as error:
        raise DataError(
            f"{file}: not a readable .mat file of version 5 to 7 ({error}); copy it again, or save "
            f"it again with -v7"
        ) from None
    raise DataError(f"{file}: holds {sorted(names)}, not {key}; give {key}, {meaning}")


def _byte_order(content: bytes) -> str:
    mark = content[HEADER - 2 : HEADER]
    if mark not in (b"IM", b"MI"):
        raise _Damaged("it has no MATLAB header")
    order = "<" if mark == b"IM" else ">"
    (version,) = struct.unpack(f"{order}H", content[HEADER - 4 : HEADER - 2])
    if version >> 8 != 1:
        raise _Damaged("it is of version 7.3" if version >> 8 == 2 else "of no known version")
    return order


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise _Damaged("it ends inside a tag")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind >> 16:  # up to 4 bytes of data inside the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            place += 8
        else:
            start = place + 8
            # Deflated elements alone are not padded.
            place = start + (size if kind == COMPRESSED else -(-size // 8) * 8)
        if start + size > len(data) or (start == place - 4 and size > 4):
            raise _Damaged("it ends inside an element")
        yield _Element(kind, data[start : start + size])


def _matrices(data: memoryview, order: str) -> Iterator[memoryview]:
    for element in _elements(data, order):
        if element.kind == COMPRESSED:
            unpacked = memoryview(zlib.decompress(element.data))
            yield from (part.data for part in _elements(unpacked, order) if part.kind == MATRIX)
        elif element.kind == MATRIX:
            yield element.data


def _opened(matrix: memoryview, order: str) -> tuple[str, list[_Element]]:
    """The name of a matrix, and its parts."""
    parts = list(_elements(matrix, order))
    kinds = [part.kind for part in parts[:3]]
    if kinds != [UINT32, INT32, INT8] or len(parts[0].data) != 8:
        raise _Damaged("an array without flags, shape and name")
    return bytes(parts[2].data).decode("latin-1"), parts


def _array(parts: list[_Element], order: str, depth: int) -> NDArray[Any]:
    (flags,) = struct.unpack_from(f"{order}I", parts[0].data)
    shape = tuple(_numbers(parts[1], order).tolist())
    n_items = math.prod(shape)
    if len(shape) < 2 or min(shape) < 0:
        raise _Damaged(f"an array of shape {shape}")
    kind, values = flags & 0xFF, parts[3:]
    if kind == CELL:
        if len(values) != n_items or depth == DEEPEST:
            raise _Damaged(f"a cell of {len(values)} arrays for shape {shape}")
        cell = np.empty(n_items, dtype=object)
        for index, value in enumerate(values):
            cell[index] = _child(value, order, depth + 1)
        return cell.reshape(shape, order="F")
    if kind not in NUMBERS or flags & COMPLEX or len(values) != 1:
        raise _Damaged(f"an array of class {kind}, not of real numbers")
    numbers = _numbers(values[0], order)
    if numbers.size != n_items:
        raise _Damaged(f"{numbers.size} numbers for shape {shape}")
    return numbers.reshape(shape, order="F")


def _child(element: _Element, order: str, depth: int) -> NDArray[Any]:
    if element.kind != MATRIX:
        raise _Damaged("a cell that holds something else than arrays")
    if not element.data:
        return np.empty((0, 0))
    return _array(_opened(element.data, order)[1], order, depth)


def _numbers(element: _Element, order: str) -> NDArray[Any]:
    if element.kind not in DTYPES:
        raise _Damaged(f"numbers of type {element.kind}")
    dtype = np.dtype(f"{order}{DTYPES[element.kind]}")
    if len(element.data) % dtype.itemsize:
        raise _Damaged("it ends inside a number")
    return np.frombuffer(element.data, dtype=dtype).astype(dtype.newbyteorder("="), copy=False)
