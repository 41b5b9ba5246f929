"""The sentence encoder: found offline, pooled as its folder says, equal on the device's path."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sfn_rt.exceptions import DataError
from sfn_rt.semantics.text_encoder import TextEncoder
from sfn_train.model import SFN
from sfn_train.text import TextModel, default_folder
from sfn_train.torch_backend import TorchBackend

SENTENCES = ["One small thing walks left.", "A large thing is fast.", "", "nothing moves " * 40]


@pytest.fixture(scope="module")
def text() -> TextModel:
    return TextModel()


def test_embeddings_have_length_one_and_the_stated_width(text: TextModel) -> None:
    embeddings = text.encode(SENTENCES)
    assert embeddings.shape == (4, text.width) == (4, 384)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert text.encode([]).shape == (0, 384)


def test_runtime_text_encoder_on_the_traced_module_equals_sentence_transformers(
    text: TextModel, model: SFN
) -> None:
    encoder = TextEncoder(TorchBackend(model, text), text.tokenizer_json, text.max_tokens)
    # fp32 through six layers, other batch and padding
    np.testing.assert_allclose(encoder.encode(SENTENCES), text.encode(SENTENCES), atol=2e-6)


def test_padding_does_not_change_an_embedding(text: TextModel) -> None:
    module = text.module()
    ids = torch.tensor([[101, 2028, 2235, 102]])
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.int64)], dim=1)
    with torch.inference_mode():
        short = module(ids, torch.ones_like(ids))
        long = module(padded, (padded != 0).long())
    torch.testing.assert_close(short, long, atol=1e-6, rtol=0)


@pytest.fixture
def editable(tmp_path: Path) -> Path:
    """A copy of the default folder whose small files can be changed; the weights are linked."""
    folder = tmp_path / "encoder"
    shutil.copytree(default_folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").symlink_to(default_folder() / "model.safetensors")
    return folder


def set_pooling(folder: Path, mode: str) -> None:
    config = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config | {mode: True}))


def test_first_token_pooling_is_read_from_the_folder(editable: Path) -> None:
    set_pooling(editable, "pooling_mode_cls_token")
    text = TextModel(editable)
    assert text.module().pooling == "cls"
    ids = torch.tensor([[101, 2028, 2235, 102]])
    with torch.inference_mode():
        first = text.module()(ids, torch.ones_like(ids)).numpy()
    np.testing.assert_allclose(first, text.encode(["one small"]), atol=2e-6)


def test_a_pooler_behind_the_first_token_is_part_of_the_module(editable: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(0)
    set_pooling(editable, "pooling_mode_cls_token")
    (editable / "2_Dense").mkdir()
    Dense(384, 24).save(str(editable / "2_Dense"))  # tanh, as BERT's pooler
    modules = json.loads((editable / "modules.json").read_text())[:2]
    kind = "sentence_transformers.models.Dense"
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": kind})
    (editable / "modules.json").write_text(json.dumps(modules))
    text = TextModel(editable)
    assert text.width == 24
    ids = torch.tensor([[101, 2028, 2235, 102]])
    with torch.inference_mode():
        pooled = text.module()(ids, torch.ones_like(ids)).numpy()
    np.testing.assert_allclose(pooled, text.encode(["one small"]), atol=2e-6)


def test_pooling_that_cannot_be_exported_is_refused(editable: Path) -> None:
    set_pooling(editable, "pooling_mode_max_tokens")
    with pytest.raises(DataError, match="pooling is max, but only mean and cls"):
        TextModel(editable).module()


def test_a_folder_that_is_no_encoder_is_refused_before_anything_loads(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"modules\.json does not exist"):
        TextModel(tmp_path)
