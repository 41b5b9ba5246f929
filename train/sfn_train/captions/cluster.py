"""Captions by workers on a Ray cluster: several GPUs, several machines.

This process reads the videos and ships each unit's frames to a worker, so no machine but this one
needs the videos; the weights lie under the same path everywhere, which each worker checks by their
hash. A worker that dies is replaced and its units are done again by whoever is free. Only this
process writes, and only when it holds a unit's captions: so nothing is lost and nothing kept twice.
"""

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sfn_rt.exceptions import DataError, SfnError
from sfn_rt.frames import Image
from sfn_train.captions.units import Unit
from sfn_train.captions.vlm import Clip, Said, Vlm, model_sha256

if TYPE_CHECKING:
    from sfn_train.captions.make import CaptionOptions

AHEAD = 2  # units at a worker: one being described, one whose frames travel meanwhile
PATIENCE_S = 120.0
MOST_DEATHS = 3  # of workers in a row, or on one unit, before it is taken for the unit's fault
# How long a cluster started here may take: Ray's own half a minute is short for a busy machine,
# on which its node then dies.
SLOW_START = {
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
}
STARTS = 3  # attempts; how long Ray waits for the node itself cannot be set
OBJECT_STORE = 1 << 30  # bytes, of a cluster started here: frames on their way, nothing else


class Worker:
    """Lives in a process of its own, on a GPU of its own where there are GPUs."""

    def __init__(self, weights: str, model: str, question: str, max_tokens: int) -> None:
        if (found := model_sha256(Path(weights))) != model:
            raise DataError(
                f"{weights} on {socket.gethostname()} holds another model ({found[:12]}) than "
                f"where the command runs ({model[:12]}); copy the folder there"
            )
        self._vlm = Vlm(Path(weights), question=question, max_tokens=max_tokens)

    def where(self) -> str:
        """For people."""
        return f"{socket.gethostname()} pid {os.getpid()} ({self._vlm.device})"

    def caption(
        self, frames: Sequence[Image], clips: Sequence[Clip]
    ) -> tuple[list[Said], int | None]:
        """One unit's captions, and how many clips fitted into memory where not all did."""
        return self._vlm.caption(frames, clips), self._vlm.most


