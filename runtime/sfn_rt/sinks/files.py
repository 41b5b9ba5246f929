"""Results as files: a folder that appears whole or not at all, and the formats inside it.

A run writes into a hidden working folder and moves the finished files into place at the end:

    .out.partial/          beside `out` (inside it, as .partial, where `out` is a mounted volume)
        lock               held while a run works here, so that two never share a folder
        files/             what `commit` puts in place
        state/             what an interrupted run needs to go on; never part of a result
        publishing         there while `commit` moves files; the next run completes such a move

An `out` that does not exist yet appears by one rename. In one that exists, files are replaced
one by one; a list of them in `out/.sfn-rt` tells the next run which it may replace.
Formats: docs/formats.md.
"""

import csv
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sfn_rt.events import Event
from sfn_rt.exceptions import DataError, OutputError
from sfn_rt.scores import TERMS, VideoScores
from sfn_rt.threshold import Threshold

LIST_NAME = ".sfn-rt"  # names the files of a result, so that only those are ever replaced
CAPTION_COLUMNS = ("caption_id", "caption_age", "caption_weight")
SCORE_COLUMNS = ("frame", "time_s", *TERMS, "paper", "causal", *CAPTION_COLUMNS)
EVENTS_SCHEMA_VERSION = 2

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def output_errors(path: Path, option: str = "--out") -> Iterator[None]:
    """Turn what the operating system says while `path` is written into one OutputError.

    `option` is the one that chose the place.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            reason = f"no space left there; free some, or choose another {option}"
        elif error.errno in REFUSED:
            reason = f"no permission to write there; change that, or choose another {option}"
        else:
            reason = f"{error.strerror or error}; choose another {option}"
        raise OutputError(f"cannot write {path}: {reason}") from error


def write_atomic(path: Path, content: bytes | str, option: str = "--out") -> None:
    """Write one file so that a reader sees the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with output_errors(path, option):
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


