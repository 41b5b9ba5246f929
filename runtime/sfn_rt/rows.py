"""What is kept of each frame while a video is scored: some 100 bytes, and its heat map on disk.

Axes: T frames, gh and gw cells of the heat map.
"""

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfn_rt.backends.base import Array
from sfn_rt.events import Box
from sfn_rt.evidence import FrameEvidence
from sfn_rt.scores import FloatArray, VideoScores

BOX = ("x", "y", "w", "h")
CAPTION = ("caption_id", "caption_age", "caption_weight")


class Rows:
    """Columns that grow by a frame. Heat maps go to a file, in memory they would be most of it."""

    def __init__(
        self, terms: Sequence[str], grid: tuple[int, int], heat_file: Path | None = None
    ) -> None:
        self._terms, self._grid, self._heat_file = tuple(terms), grid, heat_file
        names = ("time_s", "causal", *CAPTION, *self._terms, *BOX)
        self._columns = {name: array("d") for name in names}
        self._caption_ids: dict[str, int] = {}
        self._empty = np.full(grid, np.nan, np.float16)
        self._pending: list[NDArray[np.float16]] = []
        self._on_disk = False  # False: what the file holds is a killed run's

    @property
    def n_frames(self) -> int:
        """Frames so far."""
        return len(self._columns["time_s"])

    def append(self, row: FrameEvidence, causal: float, box: Box | None) -> None:
        """Take the next frame."""
        columns = self._columns
        columns["time_s"].append(row.time_s)
        columns["causal"].append(causal)
        for term in self._terms:
            columns[term].append(row.terms.get(term, float("nan")))
        for name, value in zip(BOX, box or (float("nan"),) * 4, strict=True):
            columns[name].append(value)
        number = -1
        if row.caption is not None:
            number = self._caption_ids.setdefault(row.caption, len(self._caption_ids))
        columns["caption_id"].append(number)
        age = row.caption_age
        columns["caption_age"].append(float("nan") if age is None else age)
        columns["caption_weight"].append(row.caption_weight if row.terms else float("nan"))
        if self._heat_file is not None:
            self._pending.append(self._empty if row.heat is None else row.heat)
            if len(self._pending) >= 64:
                self._flush()

    def column(self, name: str) -> FloatArray:
        """One column (T,)."""
        return np.array(self._columns[name], dtype=np.float64)

    def terms(self) -> dict[str, FloatArray]:
        """The evidence of each term (T,)."""
        return {term: self.column(term) for term in self._terms}

    def heat(self) -> NDArray[np.float16]:
        """(T, gh, gw), read from disk as it is used."""
        assert self._heat_file is not None
        self._flush()
        shape = (self.n_frames, *self._grid)
        return np.memmap(self._heat_file, dtype=np.float16, mode="r", shape=shape)

    def result(self, name: str, fps: float, paper: FloatArray) -> VideoScores:
        """Everything found out about the video."""
        box = np.stack([self.column(side) for side in BOX], axis=1).astype(np.float32)
        return VideoScores(
            name=name, fps=fps, time_s=self.column("time_s"), terms=self.terms(), paper=paper,
            causal=self.column("causal"), box=box,
            caption_id=self.column("caption_id").astype(np.int32),
            captions=tuple(self._caption_ids),
            caption_age=self.column("caption_age"),
            caption_weight=self.column("caption_weight"),
        )  # fmt: skip

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays and JSON to continue from; the heat maps so far are on disk then."""
        self._flush()
        return {name: self.column(name) for name in self._columns}, {
            "captions": list(self._caption_ids)
        }

    def restore(self, arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; heat maps written after it are cut off."""
        self._columns = {name: array("d", arrays[name].tolist()) for name in self._columns}
        self._caption_ids = {caption: i for i, caption in enumerate(plain["captions"])}
        if self._heat_file is not None:
            size = self.n_frames * self._grid[0] * self._grid[1] * 2
            with self._heat_file.open("r+b") as file:
                file.truncate(size)
            self._on_disk = True

    def _flush(self) -> None:
        if self._pending and self._heat_file is not None:
            with self._heat_file.open("ab" if self._on_disk else "wb") as file:
                file.write(np.stack(self._pending).tobytes())
            self._on_disk = True
            self._pending.clear()
