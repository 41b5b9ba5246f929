"""Sentences to embeddings on the device: `tokenizers` and the exported text part, no torch."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from sfn_rt.backends.base import Array, Backend
from sfn_rt.exceptions import BundleError

BATCH = 32  # sentences run at once: bounds memory, whatever is asked for
REMEMBERED = 1024  # sentences whose embedding is kept; captions of one scene repeat a lot
PAD_TOKENS = ("[PAD]", "<pad>")  # BERT's and RoBERTa's, where the tokenizer file names none


class TextEncoder:
    """Embeds sentences exactly as sentence-transformers does, remembering the latest ones."""

    def __init__(
        self, backend: Backend, tokenizer_json: Path, max_tokens: int, remember: int = REMEMBERED
    ) -> None:
        self._backend, self._remember = backend, remember
        self._tokenizer = load_tokenizer(tokenizer_json, max_tokens)
        self._known: OrderedDict[str, Array] = OrderedDict()  # latest use last
        self.width = int(backend.parts["text"].output("sentence_embedding").shape[-1])  # S

    def encode(self, sentences: Sequence[str]) -> Array:
        """Embed n sentences to (n, S) float32, each row of length 1."""
        rows = {s: self._known[s] for s in sentences if s in self._known}
        fresh = [s for s in dict.fromkeys(sentences) if s not in rows]
        fresh.sort(key=len)  # like lengths share a batch, so little is padding
        for start in range(0, len(fresh), BATCH):
            batch = fresh[start : start + BATCH]
            rows.update(zip(batch, self._embed(batch), strict=True))
        for sentence in sentences:
            self._known[sentence] = rows[sentence]
            self._known.move_to_end(sentence)
        while len(self._known) > self._remember:
            self._known.popitem(last=False)
        if not sentences:
            return np.empty((0, self.width), np.float32)
        return np.stack([rows[s] for s in sentences])

    def _embed(self, sentences: list[str]) -> Array:
        encodings = self._tokenizer.encode_batch([s.strip() for s in sentences])
        feeds = {
            "input_ids": np.array([e.ids for e in encodings], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encodings], np.int64),
        }
        return self._backend.infer("text", feeds, ["sentence_embedding"])["sentence_embedding"]


def load_tokenizer(path: Path, max_tokens: int) -> Tokenizer:
    """Read a tokenizer.json; cut at `max_tokens` and pad to the longest of a batch.

    What the file itself says on both is overridden: all-MiniLM's pads everything to 128.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise BundleError(
            f"{path}: not a tokenizer file ({error}); export the model again"
        ) from error
    padding = tokenizer.padding or {}
    candidates = (padding.get("pad_token"), *PAD_TOKENS)
    pad = next((t for t in candidates if t and tokenizer.token_to_id(t) is not None), None)
    if pad is None:
        raise BundleError(
            f"{path}: names no padding token, and its vocabulary has none of "
            f"{', '.join(PAD_TOKENS)}; export with another text encoder"
        )
    tokenizer.enable_truncation(max_length=max_tokens)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    return tokenizer
