"""Everything that can run here against its references; what cannot is said."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from sfn_export.build import ExportOptions, find_clips, text_of
from sfn_export.device_parity import HostFunctions, check_device
from sfn_export.engine_build import PartEngine, polygraphy
from sfn_export.engine_parity import (
    Compared,
    Feeds,
    RunnerBackend,
    Tokens,
    compare_full,
    compare_lower,
    onnxruntime_runners,
    record_feeds,
    worst_of,
)
from sfn_export.engine_place import EngineSettings, Place
from sfn_export.exceptions import EngineError
from sfn_export.path_parity import clips_of
from sfn_rt.backends.base import Backend, PartSpec
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import FULL, Bundle
from sfn_rt.datasets import Video
from sfn_rt.engines.flavour import Flavour
from sfn_rt.prediction_error import VisualConfig
from sfn_train.checkpoint import Run
from sfn_train.systems import open_backend

ON_NO_CPU = ("bf16",)  # ONNX Runtime has no kernels for it there
NOT_RUN = "no engine was executed: there is no NVIDIA GPU here; they were built and looked into"


def compare_all(
    bundle: Bundle,
    precisions: Mapping[str, str],
    engines: Mapping[str, PartEngine],
    settings: EngineSettings,
    place: Place,
    run: Run | None,
    videos: Sequence[Video],
) -> tuple[list[Compared], list[str]]:
    """What can run here against its references; and what cannot, in words."""
    specs = {part: entry.spec for part, entry in bundle.manifest.parts.items()}
    lower = set(precisions.values()) - {FULL}
    found: list[Compared] = []
    notes: list[str] = []
    with ExitStack() as stack:
        references: dict[str, Backend] = {}
        if run is not None:
            references["PyTorch"] = stack.enter_context(open_backend(run.model, text_of(run)))
        else:
            notes.append("PyTorch was not compared: name the run that it came from with --run")
        if lower or place.gpu is not None or settings.precision in bundle.manifest.forms:
            full = OrtBackend(bundle.graphs(), threads=settings.threads)
            references["ONNX Runtime, fp32"] = stack.enter_context(full)
        tested: list[Backend] = []
        if absent := sorted(lower.intersection(ON_NO_CPU)):
            notes.append(f"ONNX Runtime was not run: it has no kernels for {absent[0]} on a CPU")
        elif references:
            runners = onnxruntime_runners(
                bundle.graphs(settings.precision), precisions, settings.threads
            )
            tested.append(stack.enter_context(RunnerBackend("ONNX Runtime", runners, specs)))
        if place.gpu is not None:
            on_gpu = {part: engines[part] for part in specs}
            tested.append(stack.enter_context(engine_backend(on_gpu, specs, place.flavour)))
            found += compare_device(bundle, engines, place.flavour)
        else:
            notes.append(NOT_RUN)
        feeds: Feeds = {}
        if videos and tested:
            feeds = record_feeds(
                bundle, videos, frames=settings.frames, fps=settings.fps, threads=settings.threads
            )
        for name, reference in references.items():
            for backend in tested:
                names = (backend.name, name)
                found += compare_full(reference, backend, precisions, Tokens.of(bundle), names)
                found += compare_lower(reference, backend, precisions, feeds, names)
    return found, notes


def engine_backend(
    engines: Mapping[str, PartEngine], specs: Mapping[str, PartSpec], flavour: Flavour
) -> RunnerBackend:
    """Engines behind the Backend protocol, each with the profile of many frames."""
    runners = {}
    with polygraphy(flavour, flavour.messages()) as loaders:
        for part, engine in engines.items():
            opened = loaders.engine_from_bytes(engine.plan)
            last = max(engine.profiles - 1, 0)
            runners[part] = loaders.TrtRunner(opened, optimization_profile=last)
    return RunnerBackend(flavour.title, runners, specs)


def compare_device(
    bundle: Bundle, engines: Mapping[str, PartEngine], flavour: Flavour
) -> list[Compared]:
    """The device graphs' engines against the host's functions."""
    manifest = bundle.manifest
    if not manifest.device:
        return []
    specs = {part: entry.spec for part, entry in manifest.device.items()}
    windows = len(manifest.semantics.windows) if manifest.semantics else 0
    visual = VisualConfig(**manifest.visual)  # type: ignore[arg-type]
    host = HostFunctions(specs, manifest.preprocessing, visual, windows)
    with engine_backend({part: engines[part] for part in specs}, specs, flavour) as backend:
        return worst_of(check_device(host, backend), (backend.name, host.name))


def videos_for(
    run: Run | None, settings: EngineSettings, precisions: Mapping[str, str]
) -> Sequence[Video]:
    """Real video that feeds the parts of a lower precision: of --clips, else the run's own."""
    if set(precisions.values()) == {FULL}:
        return ()
    videos: Sequence[Video] = ()
    if settings.clips is not None:
        videos = clips_of(settings.clips, settings.fps)
    elif run is not None:
        videos = find_clips(run, ExportOptions(fps=settings.fps))
    if not videos:
        raise EngineError(
            f"{settings.precision} is compared on what real video feeds the parts, and the run's "
            f"own is not here; name some with --clips"
        )
    return videos
