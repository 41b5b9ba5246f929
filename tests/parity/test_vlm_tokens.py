"""The device's captioner gives the very token ids of transformers' `generate`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sfn_rt.bundle import Bundle, load_bundle
from sfn_rt.preprocess import Preprocessing, preprocess
from sfn_rt.semantics.caption_text import clean_caption
from sfn_rt.semantics.captioner import Said
from sfn_rt.semantics.vlm import Vlm

QUESTIONS = (
    "Describe the scene in the video segment, what objects are present, and what is each person "
    "doing?",
    "a",
    "Is anyone riding a bicycle?\n\nSay yes or no.   Then say why. ",
    '{message} {0} {{x}} %s \\n "quoted" <b>bold</b> \t Ünïcödé 東京 \N{SNOWMAN}',
    "Name every vehicle, how many people walk beside it, and in which direction they go. " * 4,
)
CLIPS = 4  # of each question: 20 captions
LENGTHS = (48, 52, 56, 60, 64)  # tokens, a length a question
DISTINCT = 16  # tokens that each caption has at least

Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def bundle(vlm_bundle: Path) -> Bundle:
    return load_bundle(vlm_bundle)


@pytest.fixture(scope="module")
def generate(vlm_weights: Path) -> "Generate":
    return Generate(vlm_weights)


class Generate:
    """transformers with ids and pixels, one clip at a time: none of this project's code."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, InternVLForConditionalGeneration

        model: Any = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.model, self.tokenizer = model.eval(), AutoTokenizer.from_pretrained(folder)

    def ids(self, question: str) -> list[int]:
        tile = f"<img>{'<IMG_CONTEXT>' * 4}</img>"
        frames = f"Frame1: {tile}\nFrame2: {tile}\nFrame3: {tile}\nFrame4: {tile}\n"
        message = {"role": "user", "content": frames + question}
        ids: list[int] = self.tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        return ids

    def tokens(self, question: str, clip: list[Image], most: int) -> list[int]:
        spec = Preprocessing(height=56, width=56, resize="bicubic")
        ids = torch.tensor([self.ids(question)])
        new = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.from_numpy(np.stack([preprocess(image, spec) for image in clip])),
            do_sample=False,
            max_new_tokens=most,
        )
        tokens: list[int] = new[0, ids.shape[1] :].tolist()
        return tokens


def asking(bundle: Bundle, question: str) -> Bundle:
    """The bundle as an export with this --prompt would have it."""
    settings = bundle.manifest.vlm
    assert settings is not None
    prompt = settings.origin.prompt.replace(QUESTIONS[0], question)
    origin = replace(settings.origin, prompt=prompt)
    return replace(bundle, manifest=replace(bundle.manifest, vlm=replace(settings, origin=origin)))


def pictures(seed: int) -> list[Image]:
    """Overlapping clips share all but one of their frames."""
    random = np.random.default_rng(seed)
    shape = (40, 70, 3)
    return [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(CLIPS + 3)]


def test_twenty_captions_have_the_ids_of_generate(bundle: Bundle, generate: Generate) -> None:
    captions: list[tuple[int, ...]] = []
    for number, (question, most) in enumerate(zip(QUESTIONS, LENGTHS, strict=True)):
        frames = pictures(number)
        with Vlm(asking(bundle, question), threads=1, max_tokens=most) as vlm:
            assert vlm.prompt_ids.tolist() == generate.ids(question)
            hidden = vlm.see(frames)
            clips = [hidden[i : i + 4] for i in range(CLIPS)]
            said = vlm.describe(clips)
            assert [vlm.describe([clip]) for clip in clips] == [[one] for one in said]
        for i, one in enumerate(said):
            expected = generate.tokens(question, frames[i : i + 4], most)
            assert list(one.tokens) == expected, f"question {number}, clip {i}"
            assert len({*expected}) >= DISTINCT, f"question {number}, clip {i}: says too little"
            assert text_of(generate, expected) == one
        captions += [one.tokens for one in said]
    assert len({*captions}) == len(captions) == 20  # another picture, other tokens


def text_of(generate: Generate, tokens: list[int]) -> Said:
    """The caption as transformers reads it."""
    end = generate.model.generation_config.eos_token_id
    text = generate.tokenizer.decode(tokens, skip_special_tokens=True)
    return Said(clean_caption(text), cut=tokens[-1] != end, tokens=tuple(tokens))


def test_a_picture_more_or_less_is_another_caption(bundle: Bundle, generate: Generate) -> None:
    """The last frame alone changes what is said: all four are in the prompt, in their order."""
    frames = pictures(0)
    with Vlm(bundle, threads=1, max_tokens=24) as vlm:
        hidden = vlm.see(frames[:5])
        orders = [[0, 1, 2, 3], [0, 1, 2, 4], [3, 2, 1, 0]]
        said = vlm.describe([hidden[order] for order in orders])
    assert len({one.tokens for one in said}) == 3
    for order, one in zip(orders, said, strict=True):
        clip = [frames[i] for i in order]
        assert list(one.tokens) == generate.tokens(QUESTIONS[0], clip, 24)
