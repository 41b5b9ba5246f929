"""What the commands ask for: one frozen dataclass a command, checked on construction.

Options say where and how fast, never what the model is: that is in the bundle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfn_rt.exceptions import InputError
from sfn_rt.scores import TERMS as TERMS  # also what a bundle may name


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

    def __post_init__(self) -> None:
        check_threads(self.threads)
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
