"""ONNX to an engine: parse, profiles, options, build. The precision is the graph's and is obeyed.

The builder runs in a thread of its own, so that Ctrl-C reaches it: it stops at its next step, and
nothing is written, because an engine is written (cache.py) only when it is whole.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfn_rt.engines.flavour import Flavour, open_engine
from sfn_rt.engines.onnx_file import OnnxFile, read_onnx
from sfn_rt.engines.profiles import Ranges, add_profiles, stream_profiles
from sfn_rt.engines.report import EngineReport, report_of_inspector, report_of_log
from sfn_rt.exceptions import BackendError, InputError

MEGABYTE = 1 << 20
Progress = Callable[[str, int, int], None]  # phase, steps done, steps
NO_LEAN = "libnvinfer_lean"
NO_TYPE = "HW-specific datatypes"
NO_DRIVER = ("cudaError 35", "CUDA_SUCCESS")
NO_MEMORY = ("out of memory", "OutOfMemory", "cudaError 2:", "insufficient memory")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What an engine can do beyond its graph."""

    max_batch: int = 16  # frames at once, of all streams together
    max_frame: tuple[int, int] = (1080, 1920)  # height, width of the pictures it resizes
    version_compatible: bool = False  # a newer TensorRT runs it too
    strip_weights: bool = False  # they are put in from the bundle when the engine is opened
    workspace_mb: int | None = None  # scratch memory that a layer may use; None: what there is

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise InputError(f"--max-batch must be at least 1, got {self.max_batch}")
        if min(self.max_frame) < 16:
            raise InputError(f"--max-frame must be at least 16x16, got {self.max_frame}")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise InputError(f"--workspace must be at least 1 MB, got {self.workspace_mb}")

    def to_json(self) -> dict[str, Any]:
        """For the engine's record."""
        return asdict(self) | {"max_frame": list(self.max_frame)}


@dataclass(frozen=True)
class Built:
    """An engine in memory."""

    plan: bytes
    report: EngineReport
    profiles: int  # 0: no axis is dynamic
    seconds: float
    timings: bytes | None = None  # for the next build on this GPU


def build(
    graph: Path | OnnxFile,
    flavour: Flavour,
    *,
    targets: Sequence[str] | None = None,
    profiles: Sequence[Ranges] | None = None,
    options: EngineOptions | None = None,
    timings: bytes | None = None,
    device: int = 0,
    progress: Progress | None = None,
) -> Built:
    """Build one graph for the GPU here, or ahead of time for `targets` such as "SM89".

    A BackendError names the operator and the node that was refused.
    """
    options = options or EngineOptions()
    known = graph if isinstance(graph, OnnxFile) else read_onnx(graph)
    _check_options(flavour, targets, options)
    ranges = profiles or stream_profiles(options.max_batch, options.max_frame)
    monitor = _monitor(flavour.module, progress)

    def work() -> Built:
        if not flavour.ahead_of_time:
            from sfn_rt.backends.cuda import use_device

            use_device(device)  # CUDA's choice of a GPU is a thread's own
        return _build(known, flavour, targets, ranges, options, timings, monitor)

    return _in_thread(work, monitor)


def _build(
    known: OnnxFile,
    flavour: Flavour,
    targets: Sequence[str] | None,
    ranges: Sequence[Ranges],
    options: EngineOptions,
    timings: bytes | None,
    monitor: Any,
) -> Built:
    start = time.perf_counter()
    trt, messages = flavour.module, flavour.messages()
    builder = trt.Builder(messages)
    network = builder.create_network(_network_flags(flavour))
    parser = trt.OnnxParser(network, messages)
    if not parser.parse_from_file(str(known.path)):
        said = _refusals(known, parser) or messages.said()
        raise BackendError(f"{known.path}: {flavour.title} cannot parse {said}")
    config = builder.create_builder_config()
    config.progress_monitor = monitor
    cache = _configure(flavour, config, targets, options, timings)
    n_profiles = add_profiles(builder, config, network, ranges, known.path)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(_why_not(known, flavour, options, messages.said()))
    content = bytes(plan)
    report = _report(flavour, content, messages, known, options.version_compatible)
    grown = bytes(cache.serialize()) if cache is not None else None
    return Built(content, report, n_profiles, time.perf_counter() - start, grown)


def _check_options(flavour: Flavour, targets: Sequence[str] | None, options: EngineOptions) -> None:
    if targets is not None and not flavour.ahead_of_time:
        raise BackendError(
            f"{flavour.title} builds for the GPU here and for no other; leave --target out, or "
            f"build with --backend tensorrt-rtx"
        )
    for target in targets or ():
        if target not in flavour.targets:
            raise BackendError(
                f"{flavour.title} has no target {target!r}; it has {', '.join(flavour.targets)}"
            )
    if options.version_compatible and flavour.ahead_of_time:
        raise BackendError(
            f"{flavour.title} has no version-compatible engines: each release needs its own; "
            f"leave --version-compatible out"
        )


