"""The caption cache: a folder that a run of any number of interruptions fills.

    OUT/train/NAME.json, OUT/test/NAME.json      a video's captions, whole (sfn_rt.semantics.cached)
    OUT/train/NAME.safetensors, ...              their embeddings (n, S), in the order of the file
    OUT/.captions/lock                           held by the run that works here
    OUT/.captions/train_NAME.jsonl, ...          the journal of a video that is not finished

A journal's first line states what the captions are made of. Every further line holds the captions
of one unit behind a checksum, so a line that was half written when the power went counts as not
there, and its unit is done again. Nothing else is ever done twice.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from sfn_rt.exceptions import DataError
from sfn_rt.semantics.cached import (
    CaptionFile,
    CaptionSource,
    EmbeddingsFile,
    Part,
    file_sha256,
)
from sfn_rt.sinks.files import hold_lock, output_errors, to_json, write_atomic
from sfn_train.captions.vlm import Said
from sfn_train.text import TextModel
from sfn_train.weights.folder import fingerprint

DIGITS = 16  # of a line's checksum
EMBEDDINGS = "embeddings"  # the one tensor of NAME.safetensors


@dataclass
class VideoCaptions:
    """What is there of one video's captions, and where the rest goes."""

    final: Path
    journal: Path
    source: CaptionSource
    said: dict[int, Said] = field(default_factory=dict)  # by the clip's last frame
    n_made: int = 0
    finished: bool = False

    def add(self, captions: Mapping[int, Said]) -> None:
        """Keep a unit's captions, on disk before this returns."""
        if twice := self.said.keys() & captions.keys():
            raise RuntimeError(f"{self.final}: frame {min(twice)} was captioned twice")
        content = {str(end): [said.text, said.cut] for end, said in captions.items()}
        with output_errors(self.journal):
            if not self.journal.exists():
                write_atomic(self.journal, _line(asdict(self.source)))
            with self.journal.open("ab") as file:
                file.write(_line(content))
                file.flush()
                os.fsync(file.fileno())
        self.said.update(captions)
        self.n_made += len(captions)

    def finish(self, n_frames: int, text: TextModel, encoder: str) -> None:
        """Embed all captions and put the video's files in place; its journal goes."""
        ends = sorted(self.said)
        embeddings = embed([self.said[end].text for end in ends], text)
        beside = self.final.with_suffix(".safetensors")
        with output_errors(self.final):
            self.final.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(beside, save({EMBEDDINGS: embeddings}))
        file = CaptionFile(
            self.final,
            {end: self.said[end].text for end in ends},
            self.source,
            tuple(end for end in ends if self.said[end].cut),
            n_frames,
            self.n_made,
            EmbeddingsFile(
                file=beside.name,
                sha256=file_sha256(beside),
                width=embeddings.shape[1],
                encoder=encoder,
                name=text.name,
            ),
        )
        write_atomic(self.final, to_json(file.to_json()))
        self.journal.unlink(missing_ok=True)
        self.finished = True


class CaptionCache:
    """The folder, held by this run alone."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._work = out / ".captions"
        with output_errors(out):
            if out.exists() and not out.is_dir():
                raise DataError(f"{out} is a file; --out names a folder")
            self._work.mkdir(parents=True, exist_ok=True)
            self._lock = hold_lock(self._work / "lock", out)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._lock)

    def open(self, part: Part, name: str, source: CaptionSource) -> VideoCaptions:
        """What an earlier run left of a video; refused where it is not what is asked for now."""
        final = self.out / part / f"{name}.json"
        journal = self._work / f"{part}_{name}.jsonl"
        if final.exists():
            video = _from_final(final, journal, source)
            journal.unlink(missing_ok=True)  # the run ended between the two
            return video
        video = VideoCaptions(final, journal, source)
        if journal.exists():
            _read_journal(video)
        return video


def embed(captions: Sequence[str], text: TextModel) -> NDArray[np.float32]:
    """(n, S), each row of length 1; what is said twice is embedded once."""
    different = sorted(set(captions))
    rows = dict(zip(different, text.encode(different), strict=True))
    return np.stack([rows[c] for c in captions]) if rows else np.empty((0, text.width), np.float32)


def read_embeddings(captions: CaptionFile) -> NDArray[np.float32]:
    """(n, S) beside a caption file, in the order of its frames; refuses what has changed."""
    about = captions.embeddings
    assert about is not None
    path = captions.path.parent / about.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); copy it together with {captions.path.name}"
        ) from None
    if hashlib.sha256(content).hexdigest() != about.sha256:
        raise DataError(
            f"{path}: not the file that {captions.path.name} states; copy both again, or run "
            f"`python -m sfn_train captions` again, which embeds anew"
        )
    return np.asarray(load(content)[EMBEDDINGS], dtype=np.float32)


def encoder_sha256(text: TextModel) -> str:
    """Names a sentence encoder by its pooling and the content of its files."""
    folder = text.folder
    files = [f for f in folder.rglob("*") if f.is_file() and f.suffix != ".md"]
    hashes = {str(f.relative_to(folder)): file_sha256(f) for f in files}
    return fingerprint(hashes | {"pooling": str(text.pooling)})


def _from_final(final: Path, journal: Path, source: CaptionSource) -> VideoCaptions:
    file = CaptionFile.read(final)
    if file.source is None:
        raise DataError(f"{final}: captions written by hand; choose another --out")
    _same(final, file.source, source)
    cut = set(file.cut)
    said = {end: Said(caption, end in cut) for end, caption in file.captions.items()}
    return VideoCaptions(final, journal, source, said, file.n_made or 0, finished=True)


def _read_journal(video: VideoCaptions) -> None:
    """Take what is whole; where a line is not, leave it out of the file too."""
    head, *lines = video.journal.read_bytes().splitlines(keepends=True) or [b""]
    stated = _content(head)
    if stated is None:
        raise DataError(
            f"{video.journal} is damaged; delete it to caption that video from its beginning"
        )
    _same(video.journal, CaptionSource(**stated), video.source)
    whole = [(line, content) for line in lines if (content := _content(line)) is not None]
    for _, content in whole:
        for end, (text, cut) in content.items():
            video.said[int(end)] = Said(text, cut)
            video.n_made += 1
    if len(whole) < len(lines):
        write_atomic(video.journal, head + b"".join(line for line, _ in whole))


def _same(path: Path, found: CaptionSource, asked: CaptionSource) -> None:
    if differences := found.differences(asked):
        raise DataError(
            f"{path}: made with other settings: {'; '.join(differences)}. Choose another --out, "
            f"give the settings it was made with, or delete {path} to make it anew"
        )


def _line(content: object) -> bytes:
    text = json.dumps(content, ensure_ascii=True).encode()
    return hashlib.sha256(text).hexdigest()[:DIGITS].encode() + b" " + text + b"\n"


def _content(line: bytes) -> dict[str, Any] | None:
    """What a line holds; None where it is not whole."""
    checksum, _, text = line.partition(b" ")
    if not text.endswith(b"\n"):
        return None
    if hashlib.sha256(text[:-1]).hexdigest()[:DIGITS].encode() != checksum:
        return None
    content: dict[str, Any] = json.loads(text)
    return content
