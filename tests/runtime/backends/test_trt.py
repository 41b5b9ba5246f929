"""TensorRT behind the device protocol, on a GPU that does what one does and computes with ONNX
Runtime: buffers, contexts, recordings and refusals are the real code's."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fake_builder import make_plan
from fake_gpu import FakeCuda
from fake_tensorrt import FakeTensorrt
from sfn_rt.backends import cuda
from sfn_rt.backends.base import Array, PartSpec
from sfn_rt.backends.ort import OrtBackend, OrtDevice
from sfn_rt.backends.trt import TrtBackend
from sfn_rt.bundle import Bundle, load_bundle
from sfn_rt.engines.build import Built, EngineOptions
from sfn_rt.engines.cache import EngineCache
from sfn_rt.engines.flavour import load_flavour
from sfn_rt.engines.parts import engine_parts
from sfn_rt.engines.profiles import stream_profiles
from sfn_rt.engines.report import EngineReport
from sfn_rt.exceptions import BackendError, InputError, SfnError
from sfn_rt.networks import NetworkSettings
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.resident import Resident

MAX_BATCH = 4


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "_runtime", lambda: fake)
    return fake


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda) -> FakeTensorrt:
    fake = FakeTensorrt(gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda) -> FakeTensorrt:
    fake = FakeTensorrt(gpu, "1.7.1.116", ahead_of_time=True)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    return fake


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


def fill(
    bundle: Bundle,
    folder: Path,
    backend: str = "tensorrt",
    *,
    max_batch: int = MAX_BATCH,
    scratch: int = 4096,
    strip: bool = False,
    weights: int = 0,
    **changes: object,
) -> Path:
    """Engines of a bundle, as `sfn-rt build` leaves them; `changes` are to what they are for."""
    library = load_flavour(backend)
    options = EngineOptions(max_batch=max_batch, strip_weights=strip)
    ranges = [dict(each) for each in stream_profiles(max_batch, options.max_frame)]
    for part in engine_parts(bundle):
        wanted = replace(part.wanted(library, cuda.find_gpu(), max_batch), **changes)  # type: ignore[arg-type]
        raw = json.loads(
            make_plan(
                part.graph.path,
                wanted.architectures,
                wanted.version,
                ranges,
                scratch=scratch,
                stripped=strip,
            )
        )
        plan = json.dumps(raw | {"weights": weights}).encode()
        report = EngineReport((), part.graph.nodes)
        EngineCache(folder).put(wanted, options, Built(plan, report, len(ranges), 0.1))
    return folder


def inputs_of(spec: PartSpec, batch: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    sizes = {"batch": batch, "tokens": 7, "height": 40, "width": 60}
    arrays = {}
    for tensor in spec.inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
        whole = tensor.dtype in ("int64", "uint8")
        array = rng.integers(1, 5, shape) if whole else rng.standard_normal(shape)
        arrays[tensor.name] = array.astype(tensor.dtype)
    return arrays


# --- the whole bundle


@pytest.mark.parametrize("batch", [1, 3, 2 * MAX_BATCH + 1])
def test_every_part_computes_what_onnx_runtime_does(
    trt: FakeTensorrt, bundle: Bundle, tmp_path: Path, batch: int
) -> None:
    fill(bundle, tmp_path)
    with (
        OrtDevice.from_bundle(bundle, provider="cpu", threads=1) as expected,
        TrtBackend.from_bundle(bundle, cache=tmp_path) as backend,
    ):
        assert backend.parts == expected.parts
        assert backend.max_batch == MAX_BATCH
        for part, spec in backend.parts.items():
            feeds = inputs_of(spec, batch)
            found, wanted = backend.infer(part, feeds), expected.infer(part, feeds)
            for name, array in wanted.items():
                np.testing.assert_allclose(found[name], array, atol=1e-5, err_msg=f"{part}.{name}")


def test_only_what_is_asked_for_comes_back(
    trt: FakeTensorrt, bundle: Bundle, tmp_path: Path
) -> None:
    fill(bundle, tmp_path)
    with (
        OrtBackend.from_bundle(bundle, threads=1) as expected,
        TrtBackend.from_bundle(bundle, cache=tmp_path) as backend,
    ):
        feeds = inputs_of(backend.parts["decoder"], 2)
        downloads = backend.memory.counts.downloads
        found = backend.infer("decoder", feeds, ["semantic"])
        assert list(found) == ["semantic"]
        assert backend.memory.counts.downloads == downloads + 1
        wanted = expected.infer("decoder", feeds, ["semantic"])["semantic"]
        np.testing.assert_allclose(found["semantic"], wanted, atol=1e-5)


def settings_of(bundle: Bundle) -> NetworkSettings:
    manifest = bundle.manifest
    visual = VisualConfig(**manifest.visual)  # type: ignore[arg-type]
    assert manifest.semantics is not None
    return NetworkSettings(
        observed=manifest.observed,
        preprocessing=manifest.preprocessing,
        visual=visual,
        n_windows=len(manifest.semantics.windows),
    )


@pytest.mark.parametrize("streams", [1, 3])
def test_a_stream_stays_on_the_device(
    trt: FakeTensorrt, bundle: Bundle, tmp_path: Path, streams: int
) -> None:
    """Blocks of several lengths through the ring, recorded and replayed: the same rows."""
    fill(bundle, tmp_path)
    rng = np.random.default_rng(0)
    settings = settings_of(bundle)
    width = bundle.manifest.semantics.embedded_width  # type: ignore[union-attr]
    with (
        OrtDevice.from_bundle(bundle, provider="cpu", threads=1) as host,
        TrtBackend.from_bundle(bundle, cache=tmp_path) as backend,
        Resident(host, settings, streams=streams, block=3) as expected,
        Resident(backend, settings, streams=streams, block=3) as resident,
    ):
        for b in (3, 3, 3, 1, 3, 1, 1, 3):
            images = list(rng.integers(0, 255, (streams, b, 40, 60, 3), np.uint8))
            text = rng.standard_normal((streams, b, width)).astype(np.float32)
            found, wanted = resident.step(images, text), expected.step(images, text)
            assert found.n_predicted == wanted.n_predicted
            for stream in range(streams):
                np.testing.assert_allclose(found.of(stream), wanted.of(stream), atol=1e-5)
        counts = backend.memory.counts
        assert (counts.captures, counts.replays) == (2, 6)  # one for each length of a block
        assert counts.downloads == 8


def test_a_recording_survives_other_shapes_between(
    trt: FakeTensorrt, bundle: Bundle, tmp_path: Path
) -> None:
    """A recorded run refers to its context's state; single runs of the part must not change it."""
    fill(bundle, tmp_path)
    with TrtBackend.from_bundle(bundle, cache=tmp_path) as backend:
        memory, (spec,) = backend.memory, backend.parts["motion"].inputs
        frames = inputs_of(backend.parts["motion"], 2)[spec.name]
        taken = memory.empty(frames.shape, "float32")
        backend.infer("motion", inputs_of(backend.parts["motion"], 3))
        tokens = backend.infer("motion", {spec.name: frames})["tokens"]
        given = memory.empty(tokens.shape, "float32")
        memory.upload(frames, taken)

        def work() -> None:
            backend.run("motion", {spec.name: taken}, {"tokens": given})

        for turn in range(4):
            memory.zero(given)
            memory.replay("motion", work)
            np.testing.assert_allclose(memory.download(given), tokens, atol=1e-6)
            backend.infer("motion", inputs_of(backend.parts["motion"], 1 + turn % 3))
        assert memory.counts.replays == 3
        made = trt.contexts
        memory.forget()
        memory.replay("motion", work)
        assert trt.contexts == made + 1  # its context went with the recording


