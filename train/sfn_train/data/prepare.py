"""Normal videos to what training reads: frames as the networks see them, scenes, captions.

Each video is streamed once through the runtime's own frames, preprocess and scene analysis. Frames
are kept as float16 of the normalised pixels: `preprocess` does not round to 8 bits, so neither may
the cache. float16 is within 0.03 grey levels of what the device computes (8 bits: within 0.5).

Cached files are named by a hash of what they are made from: the video's files with size and
time, the settings, and the source code that made them. They appear whole or not at all, a
video at a time, so an interrupted preparation goes on where it stopped. Where all frames would
take more than `cache_gb`, evenly spaced blocks of each video are kept.

Axes: n frames of one video, h, w the model's frame size, K caption windows, M things, S text width.
"""

import hashlib
import importlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sfn_rt.attributes import AttributeModel
from sfn_rt.datasets import Dataset, Video, check_length
from sfn_rt.evidence import empty_scene
from sfn_rt.exceptions import DataError, InputError, OutputError
from sfn_rt.frames import FPS_ASSUMED, count_frames, frame_files, open_source
from sfn_rt.normal import MOST_THUMBNAILS, same_scene, thumbnail
from sfn_rt.preprocess import preprocess
from sfn_rt.progress import Progress
from sfn_rt.semantics.cached import CachedCaptioner, CaptionFile, CaptionSource, video_sha256
from sfn_rt.semantics.captioner import Captioner
from sfn_rt.semantics.describe import SceneCaptioner
from sfn_rt.semantics.narrator import check_windows, tell
from sfn_rt.semantics.scene import (
    Scene,
    SceneAnalyser,
    Thing,
    UInt8,
    estimate_background,
    to_analysis,
)
from sfn_rt.sinks.files import output_errors, write_atomic
from sfn_train.captions.known import KnownSentences, check_captions, open_text, read_captions
from sfn_train.config import Config
from sfn_train.data.split import Span, Split, split_footage

Pixels = NDArray[np.float16]
Passed = tuple[float, tuple[Scene, ...], Pixels]  # frames a second, scenes, kept frames
Say = Callable[[str], None]

RECENT_S = 3600.0
BLOCK = 64  # frames kept together where not all fit
BACKGROUND_FRAMES = 200  # sampled for the median picture
BACKGROUND_VIDEOS = 20  # at most, spread evenly
THING_FIELDS = len(fields(Thing))


@dataclass(frozen=True, eq=False)
class Footage:
    """One prepared video."""

    name: str
    path: Path
    fps: float
    scenes: tuple[Scene, ...]  # one a frame
    stretches: tuple[tuple[int, int], ...]  # start, stop of the frames that are kept
    pixels: Pixels  # (kept, 3, h, w), a read-only map of the file
    caption_ids: NDArray[np.int32]  # (n, K) of the captions for predicting each frame; -1: none
    other_ids: tuple[NDArray[np.int32], ...]  # a frame: captions of its other things; or empty

    @property
    def n_frames(self) -> int:
        """Frames that decoded, kept or not."""
        return len(self.scenes)

    def other_captions(self, t: int) -> NDArray[np.int32]:
        """Captions for predicting frame t that tell of another thing of the clip's last frame."""
        return self.other_ids[t] if self.other_ids else np.empty(0, np.int32)

    def read(self, start: int, stop: int) -> Pixels:
        """Consecutive frames (stop - start, 3, h, w), all inside one stretch."""
        place = 0
        for first, end in self.stretches:
            if first <= start and stop <= end:
                return self.pixels[place + start - first : place + stop - first]
            place += end - first
        raise ValueError(f"{self.name}: frames {start} to {stop} are not all kept")


