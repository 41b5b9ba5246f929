"""Captions read from a file: written by a VLM elsewhere, by a person, or for a test.

A file is JSON in one of two forms. By hand: {"0": "a caption", "8": "another"}, the index of the
last observed frame of a clip, as text, and its caption. By `python -m sfn_train captions`, which
states what the captions were made of and how (docs/captions.md), so that a file of another video,
model, prompt or stride than asked for is refused. A clip takes the newest caption that is not
from its future.

A folder holds a NAME.json a video, or one folder for the `train` and one for the `test` videos of
a data set, since benchmarks give both the same names.
"""

import bisect
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from sfn_rt.exceptions import InputError
from sfn_rt.frames import frame_files
from sfn_rt.semantics.captioner import Clip

SCHEMA_VERSION = 2  # of the stated form; the form written by hand is the first
QUOTED = 60  # letters of a value that a message repeats
HALF_PAIRS = re.compile("[\ud800-\udfff]")  # JSON may hold them, a tokenizer takes characters only

Part = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class CaptionSource:
    """What captions were made of and how."""

    video: str  # sha256, see `video_sha256`
    model: str  # sha256 of the VLM's weights, config and tokenizer
    prompt: str  # with <image> where a frame stands
    frames: int  # a clip; it ends with the frame that its caption is kept under
    stride: int  # from the end of one clip to that of the next
    max_tokens: int  # a caption is cut there
    tile: Mapping[str, Any]  # sfn_rt.preprocess.Preprocessing of each frame

    def differences(self, asked: "CaptionSource") -> list[str]:
        """What would have to change for these captions to be what is asked for, in words."""
        pairs = ((f.name, getattr(self, f.name), getattr(asked, f.name)) for f in fields(self))
        return [
            f"{name} is {' where it should be '.join(_apart(str(mine), str(theirs)))}"
            for name, mine, theirs in pairs
            if mine != theirs
        ]


@dataclass(frozen=True, kw_only=True)
class EmbeddingsFile:
    """Where the captions' embeddings lie, one row a caption in order; the runtime reads none."""

    file: str  # beside the captions
    sha256: str
    width: int
    encoder: str  # sha256 of the sentence encoder's files
    name: str  # of its folder, for people


