"""`sfn-rt build`: what is missing is built, what is there is found, what cannot be is one line."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fake_gpu import Error, FakeCuda
from fake_tensorrt import FakeTensorrt
from sfn_rt.backends import cuda
from sfn_rt.backends.trt import TrtBackend
from sfn_rt.bundle import load_bundle
from sfn_rt.cli import app
from sfn_rt.engines.cache import EngineCache
from sfn_rt.engines.command import PhaseLine

needs_rtx = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="tensorrt-rtx is made for Linux x86-64",
)
PARTS = ["appearance", "motion", "decoder", "text", "prepare", "difference", "measure"]


def sfn_rt_build(bundle: Path, engines: Path, *arguments: str) -> Result:
    command = ["build", "--bundle", str(bundle), "--engines", str(engines), *arguments]
    return CliRunner().invoke(app, command)


def message_of(done: Result) -> str:
    """The one line of a user's mistake."""
    assert done.exit_code == 2, (done.output, done.exception)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("bundle: ")]
    assert len(lines) == 1, lines
    return lines[0]


# --- real engines, ahead of time

RTX = ("--backend", "tensorrt-rtx", "--target", "SM89", "--max-batch", "1")


@pytest.fixture(scope="module")
def rtx_engines(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rtx") / "engines"
    done = sfn_rt_build(tiny_bundle, folder, *RTX)
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()[:-1]] == PARTS
    assert done.stdout.count("built in ") == len(PARTS)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("7 engines by TensorRT-RTX 1.")
    assert last.endswith(f"for sm_89 in {folder}")
    return folder


