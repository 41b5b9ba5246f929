"""The frozen tower: transformers' own outputs, never trained, never saved, exportable."""

import json
import logging
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import InternVLForConditionalGeneration

from sfn_rt.exceptions import DataError
from sfn_train.model import SFN, ModelConfig
from sfn_train.model.tower import VisionTower, load_tower, tower_fingerprint
from tiny_weights import make_bert, make_internvl, make_remote_internvl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_internvl(tmp_path_factory.mktemp("internvl"))


@pytest.fixture
def tower(folder: Path) -> VisionTower:
    return VisionTower.load(str(folder))


@pytest.fixture
def editable(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "internvl"
    shutil.copytree(folder, copy)
    return copy


@pytest.fixture
def settings(tiny: ModelConfig, folder: Path) -> ModelConfig:
    sizes = {"frame_height": 56, "frame_width": 56, "patch": 14, "appearance_dim": 64}
    return replace(tiny, tower=str(folder), **sizes)


def frames(n: int, size: int = 56) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_both_outputs_are_those_of_transformers(folder: Path, tower: VisionTower) -> None:
    whole = InternVLForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = whole.model.vision_tower(frames(2), output_hidden_states=True)
        hidden, embedded = tower(frames(2))
    assert (tower.width, tower.patch, tower.image_size) == (64, 14, 56)
    assert not tower.training
    assert hidden.shape == (2, 17, 64)
    torch.testing.assert_close(hidden, expected.last_hidden_state, atol=0, rtol=0)
    # what enters the first block: positions are in it, the class token is not
    torch.testing.assert_close(embedded, expected.hidden_states[0][:, 1:], atol=0, rtol=0)


def test_only_the_tower_is_read(editable: Path) -> None:
    weights = load_file(editable / "model.safetensors")
    tower_only = {name: t for name, t in weights.items() if name.startswith("vision_tower.")}
    save_file(tower_only, editable / "model.safetensors")
    assert VisionTower.load(str(editable)).width == 64


def test_it_never_trains_and_is_never_saved(settings: ModelConfig) -> None:
    torch.manual_seed(0)
    model = SFN(settings).train()
    tower = model.appearance.vit
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    text = torch.randn(1, 1, settings.text_dim)
    prediction = model(frames(5)[None], text)
    (prediction.next_frame.mean() + prediction.semantic.mean()).backward()
    assert all(parameter.grad is None for parameter in tower.parameters())
    assert model.appearance.project.weight.grad.abs().sum() > 0

    saved = model.state_dict()
    assert not [name for name in saved if ".vit." in name and name.startswith("appearance")]
    other = SFN(settings)
    other.load_state_dict(saved)  # strict
    for (name, left), right in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right), name
    del saved["appearance.project.weight"]
    with pytest.raises(RuntimeError, match=r"appearance\.project\.weight"):
        other.load_state_dict(saved)


def test_cached_features_stand_for_the_tower(settings: ModelConfig) -> None:
    torch.manual_seed(0)
    model = SFN(settings).eval()
    run = frames(7)[None]  # 3 clips
    text = torch.randn(1, 3, settings.text_dim)
    with torch.no_grad():
        features = tuple(part[None] for part in model.appearance.vit(run[0, :-1]))
        expected = model(run, text)
        model.appearance.vit = nn.Identity()  # would fail if it ran
        actual = model(run, text, features)
    torch.testing.assert_close(actual.next_frame, expected.next_frame)


def test_autocast_around_it_changes_nothing(tower: VisionTower) -> None:
    expected = tower(frames(1))
    with torch.autocast("cpu", torch.bfloat16):
        actual = tower(frames(1))
    for left, right in zip(actual, expected, strict=True):
        assert left.dtype == torch.float32
        torch.testing.assert_close(left, right, atol=0, rtol=0)


