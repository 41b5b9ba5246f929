"""What a VLM reads around the pictures, made into plain text that a device can tokenise.

The chat template of a tokenizer is a program in a template language. It is rendered here, with
{message} where the user's message stands; the message is `Frame1: <image>` and so on, and then the
question, with a picture's tokens for each <image>.
"""

from pathlib import Path
from typing import Any

from sfn_export.exceptions import ExportError
from sfn_rt.semantics.caption_text import clean_caption
from sfn_rt.semantics.vlm import MESSAGE, PICTURE
from sfn_rt.semantics.vlm import Vlm as Device
from sfn_train.captions.vlm import Vlm
from sfn_train.weights.internvl import IMAGE_TOKEN

PROBE = "Two people don 't walk , one rides : a « bicycle » !\n\nÜnïcödé 東京 \N{SNOWMAN} ."


def check_question(question: str) -> None:
    """Refuse what cannot be asked, before anything is loaded."""
    if not question.strip():
        raise ExportError("--prompt is empty; leave it out to ask the paper's question")
    if PICTURE in question:
        raise ExportError(f"--prompt follows the frames, it must not hold {PICTURE} itself")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise ExportError(f"--prompt is not valid UTF-8 ({error.reason}); type it again") from None


def check_special(question: str, tokenizer: Any) -> None:
    """Refuse words that the tokenizer takes for its own signs: they would break the chat."""
    signs = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()})
    if found := [sign for sign in signs if sign in question]:
        raise ExportError(
            f"--prompt holds {found[0]}, which is a sign of the model's own; leave it out"
        )


def chat_around(tokenizer: Any, folder: Path) -> str:
    """The chat template around {message}."""
    chat: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": MESSAGE}], add_generation_prompt=True, tokenize=False
    )
    if chat.count(MESSAGE) != 1:
        raise ExportError(
            f"{folder}: its chat template shows a message {chat.count(MESSAGE)} times, expected "
            f"once; take chat_template.jinja from where the weights come from"
        )
    return chat


def picture_text(n_tokens: int) -> str:
    """What stands for <image>."""
    return f"<img>{IMAGE_TOKEN * n_tokens}</img>"


def check_same_text(ours: Device, vlm: Vlm) -> None:
    """The device must read the prompt, and write answers, as transformers does."""
    if ours.prompt_ids.tolist() != vlm.prompt_ids[0].tolist():
        raise ExportError(
            f"{vlm.folder}: its chat template changes the message it is given, so that a device "
            f"would read another prompt than training did; take chat_template.jinja from where "
            f"the weights come from"
        )
    ids = vlm.tokenizer(PROBE)["input_ids"]
    theirs = clean_caption(vlm.tokenizer.decode(ids, skip_special_tokens=True))
    if ours.text(ids) != theirs:
        raise ExportError(
            f"{vlm.folder}: transformers reads tokens back as {theirs!r}, a device as "
            f"{ours.text(ids)!r}; set clean_up_tokenization_spaces to false in "
            f"tokenizer_config.json"
        )
