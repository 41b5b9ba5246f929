"""What an ONNX file says of itself, read without the onnx package, which no device installs.

Protocol buffers are fields one after another: a number, a wire type, and a value that says how long
it is. Three kinds of field are looked into, the others are stepped over:

    ModelProto.graph (7) -> GraphProto.node (1)        -> NodeProto.name (3), op_type (4)
                            GraphProto.initializer (5) -> TensorProto.external_data (13): where
"""

import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sfn_rt.exceptions import BackendError

Bytes = mmap.mmap | bytes
VARINT, FIXED64, CHUNK, FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class OnnxNode:
    """One operator of a graph."""

    name: str  # holds the module that it comes from, e.g. "mjad.filters.0/MatMul_3"
    operator: str


@dataclass(frozen=True)
class OnnxFile:
    """A graph's operators, and which other files hold its weights."""

    path: Path
    nodes: tuple[OnnxNode, ...]
    external: tuple[str, ...]  # relative to the graph's folder

    def sha256(self) -> str:
        """Of the graph and of the files with its weights."""
        digest = hashlib.sha256()
        for path in (self.path, *(self.path.parent / name for name in self.external)):
            if not path.is_file():
                raise BackendError(f"{path} is missing, {self.path.name} has weights there")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def named(self, operator: str) -> str:
        """The nodes of an operator as one says them: 'a' or 'b' or others."""
        names = [node.name for node in self.nodes if node.operator == operator]
        return " or ".join(names[:3]) + (" or others" if len(names) > 3 else "")


def read_onnx(path: Path) -> OnnxFile:
    """Nodes and external files of a graph; weights are not touched."""
    nodes: list[OnnxNode] = []
    external: dict[str, None] = {}
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for start, end in _chunks(data, 0, len(data), 7):
                for at in _chunks(data, start, end, 1):
                    nodes.append(OnnxNode(_text(data, *at, 3), _text(data, *at, 4)))
                for at in _chunks(data, start, end, 5):
                    external |= dict.fromkeys(_locations(data, *at))
    except FileNotFoundError:
        raise BackendError(f"{path} does not exist; give an ONNX file") from None
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise BackendError(f"{path}: not an ONNX file ({error})") from error
    if not nodes:
        raise BackendError(f"{path}: not an ONNX file: no graph with nodes is in it")
    return OnnxFile(path, tuple(nodes), tuple(sorted(external)))


def _locations(data: Bytes, start: int, end: int) -> Iterator[str]:
    for entry in _chunks(data, start, end, 13):
        if _text(data, *entry, 1) == "location":
            yield _text(data, *entry, 2)


def _text(data: Bytes, start: int, end: int, field: int) -> str:
    for begin, stop in _chunks(data, start, end, field):
        return bytes(data[begin:stop]).decode()
    return ""


def _chunks(data: Bytes, start: int, end: int, field: int) -> Iterator[tuple[int, int]]:
    """Where each value of `field` lies between `start` and `end`."""
    at = start
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == CHUNK:
            size, at = _varint(data, at)
            if at + size > end:
                raise ValueError(f"cut off at byte {end}")
            if tag >> 3 == field:
                yield at, at + size
            at += size
        elif kind == VARINT:
            _, at = _varint(data, at)
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")


def _varint(data: Bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number without end at byte {at}")
