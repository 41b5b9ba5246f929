"""Nothing lands that TensorRT would refuse: every exported graph is parsed and built.

On Linux x86-64, where tensorrt-rtx can be installed, its absence is a failure and not a skip.
"""

import platform
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from transformers import InternVLForConditionalGeneration

from sfn_export.exceptions import RtxError
from sfn_export.rtx import TARGETS, check_rtx, graphs_in
from sfn_export.trace import tower_graph, trace_part, traced
from sfn_export.vlm_parts import LanguagePart, ProjectorPart, language_spec, projector_spec
from sfn_train.config import read_config
from sfn_train.model import SFN
from sfn_train.model.tower import VisionTower
from tiny_weights import make_internvl

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="tensorrt-rtx is made for Linux x86-64",
)


PARTS = ("appearance", "motion", "decoder", "text", "prepare", "difference", "measure")


@pytest.mark.parametrize("part", PARTS)
def test_tiny_graphs_build(tiny_bundle: Path, part: str) -> None:
    built = check_rtx(tiny_bundle / f"{part}.onnx")
    assert built.layers > 0
    assert set(built.report.shares) <= {"fp32"}
    assert built.megabytes > 0


@pytest.fixture(scope="module")
def edge() -> SFN:
    torch.manual_seed(0)
    return SFN(read_config("edge").model).eval()


@pytest.mark.parametrize(
    ("part", "form"),
    [
        ("appearance", "dispatch"),
        ("motion", "dispatch"),
        ("decoder", "dispatch"),
        ("decoder", "dense"),
    ],
)
def test_edge_graphs_build(edge: SFN, tmp_path: Path, part: str, form: str) -> None:
    path = tmp_path / f"{part}.onnx"
    trace_part(part, edge, None, path, form=form)  # type: ignore[arg-type]
    assert check_rtx(path).layers > 0


def test_targets_are_the_cards_of_three_generations() -> None:
    assert TARGETS == ("SM86", "SM89", "SM120")


def test_refusal_names_operator_and_node(tmp_path: Path) -> None:
    node = helper.make_node("Unknown", ["x"], ["y"], name="the_culprit", domain="nowhere")
    check_refused(tmp_path, node, r"Unknown 'the_culprit': ")


def test_scatter_add_is_refused(tmp_path: Path) -> None:
    # Adding while scattering: the reason why dispatch combines by gather.
    node = helper.make_node(
        "ScatterElements", ["x", "i", "x"], ["y"], name="adding_scatter", reduction="add"
    )
    check_refused(tmp_path, node, r"ScatterElements 'adding_scatter': Unsupported reduction")


def check_refused(folder: Path, node: onnx.NodeProto, message: str) -> None:
    index = onnx.numpy_helper.from_array(np.zeros((2, 3), np.int64), "i")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 3))],
        [index],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nowhere", 1)]
    path = folder / "bad.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    with pytest.raises(RtxError, match=message) as caught:
        check_rtx(path)
    assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the graphs of a tiny vision-language model."""
    folder = tmp_path_factory.mktemp("vlm")
    weights = make_internvl(folder / "weights")
    model = InternVLForConditionalGeneration.from_pretrained(weights).eval()
    seen = tower_graph(VisionTower.load(str(weights)), folder / "vision.onnx")
    spec = projector_spec(model, seen.output("hidden"))
    traced("projector", ProjectorPart(model), spec, folder / "projector.onnx")
    traced("language", LanguagePart(model), language_spec(model), folder / "language.onnx")
    return folder


@pytest.mark.parametrize(("part", "profiles"), [("vision", 1), ("projector", 1), ("language", 2)])
def test_graphs_of_a_language_model_build(vlm: Path, part: str, profiles: int) -> None:
    assert TARGETS == ("SM86", "SM89", "SM120")
    built = check_rtx(vlm / f"{part}.onnx")  # with a cache: a prefill and a decode profile
    assert built.profiles == profiles
    assert built.megabytes > 0


def test_an_axis_without_a_range_is_named(vlm: Path, tmp_path: Path) -> None:
    graph = onnx.load(vlm / "language.onnx")
    for value in graph.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == "past":
                axis.dim_param = "history"
    onnx.save(graph, tmp_path / "language.onnx")
    with pytest.raises(RtxError, match="the axis 'history' has no range of sizes; name it one of"):
        check_rtx(tmp_path / "language.onnx")


def test_graphs_in_files_and_folders(tiny_bundle: Path, tmp_path: Path) -> None:
    assert {path.stem for path in graphs_in([tiny_bundle])} == set(PARTS)
    with pytest.raises(RtxError, match=r"none.onnx does not exist"):
        graphs_in([tmp_path / "none.onnx"])
    with pytest.raises(RtxError, match="no ONNX file"):
        graphs_in([tmp_path])
