"""Which TensorRT: `tensorrt` 10 and 11, or TensorRT-RTX. One interface, another module.

tensorrt       builds on the GPU that it will run on, and times kernels there; every GPU from
               Turing on, Jetson included; from NVIDIA's own index
tensorrt-rtx   builds ahead of time, for a list of GPU architectures, on any x86-64 machine;
               kernels are compiled on the device at the first run; RTX cards only
"""

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from sfn_rt.exceptions import BackendError

FlavourName = Literal["tensorrt", "tensorrt-rtx"]
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS = {"tensorrt": "trt", "tensorrt-rtx": "rtx"}
WHERE = {
    "tensorrt": "its libraries come with --extra-index-url https://pypi.nvidia.com",
    "tensorrt-rtx": "Linux x86-64 and Windows",
}
OLDEST = {"tensorrt": (10, 1), "tensorrt-rtx": (1, 7)}  # which have all the calls made here


@dataclass(frozen=True)
class Flavour:
    """An imported TensorRT."""

    name: str
    module: Any
    version: str

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for GPUs that are not here."""
        return self.name == "tensorrt-rtx"

    @property
    def release(self) -> tuple[int, ...]:
        """The version as numbers, e.g. (10, 3, 0)."""
        return release_of(self.version)

    @property
    def title(self) -> str:
        """For people."""
        return f"{'TensorRT-RTX' if self.ahead_of_time else 'TensorRT'} {self.version}"

    @property
    def targets(self) -> tuple[str, ...]:
        """GPU architectures that it builds for ahead of time, e.g. "SM89"."""
        if not self.ahead_of_time:
            return ()
        names = self.module.ComputeCapability.__members__
        return tuple(sorted((n for n in names if n.startswith("SM")), key=lambda n: int(n[2:])))

    def messages(self) -> Any:
        """A logger for it that keeps what it is told: `errors`, and `layers` of a build."""
        return _messages(self.module)


def load_flavour(name: str) -> Flavour:
    """Import it; a BackendError names the extra to install."""
    if name not in MODULES:
        raise BackendError(f"--backend must be one of {', '.join(MODULES)}, got {name!r}")
    try:
        module = importlib.import_module(MODULES[name])
        version = str(module.__version__)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        # A wheel of the public index is there without its libraries, and fails in many ways.
        raise BackendError(
            f"{MODULES[name]} cannot be imported ({' '.join(str(error).split())}); install it with "
            f"`pip install 'sfn-rt[{EXTRAS[name]}]'` ({WHERE[name]})"
        ) from error
    if release_of(version) < (oldest := OLDEST[name]):
        raise BackendError(
            f"{MODULES[name]} is {version}, {'.'.join(map(str, oldest))} is the oldest that fits; "
            "install a newer one"
        )
    return Flavour(name, module, version)


def open_engine(
    flavour: Flavour, plan: bytes, messages: Any, *, version_compatible: bool = False
) -> Any:
    """An engine on the current GPU; None where TensorRT refuses it, and `messages` say why."""
    runtime = flavour.module.Runtime(messages)
    if version_compatible:
        runtime.engine_host_code_allowed = True  # it brings its own runtime, which is host code
    return runtime.deserialize_cuda_engine(plan)


def release_of(version: str) -> tuple[int, ...]:
    """ "10.3.0.post1" -> (10, 3, 0)."""
    numbers = []
    for piece in version.split("."):
        if not piece.isdigit():
            break
        numbers.append(int(piece))
    return tuple(numbers)


def _messages(module: Any) -> Any:
    severity = module.ILogger.Severity

    class Messages(module.ILogger):  # type: ignore[misc]
        """Keeps what went wrong, which TensorRT would print, and what was built."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""  # the builder's last word, with a line a layer

        def log(self, level: Any, message: str) -> None:
            if level <= severity.ERROR:
                self.errors.append(message)
            elif "\nLayers:\n" in f"\n{message}":
                self.layers = message

        def said(self) -> str:
            """The errors, each once and in one line; they are forgotten."""
            lines = [" ".join(line.split()) for line in dict.fromkeys(self.errors)]
            self.errors.clear()
            return "; ".join(lines) or "it says no reason"

    return Messages()