def _network_flags(flavour: Flavour) -> int:
    # TensorRT 11 knows no other network than a strongly typed one; 10 has to be told.
    strong = getattr(flavour.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if strong is None else 1 << int(strong)


def _configure(
    flavour: Flavour,
    config: Any,
    targets: Sequence[str] | None,
    options: EngineOptions,
    timings: bytes | None,
) -> Any:
    """Set flags and targets; the timing cache, where there is one."""
    trt = flavour.module
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mb is not None:
        limit = options.workspace_mb * MEGABYTE
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
    flags = ["VERSION_COMPATIBLE"] if options.version_compatible else []
    # Refitted with the very weights it was built with, so nothing may be assumed of others.
    flags += ["STRIP_PLAN", "REFIT_IDENTICAL"] if options.strip_weights else []
    if flavour.ahead_of_time:
        flags.append("REQUIRE_USER_ALLOCATION")  # else runs cannot be recorded in a CUDA graph
        chosen = list(targets) if targets is not None else ["CURRENT"]
        config.num_compute_capabilities = len(chosen)
        for i, target in enumerate(chosen):
            config.set_compute_capability(getattr(trt.ComputeCapability, target), i)
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is fp32: TF32 keeps 10 bits of 23
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if flavour.ahead_of_time:
        return None  # a timing cache would make it look for a GPU, and changes nothing
    cache = config.create_timing_cache(timings or b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _in_thread(work: Callable[[], Built], monitor: Any) -> Built:
    """Do it elsewhere: a Ctrl-C in what TensorRT calls back to would be lost in its own code."""
    done: list[Built] = []
    failed: list[BaseException] = []
    finished = threading.Event()

    def in_thread() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)
        finally:
            finished.set()

    worker = threading.Thread(target=in_thread, name="engine builder", daemon=True)
    stopped: KeyboardInterrupt | None = None
    worker.start()
    # Not `join`: a Ctrl-C in it makes Python 3.11 take a thread that works on for one that ended.
    while not finished.is_set():
        try:
            finished.wait(0.1)
        except KeyboardInterrupt as interrupt:
            monitor.stop, stopped = True, interrupt
    worker.join()
    if stopped is not None:
        raise stopped
    if failed:
        raise failed[0]
    return done[0]


def _monitor(trt: Any, progress: Progress | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells how far the builder is, and stops it."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stop = False
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            if progress is not None:
                progress(phase, 0, steps)

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            if progress is not None:
                progress(phase, step + 1, self.steps.get(phase, step + 1))
            return not self.stop

    return Monitor()


def _report(
    flavour: Flavour, plan: bytes, messages: Any, known: OnnxFile, compatible: bool
) -> EngineReport:
    if messages.layers or flavour.ahead_of_time:
        return report_of_log(messages.layers, known.nodes)
    engine = open_engine(flavour, plan, messages, version_compatible=compatible)
    if engine is None:
        raise BackendError(
            f"{known.path}: {flavour.title} cannot open the engine it built: {messages.said()}"
        )
    wanted = flavour.module.LayerInformationFormat.JSON
    text = engine.create_engine_inspector().get_engine_information(wanted)
    return report_of_inspector(text, known.nodes)


def _refusals(known: OnnxFile, parser: Any) -> str:
    """operator 'node': reason, for everything that the parser refused."""
    said = [_refusal(known, parser.get_error(i)) for i in range(parser.num_errors)]
    return "; ".join(" ".join(line.split()) for line in dict.fromkeys(said))


def _refusal(known: OnnxFile, error: Any) -> str:
    # Some importers leave node and operator out, and only their own name tells the operator.
    operator = error.node_operator() or error.func().removeprefix("import")
    name = error.node_name() or known.named(operator)
    return f"{operator} {name!r}: {error.desc()}"


def _why_not(known: OnnxFile, flavour: Flavour, options: EngineOptions, said: str) -> str:
    """Why the builder gave up, and what to do about it."""
    place = f"{known.path}: {flavour.title} cannot build"
    if options.strip_weights and any(word in said for word in NO_DRIVER):
        return f"{place} without weights where there is no NVIDIA driver; leave --strip-weights out"
    if any(word in said for word in NO_DRIVER):
        way = "; name what to build for, e.g. --target SM89" if flavour.ahead_of_time else ""
        return f"{place} for the GPU here: none, or a driver that is too old{way} ({said})"
    if NO_TYPE in said:
        return f"{place} it: the GPU lacks a type of this precision, take another one ({said})"
    if NO_LEAN in said:
        return f"{place} a version-compatible engine: its lean runtime is not installed ({said})"
    if "workspace limit" in said:
        return (
            f"{place} within --workspace {options.workspace_mb or 'limit'} MB; "
            f"give more, or leave it out ({said})"
        )
    if any(word in said for word in NO_MEMORY):
        return (
            f"{place}: the GPU's memory is full at --max-batch {options.max_batch}; "
            f"build with a smaller one, or close what else runs there ({said})"
        )
    return f"{place} it: {said}"
