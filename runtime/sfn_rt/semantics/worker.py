"""Who makes the lane's captions: at once in this process, or meanwhile in another of its own.

A worker takes batches of numbered moments and gives an answer to each number. The lane decides
what is asked and when; a worker knows nothing of policies or clocks. One worker may serve several
streams, one after another or together: numbers are never used twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sfn_rt.semantics.captioner import Captioner, Moment, Said
from sfn_rt.semantics.narrator import check_windows, tell

Batch = Sequence[tuple[int, Moment]]

OUT_OF_MEMORY = (
    "memory ran out while captioning ({error}); free some, put a smaller VLM into the bundle "
    "(`python -m sfn_export vlm --precision int4`), or leave captions out with `--lane off`"
)


@dataclass(frozen=True)
class Answer:
    """The captions of one moment."""

    captions: tuple[str, ...]  # a window each
    cut: bool = False  # the last one had not ended at the captioner's cap
    empty: bool = False  # nothing was said; the caption says so


class Worker(Protocol):
    """Answers numbered moments. Nothing but `take(wait=True)` ever waits."""

    @property
    def instant(self) -> bool:
        """Whether answers are there as soon as they are asked for."""
        ...

    @property
    def restarts(self) -> int:
        """How often what makes the captions was lost and started again."""
        ...

    @property
    def stopped(self) -> str | None:
        """Why no further answer will come; None while some may."""
        ...

    def submit(self, batch: Batch) -> None:
        """Ask for captions, together."""
        ...

    def take(self, number: int, wait: bool) -> Answer | None:
        """The answer to a number, once; None while there is none, or when none will come."""
        ...

    def forget(self, numbers: Iterable[int]) -> None:
        """These answers are not wanted any more."""
        ...

    def close(self) -> None:
        """Let go of everything; open batches are abandoned."""
        ...


class Describer(Protocol):
    """Describes clips with a language model; lives in the worker's own process."""

    def describe(self, moments: Sequence[Moment]) -> Sequence[Said]:
        """One text a moment, in order; the same for the same batch."""
        ...


class InlineWorker:
    """Answers as soon as it is asked: for captioners that cost next to nothing."""

    instant = True
    restarts = 0

    def __init__(self, captioner: Captioner, windows: Sequence[int], observed: int) -> None:
        check_windows(captioner, windows)
        self._captioner, self._windows, self._observed = captioner, tuple(windows), observed
        self._answers: dict[int, Answer] = {}
        self.stopped: str | None = None

    def submit(self, batch: Batch) -> None:
        """Make the captions."""
        if self.stopped is not None:
            return
        try:
            for number, moment in batch:
                self._answers[number] = Answer(self._tell(moment))
        except MemoryError as error:
            self.stopped = OUT_OF_MEMORY.format(error=str(error) or "MemoryError")

    def take(self, number: int, wait: bool) -> Answer | None:
        """The answer to a number, once."""
        return self._answers.pop(number, None)

    def forget(self, numbers: Iterable[int]) -> None:
        """These answers are not wanted any more."""
        for number in numbers:
            self._answers.pop(number, None)

    def close(self) -> None:
        """Nothing is held."""
        self._answers.clear()

    def _tell(self, moment: Moment) -> tuple[str, ...]:
        return tell(
            self._captioner,
            moment.t,
            self._windows,
            self._observed,
            moment.scenes,
            moment.frames,
        )
