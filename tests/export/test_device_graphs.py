"""The graphs that keep a stream on its device compute what the host's functions compute."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from sfn_export.device_graphs import Semantic, area_matrices, device_specs, trace_device
from sfn_export.device_parity import HostFunctions, camera_feeds, check_device, compare
from sfn_export.exceptions import ParityError
from sfn_export.parity import ParityReport
from sfn_export.trace import OPSET, check_graph
from sfn_rt.backends.base import PartSpec
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import load_bundle
from sfn_rt.prediction_error import VisualConfig, measure_error, semantic_error
from sfn_rt.preprocess import Preprocessing, preprocess

SIZE = (20, 30)
IMAGE = ("batch", 3, *SIZE)
DECODER = PartSpec.of(
    {"appearance": ("batch", 4)},
    {"next_frame": IMAGE, "semantic": ("batch", 12), "distilled": ("batch",)},
)
VISUAL = VisualConfig(box_height=5, box_width=7, grid_height=4, grid_width=6)
BRANCHES = {  # outputs that a decoder may have alone
    "picture": ("next_frame",),
    "meaning": ("semantic",),
    "all but distilled": ("next_frame", "semantic"),
}


def traced_device(
    folder: Path,
    *,
    decoder: PartSpec = DECODER,
    visual: VisualConfig = VISUAL,
    resize: str = "area",
    windows: int = 1,
) -> HostFunctions:
    """The graphs in `folder` and the reference that they are held against."""
    spec = Preprocessing(height=SIZE[0], width=SIZE[1], resize=resize)  # type: ignore[arg-type]
    specs = trace_device(folder, decoder, spec, visual, windows)
    return HostFunctions(specs, spec, visual, windows)


def check_graphs(reference: HostFunctions, folder: Path) -> ParityReport:
    graphs = {part: folder / f"{part}.onnx" for part in reference.parts}
    with OrtBackend(graphs, threads=1) as exported:
        return check_device(reference, exported)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> tuple[HostFunctions, Path]:
    folder = tmp_path_factory.mktemp("device")
    return traced_device(folder, resize="bicubic", windows=3), folder


def test_graphs_equal_the_host(device: tuple[HostFunctions, Path]) -> None:
    reference, folder = device
    report = check_graphs(reference, folder)
    assert {d.tensor for d in report.differences} == {
        "prepare.frame",
        "difference.difference",
        *(f"measure.{name}" for name in ("visual", "box", "semantic", "distilled", "heat")),
    }
    cameras = {d.case for d in report.differences if d.tensor == "prepare.frame"}
    assert cameras == {
        f"camera of {size}" for size in ("16 x 17", "32 x 68", "17 x 93", "58 x 21", "20 x 30")
    }


@pytest.mark.parametrize("measure", ["mean", "psnr"])
def test_other_measures_of_the_visual_evidence(tmp_path: Path, measure: str) -> None:
    visual = VisualConfig(
        measure=measure,  # type: ignore[arg-type]
        box_height=50,  # a box of the whole frame's height, and a grid that grows it
        grid_height=23,
        grid_width=7,
    )
    picture = PartSpec(DECODER.inputs, DECODER.outputs[:1])
    check_graphs(traced_device(tmp_path, decoder=picture, visual=visual), tmp_path)


@pytest.mark.parametrize("outputs", BRANCHES.values(), ids=list(BRANCHES))
def test_what_a_model_lacks_is_not_measured(outputs: tuple[str, ...]) -> None:
    decoder = PartSpec(DECODER.inputs, tuple(DECODER.output(name) for name in outputs))
    spec = Preprocessing(height=SIZE[0], width=SIZE[1])
    measure = device_specs(decoder, spec, VISUAL)["measure"]
    names = {tensor.name for tensor in measure.inputs}
    assert ("frame" in names) == ("next_frame" in outputs)
    assert ("text" in names) == ("semantic" in outputs)
    width = 26 * ("next_frame" in outputs) + ("semantic" in outputs)
    assert measure.output("measured").shape == ("batch", width)


def test_the_first_of_equal_boxes_is_taken(device: tuple[HostFunctions, Path]) -> None:
    reference, folder = device
    feeds = {
        tensor.name: np.zeros([2 if isinstance(a, str) else a for a in tensor.shape], np.float32)
        for tensor in reference.parts["measure"].inputs
    }
    feeds["frame"][1, :, 8:10, 3:5] = feeds["frame"][1, :, 8:10, 20:22] = 1.0
    with OrtBackend({"measure": folder / "measure.onnx"}, threads=1) as backend:
        actual = backend.infer("measure", feeds)
    expected = reference.infer("measure", feeds)
    assert expected["measured"][:, 1].tolist() == [0, 5 * (SIZE[1] - 7 + 1)]
    compare("measure", expected, actual, "ties", reference)
    assert actual["measured"][0, 2] == 1.0  # nothing was predicted: as far off as a meaning can be


def test_a_wrong_graph_is_caught(device: tuple[HostFunctions, Path], tmp_path: Path) -> None:
    reference, folder = device
    for part in reference.parts:
        shutil.copyfile(folder / f"{part}.onnx", tmp_path / f"{part}.onnx")
    graph = onnx.load(tmp_path / "prepare.onnx")
    for tensor in graph.graph.initializer:
        if tensor.name.endswith("shift"):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[1] += 1e-3
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(graph, tmp_path / "prepare.onnx")
    with pytest.raises(ParityError, match=r"prepare.frame: max\|Δ\| .* at \(0, 1, \d+, \d+\)"):
        check_graphs(reference, tmp_path)


def test_a_camera_is_read_as_preprocess_reads_it(device: tuple[HostFunctions, Path]) -> None:
    reference, folder = device
    feeds = camera_feeds(reference.preprocessing, (3.3, 0.5))
    with OrtBackend({"prepare": folder / "prepare.onnx"}, threads=1) as backend:
        frame = backend.infer("prepare", feeds)["frame"]
    expected = preprocess(feeds["image"][1], reference.preprocessing)
    np.testing.assert_allclose(frame[1], expected, atol=1e-5)


@pytest.mark.parametrize("grid", [(4, 6), (20, 30), (23, 7), (40, 60)])
def test_area_matrices_are_opencvs(grid: tuple[int, int]) -> None:
    error = np.random.default_rng(0).random(SIZE, dtype=np.float32)
    visual = VisualConfig(grid_height=grid[0], grid_width=grid[1])
    rows, columns = area_matrices(SIZE, grid)
    heat = measure_error(error, visual).heat
    np.testing.assert_allclose(rows @ error @ columns.T, heat, atol=1e-3)


def test_nearly_equal_meanings() -> None:
    import torch

    rng = np.random.default_rng(0)
    actual = rng.standard_normal((4, 3 * 384)).astype(np.float32)
    predicted = actual + 1e-3 * rng.standard_normal(actual.shape).astype(np.float32)
    expected = semantic_error(predicted, actual, 3)
    found = Semantic(3)(torch.from_numpy(predicted), torch.from_numpy(actual))[:, 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_the_bundle_has_them(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    graphs = bundle.device_graphs()
    assert list(graphs) == ["prepare", "difference", "measure"]
    for part, path in graphs.items():
        assert check_graph(part, path) == bundle.manifest.device[part].spec
        graph = onnx.load(path)
        assert {o.domain: o.version for o in graph.opset_import} == {"": OPSET}
        operators = {node.op_type for node in graph.graph.node}
        assert not operators & {"ArgMax", "TopK", "NonZero", "Loop", "If", "Resize"}