class Cluster:
    """The workers, and which of them is doing what."""

    def __init__(self, options: "CaptionOptions", model: str, say: Callable[[str], None]) -> None:
        self.n_lost = 0
        self._options, self._model, self._say = options, model, say
        self._ray = _connect(options.ray or "auto", options.workers)
        resources = self._ray.cluster_resources()
        n_gpus, n_cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        self._needs = {"num_gpus": 1.0, "num_cpus": 0.0} if n_gpus else {"num_cpus": 1.0}
        self._n_workers = min(options.workers or 10**6, n_gpus or n_cpus)
        if not self._n_workers:
            raise DataError(f"--ray {options.ray}: the cluster has neither a GPU nor a CPU to give")
        self._starting: dict[Any, Any] = {}  # answer to `where` -> worker
        self._busy: dict[Any, tuple[Any, Unit]] = {}  # answer to `caption` -> worker, unit
        self._load: dict[Any, int] = {}  # units at each worker that has started
        self._again: deque[Unit] = deque()
        self._deaths: Counter[Unit] = Counter()
        self._failed_starts = 0
        self._told: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in {*self._starting.values(), *self._load}:
            self._ray.kill(worker)
        self._ray.shutdown()

    def run(self, units: Iterator[Unit]) -> Iterator[tuple[Unit, Sequence[Said]]]:
        """Each unit with its captions, in the order in which they are done."""
        for _ in range(self._n_workers):
            self._start()
        while True:
            self._hand_out(units)
            if self._load and not self._busy:
                return
            waiting = [*self._starting, *self._busy]
            ready, _ = self._ray.wait(waiting, num_returns=1, timeout=PATIENCE_S)
            if not ready:
                self._wonder()
                continue
            (answer,) = ready
            if answer in self._starting:
                self._started(answer)
            elif answer in self._busy:
                worker, unit = self._busy.pop(answer)
                if (said := self._answer(answer, worker, unit)) is not None:
                    self._load[worker] -= 1
                    yield unit, said

    def _wonder(self) -> None:
        """Nothing came for long: fine while a worker describes, worth a line without one."""
        if not self._load:
            self._say(
                "note: no worker has started yet; the cluster may have no room, see ray status"
            )

    def _start(self) -> None:
        options = self._options
        worker = (
            self._ray.remote(Worker)
            .options(max_restarts=0, **self._needs)
            .remote(
                str(options.weights.resolve()), self._model, options.question, options.max_tokens
            )
        )
        self._starting[worker.where.remote()] = worker

    def _started(self, answer: Any) -> None:
        worker = self._starting.pop(answer)
        try:
            place = self._get(answer)
        except self._deadly as error:
            self._failed_starts += 1
            if self._failed_starts >= MOST_DEATHS:
                raise DataError(
                    f"{MOST_DEATHS} workers died while they loaded {self._options.weights} "
                    f"({_line(error)}); is there memory for that many? Try --workers 1"
                ) from None
            self._lost()
            return
        self._failed_starts = 0
        self._load[worker] = 0
        self._say(f"worker on {place}")

    def _hand_out(self, units: Iterator[Unit]) -> None:
        """Keep every worker busy; the least busy first."""
        while self._load:
            worker = min(self._load, key=self._load.__getitem__)
            if self._load[worker] >= AHEAD:
                return
            unit = self._again.popleft() if self._again else next(units, None)
            if unit is None:
                return
            self._load[worker] += 1
            self._busy[worker.caption.remote(unit.frames, unit.clips)] = (worker, unit)

    def _answer(self, answer: Any, worker: Any, unit: Unit) -> Sequence[Said] | None:
        """A unit's captions; None where its worker died."""
        try:
            said, most = self._get(answer)
        except self._deadly as error:
            self._bury(worker, unit, error)
            return None
        if most is not None and most not in self._told:
            from sfn_train.captions.make import memory_note

            self._told.add(most)
            self._say(memory_note(most))
        found: list[Said] = said
        return found

    def _bury(self, worker: Any, unit: Unit, error: Exception) -> None:
        """Put back what a dead worker had, and start another."""
        had = [unit]
        for answer, (other, its_unit) in list(self._busy.items()):
            if other is worker:
                had.append(its_unit)
                del self._busy[answer]
        del self._load[worker]
        self._again.extend(had)
        self._deaths[unit] += 1  # the one it was at; the others were waiting
        if self._deaths[unit] >= MOST_DEATHS:
            raise DataError(
                f"{MOST_DEATHS} workers died at {unit.place()} of the same video "
                f"({_line(error)}); all other captions are kept: lower --batch or --max-tokens, "
                f"and repeat the command"
            )
        self._lost()

    def _lost(self) -> None:
        self.n_lost += 1
        self._say("note: a worker died; another takes its place, and its clips are done again")
        self._start()

    def _get(self, answer: Any) -> Any:
        """What a worker answered; its own mistakes as they were raised."""
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SfnError):
                raise error.cause from None
            raise

    @property
    def _deadly(self) -> tuple[type[Exception], ...]:
        known = self._ray.exceptions
        return (known.RayActorError, known.ObjectLostError, known.WorkerCrashedError)


def _connect(address: str, workers: int | None) -> Any:
    """Join the cluster, or start one on this machine for `local`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    for name, value in SLOW_START.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise DataError(
            "--ray needs Ray; install it: pip install 'sfn-rt[cluster]', or in a checkout "
            "pip install -e '.[train,cluster]'"
        ) from None
    import sfn_rt
    import sfn_train

    settings: dict[str, Any] = {"address": address}
    if address == "local":
        settings |= {
            "num_cpus": workers,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
        }
    # This checkout's code travels with the job: every worker runs the same.
    modules = [next(iter(module.__path__)) for module in (sfn_rt, sfn_train)]
    settings |= {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"py_modules": modules, "excludes": ["__pycache__"]},
    }
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(**settings)
            break
        except Exception as error:  # Ray raises bare Exception where its node is not up in time
            ray.shutdown()
            if attempt < STARTS and address == "local" and "timed out" in str(error):
                continue
            raise DataError(
                f"--ray {address}: {_line(error)}; start a cluster with `ray start --head` and "
                f"give its address, or use --ray local for this machine alone"
            ) from None
    return ray


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
