"""The tokenizer beside weights: loaded from local files, its own code never run."""

from pathlib import Path
from typing import Any

from sfn_rt.exceptions import DataError
from sfn_train.weights.folder import CONFIG, read_json
from sfn_train.weights.internvl import IMAGE_TOKEN

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


def check_vocabulary(tokenizer: Any, n_embeddings: int, image_token: int, folder: Path) -> None:
    """Refuse a tokenizer whose ids are not the rows that an InternVL's config and weights have."""
    number, n_ids = (
        token_id(tokenizer, IMAGE_TOKEN, folder),
        max(tokenizer.get_vocab().values()) + 1,
    )
    if n_ids > n_embeddings or image_token != number:
        raise DataError(
            f"{folder}: its tokenizer has {n_ids} tokens with {IMAGE_TOKEN} at {number}, its "
            f"{CONFIG} {n_embeddings} embeddings with the image token at {image_token}; the two "
            f"are not of one model"
        )
