"""An archive that can travel in pieces: what `make wheelhouse` writes and `gpu-check` reads.

The archive is an ordinary .tar.xz, so that `cat PIECES | tar -xJ` opens it too. It is made of
units (a wheel, a bundle, the project's files), each compressed by itself: xz allows streams to
follow one another, so what an interrupted run has compressed is used again. manifest.json beside
the pieces has size and sha256 of every piece and of every file inside.

Only the standard library: this file travels beside the pieces.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

FORMAT = 1
MANIFEST = "manifest.json"
ARCHIVE = "sfn-gpu.tar.xz"
CHUNK = 1 << 20
BLOCK = 512  # of a tar file


class PackError(Exception):
    """Something a user can repair: one line, exit code 2."""


def sha256_of(path: Path) -> str:
    """Of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def describe(path: Path, name: str) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"path": name, "size": path.stat().st_size, "sha256": sha256_of(path)}


def read_json(path: Path) -> Any:
    """JSON of a file, None where it is not there or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_atomic(path: Path, text: str) -> None:
    """The whole text, or what was there before."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


# --- packing ----------------------------------------------------------------------------------


def compress(files: Mapping[str, Path], out: Path, preset: int) -> None:
    """Write one unit: the tar members of `files`, in order of their names, as one xz stream."""
    partial = out.with_name(f".{out.name}.partial")
    with lzma.open(partial, "wb", preset=preset) as stream:
        for name in sorted(files):
            _member(stream, name, files[name])
    partial.replace(out)


def tail() -> bytes:
    """What ends a tar file, as an xz stream of its own."""
    return lzma.compress(bytes(2 * BLOCK))


def _member(stream: Any, name: str, path: Path) -> None:
    info = tarfile.TarInfo(name)  # no owner, no time: the same files make the same bytes
    info.size, info.mode = path.stat().st_size, 0o755 if os.access(path, os.X_OK) else 0o644
    stream.write(info.tobuf(format=tarfile.PAX_FORMAT))
    with path.open("rb") as file:
        shutil.copyfileobj(file, stream, CHUNK)
    stream.write(bytes(-info.size % BLOCK))


def cut(units: Iterable[Path], folder: Path, limit: int | None) -> list[dict[str, Any]]:
    """Join the units and cut them into pieces of at most `limit` bytes; None: one file."""
    writer = _Pieces(folder, limit)
    for unit in units:
        with unit.open("rb") as file:
            for chunk in iter(lambda: file.read(CHUNK), b""):
                writer.write(chunk)
    writer.write(tail())
    return writer.close()


class _Pieces:
    """Writes NAME, or NAME.000, NAME.001 and so on, each under a hidden name until it is whole."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        self._folder, self._limit = folder, limit
        self._made: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._room = 0

    def write(self, data: bytes) -> None:
        """Append, opening a new piece wherever one is full."""
        view = memoryview(data)
        while view:
            if self._file is None or self._room == 0:
                self._finish()
                self._open()
            assert self._file is not None
            part = view[: self._room] if self._limit else view
            self._file.write(part)
            self._room -= len(part) if self._limit else 0
            view = view[len(part) :]

    def close(self) -> list[dict[str, Any]]:
        """What the manifest says of the pieces."""
        self._finish()
        return self._made

    def _open(self) -> None:
        number = f".{len(self._made):03d}" if self._limit else ""
        self._path = self._folder / f"{ARCHIVE}{number}"
        self._file = self._path.with_name(f".{self._path.name}.partial").open("wb")
        self._room = self._limit or 1

    def _finish(self) -> None:
        if self._file is None:
            return
        self._file.close()
        Path(self._file.name).replace(self._path)
        entry = describe(self._path, self._path.name)
        self._made.append({"name": entry.pop("path"), **entry})
        self._file = None


# --- arriving ---------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a wheelhouse, refused where this version does not read it."""
    path = folder / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        found = "is not a manifest" if path.exists() else "does not exist"
        raise PackError(
            f"{path} {found}; `make wheelhouse` on a machine with network writes one, and it "
            f"travels with the pieces"
        )
    if manifest.get("format") != FORMAT:
        raise PackError(
            f"{path}: format is {manifest.get('format')!r}, this script reads {FORMAT}; take the "
            f"gpu_check.py that lies beside the pieces"
        )
    return manifest