@dataclass(frozen=True, eq=False)
class CaptionFile:
    """One video's captions."""

    path: Path
    captions: Mapping[int, str]  # by the last observed frame of the clip
    source: CaptionSource | None = None  # None: written by hand
    cut: tuple[int, ...] = ()  # captions that ended at max_tokens
    n_frames: int | None = None  # of the video
    n_made: int | None = None  # captions that were written, so more than there are means twice
    embeddings: EmbeddingsFile | None = None

    @classmethod
    def read(cls, path: Path) -> "CaptionFile":
        """Read either form; refuses what is neither."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot read captions: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{path}: captions must be JSON, {error}") from None
        if not isinstance(raw, dict) or not raw:
            raise InputError(f'{path}: captions must be an object like {{"0": "two people walk"}}')
        if "schema_version" not in raw:
            return cls(path, _captions(path, raw))
        if raw["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{path}: schema_version is {raw['schema_version']!r}, this version reads "
                f"{SCHEMA_VERSION}; make the captions again with `python -m sfn_train captions`"
            )
        try:
            return cls(
                path,
                _captions(path, raw["captions"]),
                CaptionSource(**raw["source"]),
                tuple(raw["cut"]),
                raw["n_frames"],
                raw["n_made"],
                EmbeddingsFile(**raw["embeddings"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: not as `python -m sfn_train captions` writes it ({error!r}); copy the "
                f"file again, or make the captions again"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """The stated form."""
        assert self.source is not None
        assert self.embeddings is not None
        return {
            "schema_version": SCHEMA_VERSION,
            "source": asdict(self.source) | {"tile": dict(self.source.tile)},
            "n_frames": self.n_frames,
            "n_made": self.n_made,
            "embeddings": asdict(self.embeddings),
            "cut": list(self.cut),
            "captions": {str(frame): self.captions[frame] for frame in sorted(self.captions)},
        }

    def check(self, video: Path, *, frames: int, stride: int, sha256: str | None = None) -> None:
        """Refuse captions of another video, of longer or shorter clips, or with frames missing.

        `sha256` is the video's where it is known. What was written by hand states nothing.
        """
        if self.source is None:
            return
        if self.source.video != (sha256 or video_sha256(video)):
            raise InputError(
                f"{self.path}: captions of another video than {video}; give the captions made "
                f"for it, or run `python -m sfn_train captions` on it"
            )
        if self.source.frames != frames:
            raise InputError(
                f"{self.path}: captions of clips of {self.source.frames} frames, {frames} are "
                f"asked for; make the captions for such clips, or use a model that observes "
                f"{self.source.frames} frames"
            )
        if stride % self.source.stride:
            raise InputError(
                f"{self.path}: a caption every {self.source.stride} frames, one every {stride} is "
                f"asked for; make captions with --stride {stride} (or 1, which serves every "
                f"stride), or train with semantics.stride a multiple of {self.source.stride}"
            )

    def check_origin(self, model: str, prompt: str) -> None:
        """Refuse captions by another VLM or to another prompt than a model was trained on."""
        if self.source is None:
            return
        asked = replace(self.source, model=model, prompt=prompt)
        if apart := self.source.differences(asked):
            raise InputError(
                f"{self.path}: not made like the captions that the model was trained on: "
                f"{'; '.join(apart)}; make them again with those weights and that prompt"
            )


class CachedCaptioner:
    """Looks captions up instead of making them."""

    name = "cached"
    needs_scenes = False

    def __init__(self, captions: Path | CaptionFile) -> None:
        file = captions if isinstance(captions, CaptionFile) else CaptionFile.read(captions)
        self._path = file.path
        self._frames = sorted(file.captions)
        self._captions = [file.captions[frame] for frame in self._frames]

    def caption(self, clip: Clip) -> str:
        """The newest caption at or before the clip's last frame, else the first of all."""
        if not self._captions:
            raise InputError(f"{self._path}: holds no captions, its video was too short for one")
        place = bisect.bisect_right(self._frames, clip.end_frame) - 1
        return self._captions[max(place, 0)]


def find_captions(captions: Path, name: str, part: Part | None = None) -> Path:
    """The file for the video `name`: `captions` itself, or the one in that folder."""
    if not captions.is_dir():
        return captions
    places = [captions / part] if part else [captions / "test", captions / "train"]
    found = [file for place in [*places, captions] if (file := place / f"{name}.json").is_file()]
    if len(found) > 1 and part is None:
        raise InputError(
            f"{captions}: both {found[0]} and {found[1]} are captions of a video {name}; give the "
            f"one that is meant"
        )
    return found[0] if found else captions / f"{name}.json"


def video_sha256(video: Path) -> str:
    """Names a video by its content: of its file, or of the names and contents of its frames."""
    if not video.is_dir():
        return file_sha256(video)
    digest = hashlib.sha256()
    for file in frame_files(video):
        digest.update(f"{file.name}\0{file_sha256(file)}\0".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _captions(path: Path, raw: Mapping[str, Any]) -> dict[int, str]:
    table: dict[int, str] = {}
    for key, text in raw.items():
        if not key.isdecimal() or not isinstance(text, str) or not text.strip():
            raise InputError(f"{path}: entry {key!r} must be a frame index with a caption")
        table[int(key)] = HALF_PAIRS.sub("\ufffd", text)
    return table


def _apart(one: str, other: str) -> tuple[str, str]:
    """Two texts as a message shows them: from a little before where they part."""
    same = next((i for i, pair in enumerate(zip(one, other, strict=False)) if len({*pair}) > 1), 0)
    start = max(same - QUOTED // 3, 0) if max(len(one), len(other)) > QUOTED else 0
    shown = [text[start : start + QUOTED] for text in (one, other)]
    return f"{shown[0]!r}", f"{shown[1]!r}"
