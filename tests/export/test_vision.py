"""The vision tower is one graph, whoever brings it: the model's own part, and a VLM's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfn_export import trace
from sfn_export.exceptions import ExportError
from sfn_export.parity import check_parts
from sfn_export.trace import part_module, tower_graph, trace_part
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.features import Predictor
from sfn_train.model import SFN, ModelConfig
from sfn_train.model.tower import VisionTower
from sfn_train.torch_backend import TorchBackend, part_specs
from tiny_weights import WIDTH, make_internvl

SIZES: dict[str, Any] = {
    "frame_height": 56,
    "frame_width": 56,
    "patch": 14,
    "appearance_dim": WIDTH,
    "dim": 32,
    "motion_dim": 16,
    "decoder_depth": 1,
    "n_filters": 4,
    "n_active": 2,
    "text_dim": 8,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_internvl(tmp_path_factory.mktemp("weights") / "internvl")


@pytest.fixture(scope="module")
def model(weights: Path) -> SFN:
    torch.manual_seed(0)
    return SFN(ModelConfig(tower=str(weights), **SIZES)).eval()


@pytest.fixture(scope="module")
def graphs(model: SFN, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The parts that see the tower, and that it does without."""
    folder = tmp_path_factory.mktemp("graphs")
    paths = {part: folder / f"{part}.onnx" for part in ("vision", "appearance")}
    for part, path in paths.items():
        assert trace_part(part, model, None, path) == part_specs(model.config, text=False)[part]
    return paths


def test_the_same_weights_give_the_same_bytes(
    model: SFN,
    graphs: dict[str, Path],
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = tower_graph(VisionTower.load(str(weights)), tmp_path / "vision.onnx")
    assert [tensor.name for tensor in spec.outputs] == ["hidden", "embedded"]
    assert (tmp_path / "vision.onnx").read_bytes() == graphs["vision"].read_bytes()

    # And where the weights lie beside the graph, which knows the name of their file.
    monkeypatch.setattr(trace, "INLINE_BYTES", 1)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    trace_part("vision", model, None, tmp_path / "one" / "vision.onnx")
    tower_graph(VisionTower.load(str(weights)), tmp_path / "two" / "vision.onnx")
    for name in ("vision.onnx", "vision.onnx.data"):
        one, two = (tmp_path / folder / name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    monkeypatch.undo()

    other = VisionTower.load(str(make_internvl(tmp_path / "other", seed=1)))
    tower_graph(other, tmp_path / "other.onnx")
    assert (tmp_path / "other.onnx").read_bytes() != graphs["vision"].read_bytes()


def test_both_parts_equal_pytorch(model: SFN, graphs: dict[str, Path]) -> None:
    with TorchBackend(model, None) as reference, OrtBackend(graphs, threads=1) as exported:
        report = check_parts(reference, exported)
    compared = {difference.tensor for difference in report.differences}
    assert compared == {
        "vision.hidden",
        "vision.embedded",
        "appearance.tokens",
        "appearance.skip",
    }


def test_the_projection_holds_no_second_tower(graphs: dict[str, Path]) -> None:
    assert graphs["appearance"].stat().st_size < graphs["vision"].stat().st_size / 10


def test_the_parts_in_a_row_predict_as_the_whole(model: SFN) -> None:
    c = model.config
    frames = torch.randn(7, 3, c.frame_height, c.frame_width)
    text = torch.randn(3, c.text_width)
    with torch.inference_mode():
        expected = model(frames[None], text[None])
    with TorchBackend(model, None) as backend:
        assert {"vision", "appearance"} < backend.parts.keys()
        predictor = Predictor(backend, c.observed)
        predicted = predictor.decode(predictor.encode(frames.numpy()), text.numpy())
    assert predicted is not None
    np.testing.assert_allclose(predicted.next_frame, expected.next_frame, atol=1e-5)
    np.testing.assert_allclose(predicted.semantic, expected.semantic, atol=1e-5)


def test_a_model_without_a_tower_has_no_such_part() -> None:
    model = SFN(ModelConfig(**SIZES)).eval()
    specs = part_specs(model.config, text=False)
    assert "vision" not in specs
    assert [tensor.name for tensor in specs["appearance"].inputs] == ["frame"]
    with pytest.raises(ExportError, match="no part 'vision'"):
        part_module("vision", model, None, "dense")
