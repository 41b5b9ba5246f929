"""Runs of consecutive frames for training, in an order that a step number alone decides.

A run of L frames holds P = L - T clips that share the encoding of their frames. An epoch covers
each span of footage once with runs that lie P apart, shifted anew every epoch. The order
depends on nothing but seed and epoch, so training resumes at any step with the batch it would have
had, however often it was interrupted.

Axes: L frames of a run, P clips of a run, T observed frames, K caption windows, S text width.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sfn_train.config import Config
from sfn_train.data.prepare import Prepared
from sfn_train.data.split import Span

if TYPE_CHECKING:
    from sfn_train.data.feature_cache import FeatureCache

Place = tuple[int, ...]  # video, first frame, and what a system adds

OTHER_SHARE = 0.5  # of training captions that tell of another thing than the rarest


class Runs(Dataset[dict[str, Tensor]]):
    """Indexed by video and first frame: frames (L, 3, h, w) and caption embeddings (P, K S).

    With data.features also what the frozen tower says of all frames but the last, which is only
    ever a target: hidden (L - 1, 1 + N, C) and embedded (L - 1, N, C), in the cache's number type.

    With `vary`, half of the captions tell of another thing of the same frame than the rarest: all
    of normal life is described, in every place and direction, and only unusual words stay unheard.
    Windows longer than the observed frames tell of no single frame, so theirs stay.
    """

    def __init__(self, prepared: Prepared, config: Config, *, vary: bool = False) -> None:
        self._prepared, self._vary = prepared, vary
        self._features = open_features(prepared, config)
        self._length, self._observed = config.data.run_length, config.model.observed
        self._use_text = config.model.use_text
        self._n_short = sum(w <= self._observed for w in config.sfn.caption_windows)

    def __getitem__(self, place: Place) -> dict[str, Tensor]:
        number, start = place
        video = self._prepared.videos[number]
        stop = start + self._length
        item = {"frames": torch.from_numpy(video.read(start, stop).astype(np.float32))}
        if self._features is not None:
            item["hidden"], item["embedded"] = self._features.read(video.name, start, stop - 1)
        if self._use_text:
            ids = video.caption_ids[start + self._observed : stop].copy()  # (P, K)
            if self._vary:
                random = np.random.default_rng([number, start])
                for i, t in enumerate(range(start + self._observed, stop)):
                    others = video.other_captions(t)
                    if len(others) and random.random() < OTHER_SHARE:
                        ids[i, : self._n_short] = random.choice(others)
            text = self._prepared.embeddings[ids]  # (P, K, S)
            item["text"] = torch.from_numpy(text.reshape(len(text), -1))
        return item


def open_features(prepared: Prepared, config: Config) -> "FeatureCache | None":
    """The cache that data.features names, with every prepared video in it; None without one."""
    if config.data.features is None:
        return None
    from sfn_train.data.feature_cache import FeatureCache  # transformers is slow to import

    cache = FeatureCache(Path(config.data.features), config)
    for video in prepared.videos:
        cache.check(video.name, video.path, video.n_frames)
    return cache


class StepSampler(Sampler[list[Place]]):
    """Batches without end, from the step that `begin` returns, with this device's rank.

    A step takes `accumulate` batches on each of `world` devices. Which runs it learns from depends
    on their number alone, not on how they are shared out.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        *,
        run_length: int,
        clips: int,
        batch: int,
        seed: int,
        begin: Callable[[], tuple[int, int]],
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        self._spans, self._length, self._clips = spans, run_length, clips
        self._batch, self._seed, self._begin, self._world = batch, seed, begin, world
        self._accumulate = accumulate
        self.n_runs = sum((len(span) - run_length) // clips + 1 for span in spans)
        self.steps_per_epoch = max(1, self.n_runs // (batch * world * accumulate))

    def __iter__(self) -> Iterator[list[Place]]:
        step, rank = self._begin()
        while True:
            epoch, place = divmod(step, self.steps_per_epoch)
            order = self.epoch(epoch)
            for i in range(place, self.steps_per_epoch):
                for part in range(i * self._accumulate, (i + 1) * self._accumulate):
                    start = (part * self._world + rank) * self._batch
                    yield [order[j % len(order)] for j in range(start, start + self._batch)]
                step += 1

    def epoch(self, epoch: int) -> list[Place]:
        """All runs of one epoch, shuffled."""
        random = np.random.default_rng([self._seed, epoch])
        places: list[Place] = []
        for span in self._spans:
            slack = (len(span) - self._length) % self._clips
            first = span.start + int(random.integers(slack + 1))
            last = span.stop - self._length
            places += [(span.video, start) for start in range(first, last + 1, self._clips)]
        return [places[i] for i in random.permutation(len(places))]


def usable_spans(prepared: Prepared, spans: Sequence[Span], run_length: int) -> list[Span]:
    """The parts of `spans` whose frames are kept, where at least one run fits."""
    found = []
    for span in spans:
        for start, stop in prepared.videos[span.video].stretches:
            part = Span(span.video, max(start, span.start), min(stop, span.stop))
            if len(part) >= run_length:
                found.append(part)
    return found


def spread_runs(spans: Sequence[Span], run_length: int, clips: int, most: int) -> list[Place]:
    """At most `most` runs spread evenly over the spans, always the same ones."""
    places: list[Place] = [
        (span.video, start)
        for span in spans
        for start in range(span.start, span.stop - run_length + 1, clips)
    ]
    if len(places) <= most:
        return places
    return [places[i] for i in np.linspace(0, len(places) - 1, most).astype(int)]
