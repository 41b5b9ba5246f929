"""Weights from elsewhere: converted without running their code, checked before they are used."""

import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from transformers import AutoTokenizer, InternVLForConditionalGeneration
from typer.testing import CliRunner, Result

from sfn_rt.exceptions import DataError, OutputError
from sfn_train.cli import app
from sfn_train.model.tower import VisionTower
from sfn_train.weights import convert as convert_module
from sfn_train.weights.check import check_weights, findings_text
from sfn_train.weights.convert import convert
from sfn_train.weights.folder import hash_files
from sfn_train.weights.internvl import expected_shapes, native_config
from tiny_weights import (
    make_bert,
    make_internvl,
    make_remote_internvl,
    make_sentence_transformers,
)

SINGLE = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each kind of folder, made once; tests change copies."""
    root = tmp_path_factory.mktemp("weights")
    for name in ("remote", "tied"):
        (root / name).mkdir()
    make_internvl(root / "native")
    make_remote_internvl(root / "remote")
    make_remote_internvl(root / "tied", tied=True, shards=1)
    make_bert(root / "bert", tokenizer_json=True)
    make_bert(root / "pickled", pickled=True)
    make_sentence_transformers(root / "sentence")
    return root


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Any:
    def copy(kind: str) -> Path:
        return Path(shutil.copytree(made / kind, tmp_path / kind))

    return copy


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(path: Path, **values: torch.Tensor | None) -> None:
    tensors = read(path) | values
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, metadata={"format": "pt"})


def read(path: Path) -> dict[str, torch.Tensor]:
    """In memory: load_file only maps a file, which a test then writes to."""
    return load(path.read_bytes())


def answers(folder: Path) -> dict[str, torch.Tensor]:
    """What a whole InternVL says of a prompt with a picture."""
    model = InternVLForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = "<|im_start|>user\n<img>" + "<IMG_CONTEXT>" * 4 + "</img>\nTwo people<|im_end|>\n"
    encoded = tokenizer(prompt, return_tensors="pt")
    frame = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            pixel_values=frame.to(model.dtype),
        )
        picture = model.model.vision_tower(frame.to(model.dtype)).last_hidden_state
    return {"ids": encoded["input_ids"], "picture": picture, "logits": out.logits}


# ------------------------------------------------------------------------------------ convert


def test_a_converted_model_says_exactly_what_the_native_one_says(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_module, "SHARD_BYTES", 100_000)
    done = convert(str(made / "remote"), tmp_path / "new")
    assert done.n_tensors == 73
    assert len(done.hashes) > 5  # files of at most SHARD_BYTES
    assert hash_files(tmp_path / "new" / name for name in done.hashes) == done.hashes
    expected, actual = answers(made / "native"), answers(tmp_path / "new")
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    assert float(expected["logits"].std()) > 0.1  # says something
    assert not list((tmp_path / "new").glob("*.py"))
    assert "without NaN" in findings_text(check_weights(str(tmp_path / "new")))


def test_tied_embeddings_stay_tied(made: Path, tmp_path: Path) -> None:
    convert(str(made / "tied"), tmp_path / "new")
    native = make_internvl(tmp_path / "native", tied=True)
    for name, tensor in answers(native).items():
        assert torch.equal(answers(tmp_path / "new")[name], tensor), name


def test_types_are_kept(copied: Any, tmp_path: Path) -> None:
    folder = copied("remote")
    for file in folder.glob("*.safetensors"):
        save_file({n: t.bfloat16() for n, t in read(file).items()}, file)
    convert(str(folder), tmp_path / "new")
    weights = read(tmp_path / "new" / SINGLE)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    model = InternVLForConditionalGeneration.from_pretrained(tmp_path / "new")
    assert model.dtype == torch.bfloat16
    assert VisionTower.load(str(tmp_path / "new")).width == 64


def test_the_published_sizes_make_the_published_model(made: Path) -> None:
    raw = json.loads((made / "remote" / "config.json").read_text())
    raw["vision_config"] |= {
        "hidden_size": 1024,
        "image_size": 448,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
    }
    raw["llm_config"] |= {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "vocab_size": 151674,
    }
    config = native_config(raw, 151667, made)
    assert (config.image_seq_length, config.image_token_id) == (256, 151667)
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    shapes = expected_shapes(config, made)
    tower = sum(
        torch.Size(shape).numel() for name, shape in shapes.items() if name.startswith("vision")
    )
    assert tower == 304_012_288  # InternViT-300M


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"select_layer": -4}, "select_layer is -4, expected -1 as in InternVL2_5-1B"),
        ({"ps_version": "v1"}, "ps_version is 'v1', expected 'v2'"),
        ({"llm_config": None}, "lacks vision_config or llm_config"),
        ({"llm_config": {"architectures": ["InternLM2ForCausalLM"]}}, "InternLM2ForCausalLM"),
        ({"vision_config": {"model_type": "siglip"}}, r"vision_config\.model_type is 'siglip'"),
    ],
)
def test_what_the_native_class_cannot_express_is_refused(
    copied: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = copied("remote")
    change_json(folder / "config.json", **change)
    with pytest.raises(DataError, match=message):
        convert(str(folder), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_unknown_missing_and_left_over_tensors_are_named(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    make_remote_internvl(folder, shards=1)
    file, whole = folder / SINGLE, (folder / SINGLE).read_bytes()
    at = "vision_model.encoder.layers.1."
    for changes, message in (
        ({"mlp1.7.weight": torch.ones(2)}, r"does not know: mlp1\.7\.weight"),
        ({f"{at}attn.rope": torch.ones(2)}, r"does not know: .*layers\.1\.attn\.rope"),
        ({"language_model.model.extra": torch.ones(2)}, r"no part of the model: .*\.extra"),
        ({f"{at}ls1": None}, r"lacks the tensor vision_tower\.encoder\.layer\.1\.lambda_1"),
        ({f"{at}ls2": torch.ones(3)}, r"lambda_2 is \[3\], but its config\.json makes it \[64\]"),
        ({f"{at}ls1": torch.ones(64).int()}, "ls1 is I32, expected one of F32, F16, BF16"),
    ):
        change_tensors(file, **changes)
        with pytest.raises(DataError, match=message):
            convert(str(folder), tmp_path / "new")
        file.write_bytes(whole)
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_of_another_model_is_refused(copied: Any, tmp_path: Path) -> None:
    folder = copied("remote")
    raw = json.loads((folder / "config.json").read_text())
    raw["llm_config"]["vocab_size"] = 300
    (folder / "config.json").write_text(json.dumps(raw))
    told = invoke("weights", "convert", folder, "--out", tmp_path / "new")
    assert_mistake(told, "embed_tokens.weight is [329, 48], but its config.json makes it [300, 48]")
    for file in folder.glob("*.safetensors"):
        tensors = {name: t[:300] if len(t) == 329 else t for name, t in read(file).items()}
        save_file(tensors, file)
    with pytest.raises(DataError, match="its tokenizer has 326 tokens, more than the 300 embed"):
        convert(str(folder), tmp_path / "new")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"].pop("325")
    settings["additional_special_tokens"].remove("<IMG_CONTEXT>")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "added_tokens.json").unlink()
    with pytest.raises(DataError, match="its tokenizer has no <IMG_CONTEXT>"):
        convert(str(folder), tmp_path / "new")
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer"]})
    with pytest.raises(DataError, match=r"asks for code of its own \(auto_map\)"):
        convert(str(folder), tmp_path / "new")


def test_a_pickled_bert_becomes_safetensors(made: Path, tmp_path: Path) -> None:
    convert(str(made / "pickled"), tmp_path / "new")
    expected, actual = read(made / "bert" / SINGLE), read(tmp_path / "new" / SINGLE)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    assert (tmp_path / "new" / "tokenizer.json").is_file()
    assert not list((tmp_path / "new").glob("*.bin"))
    assert "semantics.pooling=pooler" in findings_text(check_weights(str(tmp_path / "new")))


class Payload:
    """Runs where a careless reader unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.mark),))

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)


