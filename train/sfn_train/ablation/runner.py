"""The whole command: what is not there yet is run, then everything is told.

Trials are kept as they finish, so an interrupted command goes on with the next one. Several jobs
are processes of their own with a share of the cores each; only this process writes results.
"""

import multiprocessing
import os
import platform
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch

from sfn_rt.sinks.files import write_atomic
from sfn_train.ablation.footage import Material
from sfn_train.ablation.report import Report, collect, markdown, text
from sfn_train.ablation.results import Results, code_identity, differences, make_settings
from sfn_train.ablation.rows import Base, Table, read_tables, trial_names
from sfn_train.ablation.trial import TOGETHER, Trial, baseline_figures, run_trial
from sfn_train.config import Config, parse_config
from sfn_train.exceptions import RunError

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for."""

    data: Path
    table: str  # a name, or all
    base: Base
    seeds: tuple[int, ...]
    out: Path
    cache: Path
    fps: float | None = None
    jobs: int = 1
    force: bool = False
    only_report: bool = False  # of what is there; nothing is run
    docs: Path | None = None

    @property
    def command(self) -> str:
        """What makes these tables, but for where things lie on one machine."""
        base = self.base
        words = ["python", "-m", "sfn_train", "ablate", self.data.name, "--table", self.table]
        words += ["--config", base.config, "--steps", str(base.steps)]
        words += ["--seeds", ",".join(map(str, self.seeds)), "--jobs", str(self.jobs)]
        words += [word for change in base.changes for word in ("--set", change)]
        if self.docs is not None:
            words += ["--docs", self.docs.name if self.docs.is_absolute() else str(self.docs)]
        return shlex.join(words)


def ablate(request: Request, say: Say) -> str:
    """Run what is missing of the tables; the tables as text. Writes `request.docs`, too."""
    started = time.perf_counter()
    tables = read_tables(request.table)
    names = trial_names(tables, request.base, request.seeds)  # also checks every row
    material = Material(request.data, request.cache, fps=request.fps, say=say)
    results = Results(request.out)
    settings = _settings(request, material)
    remarks: tuple[str, ...] = ()
    if request.only_report:
        remarks = tuple(_stale(results, settings))
    else:
        with results.claimed(settings, force=request.force):
            try:
                _run(request, material, tables, names, results, say)
            finally:
                results.add_wall(time.perf_counter() - started)
    report = _report(request, material, tables, names, results, remarks)
    if request.docs is not None:
        request.docs.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(request.docs, markdown(report, request.command))
    return text(report)


def _settings(request: Request, material: Material) -> dict[str, object]:
    full = request.base.plain()
    return make_settings(full.to_yaml(), request.base.steps, material.identity(), code_identity())


def _stale(results: Results, settings: Mapping[str, object]) -> Iterator[str]:
    """What a reader must know of results that this checkout would not make again."""
    if differ := list(differences(results.settings(), settings)):
        yield f"this checkout would make these results with other {'; '.join(differ)}"


def _run(
    request: Request,
    material: Material,
    tables: Sequence[Table],
    names: Mapping[str, str],
    results: Results,
    say: Say,
) -> None:
    missing = {
        config.fingerprint(): config
        for table in tables
        for row in table.rows
        for seed in request.seeds
        if results.get((config := request.base.row(row, seed)).fingerprint()) is None
    }
    say(f"{len(names)} trials, {len(names) - len(missing)} of them done before")
    known = results.baselines() is not None
    if missing or not known:
        for config in missing.values():  # caches are filled once, before anyone shares them
            material.view(config)
    n_done = len(names) - len(missing)
    for trial in _trials(request, material, list(missing.values()), results):
        results.put(trial)
        n_done += 1
        auc = {p: 100 * f["micro_auc"] for p, f in trial.figures[TOGETHER].items()}
        say(
            f"{n_done}/{len(names)}  {names[trial.config_sha256]}, seed {trial.seed}: paper "
            f"{auc['paper']:.1f}, causal {auc['causal']:.1f}; trained {trial.train_s:.0f} s, "
            f"measured {trial.measure_s:.0f} s"
        )


def _trials(
    request: Request, material: Material, configs: Sequence[Config], results: Results
) -> Iterator[Trial]:
    """Each as it finishes. What no model scores is measured beside the first."""

    def measure_baselines() -> None:
        if results.baselines() is None:
            results.put_baselines(baseline_figures(material))

    if request.jobs == 1:
        measure_baselines()
        for config in configs:
            yield run_trial(material, config)
        return
    with _pool(request) as pool:
        futures = [pool.submit(_work, config.to_yaml()) for config in configs]
        measure_baselines()
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise RunError(
                f"a job was killed, most likely for want of memory; {request.out} keeps what is "
                f"finished: repeat the command with fewer --jobs"
            ) from None


# ------------------------------------------------------------------------------------- jobs

_shared: Material | None = None  # of a job's process


@contextmanager
def _pool(request: Request) -> Iterator[ProcessPoolExecutor]:
    """Processes that share the cores; none is left behind, however this ends."""
    threads = max(1, (os.cpu_count() or 1) // request.jobs)
    pool = ProcessPoolExecutor(
        request.jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(request.data, request.cache, request.fps, threads),
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.kill()


def _start(data: Path, cache: Path, fps: float | None, threads: int) -> None:
    global _shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    _shared = Material(data, cache, fps=fps, say=_silent, progress=False)


def _end_with_parent() -> None:
    """A process that asked and was killed leaves nobody to work for."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(config_yaml: str) -> Trial:
    assert _shared is not None
    return run_trial(_shared, parse_config(config_yaml, "row"))


def _silent(text: str) -> None:
    """The process that asked has said it."""


# ----------------------------------------------------------------------------------- report


def _report(
    request: Request,
    material: Material,
    tables: Sequence[Table],
    names: Mapping[str, str],
    results: Results,
    remarks: tuple[str, ...],
) -> Report:
    return Report(
        tables=collect(tables, request.base, request.seeds, results),
        baselines=results.baselines() or {},
        base=request.base,
        seeds=request.seeds,
        data=request.data.name,
        constants=material.constants_name,
        missing=sum(results.get(sha) is None for sha in names),
        wall_s=results.wall_s(),
        machine=machine(),
        remarks=remarks,
    )


def machine() -> str:
    """`2 cores, AMD EPYC, torch 2.13.0`."""
    kind = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        kind = named[0] if named else kind
    cores = os.cpu_count() or 1
    return f"{cores} core{'' if cores == 1 else 's'}, {kind}, torch {torch.__version__}"
