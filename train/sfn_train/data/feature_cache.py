"""What the frozen vision tower says of every training frame, computed once and kept on disk.

    features.json          the tower, the preprocessing and the number type of all that is here
    NAME.json              a finished video: the sha256 of its files, its frames
    NAME.features          (n, 1 + 2 N, C) of two-byte numbers: a frame's 1 + N hidden tokens, then
                           its N embedded patches
    .NAME.features.partial a video in work; a repeated command goes on behind its last whole frame
    .lock                  held by the run that writes

A video is recognised by the content of its files, so the folder can be computed on a machine with a
GPU and taken to another. Reading maps the files and loads only the frames of a batch. bfloat16, the
type in which the tower computes on a GPU, loses nothing there and cannot overflow; float16 is eight
times finer for towers that ran in float32.

Axes: n frames of a video, N patches, C the tower's width.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfn_rt.datasets import Dataset, Video
from sfn_rt.exceptions import DataError, OutputError
from sfn_rt.frames import Frame, count_frames, frame_files, open_source
from sfn_rt.preprocess import Preprocessing, preprocess
from sfn_rt.progress import Progress
from sfn_rt.sinks.files import hold_lock, output_errors, write_atomic
from sfn_train.config import Config
from sfn_train.exceptions import ConfigError, RunError
from sfn_train.model import ModelConfig
from sfn_train.model.tower import VisionTower, load_tower, tower_fingerprint

HEAD = "features.json"
MAKE = "python -m sfn_train features"
VERSION = 1
NumberType = Literal["bfloat16", "float16"]
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
NUMBER_BYTES = 2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Header:
    """What all features of a folder have in common, and another run must agree with."""

    tower: str  # sha256, as VisionTower.fingerprint
    tower_name: str  # for people
    preprocessing: dict[str, Any]
    dtype: NumberType
    n_tokens: int  # 1 + 2 N, of a frame
    width: int  # C

    @property
    def frame_bytes(self) -> int:
        """Size of a frame's features."""
        return self.n_tokens * self.width * NUMBER_BYTES


# ------------------------------------------------------------------------------------ writing


def make_features(
    dataset: Dataset,
    config: Config,
    out: Path,
    *,
    dtype: NumberType = "bfloat16",
    batch: int = 8,
    say: Say,
    progress: bool = True,
) -> str:
    """Fill the cache with what is missing; returns what was done."""
    model = _model_with_tower(config)
    tower = load_tower(model)
    header = header_of(config, tower.fingerprint, dtype)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            _claim(out, header)
            todo = _todo(dataset, out)
            _announce(todo, out, header, say)
            tower = tower.to(_device(config))
            made = 0
            for number, (video, digest) in enumerate(todo, start=1):
                label = f"features of {video.name} ({number} of {len(todo)})"
                made += _write_video(
                    video, digest, dataset.fps, tower, config.preprocessing, header, out,
                    batch=batch, label=label, progress=progress,
                )  # fmt: skip
    kept = len(dataset.train) - len(todo)
    return (
        f"{out}: features of {len(dataset.train)} videos; {made} frames computed, {kept} videos "
        f"were there; next: python -m sfn_train train DATA --set data.features={out}"
    )


def number_type(name: str) -> NumberType:
    """A type that features can be kept in."""
    if name not in TYPES:
        raise ConfigError(f"--dtype {name} is none of {', '.join(TYPES)}")
    return cast(NumberType, name)


def header_of(config: Config, fingerprint: str, dtype: NumberType) -> Header:
    """What a run's settings ask of a cache."""
    model = _model_with_tower(config)
    assert model.tower is not None
    return Header(
        fingerprint,
        model.tower,
        json.loads(json.dumps(asdict(config.preprocessing))),
        dtype,
        1 + 2 * model.n_patches,
        model.appearance_dim,
    )


