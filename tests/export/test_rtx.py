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

from sfn_export.exceptions import RtxError
from sfn_export.rtx import TARGETS, check_rtx, graphs_in
from sfn_export.trace import trace_part
from sfn_train.config import read_config
from sfn_train.model import SFN

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="tensorrt-rtx is made for Linux x86-64",
)


@pytest.mark.parametrize("part", ["appearance", "motion", "decoder", "text"])
def test_tiny_graphs_build(tiny_bundle: Path, part: str) -> None:
    built = check_rtx(tiny_bundle / f"{part}.onnx")
    assert built.layers > 0
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


def test_graphs_in_files_and_folders(tiny_bundle: Path, tmp_path: Path) -> None:
    assert len(graphs_in([tiny_bundle])) == 4
    with pytest.raises(RtxError, match=r"none.onnx does not exist"):
        graphs_in([tmp_path / "none.onnx"])
    with pytest.raises(RtxError, match="no ONNX file"):
        graphs_in([tmp_path])
