"""ONNX Runtime behind the protocol: what it is asked for, and nothing in silence."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sfn_rt.backends.base import PartSpec, TensorSpec
from sfn_rt.backends.ort import PROVIDER, OrtBackend
from sfn_rt.bundle import load_bundle
from sfn_rt.exceptions import BackendError, BundleError, InputError

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """doubled = x + x, squared = x * x."""
    path = tmp_path / "part.onnx"
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["doubled"]),
            helper.make_node("Mul", ["x", "x"], ["squared"]),
        ],
        "g",
        [value("x", TensorProto.FLOAT, ("batch", 3))],
        [value(name, TensorProto.FLOAT, ("batch", 3)) for name in ("doubled", "squared")],
    )
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path
    )
    return path


def test_runs_a_part(graph: Path) -> None:
    with OrtBackend({"part": graph}, threads=1) as backend:
        spec = TensorSpec("x", "float32", ("batch", 3))
        assert backend.parts["part"].inputs == (spec,)
        results = backend.infer("part", {"x": X})
    assert list(results) == ["doubled", "squared"]
    np.testing.assert_array_equal(results["squared"], X * X)


def test_gives_only_what_is_asked_for(graph: Path) -> None:
    with OrtBackend({"part": graph}) as backend:
        assert list(backend.infer("part", {"x": X}, ["squared"])) == ["squared"]
        with pytest.raises(InputError, match=r"ort: part has no output 'cubed'; it has \['doub"):
            backend.infer("part", {"x": X}, ["cubed"])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"ort: part needs input 'x', got \[\]"),
        ({"x": X, "y": X}, r"ort: part has no input 'y'; it has \['x'\]"),
        (
            {"x": X.astype(np.float64)},
            r"ort: part: input 'x' must be float32\[batch, 3\], got float64\[2, 3\]",
        ),
        ({"x": X.T}, r"must be float32\[batch, 3\], got float32\[3, 2\]"),
        ({"x": X[:0]}, r"must be float32\[batch, 3\], got float32\[0, 3\]"),
    ],
)
def test_wrong_feeds_are_refused(graph: Path, feeds: dict[str, np.ndarray], message: str) -> None:
    with OrtBackend({"part": graph}) as backend, pytest.raises(InputError, match=message):
        backend.infer("part", feeds)


def test_unknown_part(graph: Path) -> None:
    with OrtBackend({"part": graph}) as backend, pytest.raises(InputError, match=r"\['part'\]"):
        backend.infer("engine", {"x": X})


def test_closed_backend(graph: Path) -> None:
    with OrtBackend({"part": graph}) as backend:
        pass
    with pytest.raises(BackendError, match="closed"):
        backend.infer("part", {"x": X})


def test_threads_reach_the_session(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = onnxruntime.InferenceSession

    def session(path: Path, options: onnxruntime.SessionOptions, providers: list[str]) -> object:
        seen.append((options.intra_op_num_threads, options.inter_op_num_threads, providers))
        assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    OrtBackend({"part": graph}, threads=2)
    OrtBackend({"part": graph})
    assert seen == [(2, 1, [PROVIDER]), (0, 1, [PROVIDER])]


def test_another_provider_is_an_error(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def session(path: Path, options: object, providers: list[str]) -> object:
        return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider", PROVIDER])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(BackendError, match=r"asked for CPUExecutionProvider, the session runs on"):
        OrtBackend({"part": graph})


def test_file_that_is_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "part.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"part.onnx: ONNX Runtime .* cannot load this graph"):
        OrtBackend({"part": path})


def test_onnxruntime_missing(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'sfn-rt\[cpu\]'"):
        OrtBackend({"part": graph})


def test_bundle_opens(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    with OrtBackend.from_bundle(bundle, threads=1) as backend:
        assert {name: entry.spec for name, entry in bundle.manifest.parts.items()} == backend.parts


def test_graph_that_is_not_what_the_manifest_says(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    motion = bundle.manifest.parts["motion"]
    lied = replace(motion, inputs=(TensorSpec("difference", "float32", ("batch", 3, 8, 8)),))
    assert lied.spec != PartSpec(motion.inputs, motion.outputs)
    manifest = replace(bundle.manifest, parts={**bundle.manifest.parts, "motion": lied})
    with pytest.raises(BundleError, match=r"motion.onnx: the graph has .* the manifest says"):
        OrtBackend.from_bundle(replace(bundle, manifest=manifest), threads=1)


def test_a_cache_alone_may_be_empty(tmp_path: Path) -> None:
    """A language model starts without a past; a batch without clips stays a mistake."""
    path = tmp_path / "part.onnx"
    value = helper.make_tensor_value_info
    shapes = {"new": ("batch", "sequence", 2), "cache": ("batch", "past", 2)}
    made = helper.make_graph(
        [helper.make_node("Concat", ["cache", "new"], ["all"], axis=1)],
        "g",
        [value(name, TensorProto.FLOAT16, shape) for name, shape in shapes.items()],
        [value("all", TensorProto.FLOAT16, ("batch", "total", 2))],
    )
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path
    )
    new, nothing = np.ones((3, 1, 2), np.float16), np.ones((3, 0, 2), np.float16)
    with OrtBackend({"part": path}, threads=1) as backend:
        assert [tensor.dtype for tensor in backend.parts["part"].inputs] == ["float16"] * 2
        np.testing.assert_array_equal(
            backend.infer("part", {"new": new, "cache": nothing})["all"], new
        )
        with pytest.raises(InputError, match=r"'new' must be float16\[batch, sequence, 2\], got"):
            backend.infer("part", {"new": nothing, "cache": new})
        with pytest.raises(InputError, match=r"'new' must be float16\[batch, sequence, 2\], got"):
            backend.infer("part", {"new": new[:0], "cache": nothing[:0]})
