"""Would TensorRT take these graphs? TensorRT-RTX parses and builds them ahead of time on the CPU.

It is the same parser and the same kinds of refusal as TensorRT's, needs no GPU, and takes seconds:
a gate for every graph that is exported. The builder is the device's own (sfn_rt.engines.build). An
int4 variant of a VLM's language model is made for ONNX Runtime, of operators that TensorRT does not
know, and is refused here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sfn_export.exceptions import RtxError
from sfn_rt.engines.build import build
from sfn_rt.engines.flavour import load_flavour
from sfn_rt.engines.profiles import TOKENS
from sfn_rt.engines.report import EngineReport
from sfn_rt.exceptions import BackendError

TARGETS = ("SM86", "SM89", "SM120")  # Ampere, Ada and Blackwell cards
RANGES = {
    "batch": (1, 1, 8),
    "tokens": TOKENS,
    "height": (16, 576, 1080),
    "width": (16, 720, 1920),
}


@dataclass(frozen=True)
class RtxBuild:
    """One graph that built."""

    path: Path
    report: EngineReport
    seconds: float
    megabytes: float  # of the engine for all targets
    profiles: int  # 0: no axis is dynamic

    @property
    def layers(self) -> int:
        """Of the engine."""
        return len(self.report.layers)


def check_rtx(path: Path, targets: tuple[str, ...] = TARGETS) -> RtxBuild:
    """Parse and build one graph; an RtxError names the operator and node that was refused."""
    try:
        built = build(path, load_flavour("tensorrt-rtx"), targets=targets, profiles=(RANGES,))
    except BackendError as error:
        raise RtxError(str(error)) from error
    return RtxBuild(path, built.report, built.seconds, len(built.plan) / 1e6, built.profiles)


def graphs_in(paths: Iterable[Path]) -> list[Path]:
    """The ONNX files among `paths` and in the folders among them."""
    found = [
        g for path in paths for g in (sorted(path.rglob("*.onnx")) if path.is_dir() else [path])
    ]
    if absent := [path for path in found if not path.is_file()]:
        raise RtxError(f"{absent[0]} does not exist; give ONNX files or a bundle folder")
    if not found:
        raise RtxError("no ONNX file there; give ONNX files or a bundle folder")
    return found


def foreign_operators(path: Path) -> list[str]:
    """Whose operators a graph uses that are not ONNX's: no TensorRT is asked to build those."""
    import onnx

    used = onnx.load(path, load_external_data=False).graph.node
    return sorted({node.domain for node in used} - {"", "ai.onnx"})
