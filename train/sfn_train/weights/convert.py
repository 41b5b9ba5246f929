"""Weights in another layout: a new folder that appears whole, safetensors only, no code run.

InternVL's own layout becomes transformers' native one (sfn_train/weights/internvl.py has the
names). A plain BERT gets its weights as safetensors and a fast tokenizer, where it came as a pickle
and a vocabulary. Tensors keep their values and types; no more than one written file is in memory.
"""

import json
import pickle
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertModel

from sfn_rt.exceptions import DataError, OutputError
from sfn_rt.sinks.files import OutputFolder, output_errors
from sfn_train.weights.folder import (
    CONFIG,
    INDEX,
    SINGLE,
    Entry,
    Kind,
    compare_shapes,
    find_folder,
    hash_files,
    kind_of,
    list_tensors,
    read_json,
)
from sfn_train.weights.internvl import (
    IMAGE_TOKEN,
    Source,
    build_config,
    drop_tied,
    expected_shapes,
    map_remote,
    native_config,
)
from sfn_train.weights.quiet import quiet
from sfn_train.weights.tokenizer import TOKENIZER_FILES, load_tokenizer, token_id

SHARD_BYTES = 500_000_000  # of one written file: what is in memory at a time
BYTES = {"F32": 4, "F16": 2, "BF16": 2}
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLED = "pytorch_model.bin"


@dataclass(frozen=True)
class Converted:
    """What was written."""

    folder: Path
    kind: Kind
    n_tensors: int
    hashes: Mapping[str, str]  # file -> sha256

    def text(self) -> str:
        """For people."""
        files = "\n".join(f"sha256   {digest}  {name}" for name, digest in self.hashes.items())
        return (
            f"{self.folder}: {self.kind}, {self.n_tensors} tensors\n{files}\n"
            f"next     python -m sfn_train weights check {self.folder}"
        )


def convert(name: str, out: Path) -> Converted:
    """Make a folder that `weights check` passes of one that it sent here."""
    folder = find_folder(name)
    kind = kind_of(folder)
    if kind == Kind.INTERNVL_REMOTE:
        make: Callable[[Path, Path], int] = _convert_internvl
    elif kind == Kind.BERT:
        make = _convert_bert
    else:
        raise DataError(f"{folder} is {kind}: there is nothing to convert; use it as it is")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists and is not empty; choose another --out")
    with OutputFolder(out) as written:
        with output_errors(out), quiet():
            n_tensors = make(folder, written.files)
        files = [file for file in written.files.iterdir() if file.suffix == ".safetensors"]
        hashes = hash_files(files)
        written.commit()
    return Converted(
        out, Kind.INTERNVL if kind == Kind.INTERNVL_REMOTE else kind, n_tensors, hashes
    )


def _convert_internvl(folder: Path, out: Path) -> int:
    entries = list_tensors(folder)
    _refuse_types(entries, folder)
    sources = map_remote(entries, folder)
    raw = read_json(folder / CONFIG)
    _copy(folder, out, (*TOKENIZER_FILES, "generation_config.json"))
    # The id of IMAGE_TOKEN is asked of the tokenizer, which needs a config that names no code.
    _write_json(out / CONFIG, {"model_type": "qwen2"})
    tokenizer = load_tokenizer(out)
    config = native_config(raw, token_id(tokenizer, IMAGE_TOKEN, folder), folder)
    ((config.dtype, _),) = Counter(TYPES[e.dtype] for e in entries.values()).most_common(1)
    found = {name: _shape(source, entries) for name, source in sources.items()}
    compare_shapes(found, drop_tied(expected_shapes(config, folder), found, config), folder)
    n_embeddings = found["language_model.model.embed_tokens.weight"][0]
    if len(tokenizer) > n_embeddings:
        raise DataError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, more than the {n_embeddings} "
            f"embeddings; the two are not of one model"
        )
    (out / CONFIG).unlink()
    config.save_pretrained(out)
    build_config(read_json(out / CONFIG), out)  # what was written can be read
    if not (out / "tokenizer.json").exists():
        tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    _write_shards(sources, entries, out)
    return len(sources)


