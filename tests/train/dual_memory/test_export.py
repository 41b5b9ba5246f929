"""The exported part: as PyTorch computes it, for any batch, and buildable by TensorRT."""

import platform
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sfn_export.exceptions import ParityError
from sfn_export.parity import BATCHES, SCALES, check_parts
from sfn_export.rtx import check_rtx
from sfn_export.trace import OPSET, specs_of, trace_part
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.exceptions import InputError
from sfn_train.config import Config, parse_config
from sfn_train.dual_memory import DualMemory, DualMemoryBackend, DualMemoryConfig, part_specs

PART = "autoencoder"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_yaml: str) -> tuple[DualMemory, Path]:
    """A network with running statistics of its own, and its graph."""
    config = parse_config(tiny_yaml, "tiny")
    assert isinstance(config.model, DualMemoryConfig)
    torch.manual_seed(0)
    network = DualMemory(config.model)
    with torch.no_grad():
        network(torch.rand(4, 16, 3, 16, 24))
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("exported") / "autoencoder.onnx"
    assert trace_part(PART, network.eval(), None, path) == part_specs(config.model)[PART]
    return network, path


def test_the_part_is_the_contracts(config: Config, network: DualMemory) -> None:
    specs = specs_of(network, text=False)
    assert specs.keys() == {PART}
    ((clip,), (error,)) = specs[PART].inputs, specs[PART].outputs
    assert str(clip) == "float32[batch, 16, 3, 16, 24]"
    assert str(error) == "float32[batch, 16, 24]"
    assert (clip.name, error.name) == ("clip", "error")


def test_the_graph_equals_pytorch(exported: tuple[DualMemory, Path]) -> None:
    network, path = exported
    with DualMemoryBackend(network) as reference, OrtBackend({PART: path}, threads=1) as ours:
        report = check_parts(reference, ours)
    cases = {d.case for d in report.differences}
    assert cases == {f"{kind} input, batch {batch}" for kind in SCALES for batch in BATCHES}
    assert any(d.max_abs > 0 for d in report.differences), "equal to the last bit: not compared?"


def test_a_graph_that_scores_another_frame_is_refused(
    exported: tuple[DualMemory, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, path = exported
    monkeypatch.setattr("sfn_train.dual_memory.model.SCORED", 7)
    with (
        DualMemoryBackend(network) as reference,
        OrtBackend({PART: path}, threads=1) as ours,
        pytest.raises(ParityError, match=r"autoencoder\.error: max"),
    ):
        check_parts(reference, ours)


def test_the_graph_is_canonical(exported: tuple[DualMemory, Path]) -> None:
    graph = onnx.load(exported[1])
    assert {o.domain: o.version for o in graph.opset_import}[""] == OPSET
    assert {node.domain for node in graph.graph.node} <= {""}
    names = {initializer.name for initializer in graph.graph.initializer}
    assert not [name for name in names if "anomalous" in name], "the score needs one memory"


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="tensorrt-rtx is made for Linux x86-64",
)
def test_the_graph_builds_in_tensorrt(exported: tuple[DualMemory, Path]) -> None:
    assert check_rtx(exported[1]).layers > 0


def test_the_backend_says_what_it_takes(exported: tuple[DualMemory, Path]) -> None:
    with DualMemoryBackend(exported[0]) as backend:
        wrong = np.zeros((1, 15, 3, 16, 24), np.float32)
        with pytest.raises(InputError, match=r"'clip' must be float32\[batch, 16, 3, 16, 24\]"):
            backend.infer(PART, {"clip": wrong})
        with pytest.raises(InputError, match="no part 'decoder'"):
            backend.infer("decoder", {"clip": wrong})
        right = np.zeros((1, 16, 3, 16, 24), np.float32)
        assert np.isfinite(backend.infer(PART, {"clip": right}, ["error"])["error"]).all()