class OutputFolder:
    """The folder `out` of one run, filled out of sight and put in place by `commit`.

    with OutputFolder(out, resume=True) as folder:
        (folder.files / "scores.csv").write_text(...)
        folder.commit()

    Leaving without a commit removes the working folder, unless `resumable` has been set:
    then it waits for a run with resume=True. A non-empty `out` is accepted if an earlier
    result lies in it, of which only its own files are replaced; any other one is refused
    unless `overwrite` is set, and even then files with other names stay.
    """

    def __init__(self, out: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.out = Path(os.path.realpath(out))
        self.overwrite = overwrite
        self.resumable = False
        with output_errors(out):
            self._check_place()
            self._work = self._working_folder()
            if not (self._work / "publishing").exists():
                self._refuse_foreign()
            self._work.mkdir(exist_ok=True)
            self._lock = hold_lock(self._work / "lock", self.out)
            try:
                self._prepare(resume)
            except BaseException:
                os.close(self._lock)
                raise

    @property
    def files(self) -> Path:
        """Where the result's files are written."""
        return self._work / "files"

    @property
    def state(self) -> Path:
        """Where a run keeps what it needs to go on after an interruption."""
        return self._work / "state"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abandon()

    def commit(self) -> None:
        """Put the files in place, and give the working folder up."""
        with output_errors(self.out):
            self._refuse_foreign()
            names = sorted(entry.name for entry in self.files.iterdir())
            write_atomic(self.files / LIST_NAME, "".join(f"{name}\n" for name in names))
            _flush(self.files)
            if self.out.exists():
                (self._work / "publishing").touch()
                self._publish()
            else:
                self.files.rename(self.out)
            self.resumable = False
            self._leave()

    def abandon(self) -> None:
        """Give the working folder up; does nothing after a commit."""
        if self._lock >= 0:
            with output_errors(self._work):
                self._leave()

    def _check_place(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise OutputError(f"{self.out} is a file; --out names a folder")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if self.out.exists() and not os.access(self.out, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable")

    def _working_folder(self) -> Path:
        """Beside `out`, where a rename reaches it; inside, where its parent is another disk."""
        parent = self.out.parent
        if self.out.exists() and (self.out.is_mount() or not os.access(parent, os.W_OK | os.X_OK)):
            return self.out / ".partial"
        return parent / f".{self.out.name}.partial"

    def _prepare(self, resume: bool) -> None:
        if (self._work / "publishing").exists():
            self._publish()
        self.resumed = resume and self.state.is_dir() and any(self.state.iterdir())
        for folder in (self.files, self.state):
            if not self.resumed and folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(exist_ok=True)

    def _refuse_foreign(self) -> None:
        """Raise where a commit would replace, or mix with, files that are not ours."""
        if self.overwrite or not self.out.exists():
            return
        present = {entry.name for entry in self.out.iterdir()} - {self._work.name}
        listed = _listed(self.out)
        if present and LIST_NAME not in present:
            raise OutputError(
                f"{self.out} holds files that are not an earlier result ({_some(present)}); "
                f"choose another --out, or add --force to write among them"
            )
        ours = {entry.name for entry in self.files.iterdir()} if self.files.exists() else set()
        if clash := (present - listed - {LIST_NAME}) & ours:
            raise OutputError(
                f"{self.out} holds files of the same names from elsewhere ({_some(clash)}); "
                f"move them away, or add --force to replace them"
            )

    def _publish(self) -> None:
        """Move the files into an `out` that exists. Done again from anywhere, it ends the same."""
        if not (self.files / LIST_NAME).exists():  # the list moves last: all is done
            (self._work / "publishing").unlink()
            return
        new = _listed(self.files)
        for name in sorted(_listed(self.out) - new):
            _remove(self.out / name)
        for name in (*sorted(new), LIST_NAME):
            if (self.files / name).exists():
                if (self.out / name).is_dir():
                    _remove(self.out / name)
                (self.files / name).replace(self.out / name)
        (self._work / "publishing").unlink()

    def _leave(self) -> None:
        try:
            # What is half published is wanted by the next run, which completes it.
            if not (self.resumable or (self._work / "publishing").exists()):
                shutil.rmtree(self._work)
        finally:
            os.close(self._lock)
            self._lock = -1


def hold_lock(path: Path, out: Path) -> int:
    """A descriptor that holds the lock file until it is closed, however the process ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            raise OutputError(
                f"another run is writing {out} just now; wait for it, or choose another --out"
            ) from None
        # The run that held it may have removed the folder before this one got the lock.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)
        path.parent.mkdir(exist_ok=True)


def _listed(folder: Path) -> set[str]:
    path = folder / LIST_NAME
    names = set(path.read_text().splitlines()) if path.is_file() else set()
    return {name for name in names if name == Path(name).name}  # never a path that leads out


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    """Have the disk keep every file, so that power lost after the rename loses nothing."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


# --- formats ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """What scores.csv holds, T frames. NaN where a cell is empty; terms that are off are absent."""

    time_s: NDArray[np.float64]  # (T,)
    terms: dict[str, NDArray[np.float64]]  # (T,) each
    paper: NDArray[np.float64]  # (T,)
    causal: NDArray[np.float64]  # (T,)
    caption_id: NDArray[np.int32]  # (T,), -1 for none
    caption_age: NDArray[np.float64]  # (T,) frames
    caption_weight: NDArray[np.float64]  # (T,) 0..1


def write_scores(path: Path, result: VideoScores) -> None:
    """Write scores.csv. Numbers are the shortest that read back as the same float64."""
    n_frames = len(result.time_s)
    empty = np.full(n_frames, np.nan)
    columns = [result.time_s, *(result.terms.get(t, empty) for t in TERMS)]
    columns += [result.paper, result.causal]
    captions = [empty if c is None else c for c in (result.caption_age, result.caption_weight)]
    with output_errors(path), path.open("w", encoding="ascii", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SCORE_COLUMNS)
        for i in range(n_frames):
            caption = int(result.caption_id[i])
            cells = [_cell(float(column[i])) for column in columns]
            aged = [_cell(float(column[i])) for column in captions]
            writer.writerow([i, *cells, caption if caption >= 0 else "", *aged])


def read_scores(path: Path) -> ScoreTable:
    """Read scores.csv back, exactly as it was written."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; `sfn-rt score` writes scores.csv into its --out")
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if tuple(header) != SCORE_COLUMNS:
            raise DataError(f"{path}: columns must be {','.join(SCORE_COLUMNS)}, got {header}")
        values = [_row(path, i, row) for i, row in enumerate(rows)]
    table = np.array(values, dtype=np.float64).reshape(-1, len(SCORE_COLUMNS))  # (T, columns)
    column = dict(zip(SCORE_COLUMNS, table.T.copy(), strict=True))
    return ScoreTable(
        time_s=column["time_s"],
        terms={t: column[t] for t in TERMS if np.isfinite(column[t]).any()},
        paper=column["paper"],
        causal=column["causal"],
        caption_id=np.nan_to_num(column["caption_id"], nan=-1).astype(np.int32),
        caption_age=column["caption_age"],
        caption_weight=column["caption_weight"],
    )


def _cell(value: float) -> str:
    return "" if np.isnan(value) else repr(value)


def _row(path: Path, i: int, row: list[str]) -> list[float]:
    try:
        values = [float(cell) if cell else np.nan for cell in row]
    except ValueError as error:
        raise DataError(f"{path}, line {i + 2}: {error}") from None
    if len(values) != len(SCORE_COLUMNS) or values[0] != i:
        raise DataError(
            f"{path}, line {i + 2}: expected frame {i} in {len(SCORE_COLUMNS)} columns, got {row}"
        )
    return values


def to_json(value: object) -> str:
    """JSON text, indented; letters of every script stay, what could steer a terminal is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # Beyond what JSON itself escapes: DEL, C1 controls, direction marks, halves of pairs. All of
    # them can only stand inside strings.
    unsafe = "[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
    return re.sub(unsafe, lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def captions_json(captions: Sequence[str]) -> str:
    """The text of captions.json: caption by caption_id."""
    return to_json({str(i): caption for i, caption in enumerate(captions)})


def events_json(
    result: VideoScores,
    events: Sequence[Event],
    *,
    threshold: Threshold,
    bundle: Mapping[str, str | None],
    warnings: Sequence[str],
    lane: Mapping[str, object] | None = None,
) -> str:
    """The text of events.json, as schemas/events.schema.json describes it.

    `lane` tells how captions were made; None: frames were not described.
    """
    return to_json(
        {
            "schema_version": EVENTS_SCHEMA_VERSION,
            "video": result.name,
            "fps": float(result.fps),
            "n_frames": len(result.time_s),
            "threshold": {"value": float(threshold.value), "rule": threshold.rule},
            "bundle": {"profile": bundle.get("profile"), "sha": bundle.get("sha")},
            "warnings": list(warnings),
            "captions": None if lane is None else dict(lane),
            "events": [_event_json(i, event) for i, event in enumerate(events, start=1)],
        }
    )


def _event_json(number: int, event: Event) -> dict[str, Any]:
    return {
        "id": number,
        "start_frame": int(event.start_frame),
        "end_frame": int(event.end_frame),
        "peak_frame": int(event.peak_frame),
        "start_s": float(event.start_s),
        "end_s": float(event.end_s),
        "peak_s": float(event.peak_s),
        "score": float(event.score),
        "caption": event.caption,
        "caption_age": None if event.caption_age is None else int(event.caption_age),
        "caption_cut": bool(event.caption_cut),
        "nearest": event.nearest,
        "new": list(event.new),
        "explanation": event.explanation,
        "box": None if event.box is None else [float(v) for v in event.box],
    }