def test_code_in_a_pickle_never_runs(copied: Any, tmp_path: Path) -> None:
    folder, mark = copied("pickled"), tmp_path / "it-ran"
    for save in (
        lambda: torch.save({"pooler.dense.weight": Payload(mark)}, folder / "pytorch_model.bin"),
        lambda: (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark))),
    ):
        save()
        with pytest.raises(DataError, match="more than tensors, which could be code"):
            convert(str(folder), tmp_path / "new")
        with pytest.raises(DataError, match="as a pickle"):
            check_weights(str(folder))
    assert not mark.exists()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match="is damaged or cut short"):
        convert(str(folder), tmp_path / "new")
    torch.save([1, 2], folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="no table of tensors"):
        convert(str(folder), tmp_path / "new")


def test_what_needs_no_conversion_or_has_no_place_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing to convert; use it as it is"):
        convert(str(made / "native"), tmp_path / "new")
    with pytest.raises(OutputError, match="exists and is not empty; choose another --out"):
        convert(str(made / "remote"), made / "native")


# -------------------------------------------------------------------------------------- check


def test_a_whole_internvl_passes_and_its_hashes_are_sha256(made: Path) -> None:
    folder = made / "native"
    text = findings_text(check_weights(str(folder), deep=True))
    assert "InternVL, transformers' native class" in text
    assert "73 (73 F32) in 1 file" in text
    assert "326 tokens for 329 embeddings; <IMG_CONTEXT> is 325" in text
    assert "2 layers, width 64, 4 heads, patch 14, 56 x 56" in text
    assert "a random picture gives [1, 17, 64] without NaN" in text
    assert "tokens about the picture without NaN" in text
    for name, digest in hash_files([folder / "config.json", folder / SINGLE]).items():
        assert f"{digest}  {name}" in text
    assert VisionTower.load(str(folder)).fingerprint in text


