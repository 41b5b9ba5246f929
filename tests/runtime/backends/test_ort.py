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
from sfn_rt.backends.device import HostMemory
from sfn_rt.backends.ort import BINDINGS, PROVIDER, OrtBackend, OrtDevice, open_memory
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


# --- on a device's buffers


def test_device_reads_and_writes_its_memory(graph: Path) -> None:
    with OrtDevice({"part": graph}, HostMemory(), threads=1) as backend:
        memory = backend.memory
        x, squared = (memory.empty((2, 3), "float32") for _ in range(2))
        for scale in (1, 2):  # what is bound once is read anew
            memory.upload(scale * X, x)
            backend.run("part", {"x": x}, {"squared": squared})
            np.testing.assert_array_equal(memory.download(squared), (scale * X) ** 2)
        row = x.rows(1, 2)
        backend.run("part", {"x": row}, {"doubled": squared.rows(0, 1)})
        np.testing.assert_array_equal(memory.download(squared)[0], 4 * X[1])
        np.testing.assert_array_equal(memory.download(squared)[1], 4 * X[1] ** 2)
        assert (memory.counts.uploads, memory.counts.downloads) == (2, 4)
        plain = backend.infer("part", {"x": X}, ["doubled"])
        np.testing.assert_array_equal(plain["doubled"], X + X)
        assert not backend.records
    with pytest.raises(BackendError, match="ort-cpu: the backend is closed"):
        backend.run("part", {"x": x}, {"doubled": squared})


def test_bindings_do_not_pile_up(graph: Path) -> None:
    with OrtDevice({"part": graph}, HostMemory(), threads=1) as backend:
        memory = backend.memory
        x = memory.empty((200, 3), "float32")
        for i in range(200):
            backend.run(
                "part", {"x": x.rows(i, i + 1)}, {"doubled": memory.empty((1, 3), "float32")}
            )
        assert len(backend._bindings) <= BINDINGS


def test_a_bundle_on_a_device_has_the_device_parts(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    with OrtDevice.from_bundle(bundle, provider="cpu", threads=1) as backend:
        entries = {**bundle.manifest.parts, **bundle.manifest.device}
        assert {name: entry.spec for name, entry in entries.items()} == backend.parts
        assert {"prepare", "difference", "measure"} <= backend.parts.keys()


def test_cuda_where_the_library_has_none(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDER])
    message = r"is the build without CUDA; `pip uninstall onnxruntime` and then `pip install 'sfn-"
    with pytest.raises(BackendError, match=message):
        OrtDevice.from_bundle(load_bundle(tiny_bundle), provider="cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'sfn-rt\[gpu\]'"):
        open_memory("cuda")


class CudaAddresses(HostMemory):
    """Says that it lies on a GPU; no session is given any of its arrays here."""

    device = ("cuda", 1)
    stream = 4711


def test_a_session_that_fell_back_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-gpu does without a driver: no error, and the CPU."""
    asked: list[list[tuple[str, dict[str, str]]]] = []

    def session(path: Path, options: object, providers: list[tuple[str, dict[str, str]]]) -> object:
        asked.append(providers)
        return SimpleNamespace(get_providers=lambda: [PROVIDER])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(
        BackendError, match=r"asked for CUDAExecutionProvider, the session runs on .*sfn-rt\[gpu\]'"
    ):
        OrtDevice({"part": graph}, CudaAddresses())
    (((provider, settings),),) = asked
    assert provider == "CUDAExecutionProvider"
    assert (settings["device_id"], settings["user_compute_stream"]) == ("1", "4711")
    assert settings["use_tf32"] == "0"


def test_a_session_on_cuda_names_the_cpu_too(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = SimpleNamespace(name="x", type="tensor(float)", shape=["batch", 3])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda *args, **how: SimpleNamespace(
            get_providers=lambda: ["CUDAExecutionProvider", PROVIDER],
            get_inputs=lambda: [value],
            get_outputs=lambda: [value],
        ),
    )
    assert OrtDevice({"part": graph}, CudaAddresses()).name == "ort-cuda"
