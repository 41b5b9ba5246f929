"""What the commands ask for: one frozen dataclass a command, checked on construction.

Options say where and how fast, never what the model is: that is in the bundle.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from sfn_rt.exceptions import InputError
from sfn_rt.scores import TERMS as TERMS  # also what a bundle may name

CaptionerName = Literal["scene", "vlm", "student"]
BackendName = Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"]
Clock = Literal["frames", "seconds"]


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """What computes, in which precision; sfn_rt/backends/choose.py opens it. Never a fall-back."""

    name: BackendName = "cpu"  # cpu and cuda: ONNX Runtime; the others run engines of their own
    precision: str = "fp32"  # or one that the bundle was calibrated for
    engines: Path | None = (
        None  # folder of built engines; None: $SFN_ENGINES, else the user's cache
    )
    device: int = 0  # of several GPUs

    def __post_init__(self) -> None:
        if self.name not in get_args(BackendName):
            raise InputError(
                f"--backend must be one of {', '.join(get_args(BackendName))}, got {self.name!r}"
            )
        if self.engines is not None and not self.name.startswith("tensorrt"):
            raise InputError(
                f"--engines is for --backend tensorrt and tensorrt-rtx; {self.name} builds none"
            )
        if self.device < 0:
            raise InputError(f"--device must be 0 or more, got {self.device}")
        if self.device and self.name == "cpu":
            raise InputError("--device chooses a GPU; leave it out with --backend cpu")

    def text(self) -> str:
        """For people."""
        return f"on {self.name} in {self.precision}"

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"name": self.name, "precision": self.precision, "device": self.device}


@dataclass(frozen=True, kw_only=True)
class LaneOptions:
    """Who describes a video, and when; semantics/lane.py has the rules."""

    captioner: CaptionerName | None = None  # None: the one that the model was trained with
    policy: str | None = None  # None: every stride of the model, or `change` with the VLM
    latency: int | None = None  # frames that a caption takes; None: 0, or a second with the VLM
    clock: Clock = "frames"  # "seconds": play the video as a camera would, captions when they come

    def __post_init__(self) -> None:
        if self.captioner not in (None, *get_args(CaptionerName)):
            raise InputError(
                f"--captioner must be one of {', '.join(get_args(CaptionerName))}, "
                f"got {self.captioner!r}"
            )
        if self.clock not in get_args(Clock):
            raise InputError(f"--lane-clock must be frames or seconds, got {self.clock!r}")
        if self.latency is not None and self.latency < 0:
            raise InputError(f"--lane-latency must be 0 or more frames, got {self.latency}")
        if self.latency is not None and self.clock == "seconds":
            raise InputError(
                "--lane-latency is how long a caption takes on the clock of frames; on that of "
                "seconds it takes what it takes: leave one of the two options out"
            )
        if self.policy == "off" and self.latency is not None:
            raise InputError("--lane off makes no captions; leave --lane-latency out")
        if self.captioner == "student" and self.policy is not None:
            raise InputError(
                "--captioner student makes no captions, so it has no policy; leave --lane out"
            )

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How one video is scored."""

    out: Path  # folder for the results
    threads: int | None = None  # of the backend; None lets it choose
    report: bool = True  # also the heat map video and report.html
    resume: bool = False  # continue what an interruption left in `out`
    force: bool = False  # replace results that are in `out` already
    captions: Path | None = None  # a file or a folder of them, instead of describing what moves
    terms: tuple[str, ...] | None = None  # None: all that the bundle carries
    fps: float | None = None  # where the video does not state it
    lane: LaneOptions = field(default_factory=LaneOptions)
    backend: BackendOptions = field(default_factory=BackendOptions)
    progress: bool = True  # on a terminal only

    def __post_init__(self) -> None:
        check_threads(self.threads)
        check_fps(self.fps)
        check_terms(self.terms)
        if self.resume and self.force:
            raise InputError(
                "--resume continues the results in the output folder and --force discards "
                "them; give one of the two"
            )


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """How a data set with labels is scored and measured."""

    out: Path
    threads: int | None = None
    force: bool = False
    captions: Path | None = None
    terms: tuple[str, ...] | None = None
    fps: float | None = None
    labels: str | None = None  # "masks", "frames" or a label file's name; None: datasets' rule
    lane: LaneOptions = field(default_factory=LaneOptions)
    backend: BackendOptions = field(default_factory=BackendOptions)
    progress: bool = True

    def __post_init__(self) -> None:
        check_threads(self.threads)
        check_fps(self.fps)
        check_terms(self.terms)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How speed is measured."""

    threads: int | None = None
    frames: int = 500  # measured, after the warm-up; a shorter video is measured whole
    warmup: int = 20
    streams: int | None = None  # kept on one device together; None: one, as `score` runs it
    block: int = 1  # frames of each of these streams in a step
    lane: LaneOptions = field(default_factory=LaneOptions)
    backend: BackendOptions = field(default_factory=BackendOptions)

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.streams is not None and self.lane != LaneOptions():
            raise InputError(
                "--streams measures without captions; leave --captioner and --lane out"
            )
        if self.streams is None and self.block != 1:
            raise InputError("--block is for --streams; one stream's blocks have a fixed length")
        for name, value in (("--streams", self.streams), ("--block", self.block)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.frames < 1:
            raise InputError(f"--frames must be at least 1, got {self.frames}")
        if self.warmup < 0:
            raise InputError(f"--warmup must not be negative, got {self.warmup}")


def parse_terms(text: str | None) -> tuple[str, ...] | None:
    """`visual,semantic` -> ("visual", "semantic"), in the order of TERMS."""
    if text is None:
        return None
    asked = {part.strip() for part in text.split(",")} - {""}
    if unknown := sorted(asked - set(TERMS)):
        raise InputError(f"--terms: unknown {', '.join(unknown)}; choose from {', '.join(TERMS)}")
    return tuple(term for term in TERMS if term in asked)


def check_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise InputError(f"--threads must be at least 1, got {threads}")


def check_fps(fps: float | None) -> None:
    if fps is not None and not 0 < fps <= 1000:
        raise InputError(f"--fps must be above 0 and at most 1000, got {fps:g}")


def check_terms(terms: Sequence[str] | None) -> None:
    if terms is None:
        return
    if not terms:
        raise InputError(f"--terms names none; choose from {', '.join(TERMS)}")
    if unknown := [term for term in terms if term not in TERMS]:
        raise InputError(f"--terms: unknown {', '.join(unknown)}; choose from {', '.join(TERMS)}")
