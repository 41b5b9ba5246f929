"""A language model on the device: greedy, batched, with its key-value cache fed back by hand.

It is driven by what its graph declares, so that graphs of other makers fit: a mask and positions
are fed where asked for, and every tensor in the type that the graph names.

    inputs_embeds (B, L, D), past_key_values.* (B, heads, P, head)
    -> logits (B, 1 or L, V), present.* (B, heads, P + L, head)

All prompts of a batch are of one length, so nothing is padded. A clip that has ended leaves the
batch, and its cache goes with it.

Axes: B clips, L new positions (the prompt's, then 1), P positions in the cache, D width,
V vocabulary.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sfn_rt.backends.base import Array, Backend
from sfn_rt.exceptions import BackendError, BundleError

PART = "language"
PAST, PRESENT = "past_key_values.", "present."
EXPORT_AGAIN = "export the VLM again with a matching sfn_export"


class Embeddings:
    """Token ids to vectors, out of a file that is mapped: only the rows asked for are read."""

    def __init__(self, path: Path, dtype: Literal["float32", "bfloat16"]) -> None:
        try:
            self._table: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BundleError(f"{path}: not a plain array ({error}); {EXPORT_AGAIN}") from error
        stored = {"float32": "float32", "bfloat16": "uint16"}[dtype]  # numpy knows no bfloat16
        if self._table.ndim != 2 or self._table.dtype != stored:
            raise BundleError(
                f"{path}: embeddings must be {stored}[vocabulary, width], got "
                f"{self._table.dtype}{list(self._table.shape)}; {EXPORT_AGAIN}"
            )
        self._halves = dtype == "bfloat16"

    @property
    def shape(self) -> tuple[int, int]:
        """(V, D)."""
        rows, width = self._table.shape
        return rows, width

    def __getitem__(self, ids: Array) -> Array:
        """Ids of any shape to float32 vectors, one axis more."""
        rows = self._table[ids]
        if self._halves:  # bfloat16 is the upper half of a float32
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(rows, np.float32)


class LanguageModel:
    """Says what follows a batch of prompts."""

    def __init__(self, backend: Backend, embeddings: Embeddings, place: str) -> None:
        self._backend, self._embeddings = backend, embeddings
        spec = backend.parts[PART]
        self._inputs = {tensor.name: tensor for tensor in spec.inputs}
        self._caches = [name for name in self._inputs if name.startswith(PAST)]
        outputs = {tensor.name for tensor in spec.outputs}
        wanted = {"inputs_embeds", *self._caches}
        unknown = self._inputs.keys() - wanted - {"attention_mask", "position_ids"}
        absent = wanted - self._inputs.keys() or {"logits", *map(_present, self._caches)} - outputs
        if absent or not self._caches:
            lacks = min(absent, default=f"{PAST}*")
            raise BundleError(f"{place}: the part {PART} lacks {lacks!r}; {EXPORT_AGAIN}")
        if unknown:
            raise BundleError(f"{place}: the part {PART} asks for {min(unknown)!r}; {EXPORT_AGAIN}")
        if (width := self._inputs["inputs_embeds"].shape[-1]) != embeddings.shape[1]:
            raise BundleError(
                f"{place}: the part {PART} takes vectors of {width} numbers, the embeddings have "
                f"{embeddings.shape[1]}; {EXPORT_AGAIN}"
            )

    def stream(
        self, prompt: Array, stops: Collection[int], most: int
    ) -> Iterator[tuple[int | None, ...]]:
        """At most `most` tokens a clip behind (B, L, D) of prompts, step by step.

        The token that ends a clip is its last; from then on None stands in its place.
        """
        ends = np.array(sorted(stops))
        going = np.arange(len(prompt))  # clips that have not ended, (b,)
        x, past = prompt, 0
        cache = {name: self._empty(name, len(prompt)) for name in self._caches}
        for _ in range(most if len(prompt) else 0):
            logits, cache = self._step(x, past, cache)
            past += x.shape[1]
            said = logits.argmax(axis=-1)  # (b,)
            spoken: list[int | None] = [None] * len(prompt)
            for clip, token in zip(going.tolist(), said.tolist(), strict=True):
                spoken[clip] = token
            yield tuple(spoken)
            goes_on = ~np.isin(said, ends)
            if not goes_on.any():
                return
            if not goes_on.all():
                going, said = going[goes_on], said[goes_on]
                cache = {name: kept[goes_on] for name, kept in cache.items()}
            x = self._embeddings[said][:, None]  # (b, 1, D)

    def _step(self, x: Array, past: int, cache: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """(b, L, D) and a cache of P to logits (b, V) of the last position and a cache of P + L."""
        rows, length = x.shape[:2]
        given = {
            "inputs_embeds": x,
            "attention_mask": np.ones((rows, past + length)),
            "position_ids": np.tile(np.arange(past, past + length), (rows, 1)),
        }
        feeds = {
            name: array.astype(self._inputs[name].dtype, copy=False)
            for name, array in given.items()
            if name in self._inputs
        }
        computed = self._backend.infer(PART, {**feeds, **cache})
        logits = computed["logits"][:, -1]  # (b, V)
        if not np.isfinite(logits.max(axis=-1)).all():
            raise BackendError(
                f"{self._backend.name}: the part {PART} gave logits that are no numbers; take "
                f"another variant of it, or export the VLM again"
            )
        return logits, {name: computed[_present(name)] for name in self._caches}

    def _empty(self, name: str, rows: int) -> Array:
        tensor = self._inputs[name]
        shape: Any = (rows, tensor.shape[1], 0, tensor.shape[3])
        return np.empty(shape, tensor.dtype)


def _present(name: str) -> str:
    """The output that holds what this input is at the next step."""
    return PRESENT + name.removeprefix(PAST)