@dataclass(frozen=True, eq=False)
class Prepared:
    """All normal footage of a data set, and what is known of it."""

    dataset: Dataset
    videos: tuple[Footage, ...]
    split: Split
    thumbnails: NDArray[np.float32]  # (n, 16, 24) of the scene, from videos spread over all
    background: UInt8 | None  # (h, w) grey, at analysis size; None: the videos differ in scene
    attributes: AttributeModel | None  # of the training part; None where nothing moves
    sentences: tuple[str, ...]
    embeddings: NDArray[np.float32]  # (sentences, S)
    notes: tuple[str, ...]  # for the user
    captions: CaptionSource | None  # what made those of the first video; they were made alike

    def held_out(self) -> Iterator[tuple[Footage, Span]]:
        """The footage that statistics and thresholds may be fitted on."""
        return ((self.videos[span.video], span) for span in self.split.held_out)

    def describe_split(self) -> dict[str, list[dict[str, Any]]]:
        """Which frames train and which are held out, by the videos' names, for JSON."""
        return {
            part: [
                {"video": self.videos[span.video].name, "start": span.start, "stop": span.stop}
                for span in spans
            ]
            for part, spans in (("train", self.split.train), ("held_out", self.split.held_out))
        }


def prepare(
    dataset: Dataset, config: Config, cache: Path, *, say: Say, progress: bool = True
) -> Prepared:
    """Read whatever is cached, make the rest, and say what was found."""
    if not dataset.train:
        raise DataError(
            f"{dataset.root}: no training videos; put normal footage into a folder `training` "
            f"or directly into {dataset.root}"
        )
    with output_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    store = _Store(cache)
    caption_files = read_captions(dataset.train, config)
    check_captions(caption_files, dataset.train, config, store.sha256)
    plan = _Plan.make(dataset, config, store)
    thumbnails = _thumbnails(dataset, plan, store)
    background = None
    if _looks_for_things(config) and same_scene(thumbnails):
        background = _background(dataset, plan, config, store, progress)
    passed: list[Passed] = []
    warnings: dict[str, list[str]] = {}  # text -> videos it is about
    for video in dataset.train:
        footage, found = _stream(video, dataset, plan, config, background, store, progress)
        passed.append(footage)
        for warning in found:
            warnings.setdefault(warning, []).append(video.name)
    notes = [*dataset.notes, *plan.notes]
    if _looks_for_things(config) and background is None:
        notes.append(
            "the videos show different scenes: each starts its own background, and things are "
            "compared across scenes; a model a camera tells more"
        )
    notes += [f"{text} ({_few(names)})" for text, names in warnings.items() if text != FPS_ASSUMED]
    split = split_footage(
        [len(scenes) for _, scenes, _ in passed], config.data.held_out, config.data.run_length
    )
    attributes = None
    if _looks_for_things(config):
        attributes = _attributes([scenes for _, scenes, _ in passed], split, config, notes)
    captions = [
        _captions(scenes, attributes, config, caption_files.get(video.name))
        for video, (_, scenes, _) in zip(dataset.train, passed, strict=True)
    ]
    others = [_other_captions(scenes, attributes, config) for _, scenes, _ in passed]
    said = [text for row in captions for told in row for text in told if text]
    said += [text for video in others for row in video for text in row]
    sentences = tuple(dict.fromkeys(said))
    numbers = {text: i for i, text in enumerate(sentences)} | {"": -1}
    videos = tuple(
        Footage(
            video.name,
            video.path,
            fps,
            scenes,
            plan.stretches(len(scenes)),
            pixels,
            np.array([[numbers[text] for text in told] for told in row], dtype=np.int32),
            tuple(np.array([numbers[text] for text in more], dtype=np.int32) for more in other),
        )
        for video, (fps, scenes, pixels), row, other in zip(
            dataset.train, passed, captions, others, strict=True
        )
    )
    embeddings = _embed(sentences, config, store, caption_files.values(), notes)
    store.trim(config.data.cache_gb)
    n = sum(video.n_frames for video in videos)
    say(
        f"{dataset.root}: {len(videos)} normal videos, {n} frames, {len(sentences)} captions; "
        f"{store.used_gb():.2f} GB in {cache}"
    )
    for note in dict.fromkeys(notes):
        say(f"note: {note}")
    return Prepared(
        dataset, videos, split, thumbnails, background, attributes, sentences, embeddings,
        tuple(notes), next((file.source for file in caption_files.values()), None),
    )  # fmt: skip


