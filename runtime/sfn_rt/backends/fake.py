"""Backends without a model, one a system: arithmetic that anyone can follow.

Tests drive the pipeline with them: deterministic, sensitive to what they are fed, and they count
calls. `RepeatLastFrame` predicts that the last frame repeats, as its patches' mean colours;
`MeanOfClip` reconstructs a frame as the mean of its clip.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from sfn_rt.backends.base import Array, Arrays, CheckedBackend, PartSpec

OBSERVED = 4  # frames of a clip
TOKENS_WIDTH = 4  # D and C_m: three mean colours and a constant
CLIP, SCORED = 16, 8  # frames that dual-memory sees, and the one of them that it scores


class RepeatLastFrame(CheckedBackend):
    """All parts of "sfn-vad"."""

    name = "fake"

    def __init__(
        self, height: int = 16, width: int = 24, patch: int = 8, text_width: int = 6
    ) -> None:
        self.height, self.width, self.patch, self.text_width = height, width, patch, text_width
        self.rows, self.columns = height // patch, width // patch
        n = self.rows * self.columns
        image = ("batch", 3, height, width)
        sentence = ("batch", text_width)
        self.parts: Mapping[str, PartSpec] = {
            "appearance": PartSpec.of(
                {"frame": image},
                {"tokens": ("batch", 1 + n, TOKENS_WIDTH), "skip": ("batch", n, TOKENS_WIDTH)},
            ),
            "motion": PartSpec.of(
                {"difference": image}, {"tokens": ("batch", 1 + n, TOKENS_WIDTH)}
            ),
            "decoder": PartSpec.of(
                {
                    "appearance": ("batch", OBSERVED, 1 + n, TOKENS_WIDTH),
                    "motion": ("batch", OBSERVED - 1, 1 + n, TOKENS_WIDTH),
                    "text": sentence,
                    "skip": ("batch", n, TOKENS_WIDTH),
                },
                {"next_frame": image, "semantic": sentence},
            ),
            "text": PartSpec.of(
                {"input_ids": ("batch", "tokens"), "attention_mask": ("batch", "tokens")},
                {"sentence_embedding": sentence},
                "int64",
            ),
        }
        self.images: Counter[str] = Counter()  # part -> rows run through it, batches summed

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """By arithmetic."""
        self.images[part] += len(next(iter(feeds.values())))
        if part == "decoder":
            return self._decode(feeds)
        if part == "text":
            return {"sentence_embedding": self._embed(feeds)}
        return self._encode(next(iter(feeds.values())))

    def _encode(self, image: Array) -> dict[str, Array]:
        cells = image.reshape(-1, 3, self.rows, self.patch, self.columns, self.patch)
        colours = cells.mean(axis=(3, 5)).reshape(len(image), 3, -1).transpose(0, 2, 1)
        skip = np.pad(colours, ((0, 0), (0, 0), (0, 1)), constant_values=1.0)  # (B, N, 4)
        tokens = np.concatenate([skip.mean(axis=1, keepdims=True), skip], axis=1)
        return {"tokens": tokens.astype(np.float32), "skip": skip.astype(np.float32)}

    def _decode(self, feeds: Arrays) -> dict[str, Array]:
        colours = feeds["skip"][..., :3].transpose(0, 2, 1)  # (B, 3, N)
        grid = colours.reshape(-1, 3, self.rows, self.columns)
        frame = grid.repeat(self.patch, axis=2).repeat(self.patch, axis=3)
        return {"next_frame": frame, "semantic": feeds["text"].copy()}

    def _embed(self, feeds: Arrays) -> Array:
        rows = [
            np.random.default_rng(ids[mask > 0]).standard_normal(self.text_width)
            for ids, mask in zip(feeds["input_ids"], feeds["attention_mask"], strict=True)
        ]
        embedding = np.stack(rows)
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
        return embedding.astype(np.float32)


class MeanOfClip(CheckedBackend):
    """The part of "dual-memory": what moves differs from the mean of its clip."""

    name = "fake"

    def __init__(self, height: int = 16, width: int = 24) -> None:
        self.parts: Mapping[str, PartSpec] = {
            "autoencoder": PartSpec.of(
                {"clip": ("batch", CLIP, 3, height, width)}, {"error": ("batch", height, width)}
            )
        }
        self.images: Counter[str] = Counter()  # part -> clips run through it

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """By arithmetic."""
        clip = feeds["clip"]  # (B, T, 3, h, w)
        self.images[part] += len(clip)
        difference = clip[:, SCORED] - clip.mean(axis=1)
        return {"error": np.square(difference).mean(axis=1)}  # (B, h, w)
