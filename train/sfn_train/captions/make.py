"""The `captions` command: every clip of a data set described once, into a cache.

A run goes on from whatever an earlier one left. This process reads the videos, hands units of clips
to workers (itself, or others on a Ray cluster), and alone writes to the cache.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sfn_rt.datasets import Dataset, Video
from sfn_rt.exceptions import DataError, InputError
from sfn_rt.frames import FPS_ASSUMED, count_frames, open_source
from sfn_rt.progress import Progress
from sfn_rt.semantics.cached import CaptionFile, CaptionSource, Part, video_sha256
from sfn_train.captions.cache import CaptionCache, VideoCaptions, encoder_sha256, read_embeddings
from sfn_train.captions.units import Unit, cut_units, positions
from sfn_train.captions.vlm import (
    FRAMES,
    QUESTION,
    Said,
    Vlm,
    full_prompt,
    model_sha256,
    read_tile,
    tile_settings,
)
from sfn_train.text import TextModel

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """What is captioned, how, and where it goes."""

    weights: Path  # folder of the VLM
    out: Path
    text: Path | None = None  # folder of the sentence encoder; None: all-MiniLM
    pooling: str | None = None  # of a plain BERT, which does not state it
    stride: int = 1
    batch: int = 8
    max_tokens: int = 1024
    question: str = QUESTION
    split: str = "all"  # or "train" or "test"
    ray: str | None = None  # address of a cluster; None: this process alone
    workers: int | None = None  # on the cluster; None: one a GPU, or one a CPU where there is none

    def __post_init__(self) -> None:
        for name in ("stride", "batch", "max_tokens", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.split not in ("train", "test", "all"):
            raise InputError(f"--split must be train, test or all, got {self.split}")
        if self.workers is not None and self.ray is None:
            raise InputError("--workers are those of a Ray cluster; add --ray, as in --ray local")
        if "<image>" in self.question:
            raise InputError("--prompt follows the frames, it must not hold <image> itself")


@dataclass(frozen=True)
class CaptionSummary:
    """What a run did."""

    out: Path
    n_videos: int
    n_captions: int  # in the cache now, of these videos
    n_made: int  # by this run
    n_cut: int  # ended at the most tokens allowed
    n_lost: int  # workers that died and were replaced

    def text(self) -> str:
        """For people."""
        lines = [
            f"{self.out}: {self.n_captions} captions of {self.n_videos} videos, "
            f"{self.n_made} made now"
        ]
        if self.n_cut:
            lines.append(f"note: {self.n_cut} were cut at --max-tokens, and are marked as cut")
        if self.n_lost:
            what = "1 worker" if self.n_lost == 1 else f"{self.n_lost} workers"
            lines.append(f"note: {what} died and had to be replaced; nothing is missing")
        return "\n".join(lines)


class Pool(Protocol):
    """Whoever describes clips."""

    n_lost: int

    def run(self, units: Iterator[Unit]) -> Iterator[tuple[Unit, Sequence[Said]]]:
        """Each unit with its captions, in any order."""
        ...


class OneProcess:
    """Describes clips here, one unit after the other."""

    n_lost = 0

    def __init__(self, vlm: Vlm, say: Say) -> None:
        self._vlm, self._say = vlm, say

    def run(self, units: Iterator[Unit]) -> Iterator[tuple[Unit, Sequence[Said]]]:
        """In order."""
        for unit in units:
            before = self._vlm.most
            said = self._vlm.caption(unit.frames, unit.clips)
            if self._vlm.most != before:
                self._say(memory_note(self._vlm.most))
            yield unit, said


def memory_note(most: int | None) -> str:
    """What a smaller batch is told by."""
    return f"note: out of GPU memory; going on with {most} clips at a time: --batch {most} fits"


def make_captions(
    dataset: Dataset, options: CaptionOptions, *, say: Say, progress: bool = True
) -> CaptionSummary:
    """Fill the cache; returns when every clip of the chosen videos has its caption."""
    chosen = _chosen(dataset, options.split)
    text = TextModel(options.text, options.pooling)
    encoder = encoder_sha256(text)
    model = model_sha256(options.weights)
    tile = tile_settings(read_tile(options.weights))
    with ExitStack() as stack:
        cache = stack.enter_context(CaptionCache(options.out))
        videos = []
        for part, video in chosen:
            source = CaptionSource(
                video=video_sha256(video.path),
                model=model,
                prompt=full_prompt(options.question),
                frames=FRAMES,
                stride=options.stride,
                max_tokens=options.max_tokens,
                tile=tile,
            )
            videos.append(cache.open(part, video.name, source))
        work = _Work(dataset, chosen, videos, options, text, encoder, say)
        n_before = sum(len(video.said) for video in videos)
        total = max(work.total(), n_before)
        say(
            f"{dataset.root}: {len(videos)} videos, about {total} captions at stride "
            f"{options.stride}, {n_before} done before"
        )
        for kept in videos:
            if kept.finished and not _is_embedded(kept, encoder):
                say(f"{kept.final.name}: embedded anew, by {text.name}")
                work.finish(kept)
        n_lost = 0
        if not all(video.finished for video in videos):
            pool = stack.enter_context(_pool(options, model, say))
            bar = stack.enter_context(Progress("captions", total, done=n_before, enabled=progress))
            for unit, said in pool.run(work.units()):
                work.take(unit, said)
                bar.advance(len(said))
            n_lost = pool.n_lost
            assert all(video.finished for video in videos)
    return CaptionSummary(
        options.out,
        len(videos),
        sum(len(video.said) for video in videos),
        sum(len(video.said) for video in videos) - n_before,
        sum(said.cut for video in videos for said in video.said.values()),
        n_lost,
    )


class _Work:
    """What is to do, and what becomes of what was done."""

    def __init__(
        self,
        dataset: Dataset,
        chosen: Sequence[tuple[Part, Video]],
        videos: Sequence[VideoCaptions],
        options: CaptionOptions,
        text: TextModel,
        encoder: str,
        say: Say,
    ) -> None:
        self._chosen, self._videos, self._options = chosen, videos, options
        self._fps, self._text, self._encoder, self._say = dataset.fps, text, encoder, say
        self._n_frames: dict[int, int] = {}  # of the videos that were read to their end

    def total(self) -> int:
        """Captions of all videos, as far as it can be told without decoding them."""
        counts = (count_frames(video.path) for _, video in self._chosen)
        return sum(len(positions(n, self._options.stride)) for n in counts)

    def units(self) -> Iterator[Unit]:
        """Reads the videos as units are asked for."""
        for number, (_, video) in enumerate(self._chosen):
            kept = self._videos[number]
            if kept.finished:
                continue
            with open_source(video.path, fps=self._fps) as source:
                for unit in cut_units(
                    source,
                    number,
                    stride=self._options.stride,
                    batch=self._options.batch,
                    is_done=kept.said.__contains__,
                ):
                    if isinstance(unit, Unit):
                        yield unit
                    else:
                        self._n_frames[number] = unit
                told = [*source.warnings, *([source.problem] if source.problem else [])]
                for warning in (warning for warning in told if warning != FPS_ASSUMED):
                    self._say(f"note: {video.name}: {warning}")
            self._finish_if_whole(number)

    def take(self, unit: Unit, said: Sequence[Said]) -> None:
        """Keep a unit's captions; the last unit of a video finishes it."""
        self._videos[unit.video].add(dict(zip(unit.ends, said, strict=True)))
        self._finish_if_whole(unit.video)

    def finish(self, video: VideoCaptions) -> None:
        """Embed a finished video's captions again."""
        n_frames = CaptionFile.read(video.final).n_frames
        assert n_frames is not None
        video.finish(n_frames, self._text, self._encoder)

    def _finish_if_whole(self, number: int) -> None:
        video, n_frames = self._videos[number], self._n_frames.get(number)
        if n_frames is None or video.finished:
            return
        if len(video.said) == len(positions(n_frames, self._options.stride)):
            video.finish(n_frames, self._text, self._encoder)


def _chosen(dataset: Dataset, which: str) -> list[tuple[Part, Video]]:
    train: list[tuple[Part, Video]] = [("train", video) for video in dataset.train]
    test: list[tuple[Part, Video]] = [("test", video) for video in dataset.test]
    chosen = {"train": train, "test": test, "all": train + test}[which]
    if not chosen:
        raise DataError(f"{dataset.root}: no {which} videos; choose another --split")
    return chosen


def _is_embedded(video: VideoCaptions, encoder: str) -> bool:
    """By this encoder, with the file there and unchanged."""
    file = CaptionFile.read(video.final)
    if file.embeddings is None or file.embeddings.encoder != encoder:
        return False
    try:
        read_embeddings(file)
    except DataError:
        return False
    return True


def _pool(options: CaptionOptions, model: str, say: Say) -> AbstractContextManager[Pool]:
    if options.ray is not None:
        from sfn_train.captions.cluster import Cluster  # Ray is an extra

        return Cluster(options, model, say)
    vlm = Vlm(options.weights, question=options.question, max_tokens=options.max_tokens)
    return nullcontext(OneProcess(vlm, say))