# --- engines that do not fit


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ("sm_86",)}, "built for sm_86, this is sm_89"),
        ({"version": "10.3.0"}, "built by tensorrt 10.3.0, here is 11.4.0"),
        ({"gpu": "Fake L4"}, "built on Fake L4, this is Fake RTX"),
        ({"graph": "0" * 64}, "built from another graph than this bundle's"),
        ({"flavour": "tensorrt-rtx"}, "built by tensorrt-rtx, tensorrt is asked for"),
        ({"precision": "int8"}, "built at int8, fp32 is asked for"),
    ],
)
def test_a_stale_engine_is_refused_with_the_reason(
    trt: FakeTensorrt, bundle: Bundle, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    fill(bundle, tmp_path, **changes)
    with pytest.raises(BackendError) as caught:
        TrtBackend.from_bundle(bundle, cache=tmp_path)
    text = str(caught.value)
    assert reason in text
    assert text.endswith(
        f"build it with `sfn-rt build --bundle {bundle.folder} --backend tensorrt "
        f"--engines {tmp_path}`"
    )
    assert trt.contexts == 0
    assert not trt.gpu.memory  # nothing of it was loaded, and the GPU is given back


def test_no_engine_and_one_that_is_too_small(
    trt: FakeTensorrt, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match=r"no engine for .* on Fake RTX: none was built for it"):
        TrtBackend.from_bundle(bundle, cache=tmp_path)
    fill(bundle, tmp_path)
    with pytest.raises(BackendError, match=r"up to 4 frames at once, not more; .*--max-batch 9"):
        TrtBackend.from_bundle(bundle, cache=tmp_path, max_batch=9)


def test_an_engine_that_lies_about_its_origin_is_refused_by_tensorrt(
    trt: FakeTensorrt, bundle: Bundle, tmp_path: Path
) -> None:
    fill(bundle, tmp_path)
    trt.__version__ = "11.4.0"
    trt.gpu.capability = (8, 6)
    for path in tmp_path.glob("*.json"):
        path.write_text(path.read_text().replace('"sm_89"', '"sm_86"'))
    with pytest.raises(BackendError, match=r"refuses this engine: .*not this GPU's architecture"):
        TrtBackend.from_bundle(bundle, cache=tmp_path)


def test_an_altered_engine_is_not_loaded(trt: FakeTensorrt, bundle: Bundle, tmp_path: Path) -> None:
    fill(bundle, tmp_path)
    plan = next(tmp_path.glob("motion-*.plan"))
    plan.write_bytes(plan.read_bytes() + b" ")
    with pytest.raises(BackendError, match=r"motion-.*\.plan was altered: its sha256"):
        TrtBackend.from_bundle(bundle, cache=tmp_path)


def test_an_engine_of_another_part_is_seen(
    trt: FakeTensorrt, bundle: Bundle, tmp_path: Path
) -> None:
    fill(bundle, tmp_path)
    record = next(tmp_path.glob("motion-*.json"))
    other = json.loads(next(tmp_path.glob("difference-*.json")).read_text())
    raw = json.loads(record.read_text()) | {key: other[key] for key in ("plan", "sha256")}
    record.write_text(json.dumps(raw))
    with pytest.raises(BackendError, match=r"the engine has .*'previous'.* motion has .* build it"):
        TrtBackend.from_bundle(bundle, cache=tmp_path)


# --- a GPU that is too small


def test_too_little_memory_says_which_batch_fits(
    trt: FakeTensorrt, bundle: Bundle, tmp_path: Path
) -> None:
    fill(bundle, tmp_path / "16", max_batch=16, scratch=1_000_000)
    trt.gpu.total = 11_500_000
    with pytest.raises(BackendError) as caught:
        TrtBackend.from_bundle(bundle, cache=tmp_path / "16")
    text = str(caught.value)
    assert "for 16 frames at once need 16 MB beside their weights" in text
    assert "of 12 MB are free; a max batch of about 11 fits: `sfn-rt build" in text
    assert "--max-batch 11" in text
    fill(bundle, tmp_path / "11", max_batch=11, scratch=1_000_000)
    with TrtBackend.from_bundle(bundle, cache=tmp_path / "11") as backend:
        assert backend.max_batch == 11
    trt.gpu.total = 900_000
    with pytest.raises(BackendError, match="not even a batch of 1 fits; take a lower --precision"):
        TrtBackend.from_bundle(bundle, cache=tmp_path / "16")


def test_weights_that_do_not_fit(trt: FakeTensorrt, bundle: Bundle, tmp_path: Path) -> None:
    fill(bundle, tmp_path, weights=2 << 30)
    with pytest.raises(BackendError, match=r"the weights of .* do not fit into the GPU's memory"):
        TrtBackend.from_bundle(bundle, cache=tmp_path)


# --- what TensorRT would otherwise do wrong in silence


@pytest.fixture
def backend(trt: FakeTensorrt, bundle: Bundle, tmp_path: Path) -> TrtBackend:
    return TrtBackend.from_bundle(bundle, cache=fill(bundle, tmp_path))


def test_wrong_buffers_are_refused(backend: TrtBackend) -> None:
    (spec,) = backend.parts["motion"].inputs
    shape = tuple(2 if isinstance(axis, str) else axis for axis in spec.shape)
    tokens = (2, *backend.parts["motion"].output("tokens").shape[1:])
    memory = backend.memory
    with backend:
        good, to = memory.empty(shape, "float32"), memory.empty(tokens, "float32")  # type: ignore[arg-type]
        too_many = memory.empty((9, *shape[1:]), "float32")
        wrong: list[tuple[dict[str, object], dict[str, object], str]] = [
            ({spec.name: good.view(*shape[:-1], 1)}, {}, "input .* must be float32"),
            ({spec.name: replace(good, dtype="float16")}, {}, "input .* must be float32"),
            ({}, {"tokens": to}, "needs input"),
            ({spec.name: good}, {"tokens": to.rows(0, 1)}, r"output 'tokens' is .*, the buffer"),
            ({spec.name: too_many}, {}, r"takes up to .*\[4, 3, .*--max-batch 9"),
            (
                {spec.name: replace(good, pointer=good.pointer + 4)},
                {"tokens": to},
                "not aligned",
            ),
        ]
        for feeds, outputs, message in wrong:
            with pytest.raises(SfnError, match=message):
                backend.run("motion", feeds, outputs)  # type: ignore[arg-type]
        backend.run("motion", {spec.name: good}, {"tokens": to})
        with pytest.raises(InputError, match="no part 'audio'"):
            backend.run("audio", {}, {})
    with pytest.raises(BackendError, match="the backend is closed"):
        backend.run("motion", {spec.name: good}, {"tokens": to})


def test_a_camera_that_is_too_large_says_how_to_build(backend: TrtBackend) -> None:
    with backend:
        feeds = inputs_of(backend.parts["prepare"], 1)
        feeds["image"] = np.zeros((1, 2160, 3840, 3), np.uint8)
        feeds["rows"] = np.zeros((feeds["rows"].shape[0], 2160), np.float32)
        feeds["columns"] = np.zeros((feeds["columns"].shape[0], 3840), np.float32)
        with pytest.raises(InputError, match=r"takes up to .*1080, 1920.*--max-frame 3840x2160"):
            backend.infer("prepare", feeds)


def test_everything_is_given_back(backend: TrtBackend) -> None:
    fake: FakeCuda = backend.memory._cuda  # type: ignore[attr-defined]
    assert fake.memory
    with backend:
        pass
    assert not fake.memory
    assert not fake.streams


def test_a_part_that_cannot_be_recorded_is_an_error(trt: FakeTensorrt, backend: TrtBackend) -> None:
    trt.capturable = False
    (spec,) = backend.parts["motion"].inputs
    shape = tuple(1 if isinstance(axis, str) else axis for axis in spec.shape)
    with backend:
        taken = backend.memory.empty(shape, "float32")  # type: ignore[arg-type]
        with pytest.raises(BackendError, match="motion cannot be part of a CUDA graph"):
            backend.memory.replay("key", lambda: backend.run("motion", {spec.name: taken}, {}))


def test_stripped_engines_get_the_weights_of_the_bundle(
    trt: FakeTensorrt, bundle: Bundle, tmp_path: Path
) -> None:
    fill(bundle, tmp_path, strip=True)
    with TrtBackend.from_bundle(bundle, cache=tmp_path) as backend:
        backend.infer("motion", inputs_of(backend.parts["motion"], 1))
    assert str(bundle.graph("motion")) in trt.refitted


# --- TensorRT-RTX


def test_rtx_by_the_same_path(rtx: FakeTensorrt, bundle: Bundle, tmp_path: Path) -> None:
    """Shapes are compiled at once, and what was compiled is there at the next start."""
    fill(bundle, tmp_path, "tensorrt-rtx", architectures=("sm_86", "sm_89"), gpu=None)
    for _ in range(2):
        with (
            OrtBackend.from_bundle(bundle, threads=1) as expected,
            TrtBackend.from_bundle(bundle, flavour="tensorrt-rtx", cache=tmp_path) as backend,
        ):
            assert backend.name == "tensorrt-rtx"
            feeds = inputs_of(backend.parts["decoder"], 2)
            found, wanted = backend.infer("decoder", feeds), expected.infer("decoder", feeds)
            for name, array in wanted.items():
                np.testing.assert_allclose(found[name], array, atol=1e-5)
        assert len(list(tmp_path.glob("decoder-*.jit"))) == 1
    assert b"kernels of Fake RTX" in rtx.kernels_read


def test_every_call_is_one_of_tensorrt() -> None:
    """The fake has no method that the real classes lack."""
    import fake_tensorrt

    real = pytest.importorskip("tensorrt_rtx")
    for fake, name in (
        ("Engine", "ICudaEngine"),
        ("Context", "IExecutionContext"),
        ("RuntimeConfig", "IRuntimeConfig"),
        ("RuntimeCache", "IRuntimeCache"),
    ):
        methods = {n for n in vars(getattr(fake_tensorrt, fake)) if not n.startswith("_")}
        assert methods
        assert not [n for n in methods if not hasattr(getattr(real, name), n)]
    assert hasattr(real.OnnxParserRefitter, "refit_from_file")
    assert hasattr(real.Refitter, "refit_cuda_engine")
    assert hasattr(real.Runtime, "engine_host_code_allowed")
    assert int(real.ILogger.Severity.ERROR) == fake_tensorrt.Severity.ERROR
