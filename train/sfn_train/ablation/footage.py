"""Everything that the rows of a table share, made once: frames, scenes, captions, embeddings.

A row reads float16 frames and scenes where the device decodes and analyses a video: the caches of
`prepare`, within 0.03 grey levels of what the device computes. From there on evidence is the
runtime's own, fed through `Looked` blocks.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfn_rt.datasets import Dataset, Video, open_dataset
from sfn_rt.evaluate import measure_baselines
from sfn_rt.evidence import Looked
from sfn_rt.exceptions import DataError
from sfn_rt.frames import Frame, frame_files
from sfn_rt.scores import PUBLISHED, PaperConstants
from sfn_train.captions.known import KnownSentences, open_text, read_captions
from sfn_train.config import Config
from sfn_train.data.prepare import Footage, Prepared, Say, prepare, prepare_test
from sfn_train.data.split import Span
from sfn_train.text import TextModel

BLOCK = 16  # frames run through the networks together; more is no faster on a CPU
NO_IMAGE = np.empty((0, 0, 3), np.uint8)  # a frame's own picture is not looked at again


class RememberingText(TextModel):
    """The sentence encoder, asked once for each sentence of all rows."""

    def __init__(self, folder: Path | None, pooling: str | None) -> None:
        super().__init__(folder, pooling)
        self._known: dict[str, NDArray[np.float32]] = {}

    def learn(self, sentences: Sequence[str], embeddings: NDArray[np.float32]) -> None:
        """Take over what is embedded already."""
        self._known.update(zip(sentences, embeddings, strict=True))

    def encode(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Embed n sentences to (n, S), each row of length 1."""
        if fresh := [text for text in dict.fromkeys(sentences) if text not in self._known]:
            self.learn(fresh, super().encode(fresh))
        if not sentences:
            return super().encode(sentences)
        return np.stack([self._known[text] for text in sentences])


@dataclass(frozen=True, eq=False)
class View:
    """The footage as the rows of one preparation see it."""

    prepared: Prepared
    test: tuple[Footage, ...]
    text: RememberingText | KnownSentences | None


class Material:
    """A labelled data set, prepared once for each way in which rows want it prepared."""

    def __init__(
        self, data: Path, cache: Path, *, fps: float | None, say: Say, progress: bool = True
    ) -> None:
        self.dataset = _labelled(open_dataset(data, fps=fps))
        self._cache, self._say, self._progress = cache, say, progress
        self._views: dict[str, View] = {}
        self._texts: dict[tuple[str | None, str | None], RememberingText] = {}

    @property
    def constants_name(self) -> str:
        """Whose published constants the `paper` protocol takes."""
        return self.dataset.published or "default"

    @property
    def constants(self) -> PaperConstants:
        """Weights, smoothing and min-max of the `paper` protocol."""
        return PUBLISHED[self.constants_name]

    def labels(self) -> dict[str, NDArray[np.uint8]]:
        """(T,) by test video."""
        return {v.name: v.labels for v in self.dataset.test if v.labels is not None}

    def view(self, config: Config) -> View:
        """The footage prepared for a row; made the first time it is asked for."""
        model = config.sfn
        seen = [model.observed, model.windows, model.use_text, model.text_dim]
        key = repr([config.preprocessing, config.data, config.semantics, seen])
        if key not in self._views:
            say = self._say if not self._views else _silent
            options = {"progress": self._progress}
            prepared = prepare(self.dataset, config, self._cache, say=say, **options)
            if any(sum(b - a for a, b in v.stretches) != v.n_frames for v in prepared.videos):
                raise DataError(
                    f"{self.dataset.root}: not all frames fit into data.cache_gb "
                    f"{config.data.cache_gb:g}; set it higher: rows are compared on whole videos"
                )
            test = prepare_test(self.dataset, prepared, config, self._cache, **options)
            text = self._text(config, prepared) if model.use_text else None
            self._views[key] = View(prepared, test, text)
        return self._views[key]

    def identity(self) -> dict[str, object]:
        """Tells this data from other data, wherever it lies: names and sizes of its files."""
        digest = hashlib.sha256()
        for part, videos in (("train", self.dataset.train), ("test", self.dataset.test)):
            for video in videos:
                digest.update(json.dumps([part, video.name, _sizes(video)]).encode())
        return {
            "labels": self.dataset.fingerprint,
            "files_sha256": digest.hexdigest(),
            "fps": self.dataset.fps,
            "published": self.constants_name,
        }

    def baselines(self) -> Mapping[str, Mapping[str, NDArray[np.float64]]]:
        """(T,) evidence of every no-model baseline, by baseline and test video."""
        return measure_baselines(self.dataset, self.dataset.test)

    def _text(self, config: Config, prepared: Prepared) -> RememberingText | KnownSentences:
        """What embeds sentences: as in training, but for remembering them."""
        train = read_captions(self.dataset.train, config)
        test = read_captions(self.dataset.test, config, "test")
        found, _ = open_text(config, [*train.values(), *test.values()])
        if isinstance(found, KnownSentences):
            return found
        key = (config.semantics.text, config.semantics.pooling)
        if key not in self._texts:
            self._texts[key] = RememberingText.of(config.semantics)
            self._texts[key].module()  # loads it, so that no row's time does
        self._texts[key].learn(prepared.sentences, prepared.embeddings)
        return self._texts[key]


def cached_blocks(video: Footage, span: Span) -> Iterator[Looked]:
    """The frames of a span as the first stage of evidence leaves them, from the cache."""
    for start in range(span.start, span.stop, BLOCK):
        stop = min(start + BLOCK, span.stop)
        frames = [Frame(t, t / video.fps, NO_IMAGE) for t in range(start, stop)]
        pictures = video.read(start, stop).astype(np.float32)  # (b, 3, h, w)
        yield Looked(frames, pictures, video.scenes[start:stop], {})


def _labelled(dataset: Dataset) -> Dataset:
    """The data set with its labelled test videos alone; refuses one that cannot be measured on."""
    test = tuple(video for video in dataset.test if video.labels is not None)
    if not test:
        raise DataError(
            f"{dataset.root}: no labels for its {len(dataset.test)} test videos, so no row can be "
            f"measured; add frame_labels.npz (one array of 0 and 1 a video)"
        )
    every = np.concatenate([video.labels for video in test if video.labels is not None])
    if every.all() or not every.any():
        kind = "abnormal" if every.all() else "normal"
        raise DataError(
            f"{dataset.root}: every labelled frame is {kind}; AUC needs frames of both classes"
        )
    return replace(dataset, test=test)


def _sizes(video: Video) -> list[tuple[str, int]]:
    files = frame_files(video.path) if video.path.is_dir() else [video.path]
    return [(file.name, file.stat().st_size) for file in files]


def _silent(text: str) -> None:
    """What a second preparation would say was said by the first."""
