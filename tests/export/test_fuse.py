"""One graph for a whole step computes what the parts and the host's memory compute."""

from pathlib import Path

import numpy as np
import pytest

from sfn_export.exceptions import ExportError
from sfn_export.fuse import STEP, fuse
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import Bundle, load_bundle
from sfn_rt.frames import Frame
from sfn_rt.measured import measured_layout, read_visual
from sfn_rt.networks import HostNetworks, NetworkSettings
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.preprocess import resize_matrix

N_FRAMES, SIZE = 9, (40, 60)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


def pictures(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (N_FRAMES, *SIZE, 3), dtype=np.uint8)


def test_streams_in_step_equal_the_host(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest
    pre, visual = manifest.preprocessing, VisualConfig(**manifest.visual)  # type: ignore[arg-type]
    text = np.random.default_rng(9).standard_normal((1, manifest.semantics.embedded_width))
    text = text.astype(np.float32)
    videos = [pictures(0), pictures(1)]
    settings = NetworkSettings(
        observed=manifest.observed, preprocessing=pre, visual=visual, n_windows=1
    )
    expected = []
    with OrtBackend.from_bundle(bundle, threads=1) as backend:
        for video in videos:
            networks = HostNetworks(backend, settings)
            for i, image in enumerate(video):
                seen = networks.look([Frame(i, i / 25, image)])
                errors = networks.decode(
                    networks.encode(seen, change=False, hidden=False), seen, text
                )
                expected.append(errors)

    spec = fuse(bundle, tmp_path / "step.onnx")
    decoder = [tensor.name for tensor in manifest.parts["decoder"].outputs]
    layout = measured_layout(decoder, visual)
    state = {
        tensor.name: np.zeros([2, *tensor.shape[1:]], tensor.dtype)
        for tensor in spec.inputs
        if tensor.name.startswith("old.")
    }
    rows = resize_matrix(SIZE[0], pre.height, pre.resize)
    columns = resize_matrix(SIZE[1], pre.width, pre.resize)
    scored = 0
    with OrtBackend({STEP: tmp_path / "step.onnx"}, threads=1) as backend:
        for i in range(N_FRAMES):
            feeds = {"image": np.stack([video[i] for video in videos]), "rows": rows}
            feeds |= {"columns": columns, "text": np.repeat(text, 2, axis=0), **state}
            done = backend.infer(STEP, feeds)
            state = {f"old.{n.removeprefix('new.')}": a for n, a in done.items() if "new." in n}
            if i < manifest.observed:
                continue
            for stream in range(2):
                before = expected[stream * N_FRAMES + i]
                row = done["measured"][stream : stream + 1]
                (found,) = read_visual(row, layout, visual, (pre.height, pre.width))
                assert found.evidence == pytest.approx(before.visual[0].evidence, abs=1e-5)
                assert row[0, layout["semantic"]] == pytest.approx(before.semantic, abs=1e-5)
                np.testing.assert_allclose(found.heat, before.visual[0].heat, atol=2e-3)
                scored += 1
    assert scored == 2 * (N_FRAMES - manifest.observed)


def test_tensorrt_takes_it_as_one(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from sfn_export.rtx import check_rtx

    fuse(bundle, tmp_path / "step.onnx")
    assert check_rtx(tmp_path / "step.onnx", ("SM89",)).layers > 100


def test_a_bundle_without_device_graphs_is_refused(dual_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="device graphs and an appearance branch"):
        fuse(load_bundle(dual_bundle), tmp_path / "step.onnx")