def _model_with_tower(config: Config) -> ModelConfig:
    if not isinstance(config.model, ModelConfig) or config.model.tower is None:
        raise ConfigError(
            "features are those of a frozen vision tower, and this config has none; take a config "
            "that sets model.tower, such as paper_ped2, or set it"
        )
    return config.model


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One run at a time writes here; released however the process ends."""
    descriptor = hold_lock(out / ".lock", out)
    try:
        yield
    finally:
        os.close(descriptor)


def _claim(out: Path, header: Header) -> None:
    """State what is kept here, or refuse what was made otherwise."""
    if (out / HEAD).exists():
        _refuse_other(read_header(out), header, out, f"choose another --out, or remove {out}")
        return
    if foreign := sorted(entry.name for entry in out.iterdir() if entry.name != ".lock"):
        raise OutputError(
            f"{out} holds files that are no features ({foreign[0]}); choose another --out"
        )
    write_atomic(out / HEAD, json.dumps({"version": VERSION} | asdict(header), indent=2) + "\n")


def read_header(folder: Path) -> Header:
    """What a folder of features says of itself."""
    try:
        raw = json.loads((folder / HEAD).read_text(encoding="utf-8"))
        version = raw.pop("version")
        header = Header(**raw)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{folder / HEAD} does not exist; make the features with `{MAKE} DATA --out {folder}`"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{folder / HEAD} cannot be read ({error}); remove {folder} and make it again"
        ) from None
    if version != VERSION or header.dtype not in TYPES:
        raise DataError(f"{folder} is of another version; remove it and make it again")
    return header


def _refuse_other(found: Header, asked: Header, folder: Path, way_out: str) -> None:
    if found.tower != asked.tower:
        raise DataError(
            f"{folder} holds features of another tower, {found.tower_name} "
            f"({found.tower[:12]}…); asked for are those of {asked.tower_name} "
            f"({asked.tower[:12]}…): {way_out}"
        )
    for name in ("preprocessing", "dtype", "n_tokens", "width"):
        if getattr(found, name) != getattr(asked, name):
            raise DataError(
                f"{folder} was made with {name} {getattr(found, name)}, asked for is "
                f"{getattr(asked, name)}: {way_out}"
            )


def _todo(dataset: Dataset, out: Path) -> list[tuple[Video, str]]:
    """Videos that are not there, each with the hash of its content."""
    if not dataset.train:
        raise DataError(f"{dataset.root}: no training videos, so there is nothing to compute")
    found = []
    for video in dataset.train:
        digest = video_hash(video.path)
        entry = _read_entry(out, video.name)
        if entry is None or entry["sha256"] != digest:
            found.append((video, digest))
    return found


def video_hash(path: Path) -> str:
    """sha256 of a video file, or of the names and contents of a folder's frames."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for frame in frame_files(path):
        content = hashlib.sha256(frame.read_bytes()).hexdigest()
        digest.update(f"{content}  {frame.name}\n".encode())
    return digest.hexdigest()


def _announce(todo: Sequence[tuple[Video, str]], out: Path, header: Header, say: Say) -> None:
    """Say how much will be written before anything is, and refuse what cannot fit."""
    n_frames = sum(count_frames(video.path) for video, _ in todo)
    there = sum(
        partial.stat().st_size
        for video, digest in todo
        if (partial := _partial(out, video, digest)).exists()
    )
    needed = max(0, n_frames * header.frame_bytes - there)
    free = shutil.disk_usage(out).free
    say(
        f"{out}: {len(todo)} videos to do, about {n_frames} frames of "
        f"{_size(header.frame_bytes)}: {_size(needed)} to write, {_size(free)} are free"
    )
    if needed > free:
        raise OutputError(
            f"{out}: features need {_size(needed)}, {_size(free)} are free; choose another --out, "
            f"or train without them: the tower then runs in every step"
        )


def _size(n_bytes: int) -> str:
    for unit, power in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= power:
            return f"{n_bytes / power:.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} kB"


def _device(config: Config) -> torch.device:
    gpu = config.train.accelerator != "cpu" and torch.cuda.is_available()
    if config.train.accelerator == "gpu" and not gpu:
        raise ConfigError("train.accelerator is gpu, but torch finds none; set it to cpu or auto")
    return torch.device("cuda" if gpu else "cpu")


def _partial(out: Path, video: Video, digest: str) -> Path:
    return out / f".{video.name}.{digest[:16]}.partial"