def prepare_test(
    dataset: Dataset, prepared: Prepared, config: Config, cache: Path, *, progress: bool = True
) -> tuple[Footage, ...]:
    """The test videos' frames and scenes, for measuring many models; no captions are made.

    They pass the scene analysis as on the device, with the background of the normal footage.
    """
    store = _Store(cache)
    check_captions(read_captions(dataset.test, config, "test"), dataset.test, config, store.sha256)
    test = replace(dataset, train=dataset.test)  # a plan is of the videos it is to stream
    plan = _Plan.make(test, config, store)
    if plan.notes:
        raise DataError(
            f"{dataset.root}: only {plan.share:.1%} of each test video fits into data.cache_gb "
            f"{config.data.cache_gb:g}, and all frames are needed; set it higher"
        )
    found = []
    for video in dataset.test:
        passed, _ = _stream(video, test, plan, config, prepared.background, store, progress)
        fps, scenes, pixels = passed
        check_length(video, len(scenes))
        none = np.full((len(scenes), 1), -1, dtype=np.int32)
        kept = plan.stretches(len(scenes))
        found.append(Footage(video.name, video.path, fps, scenes, kept, pixels, none, ()))
    return tuple(found)


def _thumbnails(dataset: Dataset, plan: "_Plan", store: "_Store") -> NDArray[np.float32]:
    """(n, 16, 24) from the first frames of at most MOST_THUMBNAILS videos, spread evenly."""
    chosen = dataset.train[:: max(1, -(-len(dataset.train) // MOST_THUMBNAILS))]
    code = _code("sfn_rt.frames", "sfn_rt.normal")
    key = [[plan.identities[video.name] for video in chosen], code]
    file = store.path("thumbnails", key, ".npz")
    if not file.exists():
        found = []
        for video in chosen:
            with open_source(video.path, fps=dataset.fps) as source:
                found.append(thumbnail(next(iter(source)).image))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, thumbnails=np.stack(found))
        write_atomic(file, buffer.getvalue())
    with np.load(file, allow_pickle=False) as arrays:
        return np.asarray(arrays["thumbnails"], dtype=np.float32)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _looks_for_things(config: Config) -> bool:
    """Whether the system asks what moves; one that knows pictures only does not pay for it."""
    return config.system == "sfn-vad"


# ------------------------------------------------------------------------------ what is cached


class _Store:
    """A folder of files named by what they are made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used: set[Path] = set()

    def path(self, kind: str, key: object, suffix: str) -> Path:
        """Where the result for `key` is or will be; marks it as in use."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        path = self.folder / f"{kind}-{digest}{suffix}"
        self._used.add(path)
        if path.exists():
            os.utime(path)  # what `trim` goes by
        return path

    def sha256(self, video: Path) -> str:
        """Of a video's content, which is read once."""
        file = self.path("sha256", _identity(video), ".txt")
        if not file.exists():
            write_atomic(file, video_sha256(video))
        return file.read_text("ascii")

    def used_gb(self) -> float:
        """Size of what this run reads."""
        return sum(path.stat().st_size for path in self._used if path.exists()) / 1e9

    def trim(self, limit_gb: float) -> None:
        """Delete what other runs left, longest unused first, until the folder is in its limit.

        What was looked up within the hour may be in the hands of a run beside this one, and stays.
        """
        stats = {}
        for file in self.folder.glob("*-*.*"):
            with suppress(FileNotFoundError):  # another run may trim just now
                stats[file] = file.stat()
        excess = sum(stat.st_size for stat in stats.values()) - limit_gb * 1e9
        recent = time.time() - RECENT_S
        for file, stat in sorted(stats.items(), key=lambda item: item[1].st_mtime):
            if excess <= 0 or stat.st_mtime > recent:
                return
            if file not in self._used and not file.name.startswith("."):
                excess -= stat.st_size
                file.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Plan:
    """Which frames are kept, and how each video is recognised."""

    identities: dict[str, list[Any]]  # video name -> its files
    n_frames: int  # about, all videos together
    share: float  # of each video's frames that are kept
    notes: tuple[str, ...]

    @classmethod
    def make(cls, dataset: Dataset, config: Config, store: _Store) -> "_Plan":
        identities = {video.name: _identity(video.path) for video in dataset.train}
        n_frames = sum(count_frames(video.path) for video in dataset.train)
        size = 3 * config.model.frame_height * config.model.frame_width * 2  # bytes a frame
        limit = config.data.cache_gb * 1e9
        share = min(1.0, int(1000 * limit / (n_frames * size)) / 1000) if n_frames else 1.0
        if not share:
            raise OutputError(
                f"data.cache_gb {config.data.cache_gb:g} holds less than 1 in 1000 of "
                f"{n_frames} frames; raise it, or give fewer videos"
            )
        plan = cls(identities, n_frames, share, ())
        missing = sum(
            int(share * count_frames(video.path)) * size
            for video in dataset.train
            if not plan.frames_file(video.name, config, store).exists()
        )
        free = shutil.disk_usage(store.folder).free
        if missing > free:
            raise OutputError(
                f"{store.folder}: prepared frames need {missing / 1e9:.1f} GB, {free / 1e9:.1f} GB "
                f"are free; choose another --cache, or set data.cache_gb lower to keep fewer"
            )
        if share == 1.0:
            return plan
        note = (
            f"{share:.1%} of each video's frames fit into data.cache_gb {config.data.cache_gb:g} "
            f"and are trained on, in blocks of {BLOCK} spread evenly"
        )
        return cls(identities, n_frames, share, (note,))

    def frames_file(self, name: str, config: Config, store: _Store) -> Path:
        key = [
            self.identities[name],
            asdict(config.preprocessing),
            self.share,
            _code("sfn_rt.frames", "sfn_rt.preprocess"),
        ]
        return store.path("frames", key, ".f16")

    def keeps(self, index: int) -> bool:
        block = index // BLOCK
        return int((block + 1) * self.share) > int(block * self.share)

    def stretches(self, n_frames: int) -> tuple[tuple[int, int], ...]:
        """Start and stop of each unbroken row of kept frames."""
        found: list[tuple[int, int]] = []
        for start in range(0, n_frames, BLOCK):
            if self.keeps(start):
                stop = min(start + BLOCK, n_frames)
                if found and found[-1][1] == start:
                    found[-1] = (found[-1][0], stop)
                else:
                    found.append((start, stop))
        return tuple(found)


def _identity(path: Path) -> list[Any]:
    """Tells a video from a changed one without reading it: its files, their sizes and times."""
    files = frame_files(path) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    return [
        str(path.resolve()),
        [(f.name, s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)],
    ]


def _code(*modules: str) -> str:
    """Hash of the source of what makes a cached result: a change to it makes the cache stale."""
    digest = hashlib.sha256()
    for name in modules:
        file = importlib.import_module(name).__file__
        assert file is not None
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------- one pass over a video


def _stream(
    video: Video,
    dataset: Dataset,
    plan: _Plan,
    config: Config,
    background: UInt8 | None,
    store: _Store,
    progress: bool,
) -> tuple[Passed, list[str]]:
    """One video, from the cache or read now, and what its reader warned of."""
    frames_file = plan.frames_file(video.name, config, store)
    scenes_key = [
        plan.identities[video.name],
        asdict(config.semantics.scene),
        dataset.fps,
        None if background is None else hashlib.sha256(background.tobytes()).hexdigest(),
        _code("sfn_rt.frames", "sfn_rt.semantics.scene"),
    ]
    if not _looks_for_things(config):
        scenes_key.append("sizes alone")
    scenes_file = store.path("scenes", scenes_key, ".npz")
    if not (frames_file.exists() and scenes_file.exists()):
        _pass(video, dataset, plan, config, background, frames_file, scenes_file, progress)
    fps, scenes, warnings = _read_scenes(scenes_file)
    shape = (-1, 3, config.model.frame_height, config.model.frame_width)
    pixels = np.memmap(frames_file, dtype=np.float16, mode="r").reshape(shape)
    kept = sum(stop - start for start, stop in plan.stretches(len(scenes)))
    if len(pixels) != kept:
        raise DataError(
            f"{frames_file} holds {len(pixels)} frames of {video.name}, expected {kept}; "
            f"delete {store.folder} and start again"
        )
    return (fps, scenes, pixels), warnings


def _pass(
    video: Video,
    dataset: Dataset,
    plan: _Plan,
    config: Config,
    background: UInt8 | None,
    frames_file: Path,
    scenes_file: Path,
    progress: bool,
) -> None:
    """Stream a video once; both files appear at its end."""
    spec = config.preprocessing
    analyser = None
    if _looks_for_things(config):
        analyser = SceneAnalyser(config.semantics.scene, background)
    scenes: list[Scene] = []
    partial = frames_file.with_name(f".{frames_file.name}.{os.getpid()}.partial")
    with output_errors(partial), ExitStack() as stack:
        stack.callback(partial.unlink, missing_ok=True)
        source = stack.enter_context(open_source(video.path, fps=dataset.fps))
        file: IO[bytes] = stack.enter_context(partial.open("wb"))
        bar = stack.enter_context(
            Progress(f"preparing {video.name}", source.n_frames, enabled=progress)
        )
        for frame in source:
            scenes.append(analyser.step(frame.image) if analyser else empty_scene(frame))
            if plan.keeps(frame.index):
                file.write(preprocess(frame.image, spec).astype(np.float16).tobytes())
            bar.advance()
        file.close()
        warnings = [*source.warnings, *([source.problem] if source.problem else [])]
        write_atomic(scenes_file, _scenes_bytes(source.fps, scenes, warnings))
        partial.replace(frames_file)


def _scenes_bytes(fps: float, scenes: Sequence[Scene], warnings: Sequence[str]) -> bytes:
    things = [astuple(thing) for scene in scenes for thing in scene.things]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        fps=np.array(fps),
        size=np.array([(scene.width, scene.height) for scene in scenes]).reshape(-1, 2),
        count=np.array([len(scene.things) for scene in scenes], dtype=np.int64),
        things=np.array(things, dtype=np.float64).reshape(-1, THING_FIELDS),
        warnings=np.array(json.dumps(list(warnings))),
    )
    return buffer.getvalue()


def _read_scenes(path: Path) -> tuple[float, tuple[Scene, ...], list[str]]:
    with np.load(path, allow_pickle=False) as arrays:
        ends = np.cumsum(arrays["count"])
        things = [Thing(*row) for row in arrays["things"].tolist()]
        scenes = tuple(
            Scene(width, height, tuple(things[end - count : end]))
            for (width, height), count, end in zip(
                arrays["size"].tolist(), arrays["count"], ends, strict=True
            )
        )
        warnings: list[str] = json.loads(str(arrays["warnings"]))
        return float(arrays["fps"]), scenes, warnings


def _background(
    dataset: Dataset, plan: _Plan, config: Config, store: _Store, progress: bool
) -> UInt8:
    """The median picture of the normal footage, from the videos of the first one's size."""
    scene = config.semantics.scene
    step = max(1, len(dataset.train) // BACKGROUND_VIDEOS)
    chosen = dataset.train[::step]
    code = _code("sfn_rt.frames", "sfn_rt.semantics.scene")
    key = [[plan.identities[video.name] for video in chosen], asdict(scene), code]
    file = store.path("background", key, ".npz")
    if not file.exists():
        every = max(1, plan.n_frames // step // BACKGROUND_FRAMES)
        greys: list[UInt8] = []
        with Progress("background", plan.n_frames // step, enabled=progress) as bar:
            for video in chosen:
                with open_source(video.path, fps=dataset.fps) as source:
                    for frame in source:
                        if frame.index % every == 0:
                            grey = to_analysis(scene, frame.image)
                            if not greys or grey.shape == greys[0].shape:
                                greys.append(grey)
                        bar.advance()
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, background=estimate_background(greys))
        write_atomic(file, buffer.getvalue())
    with np.load(file, allow_pickle=False) as arrays:
        return np.asarray(arrays["background"], dtype=np.uint8)


# -------------------------------------------------------------------------- what scenes mean


def _attributes(
    scenes: Sequence[Sequence[Scene]], split: Split, config: Config, notes: list[str]
) -> AttributeModel | None:
    """Fitted on the training part only: held-out footage calibrates its evidence."""
    try:
        return AttributeModel.fit(
            scenes[span.video][span.start : span.stop] for span in split.train
        )
    except InputError as error:
        if config.model.use_text and config.semantics.captioner == "scene":
            raise DataError(
                f"{error}; or train without captions: --set model.use_text=false"
            ) from None
        notes.append(str(error))
        return None


def _captions(
    scenes: Sequence[Scene],
    attributes: AttributeModel | None,
    config: Config,
    file: CaptionFile | None,
) -> list[tuple[str, ...]]:
    """The caption of each window for predicting each frame; empty where there is none."""
    if not config.model.use_text:
        return [("",)] * len(scenes)
    windows = config.sfn.caption_windows
    captions = [("",) * len(windows)] * len(scenes)
    captioner: Captioner
    if file is not None:
        captioner = CachedCaptioner(file)
    else:
        assert attributes is not None
        captioner = SceneCaptioner(attributes)
    check_windows(captioner, windows)
    observed, stride = config.model.observed, config.semantics.stride
    for t in range(observed, len(scenes), stride):
        seen = scenes[max(0, t - max(observed, *windows)) : t]
        told = tell(captioner, t, windows, observed, seen)
        captions[t : t + stride] = [told] * len(captions[t : t + stride])
    return captions


def _other_captions(
    scenes: Sequence[Scene], attributes: AttributeModel | None, config: Config
) -> list[list[str]]:
    """For each frame, what else could be said of the clip before it; only `scene` knows."""
    if not config.model.use_text or attributes is None or config.semantics.captions is not None:
        return []
    captioner = SceneCaptioner(attributes)
    return [[], *(captioner.captions(scene)[1:] for scene in scenes[:-1])]


def _embed(
    sentences: Sequence[str],
    config: Config,
    store: _Store,
    caption_files: Iterable[CaptionFile],
    notes: list[str],
) -> NDArray[np.float32]:
    """Embeddings of all sentences; the encoder is loaded only where one is not cached."""
    if not sentences:
        return np.empty((0, 0), dtype=np.float32)
    width = config.sfn.text_dim
    text, note = open_text(config, caption_files)
    notes += [note] if note else []
    if isinstance(text, KnownSentences):
        embeddings = text.encode(sentences)
    else:
        key = [_identity_of_encoder(text.folder), text.pooling, list(sentences)]
        file = store.path("embeddings", key, ".npz")
        if not file.exists():
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, embeddings=text.encode(sentences))
            write_atomic(file, buffer.getvalue())
        with np.load(file, allow_pickle=False) as arrays:
            embeddings = np.asarray(arrays["embeddings"], dtype=np.float32)
    if embeddings.shape[1] != width:
        raise DataError(
            f"{text.name} embeds to {embeddings.shape[1]} numbers, the model expects {width}; "
            f"set model.text_dim={embeddings.shape[1]}"
        )
    return embeddings


def _identity_of_encoder(folder: Path) -> list[Any]:
    """By content: two encoders of one architecture have files of the same sizes."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.append((str(path.relative_to(folder)), digest))
    return found