def check_pieces(manifest: Mapping[str, Any], folder: Path) -> tuple[list[str], list[str]]:
    """Names of the pieces that have not arrived, and of those that are not what was sent."""
    missing, damaged = [], []
    for piece in manifest["pieces"]:
        path = folder / piece["name"]
        if not path.is_file():
            missing.append(piece["name"])
        elif path.stat().st_size != piece["size"] or sha256_of(path) != piece["sha256"]:
            damaged.append(piece["name"])
    return missing, damaged


def unpack(manifest: Mapping[str, Any], folder: Path, out: Path) -> None:
    """Every file of the archive below `out`, each checked; `out` appears whole or not at all."""
    stamp = out / ".whole"
    sent = fingerprint(manifest)
    if stamp.is_file() and stamp.read_text() == sent:
        return
    missing, damaged = check_pieces(manifest, folder)
    if missing or damaged:
        raise PackError(_lacking(manifest, folder, missing, damaged))
    partial = out.with_name(f".{out.name}.partial")
    for old in (partial, out):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    expected = {entry["path"]: entry for entry in manifest["files"]}
    reader = io.BufferedReader(_Joined([folder / p["name"] for p in manifest["pieces"]]), CHUNK)
    try:
        with lzma.open(reader) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                _extract(archive, member, expected, partial)
    except (lzma.LZMAError, tarfile.TarError, EOFError) as error:
        raise PackError(f"{folder}: the archive cannot be read ({error}); pack it again") from None
    if expected:
        raise PackError(f"{folder}: the archive lacks {sorted(expected)[0]}; pack it again")
    (partial / ".whole").write_text(sent)
    partial.rename(out)


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """sha256 over what the manifest says of the files."""
    return hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()


def _extract(
    archive: tarfile.TarFile, member: tarfile.TarInfo, expected: dict[str, Any], out: Path
) -> None:
    entry = expected.pop(member.name, None)
    pure = PurePosixPath(member.name)
    if entry is None or not member.isfile() or pure.is_absolute() or ".." in pure.parts:
        raise PackError(f"the archive holds {member.name!r}, which its manifest does not list")
    path = out / member.name
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    source = archive.extractfile(member)
    assert source is not None
    with path.open("wb") as file:
        for chunk in iter(lambda: source.read(CHUNK), b""):
            digest.update(chunk)
            file.write(chunk)
    path.chmod(member.mode)
    if digest.hexdigest() != entry["sha256"]:
        raise PackError(f"{member.name} is not what the manifest says; pack it again")


def _lacking(
    manifest: Mapping[str, Any], folder: Path, missing: list[str], damaged: list[str]
) -> str:
    total = len(manifest["pieces"])
    said = []
    if missing:
        said.append(f"{len(missing)} of {total} pieces have not arrived: {_some(missing)}")
    if damaged:
        said.append(f"{len(damaged)} of {total} pieces are damaged: {_some(damaged)}")
    return f"{folder}: {'; '.join(said)}; copy them again into this folder and run this again"


def _some(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class _Joined(io.RawIOBase):
    """The pieces one after another, as if they were one file."""

    def __init__(self, paths: list[Path]) -> None:
        self._chunks = self._read_all(paths)
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = next(self._chunks, b"")
        part = self._left[: len(buffer)]
        buffer[: len(part)] = part
        self._left = self._left[len(part) :]
        return len(part)

    def _read_all(self, paths: list[Path]) -> Iterator[bytes]:
        for path in paths:
            with path.open("rb") as file:
                yield from iter(lambda: file.read(CHUNK), b"")
