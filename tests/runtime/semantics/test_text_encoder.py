"""Sentences are embedded as sentence-transformers does it, without torch."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sfn_rt.backends.fake import RepeatLastFrame
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import load_bundle
from sfn_rt.exceptions import BundleError
from sfn_rt.semantics.text_encoder import BATCH, TextEncoder, load_tokenizer
from sfn_train.text import TextModel

SENTENCES = [
    "Two people walk slowly to the left.",
    "One large thing moves fast through the middle of the picture.",
    "Nothing moves.",
    "",
    "   spaces around   ",
    "A crowd runs away from an explosion in the square, smoke everywhere.",
    "Ünïcödé, ÉMOJI \N{SNOWMAN} and 東京",
    "word " * 600,  # cut at max_tokens
]


@pytest.fixture(scope="module")
def text_model() -> TextModel:
    return TextModel()


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Iterator[TextEncoder]:
    bundle = load_bundle(tiny_bundle)
    settings = bundle.manifest.semantics.text
    assert settings is not None
    with OrtBackend({"text": bundle.graph("text")}, threads=1) as backend:
        yield TextEncoder(backend, bundle.path(settings.tokenizer), settings.max_tokens)


def test_equals_sentence_transformers(encoder: TextEncoder, text_model: TextModel) -> None:
    ours, theirs = encoder.encode(SENTENCES), text_model.encode(SENTENCES)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == (len(SENTENCES), encoder.width)
    cosine = np.einsum("ns,ns->n", ours, theirs)
    assert cosine.min() >= 0.99999, SENTENCES[int(cosine.argmin())][:40]


def test_company_does_not_change_an_embedding(encoder: TextEncoder, tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    with OrtBackend({"text": bundle.graph("text")}, threads=1) as backend:
        alone = TextEncoder(backend, bundle.path("tokenizer.json"), 256)
        np.testing.assert_allclose(
            alone.encode(SENTENCES[:1]), encoder.encode(SENTENCES)[:1], atol=1e-5
        )


@pytest.fixture
def fake() -> RepeatLastFrame:
    return RepeatLastFrame()


def make(fake: RepeatLastFrame, text_model: TextModel, remember: int = 3) -> TextEncoder:
    return TextEncoder(fake, text_model.tokenizer_json, 16, remember=remember)


def test_repeated_sentences_are_embedded_once(fake: RepeatLastFrame, text_model: TextModel) -> None:
    encoder = make(fake, text_model)
    first = encoder.encode(["a", "b", "a"])
    assert fake.images["text"] == 2
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(encoder.encode(["b"])[0], first[1])
    assert fake.images["text"] == 2


def test_memory_is_bounded_and_forgets_the_oldest(
    fake: RepeatLastFrame, text_model: TextModel
) -> None:
    encoder = make(fake, text_model)
    encoder.encode(["a", "b", "c"])
    encoder.encode(["a"])  # now b is the oldest
    encoder.encode(["d"])
    assert fake.images["text"] == 4
    encoder.encode(["a", "c", "d"])
    assert fake.images["text"] == 4
    encoder.encode(["b"])
    assert fake.images["text"] == 5


def test_more_sentences_than_a_batch_and_than_memory(
    fake: RepeatLastFrame, text_model: TextModel
) -> None:
    encoder = make(fake, text_model)
    many = [f"thing {i}" for i in range(2 * BATCH + 3)]
    rows = encoder.encode(many)
    assert rows.shape == (len(many), 6)
    np.testing.assert_array_equal(rows[5], make(fake, text_model).encode([many[5]])[0])


def test_no_sentence(fake: RepeatLastFrame, text_model: TextModel) -> None:
    assert make(fake, text_model).encode([]).shape == (0, 6)


def test_what_the_file_says_of_padding_is_overridden(text_model: TextModel) -> None:
    tokenizer = load_tokenizer(text_model.tokenizer_json, 8)  # the file pads all to 128
    assert len(tokenizer.encode("a").ids) == 3
    assert len(tokenizer.encode("a " * 50).ids) == 8


def test_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer.json: not a tokenizer file"):
        load_tokenizer(path, 8)


def test_tokenizer_without_padding(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "[UNK]": 1}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(BundleError, match=r"names no padding token"):
        load_tokenizer(path, 8)
