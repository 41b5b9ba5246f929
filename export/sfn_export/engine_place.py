"""What is built of a bundle, with which TensorRT, and for which GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sfn_export.exceptions import EngineError
from sfn_rt.backends.cuda import Gpu, find_gpu
from sfn_rt.bundle import FULL
from sfn_rt.engines.flavour import Flavour, load_flavour
from sfn_rt.engines.parts import targets_here
from sfn_rt.exceptions import BackendError

TARGETS = ("SM86", "SM89", "SM120")  # of engines built ahead of time: Ampere, Ada, Blackwell
SINCE = {"fp8": ("SM89", "SM120")}  # precision -> those of them that have the type
LEAST_BATCH = 8  # frames that are compared at once


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What is built of which bundle."""

    bundle: Path
    out: Path  # folder of the report
    run: Path | None = None  # the run it came from: PyTorch is compared too
    precision: str = FULL
    targets: tuple[str, ...] = ()  # none: the GPU here, or TARGETS
    clips: Path | None = None  # video that feeds a lower precision; None: the run's own
    frames: int = 120  # of each clip
    fps: float | None = None  # where the clips do not state it
    max_batch: int = 16
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.max_batch < LEAST_BATCH:
            raise EngineError(f"--max-batch must be at least {LEAST_BATCH}, got {self.max_batch}")
        if self.frames < 8:
            raise EngineError(f"--frames must be at least 8, got {self.frames}")


@dataclass(frozen=True)
class Place:
    """What engines are built with, and for."""

    flavour: Flavour
    targets: tuple[str, ...] | None  # None: the GPU here
    gpu: Gpu | None  # that runs them; None: nothing is executed

    def text(self) -> str:
        """For people."""
        if self.gpu is not None:
            return f"{self.flavour.title} on {self.gpu.name}"
        assert self.targets is not None
        return f"{self.flavour.title} ahead of time for {', '.join(self.targets)}"


def choose_place(settings: EngineSettings, precisions: Mapping[str, str]) -> Place:
    """TensorRT on the GPU here, else TensorRT-RTX: for that GPU, or ahead of time."""
    try:
        gpu: Gpu | None = None if settings.targets else find_gpu()
    except BackendError:
        gpu = None
    if gpu is not None:
        try:
            return Place(load_flavour("tensorrt"), None, gpu)
        except BackendError:
            rtx = load_flavour("tensorrt-rtx")
            return Place(rtx, targets_here(rtx, gpu), gpu)
    for lower in precisions.values():
        if lower in SINCE and not settings.targets:
            return Place(load_flavour("tensorrt-rtx"), SINCE[lower], None)
    return Place(load_flavour("tensorrt-rtx"), settings.targets or TARGETS, None)