def _write_video(
    video: Video,
    digest: str,
    fps: float | None,
    tower: VisionTower,
    spec: Preprocessing,
    header: Header,
    out: Path,
    *,
    batch: int,
    label: str,
    progress: bool,
) -> int:
    """Append frame after frame; the finished file appears at once. Returns frames computed."""
    partial = _partial(out, video, digest)
    partial.parent.mkdir(parents=True, exist_ok=True)
    done = partial.stat().st_size // header.frame_bytes if partial.exists() else 0
    with ExitStack() as stack:
        file = stack.enter_context(partial.open("ab"))
        file.truncate(done * header.frame_bytes)  # an interruption may have left part of a frame
        source = stack.enter_context(open_source(video.path, fps=fps))
        bar = stack.enter_context(Progress(label, source.n_frames, done=done, enabled=progress))
        frames = islice(iter(source), done, None)
        n_frames = done
        while chunk := list(islice(frames, batch)):
            file.write(_features_of(chunk, tower, spec, header, batch).tobytes())
            n_frames += len(chunk)
            bar.advance(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(out / f"{video.name}.features")
    for stale in out.glob(f".{glob.escape(video.name)}.*.partial"):  # of the video as it was before
        stale.unlink()
    write_atomic(
        out / f"{video.name}.json",
        json.dumps({"sha256": digest, "n_frames": n_frames, "files": _identity(video.path)}) + "\n",
    )
    return n_frames - done


def _features_of(
    frames: Sequence[Frame], tower: VisionTower, spec: Preprocessing, header: Header, batch: int
) -> NDArray[np.uint16]:
    """(b, 1 + 2 N, C), as the bits of the header's number type."""
    pixels = torch.from_numpy(np.stack([preprocess(frame.image, spec) for frame in frames]))
    device = next(tower.parameters()).device
    try:
        with torch.inference_mode():
            both = torch.cat(tower(pixels.to(device)), dim=1)  # (b, 1 + 2 N, C)
            stored = both.to(TYPES[header.dtype])
    except torch.OutOfMemoryError:
        if batch == 1:
            raise RunError("the GPU cannot hold the tower and one frame; use another") from None
        raise RunError(
            f"the GPU ran out of memory with {batch} frames at once; try --batch {batch // 2}: "
            f"what is written is kept"
        ) from None
    if not bool(torch.isfinite(stored).all()):
        raise DataError(
            f"features of frame {frames[0].index} or one of the next are no finite {header.dtype}; "
            f"use --dtype bfloat16, or check the weights with `python -m sfn_train weights check`"
        )
    bits: NDArray[np.uint16] = stored.cpu().contiguous().view(torch.uint16).numpy()
    return bits


# ------------------------------------------------------------------------------------ reading


class FeatureCache:
    """The features of a data set's training videos, opened read-only and loaded by the frame."""

    def __init__(self, folder: Path, config: Config) -> None:
        found = read_header(folder)
        model = _model_with_tower(config)
        assert model.tower is not None
        asked = header_of(config, tower_fingerprint(model.tower), found.dtype)
        _refuse_other(found, asked, folder, f"make others with `{MAKE} DATA --out NEW`")
        self.folder, self._header = folder, found
        self._maps: dict[str, NDArray[np.uint16]] = {}

    def check(self, name: str, path: Path, n_frames: int) -> None:
        """Raise where a video is missing, is not the one that was seen, or lacks frames."""
        entry = _read_entry(self.folder, name)
        again = f"run `{MAKE} DATA --out {self.folder}` again, which adds what is missing"
        if entry is None:
            raise DataError(f"{self.folder} has no features of video {name}; {again}")
        if entry["files"] != _identity(path) and entry["sha256"] != video_hash(path):
            raise DataError(f"{self.folder}: its features of {name} are of another video; {again}")
        if entry["n_frames"] < n_frames:
            raise DataError(
                f"{self.folder} has features of {entry['n_frames']} frames of {name}, the video "
                f"has {n_frames}; {again}"
            )

    def read(self, name: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """hidden (L, 1 + N, C) and embedded (L, N, C) of consecutive frames, in the stored type."""
        if name not in self._maps:
            self._maps[name] = self._open(name)
        bits = torch.from_numpy(self._maps[name][start:stop].copy())
        both = bits.view(TYPES[self._header.dtype])
        n_hidden = (self._header.n_tokens + 1) // 2
        return both[:, :n_hidden], both[:, n_hidden:]

    def _open(self, name: str) -> NDArray[np.uint16]:
        path = self.folder / f"{name}.features"
        entry = _read_entry(self.folder, name)
        size = path.stat().st_size if path.exists() else -1
        if entry is None or size != entry["n_frames"] * self._header.frame_bytes:
            raise DataError(
                f"{path} is missing or cut short; remove {self.folder / name}.json and run "
                f"`{MAKE} DATA --out {self.folder}` again"
            )
        shape = (-1, self._header.n_tokens, self._header.width)
        return np.memmap(path, dtype=np.uint16, mode="r").reshape(shape)

    def __getstate__(self) -> dict[str, Any]:
        """Processes that load batches open the files themselves."""
        return self.__dict__ | {"_maps": {}}


def _read_entry(folder: Path, name: str) -> dict[str, Any] | None:
    """What is known of a finished video; None where it is not there."""
    path = folder / f"{name}.json"
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        known = {"sha256": str(entry["sha256"]), "n_frames": int(entry["n_frames"])}
        return known | {"files": entry["files"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove it and run `{MAKE}`") from None


def _identity(path: Path) -> list[list[Any]]:
    """Names, sizes and times of a video's files: equal ones need no reading of their content."""
    files = frame_files(path) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
