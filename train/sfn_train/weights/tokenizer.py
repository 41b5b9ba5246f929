"""The tokenizer beside weights: loaded from local files, its own code never run."""

from pathlib import Path
from typing import Any

from sfn_rt.exceptions import DataError
from sfn_train.weights.folder import read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
)


def load_tokenizer(folder: Path) -> Any:
    """transformers' fast tokenizer of a local folder."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    named = folder / "tokenizer_config.json"
    if named.is_file() and "auto_map" in read_json(named):
        raise DataError(f"{named} asks for code of its own (auto_map); it is not run")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise DataError(f"{folder} holds no tokenizer; download it whole")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises bare Exception for files it cannot parse
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: its tokenizer cannot be read ({reason})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"{folder}: {type(tokenizer).__name__} has no fast form; give another")
    return tokenizer


def token_id(tokenizer: Any, token: str, folder: Path) -> int:
    """The number of one special token."""
    number = tokenizer.get_vocab().get(token)
    if number is None:
        raise DataError(f"{folder}: its tokenizer has no {token}; the two are not of one model")
    return int(number)