@pytest.mark.gpu
def test_it_computes_in_bfloat16_on_a_gpu(tower: VisionTower) -> None:
    expected = tower(frames(2))
    moved = tower.to("cuda")
    actual = moved(frames(2).cuda())
    assert {parameter.dtype for parameter in moved.parameters()} == {torch.bfloat16}
    for left, right in zip(actual, expected, strict=True):
        assert left.dtype == torch.float32
        error = (left.cpu() - right).norm() / right.norm()
        assert 0 < error < 0.02  # 8 bits of mantissa through two layers


def test_the_fingerprint_is_of_the_files_that_were_read(
    folder: Path, editable: Path, tower: VisionTower, tmp_path: Path
) -> None:
    assert tower.fingerprint == tower_fingerprint(str(folder)) == tower_fingerprint(str(editable))
    assert sorted(tower.files) == ["config.json", "model.safetensors"]
    other = make_internvl(tmp_path / "other", seed=1)
    assert tower_fingerprint(str(other)) != tower.fingerprint


def test_it_exports_and_onnx_runtime_agrees(tower: VisionTower, tmp_path: Path) -> None:
    file = tmp_path / "tower.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision is not installed
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # torch's own use of torch
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        program = torch.onnx.export(
            tower,
            (frames(2),),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},),
            output_names=["hidden", "embedded"],
            verbose=False,
        )
    program.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for n in (1, 2, 5):
        actual = session.run(None, {session.get_inputs()[0].name: frames(n).numpy()})
        for left, right in zip(actual, tower(frames(n)), strict=True):
            scale = float(right.abs().max())
            np.testing.assert_allclose(left, right.numpy(), atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"appearance_dim": 32}, "model.appearance_dim is 32, but the tower's is 64"),
        ({"patch": 7}, "model.patch is 7, but the tower's is 14"),
        ({"frame_height": 70}, "model.frame_height is 70, but the tower's is 56"),
        ({"frame_width": 28}, "model.frame_width is 28, but the tower's is 56"),
    ],
)
def test_settings_of_another_size_are_refused(
    settings: ModelConfig, change: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_tower(replace(settings, **change))


def test_folders_of_another_class_are_refused(tmp_path: Path) -> None:
    make_bert(tmp_path / "bert")
    with pytest.raises(DataError, match="a vision tower comes from an InternVL folder"):
        VisionTower.load(str(tmp_path / "bert"))
    (tmp_path / "remote").mkdir()
    make_remote_internvl(tmp_path / "remote")
    with pytest.raises(DataError, match="weights convert"):
        VisionTower.load(str(tmp_path / "remote"))
    with pytest.raises(DataError, match="does not exist"):
        VisionTower.load(str(tmp_path / "absent" / "folder"))
    with pytest.raises(DataError, match="is a file; give the folder"):
        VisionTower.load(str(tmp_path / "bert" / "config.json"))


def test_weights_that_are_not_the_configs_are_refused(editable: Path) -> None:
    config = json.loads((editable / "config.json").read_text())
    config["vision_config"]["intermediate_size"] = 96
    (editable / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"mlp\.fc1\.weight is \[128, 64\], but .* \[96, 64\]"):
        VisionTower.load(str(editable))
    config["vision_config"] |= {"intermediate_size": 128, "num_hidden_layers": 3}
    (editable / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"lacks the tensor encoder\.layer\.2\."):
        VisionTower.load(str(editable))
    config["vision_config"]["num_hidden_layers"] = 1
    (editable / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"no part of the model: encoder\.layer\.1\."):
        VisionTower.load(str(editable))
    config["vision_config"]["image_size"] = [56, 28]
    (editable / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"image_size is \[56, 28\], expected a square"):
        VisionTower.load(str(editable))


def test_a_hub_name_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot be fetched from the hub .* download it where"):
        VisionTower.load("SomeOwner/some-model-that-is-not-here")


def test_a_hub_name_that_was_fetched_before_is_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "models--SomeOwner--some-model"
    shutil.copytree(folder, stored / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert VisionTower.load("SomeOwner/some-model").width == 64
