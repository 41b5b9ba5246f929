"""Graphs are valid, dynamic in their batch, and say nothing about the machine they come from."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from sfn_export.exceptions import ExportError
from sfn_export.trace import OPSET, check_graph, export_onnx, trace_part
from sfn_rt.backends.base import PartSpec, TensorSpec
from sfn_rt.backends.ort import OrtBackend
from sfn_train.checkpoint import load_run

PARTS = ("appearance", "motion", "decoder", "text")


@pytest.mark.parametrize("part", PARTS)
def test_graph_is_canonical(tiny_bundle: Path, part: str, repository: Path) -> None:
    path = tiny_bundle / f"{part}.onnx"
    graph = onnx.load(path)
    assert {o.domain: o.version for o in graph.opset_import}[""] == OPSET
    assert {node.domain for node in graph.graph.node} <= {""}
    content = path.read_bytes()
    for trace in (str(repository), "site-packages", "stack_trace"):
        assert trace.encode() not in content


@pytest.mark.parametrize("part", PARTS)
def test_nodes_are_named_after_their_modules(tiny_bundle: Path, part: str) -> None:
    names = [node.name for node in onnx.load(tiny_bundle / f"{part}.onnx").graph.node]
    assert len(set(names)) == len(names)
    modules = {name.rpartition("/")[0] for name in names}
    there = {
        "appearance": {"vit.blocks.0.attention.qkv", "project"},
        "motion": {"vit.blocks.0.attention.qkv", "vit.norm"},
        "decoder": {"mjad.filters.0", "mjad.filters.1.router", "mjad.frame_head.refine.0"},
        "text": {"part"},
    }
    assert there[part] <= modules
    assert max(map(len, names)) < 80  # transformers nests deepest


def test_modules_of_the_names_are_those_of_the_run(tiny_run: Path, tiny_bundle: Path) -> None:
    known = {"part", *(name for name, _ in load_run(tiny_run).model.decoder.named_modules())}
    graph = onnx.load(tiny_bundle / "decoder.onnx").graph
    assert {node.name.rpartition("/")[0] for node in graph.node} <= known


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batch_is_dynamic(tiny_bundle: Path, batch: int) -> None:
    with OrtBackend({"motion": tiny_bundle / "motion.onnx"}, threads=1) as backend:
        (spec,) = backend.parts["motion"].inputs
        x = np.ones((batch, *spec.shape[1:]), np.float32)  # type: ignore[arg-type]
        assert len(backend.infer("motion", {"difference": x})["tokens"]) == batch


def test_the_same_model_gives_the_same_bytes(
    tiny_run: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    again = tmp_path / "motion.onnx"
    trace_part("motion", load_run(tiny_run).model, None, again)
    assert again.read_bytes() == (tiny_bundle / "motion.onnx").read_bytes()


def test_text_part_needs_its_encoder(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="give its sentence encoder"):
        trace_part("text", load_run(tiny_run).model, None, tmp_path / "text.onnx")


def test_a_batch_that_got_fixed_is_refused(tmp_path: Path) -> None:
    import torch

    class Fixed(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (inputs[0] + torch.ones(len(inputs[0]), 3),)

    shape = ("batch", 3)
    spec = PartSpec((TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", shape),))
    path = tmp_path / "fixed.onnx"
    export_onnx(Fixed(), spec, path)
    assert check_graph("fixed", path) != spec


def test_invalid_graph_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["nothing"], ["y"])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1,))
    path = tmp_path / "bad.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [y])), path)
    with pytest.raises(ExportError, match=r"bad.onnx: onnx.checker refuses relu"):
        check_graph("relu", path)