@pytest.mark.parametrize("kind", ["bert", "sentence"])
def test_sentence_encoders_pass(made: Path, kind: str) -> None:
    text = findings_text(check_weights(str(made / kind)))
    assert "a sentence gives [1, 32] without NaN" in text
    assert "71 tokens for 71 embeddings" in text


def cut_short(folder: Path) -> None:
    with (folder / SINGLE).open("rb+") as file:
        file.truncate(file.seek(0, 2) - 100)


def cut_to_nothing(folder: Path) -> None:
    (folder / SINGLE).write_bytes(b"")


def huge_header(folder: Path) -> None:
    (folder / SINGLE).write_bytes(struct.pack("<Q", 2**40) + b"{}")


def disguised(folder: Path) -> None:
    torch.save(read(folder / SINGLE), folder / SINGLE)


def no_weights(folder: Path) -> None:
    (folder / SINGLE).unlink()


def only_pickle(folder: Path) -> None:
    torch.save(read(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def absent_shard(folder: Path) -> None:
    (folder / SINGLE).unlink()
    index = {"weight_map": {"vision_tower.x": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_outside(folder: Path) -> None:
    (folder / SINGLE).unlink()
    index = {"weight_map": {"vision_tower.x": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def other_class(folder: Path) -> None:
    change_json(folder / "config.json", model_type="llava")


def nonsense_config(folder: Path) -> None:
    change_json(folder / "config.json", vision_config={"hidden_size": "wide"})


def other_sizes(folder: Path) -> None:
    change_json(folder / "config.json", downsample_ratio=0.25)


def nan(folder: Path) -> None:
    name = "language_model.lm_head.weight"
    change_tensors(folder / SINGLE, **{name: torch.full((329, 48), torch.nan)})


def other_image_token(folder: Path) -> None:
    change_json(folder / "config.json", image_token_id=7)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "model.safetensors is damaged or cut short"),
        (cut_to_nothing, "model.safetensors is damaged or cut short"),
        (huge_header, "model.safetensors is damaged or cut short"),
        (disguised, "model.safetensors is damaged or cut short"),
        (no_weights, "holds neither model.safetensors nor"),
        (only_pickle, "has its weights as a pickle (pytorch_model.bin), and loading one can run"),
        (absent_shard, "model-00001-of-00002.safetensors does not exist, but"),
        (shard_outside, "leads out of the folder"),
        (no_config, "config.json does not exist"),
        (broken_config, "config.json cannot be read"),
        (other_class, "model_type is 'llava'; known are internvl"),
        (nonsense_config, "config.json cannot be used"),
        (other_sizes, "multi_modal_projector.layer_norm.weight is [256], but"),
        (nan, "lm_head.weight in model.safetensors holds NaN or infinity"),
        (other_image_token, "<IMG_CONTEXT> at 325, its config.json 329 embeddings with the image"),
        (no_tokenizer, "holds no tokenizer; download it whole"),
        (broken_tokenizer, "its tokenizer cannot be read"),
    ],
)
def test_a_damaged_folder_is_one_line_and_exit_code_2(
    copied: Any, damage: Any, message: str
) -> None:
    folder = copied("native")
    damage(folder)
    assert_mistake(invoke("weights", "check", folder), message)


def test_a_remote_folder_is_told_how_to_become_native(made: Path, tmp_path: Path) -> None:
    folder, out = made / "remote", tmp_path / "new"
    told = invoke("weights", "check", folder)
    assert_mistake(told, f"`python -m sfn_train weights convert {folder} --out NEW`")
    done = invoke("weights", "convert", folder, "--out", out)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith(f"next     python -m sfn_train weights check {out}\n")
    checked = invoke("weights", "check", out)
    assert checked.exit_code == 0, checked.output
    assert_mistake(invoke("weights", "convert", folder, "--out", out), "is not empty")
    assert_mistake(invoke("weights", "check", tmp_path / "absent"), "does not exist")


def test_a_bert_of_other_sizes_is_refused(copied: Any) -> None:
    folder = copied("bert")
    change_json(folder / "config.json", intermediate_size=32)
    assert_mistake(invoke("weights", "check", folder), "but its config.json makes it [32, 32]")
    change_json(folder / "config.json", intermediate_size=64)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text() + "more\nwords\n")
    assert_mistake(invoke("weights", "check", folder), "has 73 tokens, its config.json 71")
    change_tensors(folder / SINGLE, **{"pooler.dense.weight": None})
    assert_mistake(invoke("weights", "check", folder), "lacks the tensor pooler.dense.weight")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_mistake(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
