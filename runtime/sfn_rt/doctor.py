"""What this machine can do: packages, backends that really run, and what to install.

Every probe tries the thing itself: ONNX Runtime lists CUDA as available on machines where
a session falls back to the CPU in silence. A probe that fails is a finding, never an error.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from sfn_rt import __version__
from sfn_rt.options import BackendOptions

# The ONNX graph y = x + x on two floats, opset 17: the smallest session that computes.
DOUBLING_GRAPH = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01'
    b"\x12\x04\n\x02\x08\x02b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02B\x04\n\x00\x10\x11"
)
# What each extra of the package brings, as distributions.
EXTRAS: dict[str, tuple[str, ...]] = {
    "base": ("numpy", "av", "opencv-python-headless", "tokenizers", "typer"),
    "cpu": ("onnxruntime",),
    "gpu": ("onnxruntime-gpu", "cuda-python"),
    "trt": ("tensorrt",),
    "rtx": ("tensorrt-rtx",),
    "train": ("torch", "lightning", "transformers", "sentence-transformers", "safetensors"),
    "export": ("onnx", "onnxscript", "polygraphy"),
}
State = Literal["works", "absent", "broken"]


@dataclass(frozen=True)
class Finding:
    """One probe's result."""

    name: str
    state: State
    detail: str
    advice: str = ""  # what to do about it; empty where nothing needs doing


@dataclass(frozen=True)
class Diagnosis:
    """All findings of one machine."""

    machine: dict[str, str]
    packages: dict[str, dict[str, str | None]]  # extra -> distribution -> version
    findings: tuple[Finding, ...]
    asked: str | None = None  # the backend that must work; None: any will do

    @property
    def can_score(self) -> bool:
        """Whether the backend asked for runs, else some; and video can be read and looked at."""
        state = {finding.name: finding.state for finding in self.findings}
        wanted = (self.asked,) if self.asked else ("onnxruntime cpu", "onnxruntime gpu")
        backend = any(state.get(name) == "works" for name in wanted)
        return backend and all(state.get(name) == "works" for name in ("video", "opencv"))

    @property
    def not_yet(self) -> str:
        """What to say where it cannot."""
        how = f" {self.asked}" if self.asked else ""
        return f"This machine cannot score video{how} yet: follow the arrows above."

    def text(self) -> str:
        lines = [f"{name:<12}{value}" for name, value in self.machine.items()]
        lines.append("")
        for extra, versions in self.packages.items():
            found = ", ".join(f"{name} {version or '-'}" for name, version in versions.items())
            lines.append(f"{extra:<12}{found}")
        lines.append("")
        for finding in self.findings:
            lines.append(f"{finding.name:<18}{finding.state:<8}{finding.detail}")
            if finding.advice:
                lines.append(f"{'':<26}-> {finding.advice}")
        lines.append("")
        lines.append("This machine can score video." if self.can_score else self.not_yet)
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        return {
            "can_score": self.can_score,
            "machine": self.machine,
            "packages": self.packages,
            "findings": [asdict(finding) for finding in self.findings],
        }


def diagnose(bundle: Path | None = None, backend: BackendOptions | None = None) -> Diagnosis:
    """Probe everything, and the bundle if there is one. Takes about a second.

    A backend that is given must open the bundle with it, engines and all.
    """
    probes: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("video", probe_video),
        ("opencv", probe_opencv),
        ("tokenizers", probe_tokenizers),
        ("onnxruntime cpu", probe_onnxruntime_cpu),
        ("onnxruntime gpu", probe_onnxruntime_gpu),
        ("tensorrt", lambda: probe_import("tensorrt", "tensorrt", "trt")),
        ("tensorrt-rtx", lambda: probe_import("tensorrt-rtx", "tensorrt_rtx", "rtx")),
        ("nvidia driver", probe_driver),
        ("bundle", lambda: probe_bundle(bundle)),
    )
    asked = None
    if backend is not None:
        asked = f"on {backend.name}"
        probes += ((asked, lambda: probe_backend(asked, bundle, backend)),)
    packages = {extra: {name: installed(name) for name in names} for extra, names in EXTRAS.items()}
    return Diagnosis(
        machine=machine(),
        packages=packages,
        findings=tuple(guarded(name, probe) for name, probe in probes),
        asked=asked,
    )


def guarded(name: str, probe: Callable[[], Finding]) -> Finding:
    """A probe meets broken installations of every kind; whatever it raises is the finding."""
    try:
        return probe()
    except Exception as error:
        return Finding(
            name,
            "broken",
            f"{type(error).__name__}: {error}".splitlines()[0],
            "install again what the table above shows for it",
        )


def machine() -> dict[str, str]:
    return {
        "sfn-rt": f"{__version__} in {Path(__file__).parent}",
        "python": f"{platform.python_version()} at {sys.executable}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu cores": str(os.cpu_count()),
    }


def installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def probe_video() -> Finding:
    import av

    wanted = ("h264", "hevc", "mpeg4", "vp9", "av1", "mjpeg")
    readable = [name for name in wanted if name in av.codecs_available]
    return Finding("video", "works", f"PyAV {av.__version__} decodes {', '.join(readable)}")


def probe_opencv() -> Finding:
    import cv2
    import numpy as np

    grey = np.zeros((32, 32), np.uint8)
    preset = cv2.DISOPTICAL_FLOW_PRESET_FAST
    cv2.DISOpticalFlow.create(preset).calc(grey, grey, np.zeros((32, 32, 2), np.float32))
    return Finding("opencv", "works", f"OpenCV {cv2.__version__}, optical flow runs")


def probe_tokenizers() -> Finding:
    import tokenizers

    return Finding("tokenizers", "works", f"tokenizers {tokenizers.__version__}")


def probe_onnxruntime_cpu() -> Finding:
    name = "onnxruntime cpu"
    both = [dist for dist in ("onnxruntime", "onnxruntime-gpu") if installed(dist)]
    if not both:
        return Finding(
            name,
            "absent",
            "ONNX Runtime is not installed",
            'pip install "sfn-rt[cpu]", or "sfn-rt[gpu]" on a machine with an NVIDIA GPU',
        )
    if len(both) == 2:
        return Finding(
            name,
            "broken",
            "onnxruntime and onnxruntime-gpu overwrite each other's files",
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them again",
        )
    return run_session(name, "CPUExecutionProvider")


def probe_onnxruntime_gpu() -> Finding:
    name = "onnxruntime gpu"
    if not installed("onnxruntime-gpu"):
        has_gpu = probe_driver().state == "works"
        advice = 'pip uninstall onnxruntime, then pip install "sfn-rt[gpu]"' if has_gpu else ""
        return Finding(name, "absent", "onnxruntime-gpu is not installed", advice)
    return run_session(name, "CUDAExecutionProvider")


def run_session(name: str, provider: str) -> Finding:
    """Compute on the provider; a session that quietly moved elsewhere does not count."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is said below, in one line
    session = ort.InferenceSession(DOUBLING_GRAPH, options, providers=[provider])
    if provider not in session.get_providers():
        return Finding(
            name,
            "broken",
            f"ONNX Runtime {ort.__version__} fell back to {', '.join(session.get_providers())}",
            "check the NVIDIA driver and the CUDA libraries that onnxruntime-gpu asks for",
        )
    (doubled,) = session.run(None, {"x": np.array([1.5, -2.0], np.float32)})
    if doubled.tolist() != [3.0, -4.0]:
        return Finding(
            name, "broken", f"1.5, -2.0 doubled is {doubled.tolist()}", "install it again"
        )
    return Finding(name, "works", f"ONNX Runtime {ort.__version__} computes on {provider}")


def probe_import(name: str, module: str, extra: str) -> Finding:
    """TensorRT's wheels carry native libraries that only an import really finds."""
    if installed(name) is None:
        return Finding(name, "absent", f"optional: the {extra} extra is not installed")
    loaded = __import__(module)
    return Finding(name, "works", f"{module} {loaded.__version__} loads")


def probe_bundle(path: Path | None) -> Finding:
    """Which system it holds. Scoring names its own bundle, so this one decides nothing."""
    if path is None:
        return Finding("bundle", "absent", "none to look at: neither --bundle nor SFN_BUNDLE")
    from sfn_rt.bundle import load_bundle
    from sfn_rt.exceptions import BundleError

    try:
        manifest = load_bundle(path).manifest
    except BundleError as error:
        return Finding("bundle", "broken", str(error), "make one with `make export`")
    return Finding("bundle", "works", f"{path} holds {manifest.system}, profile {manifest.profile}")


def probe_backend(name: str, path: Path | None, options: BackendOptions) -> Finding:
    """Whether the bundle really opens on it, which no list of packages tells."""
    if path is None:
        return Finding(name, "absent", "no bundle to open with it", "name one with --bundle")
    from sfn_rt.backends.choose import open_backend
    from sfn_rt.bundle import load_bundle
    from sfn_rt.exceptions import SfnError

    try:
        with open_backend(load_bundle(path, verify=False), options) as backend:
            detail = f"opens {path} {options.text()}: {', '.join(backend.parts)}"
    except SfnError as error:
        reason, _, advice = str(error).rpartition("; ")
        return Finding(name, "broken", reason or advice, advice if reason else "")
    return Finding(name, "works", detail)


def probe_driver() -> Finding:
    name = "nvidia driver"
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except FileNotFoundError:
        return Finding(name, "absent", "no NVIDIA driver: nvidia-smi is not on the path")
    except subprocess.TimeoutExpired:
        return Finding(name, "broken", "nvidia-smi does not answer", "restart the driver")
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()
        return Finding(
            name, "broken", said[0] if said else "nvidia-smi fails", "reinstall the driver"
        )
    return Finding(name, "works", "; ".join(done.stdout.strip().splitlines()))
