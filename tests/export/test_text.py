"""The sentence encoder on the device against sentence-transformers, for BERTs of both shapes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel

from sfn_export.trace import trace_part
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.semantics.text_encoder import TextEncoder
from sfn_train.config import SemanticsConfig
from sfn_train.model import SFN, ModelConfig
from sfn_train.text import TextModel
from tiny_weights import make_bert

SENTENCES = [
    "Two people walk along a path.",
    "a man is riding a bicycle beside the crowd",
    "",
    "x",
    "supercalifragilistic 31415926535 Ünïcödé ≠ ASCII",
    "one of two people left, " * 90,  # cut
]
SMALLEST_COSINE = 0.99999


def on_the_device(text: TextModel, folder: Path) -> np.ndarray:
    """Export, then embed with nothing but the graph and the tokenizer's file."""
    config = ModelConfig(frame_height=24, frame_width=24, text_dim=text.width, decoder_depth=1)
    path = folder / "text.onnx"
    trace_part("text", SFN(replace(config, n_filters=2, n_active=1)), text, path)
    with OrtBackend({"text": path}, threads=1) as backend:
        return TextEncoder(backend, text.tokenizer_json, text.max_tokens).encode(SENTENCES)


def smallest_cosine(one: np.ndarray, two: np.ndarray) -> float:
    cosines = (one * two).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    assert len(cosines) == len(SENTENCES)
    return float(cosines.min())


@pytest.fixture(scope="module")
def simcse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As sup-SimCSE-bert-base-uncased is laid out: a plain BERT with its pooler."""
    return make_bert(tmp_path_factory.mktemp("simcse"), tokenizer_json=True)


@pytest.mark.parametrize("kind", ["MiniLM", "SimCSE"])
def test_embeddings_are_those_of_sentence_transformers(
    kind: str, simcse: Path, tmp_path: Path
) -> None:
    text = TextModel() if kind == "MiniLM" else simcse_model(simcse)
    actual, expected = on_the_device(text, tmp_path), text.encode(SENTENCES)
    assert smallest_cosine(actual, expected) >= SMALLEST_COSINE
    assert smallest_cosine(actual, np.roll(expected, 1, axis=0)) < 0.999  # and no other's


def test_simcse_goes_through_its_pooler(simcse: Path, tmp_path: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(simcse)(
        SENTENCES, return_tensors="pt", padding=True, truncation=True, max_length=64
    )
    with torch.inference_mode():
        out = BertModel.from_pretrained(simcse).eval()(**tokens)
    actual = on_the_device(simcse_model(simcse), tmp_path)
    assert smallest_cosine(actual, out.pooler_output.numpy()) >= SMALLEST_COSINE
    assert smallest_cosine(actual, out.last_hidden_state[:, 0].numpy()) < 0.99


def simcse_model(folder: Path) -> TextModel:
    return TextModel.of(SemanticsConfig(text=str(folder), pooling="pooler"))
