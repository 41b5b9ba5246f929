"""Captions that were made elsewhere, as training takes them: checked, with their embeddings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sfn_rt.datasets import Video
from sfn_rt.exceptions import DataError
from sfn_rt.semantics.cached import CaptionFile, CaptionSource, Part, find_captions
from sfn_train.captions.cache import encoder_sha256, read_embeddings
from sfn_train.config import Config
from sfn_train.text import TextModel


def read_captions(
    videos: Iterable[Video], config: Config, part: Part = "train"
) -> dict[str, CaptionFile]:
    """The caption file of each video, by its name; none where the scene is described."""
    folder = config.semantics.captions
    if folder is None or not config.model.use_text:
        return {}
    places = {video.name: find_captions(Path(folder), video.name, part) for video in videos}
    return {name: CaptionFile.read(place) for name, place in places.items()}


def check_captions(
    files: Mapping[str, CaptionFile],
    videos: Iterable[Video],
    config: Config,
    sha256: Callable[[Path], str],
) -> None:
    """Refuse captions of another video or stride, and such as differ in model or prompt.

    `sha256` names a video by its content. What was written by hand states nothing.
    """
    stated = [
        (video, files[video.name], source)
        for video in videos
        if video.name in files and (source := files[video.name].source) is not None
    ]
    for video, file, source in stated:
        _same_origin(stated[0][1], file, source)
        file.check(
            video.path,
            frames=config.model.observed,
            stride=config.semantics.stride,
            sha256=sha256(video.path),
        )


def _same_origin(first: CaptionFile, file: CaptionFile, source: CaptionSource) -> None:
    assert first.source is not None
    if apart := source.differences(replace(first.source, video=source.video)):
        raise DataError(
            f"{file.path}: not made as {first.path} was: {'; '.join(apart)}. Train on captions "
            f"of one model and prompt: make these again with the settings of the others"
        )


@dataclass(frozen=True, eq=False)
class KnownSentences:
    """Embeddings that came with captions: a sentence encoder for these sentences alone."""

    name: str  # of the encoder that made them
    sha256: str  # of that encoder
    rows: Mapping[str, NDArray[np.float32]]  # (S,) each

    @classmethod
    def of(cls, files: Iterable[CaptionFile]) -> Self | None:
        """From caption files; None where one has none, or they are of different encoders."""
        rows: dict[str, NDArray[np.float32]] = {}
        made_by: set[tuple[str, str]] = set()
        for file in files:
            if file.embeddings is None:
                return None
            made_by.add((file.embeddings.encoder, file.embeddings.name))
            if len({sha256 for sha256, _ in made_by}) > 1:
                return None
            captions = [file.captions[frame] for frame in sorted(file.captions)]
            rows |= zip(captions, read_embeddings(file), strict=True)
        if not made_by:
            return None
        sha256, name = made_by.pop()
        return cls(name, sha256, rows)

    def encode(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Embed n sentences to (n, S), each row of length 1."""
        if unknown := [sentence for sentence in sentences if sentence not in self.rows]:
            raise DataError(
                f"no embedding of {unknown[0]!r} came with the captions, and the sentence encoder "
                f"is not here; set semantics.text to its folder"
            )
        return np.stack([self.rows[sentence] for sentence in sentences])


def open_text(
    config: Config, files: Iterable[CaptionFile]
) -> tuple[TextModel | KnownSentences, str | None]:
    """What embeds sentences, and what the user should know of it.

    The encoder that the settings name; what it made of the captions on another machine is taken as
    it is. Where it is not on this machine, the captions' embeddings are all there is.
    """
    files = list(files)
    try:
        text = TextModel.of(config.semantics)
    except DataError as error:
        if (known := KnownSentences.of(files)) is None:
            raise
        return known, (
            f"the sentence encoder is not here ({error}); the captions' own embeddings are taken, "
            f"made by {known.name} ({known.sha256[:12]}). Exporting the model needs the encoder"
        )
    stated = {file.embeddings.encoder if file.embeddings else None for file in files}
    if files and stated == {encoder_sha256(text)}:
        known = KnownSentences.of(files)
        assert known is not None
        return known, None
    return text, None