def _convert_bert(folder: Path, out: Path) -> int:
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        entries = list_tensors(folder)
        weights = dict(_read(entries, {name: Source(name) for name in entries}))
    else:
        weights = _unpickle(folder / PICKLED)
    config = bert_config(folder)
    weights = {bert_name(name): tensor for name, tensor in weights.items()}
    weights.pop("embeddings.position_ids", None)  # 0, 1, 2, … that older versions stored
    check_bert({name: tuple(t.shape) for name, t in weights.items()}, config, folder)
    _copy(folder, out, (CONFIG, *TOKENIZER_FILES))
    tokenizer = load_tokenizer(out)
    if not (out / "tokenizer.json").exists():
        tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(whole, out / SINGLE, metadata={"format": "pt"})
    return len(whole)


def bert_config(folder: Path) -> BertConfig:
    """A plain BERT's sizes."""
    try:
        return BertConfig(**read_json(folder / CONFIG))
    except Exception as error:  # transformers raises kinds of its own for each sort of nonsense
        reason = " ".join(str(error).split())
        raise DataError(f"{folder / CONFIG} cannot be used ({reason})") from None


def bert_name(name: str) -> str:
    """BertModel's own name of a tensor that was saved with or without a head around it."""
    return name.removeprefix("bert.")


def check_bert(found: Mapping[str, tuple[int, ...]], config: BertConfig, folder: Path) -> None:
    """Raise where tensors are not those of the config's BertModel, its pooler included."""
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in BertModel(config).state_dict().items()}
    compare_shapes(found, expected, folder)


def _unpickle(file: Path) -> dict[str, Tensor]:
    """Tensors of a pickle, by torch's reader that builds tensors and refuses anything else."""
    if not file.is_file():
        raise DataError(f"{file.parent} holds neither {SINGLE} nor {PICKLED}; download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's version
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DataError(
            f"{file} holds more than tensors, which could be code; it is not loaded. Look for a "
            f"{SINGLE} of the same model"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file} is damaged or cut short ({reason}); download it again") from None
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise DataError(f"{file} is no table of tensors; download the model again")
    return loaded


def _refuse_types(entries: Mapping[str, Entry], folder: Path) -> None:
    for name, entry in entries.items():
        if entry.dtype not in TYPES:
            raise DataError(
                f"{folder}: {name} is {entry.dtype}, expected one of {', '.join(TYPES)}; give the "
                f"weights as they were published, not quantised"
            )


def _shape(source: Source, entries: Mapping[str, Entry]) -> tuple[int, ...]:
    shape = entries[source.name].shape
    return shape if source.rows is None else (source.rows[1] - source.rows[0], *shape[1:])


def _write_shards(sources: Mapping[str, Source], entries: Mapping[str, Entry], out: Path) -> None:
    """All tensors in files of at most SHARD_BYTES, which are planned before one is read."""
    shards: list[dict[str, Source]] = [{}]
    filled = total = 0
    for name, source in sources.items():
        n_elements = 1
        for length in _shape(source, entries):
            n_elements *= length
        size = n_elements * BYTES[entries[source.name].dtype]
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = source
        filled, total = filled + size, total + size
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(dict(_read(entries, shard)), out / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    if len(shards) == 1:
        (out / file).rename(out / SINGLE)
    else:
        _write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _read(
    entries: Mapping[str, Entry], sources: Mapping[str, Source]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors, or the rows of one, straight from their files."""
    for name, source in sources.items():
        entry = entries[source.name]
        try:
            with safe_open(entry.file, framework="pt") as opened:
                if source.rows is None:
                    yield name, opened.get_tensor(source.name)
                else:
                    first, last = source.rows
                    yield name, opened.get_slice(source.name)[first:last].contiguous()
        except SafetensorError as error:
            raise DataError(f"{entry.file} cannot be read ({error}); download it again") from None


def _copy(folder: Path, out: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