@needs_rtx
def test_a_second_build_finds_everything(tiny_bundle: Path, rtx_engines: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in rtx_engines.iterdir()}
    done = sfn_rt_build(tiny_bundle, rtx_engines, *RTX, "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert [engine["part"] for engine in answer["engines"]] == PARTS
    assert all(engine["found"] for engine in answer["engines"])
    decoder = answer["engines"][2]
    assert decoder["shares"] == {"fp32": 1.0}
    assert decoder["bytes"] == Path(decoder["plan"]).stat().st_size
    assert {path: path.stat().st_mtime_ns for path in rtx_engines.iterdir()} == before


@needs_rtx
def test_the_report_names_modules(tiny_bundle: Path, rtx_engines: Path) -> None:
    done = sfn_rt_build(tiny_bundle, rtx_engines, *RTX, "--report")
    assert "decoder: " in done.stdout
    assert "matrix products" in done.stdout
    records = {record.part: record for record in EngineCache(rtx_engines).records()}
    report = records["decoder"].engine_report()
    assert any(name.startswith("mjad.") for name in report.products), report.products
    assert len(report.layers) > 20


@needs_rtx
@pytest.mark.slow
def test_ctrl_c_in_the_middle_leaves_whole_engines(tiny_bundle: Path, tmp_path: Path) -> None:
    """A real process, a real SIGINT while the text encoder is built; the next run goes on."""
    folder = tmp_path / "engines"
    command = [sys.executable, "-m", "sfn_rt.cli", "build", "--bundle", str(tiny_bundle)]
    process = subprocess.Popen(
        [*command, "--engines", str(folder), *RTX],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("decoder-*.json")):  # the text encoder is next, and the largest
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "interrupted while building text; 3 of 7 engines are in" in stderr
    assert "Traceback" not in stderr
    left = sorted(path.name for path in folder.iterdir())
    assert len(left) == 6, left  # three plans with their records, nothing half-written
    for record in EngineCache(folder).records():
        record.read_plan()
    done = sfn_rt_build(tiny_bundle, folder, *RTX)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("found") == 3
    assert done.stdout.count("built in ") == 4


# --- on the GPU that is here, by a TensorRT that is a fake


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


def test_built_here_and_opened(trt: FakeTensorrt, tiny_bundle: Path, tmp_path: Path) -> None:
    done = sfn_rt_build(tiny_bundle, tmp_path, "--max-batch", "4", "--workspace", "64")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("built in ") == len(PARTS)
    config = trt.configs[0]
    assert config.flags == set()  # fp32 is fp32: TF32 is off
    assert config.limits == {"workspace": 64 << 20}
    bundle = load_bundle(tiny_bundle)
    with TrtBackend.from_bundle(bundle, cache=tmp_path, max_batch=4) as backend:
        assert backend.max_batch == 4
    again = sfn_rt_build(tiny_bundle, tmp_path, "--max-batch", "4", "--workspace", "64")
    assert again.stdout.count("found") == len(PARTS)
    larger = sfn_rt_build(tiny_bundle, tmp_path, "--max-batch", "8")
    assert larger.stdout.count("built in ") == len(PARTS)
    whole = sfn_rt_build(tiny_bundle, tmp_path, "--max-batch", "8", "--again")
    assert whole.stdout.count("built in ") == len(PARTS)


def test_kernels_are_timed_once(trt: FakeTensorrt, tiny_bundle: Path, tmp_path: Path) -> None:
    """Each build begins with what the ones before it measured on this kind of GPU."""
    sfn_rt_build(tiny_bundle, tmp_path)
    assert [c.timing_cache.read for c in trt.configs] == [b"timed;" * i for i in range(len(PARTS))]
    assert (tmp_path / "tensorrt-11.4.0-sm_89.timings").read_bytes() == b"timed;" * len(PARTS)


def test_flags_of_an_engine(trt: FakeTensorrt, tiny_bundle: Path, tmp_path: Path) -> None:
    done = sfn_rt_build(tiny_bundle, tmp_path, "--version-compatible", "--strip-weights")
    assert done.exit_code == 0, done.output
    assert trt.configs[0].flags == {"VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL"}
    assert {r.options["version_compatible"] for r in EngineCache(tmp_path).records()} == {True}


def test_another_gpu_builds_its_own(trt: FakeTensorrt, tiny_bundle: Path, tmp_path: Path) -> None:
    sfn_rt_build(tiny_bundle, tmp_path)
    trt.gpu.capability, trt.gpu.gpu = (8, 7), "Fake Orin"
    done = sfn_rt_build(tiny_bundle, tmp_path)
    assert done.stdout.count("built in ") == len(PARTS)
    assert "for sm_87" in done.stdout
    assert len(list(EngineCache(tmp_path).records())) == 2 * len(PARTS)


def test_a_full_gpu_and_a_missing_lean_runtime(
    trt: FakeTensorrt, tiny_bundle: Path, tmp_path: Path
) -> None:
    trt.fails = "Cuda Runtime (out of memory)"
    text = message_of(sfn_rt_build(tiny_bundle, tmp_path))
    assert "the GPU's memory is full at --max-batch 16; build with a smaller one" in text
    trt.fails = "Unable to load library: libnvinfer_lean.so.11"
    text = message_of(sfn_rt_build(tiny_bundle, tmp_path))
    assert "its lean runtime is not installed" in text
    assert not list(tmp_path.iterdir())


# --- mistakes


def test_mistakes_are_one_line(
    monkeypatch: pytest.MonkeyPatch, trt: FakeTensorrt, tiny_bundle: Path, tmp_path: Path
) -> None:
    for arguments, expected in (
        (("--target", "SM89"), "builds for the GPU here and for no other; leave --target out"),
        (("--precision", "int8"), "has no precision 'int8'"),
        (("--backend", "cuda"), "--backend must be one of tensorrt, tensorrt-rtx, got 'cuda'"),
        (("--max-batch", "0"), "--max-batch must be at least 1, got 0"),
        (("--max-frame", "1080p"), "--max-frame is width x height in pixels, e.g. 1920x1080"),
        (("--device", "1"), "no GPU 1: this machine has 1, numbered from 0"),
    ):
        assert expected in message_of(sfn_rt_build(tiny_bundle, tmp_path, *arguments))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    text = message_of(sfn_rt_build(tiny_bundle, tmp_path))
    assert "install it with `pip install 'sfn-rt[trt]'`" in text


def test_no_gpu_and_one_that_rtx_does_not_know(
    monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda, tiny_bundle: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(
        sys.modules, "tensorrt_rtx", FakeTensorrt(gpu, "1.7.1.116", ahead_of_time=True)
    )
    gpu.capability, gpu.gpu = (9, 0), "Fake H200"
    text = message_of(sfn_rt_build(tiny_bundle, tmp_path, "--backend", "tensorrt-rtx"))
    assert "knows no sm_90 (Fake H200), only SM86, SM89, SM120; take --backend tensorrt" in text
    gpu.found, gpu.driver = Error.cudaErrorInsufficientDriver, 11080
    text = message_of(sfn_rt_build(tiny_bundle, tmp_path, "--backend", "tensorrt-rtx"))
    assert "driver is too old: it runs CUDA 11.8, CUDA 13.4 needs driver 580" in text
    assert text.endswith("to build for a GPU that is elsewhere name it, e.g. --target SM89")


# --- progress


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_phase_is_shown_on_a_terminal_only() -> None:
    times = iter([0.0, 0.0, 0.05, 1.0, 1.0])
    terminal, pipe = Terminal(), StringIO()
    line = PhaseLine(terminal, clock=lambda: next(times))
    show = line.of("decoder")
    for step in range(3):
        show("Timing tactics", step, 9)
    line.erase()
    assert terminal.getvalue() == (
        "\r\x1b[2Kdecoder: Timing tactics 0/9\r\x1b[2Kdecoder: Timing tactics 2/9\r\x1b[2K"
    )
    PhaseLine(pipe).of("decoder")("Timing tactics", 0, 9)
    assert pipe.getvalue() == ""
