"""Every exported part against its PyTorch source: faint, unit, outliers; batch 1 and 3."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sfn_export.parity import BATCHES, SCALES, check_parts
from sfn_export.trace import trace_part
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import load_bundle
from sfn_train.checkpoint import load_run
from sfn_train.model import SFN, ModelConfig
from sfn_train.text import TextModel
from sfn_train.torch_backend import TorchBackend, part_specs

BRANCHES: dict[str, dict[str, Any]] = {
    "without appearance": {"use_appearance": False, "predict": "frame"},
    "without motion, text and filters": {
        "use_motion": False,
        "use_text": False,
        "filter": "none",
    },
}


@pytest.mark.parametrize("part", ["appearance", "motion", "decoder", "text"])
def test_part_equals_pytorch(tiny_run: Path, tiny_bundle: Path, part: str) -> None:
    model, text = load_run(tiny_run).model, TextModel()
    graph = load_bundle(tiny_bundle).graph(part)
    with TorchBackend(model, text) as reference, OrtBackend({part: graph}, threads=1) as exported:
        report = check_parts(
            reference, exported, tokenizer=text.tokenizer_json, max_tokens=text.max_tokens
        )
    cases = {d.case for d in report.differences}
    assert cases == {f"{kind} input, batch {batch}" for kind in SCALES for batch in BATCHES}
    assert any(d.max_abs > 0 for d in report.differences), "equal to the last bit: not compared?"
    if part == "decoder":
        assert {d.tensor for d in report.differences} == {"decoder.next_frame", "decoder.semantic"}
        assert report.rerouted
        assert "tokens routed otherwise" in report.text()


@pytest.mark.parametrize("changes", BRANCHES.values(), ids=list(BRANCHES))
def test_branches_that_are_off_are_absent(
    tmp_path: Path, tiny_run: Path, changes: dict[str, Any]
) -> None:
    settings = vars(load_run(tiny_run).config.model) | changes
    torch.manual_seed(1)
    model = SFN(ModelConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    specs = part_specs(model.config, text=False)
    assert ("appearance" in specs) == model.config.use_appearance
    assert ("motion" in specs) == model.config.use_motion
    graphs = {part: tmp_path / f"{part}.onnx" for part in specs}
    for part, path in graphs.items():
        assert trace_part(part, model, None, path, form="dispatch") == specs[part]
    with TorchBackend(model, None) as reference, OrtBackend(graphs, threads=1) as exported:
        report = check_parts(reference, exported)
    assert bool(report.rerouted) == (model.config.filter == "sffm")


def test_dispatch_in_the_whole_decoder(tiny_run: Path, tmp_path: Path) -> None:
    model, path = load_run(tiny_run).model, tmp_path / "decoder.onnx"
    trace_part("decoder", model, None, path, form="dispatch")
    with TorchBackend(model, None) as reference, OrtBackend({"decoder": path}) as exported:
        assert check_parts(reference, exported).rerouted


def test_whole_path_was_compared_on_real_clips(tiny_bundle: Path) -> None:
    path = json.loads((tiny_bundle / "parity.json").read_text())["path"]
    assert path["n_frames"] == 30
    assert 0 < path["max_score"] <= 1e-3
    assert path["auc"] is not None
    assert path["auc"] <= 1e-4
    assert path["rerouted"]["tokens"] == 26 * 2 * 26  # tokens, layers, clips
