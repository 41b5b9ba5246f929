"""A folder of weights as transformers saves it, read without running anything that is inside.

    config.json                      names the class and every size
    model.safetensors                or shards, named by model.safetensors.index.json
    tokenizer.json, vocab.txt, …     the tokenizer

Tensors come from safetensors only: loading a pickle can run any code inside it. What a file holds
is known from its header, so a folder is checked before a tensor is read.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sfn_rt.exceptions import DataError

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # no code, no pickles
CONVERT = "python -m sfn_train weights convert"


class Kind(StrEnum):
    """Whose layout a folder has."""

    INTERNVL = "InternVL, transformers' native class"
    INTERNVL_REMOTE = "InternVL's own layout, whose classes are code inside the folder"
    BERT = "BERT, a plain transformers folder"
    SENTENCE = "a sentence-transformers folder"


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, as its file's header states it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' name: F32, BF16, ...


def find_folder(name: str) -> Path:
    """A local folder as it is; anything else as a hub name, downloaded where there is a network."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise DataError(f"{name} is a file; give the folder that holds it and {CONFIG}")
    if not HUB_NAME.fullmatch(name):
        raise DataError(f"{name} does not exist; give a folder of weights, or a name of the hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{name} is no folder here and cannot be fetched from the hub ({reason}); download it "
            f"where there is a network, and give the folder"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or a DataError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; is {path.parent} a whole folder of weights?"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); download it again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no settings; download it again")
    return value


def kind_of(folder: Path) -> Kind:
    """What a folder holds, by the class that its config names."""
    if (folder / "modules.json").is_file():
        return Kind.SENTENCE
    config = read_json(folder / CONFIG)
    named = config.get("model_type")
    if named == "internvl":
        return Kind.INTERNVL
    if named == "internvl_chat":
        return Kind.INTERNVL_REMOTE
    if named == "bert":
        return Kind.BERT
    raise DataError(
        f"{folder / CONFIG}: model_type is {named!r}; known are internvl (transformers' class), "
        f"internvl_chat (InternVL's own), bert, and folders that sentence-transformers saved"
    )


def transformer_folder(folder: Path) -> Path:
    """Where a sentence-transformers folder keeps its first module: itself, or a folder inside."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        inside = str(modules[0]["path"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{folder / 'modules.json'} cannot be read ({error}); download it again"
        ) from None
    if inside and inside != Path(inside).name:
        raise DataError(f"{folder / 'modules.json'}: {inside} leads out of the folder")
    return folder / inside


def list_tensors(folder: Path) -> dict[str, Entry]:
    """Every tensor of the folder by its name; refuses pickles, and files that are not whole."""
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return read_headers([folder / SINGLE])
    if not index.is_file():
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        if pickles:
            raise DataError(
                f"{folder} has its weights as a pickle ({pickles[0]}), and loading one can run any "
                f"code inside it; give its safetensors (of a BERT, `{CONVERT}` makes them)"
            )
        raise DataError(f"{folder} holds neither {SINGLE} nor {INDEX}; download it again")
    places = read_json(index).get("weight_map")
    if not isinstance(places, Mapping) or not places:
        raise DataError(f"{index} names no files; download it again")
    names = sorted({str(name) for name in places.values()})
    if wrong := [name for name in names if name != Path(name).name]:
        raise DataError(f"{index}: {wrong[0]} leads out of the folder; download it again")
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise DataError(f"{folder / absent[0]} does not exist, but {INDEX} names it; download it")
    found = read_headers(folder / name for name in names)
    for tensor, name in places.items():
        if tensor not in found or found[tensor].file.name != name:
            raise DataError(f"{folder / str(name)} does not hold {tensor}, as {INDEX} states")
    return found


def read_headers(files: Iterable[Path]) -> dict[str, Entry]:
    """Names, shapes and types from the files' headers, which also state each file's length."""
    found: dict[str, Entry] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    if name in found:
                        raise DataError(f"{name} is in {found[name].file} and in {file}")
                    part = opened.get_slice(name)
                    found[name] = Entry(file, tuple(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            raise DataError(
                f"{file} is damaged or cut short ({error}); download it again"
            ) from None
    return found


def read_tensors(entries: Mapping[str, Entry], names: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors by name; each file is opened once."""
    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(entries[name].file, []).append(name)
    read: dict[str, Tensor] = {}
    for file, wanted in by_file.items():
        with safe_open(file, framework="pt") as opened:
            read |= {name: opened.get_tensor(name) for name in wanted}
    return read


def compare_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """Raise at the first tensor that is missing, left over, or of another shape than expected."""
    for name in expected:
        if name not in found:
            raise DataError(f"{folder} lacks the tensor {name} that its {CONFIG} asks for")
        if found[name] != expected[name]:
            raise DataError(
                f"{folder}: {name} is {list(found[name])}, but its {CONFIG} makes it "
                f"{list(expected[name])}; the two are not of one model"
            )
    if left := sorted(found.keys() - expected.keys()):
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise DataError(f"{folder} holds a tensor that is no part of the model: {left[0]}{more}")


def hash_files(files: Iterable[Path]) -> dict[str, str]:
    """sha256 of each file by its name."""
    hashes = {}
    for file in sorted(files, key=lambda file: file.name):
        stat = file.stat()
        hashes[file.name] = _sha256(file, stat.st_size, stat.st_mtime_ns)
    return hashes


@lru_cache(maxsize=64)
def _sha256(file: Path, size: int, mtime_ns: int) -> str:
    """Weights are gigabytes, and one command asks for the same file's hash several times."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fingerprint(hashes: Mapping[str, str]) -> str:
    """sha256 of what `sha256sum` prints for these files, in the order of their names."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
