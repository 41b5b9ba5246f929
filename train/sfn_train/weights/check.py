"""Whether a folder of weights can be used, before hours are spent: what `weights check` prints.

Class, every tensor's shape against the config, types, the tokenizer against the embeddings, every
value finite, one forward pass on a random picture or a sentence, and the files' hashes. Whatever is
wrong is one DataError.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from sfn_rt.exceptions import DataError
from sfn_train.model.tower import VisionTower
from sfn_train.text import PLAIN_POOLING, TextModel
from sfn_train.weights.convert import bert_config, bert_name, check_bert
from sfn_train.weights.folder import (
    CONFIG,
    CONVERT,
    Entry,
    Kind,
    compare_shapes,
    find_folder,
    hash_files,
    kind_of,
    list_tensors,
    read_json,
    transformer_folder,
)
from sfn_train.weights.internvl import (
    IMAGE_TOKEN,
    build_config,
    drop_tied,
    expected_shapes,
    stored_name,
)
from sfn_train.weights.quiet import quiet
from sfn_train.weights.tokenizer import check_vocabulary, load_tokenizer

SENTENCE = "Two people walk along a path."
NEW_TOKENS = 4  # of --deep


@dataclass(frozen=True)
class Finding:
    """One line of the answer."""

    label: str
    text: str


def check_weights(name: str, *, deep: bool = False) -> list[Finding]:
    """Everything that was verified; raises at the first thing that is wrong."""
    folder = find_folder(name)
    kind = kind_of(folder)
    if kind == Kind.INTERNVL_REMOTE:
        raise DataError(
            f"{folder} is {kind}; nothing here runs it. Make a native folder of it: "
            f"`{CONVERT} {folder} --out NEW`"
        )
    if kind == Kind.SENTENCE:
        folder = transformer_folder(folder)
    entries = list_tensors(folder)
    found = [Finding("kind", str(kind))]
    with quiet():
        if kind == Kind.INTERNVL:
            found += _check_internvl(folder, entries, deep)
        else:
            found += _check_encoder(folder, entries, find_folder(name), kind)
    files = {entry.file for entry in entries.values()} | {folder / CONFIG}
    return found + [Finding("sha256", f"{d}  {file}") for file, d in hash_files(files).items()]


def findings_text(findings: Iterable[Finding]) -> str:
    """Aligned, one a line."""
    return "\n".join(f"{finding.label:<12} {finding.text}" for finding in findings)


def _check_internvl(folder: Path, entries: Mapping[str, Entry], deep: bool) -> list[Finding]:
    config = build_config(read_json(folder / CONFIG), folder)
    shapes = {stored_name(name): entry.shape for name, entry in entries.items()}
    compare_shapes(shapes, drop_tied(expected_shapes(config, folder), shapes, config), folder)
    found = [_types(entries), _finite(entries, folder)]
    tokenizer = load_tokenizer(folder)
    n_embeddings = shapes["language_model.model.embed_tokens.weight"][0]
    check_vocabulary(tokenizer, n_embeddings, config.image_token_id, folder)
    found.append(
        Finding(
            "tokenizer",
            f"{len(tokenizer)} tokens for {n_embeddings} embeddings; {IMAGE_TOKEN} is "
            f"{config.image_token_id}",
        )
    )
    tower = VisionTower.load(str(folder))
    size = tower.image_size
    frame = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    with torch.inference_mode():
        hidden, embedded = tower(frame)
    _refuse_nan("the vision tower's output for a random picture", hidden, embedded, folder=folder)
    vision: Any = config.vision_config
    found += [
        Finding(
            "tower",
            f"{vision.num_hidden_layers} layers, width {tower.width}, "
            f"{vision.num_attention_heads} heads, patch {tower.patch}, {size} x {size}",
        ),
        Finding(
            "forward",
            f"a random picture gives {list(hidden.shape)} without NaN, "
            f"{time.perf_counter() - began:.1f} s",
        ),
    ]
    if deep:
        found.append(_generate(folder, config, tokenizer, frame))
    return [*found, Finding("fingerprint", f"{tower.fingerprint} (as runs and caches record it)")]


def _check_encoder(
    folder: Path, entries: Mapping[str, Entry], whole: Path, kind: Kind
) -> list[Finding]:
    """`folder` holds the transformer; `whole` is around it where sentence-transformers saved it."""
    if read_json(folder / CONFIG).get("model_type") == "bert":
        shapes = {bert_name(name): entry.shape for name, entry in entries.items()}
        shapes.pop("embeddings.position_ids", None)
        check_bert(shapes, bert_config(folder), folder)
    found = [_types(entries), _finite(entries, folder)]
    tokenizer = load_tokenizer(whole if (whole / "tokenizer.json").is_file() else folder)
    n_embeddings = int(read_json(folder / CONFIG).get("vocab_size", 0))
    if len(tokenizer) > n_embeddings:
        raise DataError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, its {CONFIG} {n_embeddings} "
            f"embeddings; the two are not of one model"
        )
    found.append(Finding("tokenizer", f"{len(tokenizer)} tokens for {n_embeddings} embeddings"))
    for pooling in PLAIN_POOLING if kind == Kind.BERT else (None,):
        text = TextModel(whole, pooling)
        embedding = torch.from_numpy(text.encode([SENTENCE]))
        _refuse_nan(f"the embedding of {SENTENCE!r}", embedding, folder=folder)
        how = "as the folder states" if pooling is None else f"semantics.pooling={pooling}"
        found.append(
            Finding("forward", f"a sentence gives {list(embedding.shape)} without NaN, {how}")
        )
    return found


def _types(entries: Mapping[str, Entry]) -> Finding:
    counts = Counter(entry.dtype for entry in entries.values())
    n_files = len({entry.file for entry in entries.values()})
    n_parameters = sum(int(np.prod(entry.shape)) for entry in entries.values())
    kinds = ", ".join(f"{n} {dtype}" for dtype, n in counts.most_common())
    return Finding(
        "tensors",
        f"{len(entries)} ({kinds}) in {n_files} file{'s' * (n_files > 1)}, {n_parameters:,} "
        f"values, each of the shape the config asks for",
    )


def _finite(entries: Mapping[str, Entry], folder: Path) -> Finding:
    """Reads every tensor, one at a time."""
    for file in {entry.file for entry in entries.values()}:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                _refuse_nan(
                    f"the tensor {name} in {file.name}", opened.get_tensor(name), folder=folder
                )
    return Finding("values", "all finite")


def _refuse_nan(what: str, *tensors: torch.Tensor, folder: Path) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise DataError(f"{folder}: {what} holds NaN or infinity; download the weights again")


def _generate(folder: Path, config: Any, tokenizer: Any, frame: torch.Tensor) -> Finding:
    """A few tokens about the picture from the whole model."""
    from transformers import InternVLForConditionalGeneration

    model: Any = InternVLForConditionalGeneration.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    prompt = f"<img>{IMAGE_TOKEN * config.image_seq_length}</img>\nDescribe the scene."
    encoded = tokenizer(prompt, return_tensors="pt")
    began = time.perf_counter()
    with torch.inference_mode():
        made = model.eval().generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            pixel_values=frame,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    _refuse_nan("the language model's answer", *made.logits, folder=folder)
    return Finding(
        "generate",
        f"{len(made.logits)} tokens about the picture without NaN, "
        f"{time.perf_counter() - began:.1f} s",
    )
