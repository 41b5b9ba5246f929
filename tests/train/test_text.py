"""The sentence encoder: found offline, pooled as its folder says, equal on the device's path."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel

from sfn_rt.exceptions import DataError
from sfn_rt.semantics.text_encoder import TextEncoder
from sfn_train.config import SemanticsConfig
from sfn_train.model import SFN
from sfn_train.text import TextModel, default_folder
from sfn_train.torch_backend import TorchBackend
from sfn_train.weights.convert import convert
from tiny_weights import make_bert

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


# ---------------------------------------------------------- a plain BERT: sup-SimCSE's layout

SAID = ["Two people walk along.", "one man is riding a bicycle, left?", "", "walk " * 100]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"), tokenizer_json=True)


def transformers_outputs(folder: Path) -> dict[str, torch.Tensor]:
    """What transformers itself makes of SAID, by the name of the pooling."""
    tokens = AutoTokenizer.from_pretrained(folder)(
        SAID, return_tensors="pt", padding=True, truncation=True, max_length=64
    )
    with torch.inference_mode():
        out = BertModel.from_pretrained(folder).eval()(**tokens)
    mask = tokens["attention_mask"].unsqueeze(-1)
    mean = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
    return {"pooler": out.pooler_output, "cls": out.last_hidden_state[:, 0], "mean": mean}


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
def test_a_plain_bert_is_pooled_as_the_setting_says_on_every_path(
    plain: Path, pooling: str, model: SFN
) -> None:
    text = TextModel.of(SemanticsConfig(text=str(plain), pooling=pooling))
    outputs = transformers_outputs(plain)
    expected = torch.nn.functional.normalize(outputs.pop(pooling), dim=-1).numpy()
    encoder = TextEncoder(TorchBackend(model, text), text.tokenizer_json, text.max_tokens)
    for embeddings in (text.encode(SAID), encoder.encode(SAID)):  # workshop; device's path
        assert (embeddings * expected).sum(axis=1).min() >= 0.99999
    for other in outputs.values():  # and the three are told apart
        wrong = torch.nn.functional.normalize(other, dim=-1).numpy()
        assert (embeddings * wrong).sum(axis=1).min() < 0.99


def test_a_plain_bert_without_a_stated_pooling_is_refused(plain: Path) -> None:
    with pytest.raises(DataError, match=r"set semantics\.pooling to pooler, cls, mean \(sup-SimC"):
        TextModel(plain)
    with pytest.raises(DataError, match="pooling max is none of pooler, cls, mean"):
        TextModel(plain, "max")
    with pytest.raises(DataError, match=r"states its own pooling in modules\.json"):
        TextModel(default_folder(), "pooler")
    with pytest.raises(ValueError, match="pooling is of the plain BERT folder"):
        SemanticsConfig(pooling="pooler")


def test_a_plain_folder_that_cannot_be_used_is_refused(plain: Path, tmp_path: Path) -> None:
    pickled = make_bert(tmp_path / "pickled", pickled=True, tokenizer_json=True)
    with pytest.raises(DataError, match=r"as a pickle \(pytorch_model\.bin\).*weights convert"):
        TextModel(pickled, "pooler")
    slow = make_bert(tmp_path / "slow")
    with pytest.raises(DataError, match=r"tokenizer\.json does not exist.*weights convert"):
        TextModel(slow, "pooler")
    (slow / "config.json").write_text('{"model_type": "internvl"}')
    with pytest.raises(DataError, match="a sentence encoder is a BERT"):
        TextModel(slow, "pooler")


def test_a_converted_pickle_embeds_as_the_original(plain: Path, tmp_path: Path) -> None:
    pickled = make_bert(tmp_path / "pickled", pickled=True)
    convert(str(pickled), tmp_path / "new")
    expected = TextModel(plain, "pooler").encode(SAID)
    np.testing.assert_array_equal(TextModel(tmp_path / "new", "pooler").encode(SAID), expected)
