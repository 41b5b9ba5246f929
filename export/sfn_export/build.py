"""A run folder to a bundle: trace, compare with PyTorch, pack, compare the whole path on clips."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sfn_export.device_graphs import trace_device
from sfn_export.device_parity import HostFunctions, check_device
from sfn_export.dispatch import FASTEST, Form, written_form
from sfn_export.exceptions import ExportError
from sfn_export.pack import pack
from sfn_export.parity import ParityReport, check_parts
from sfn_export.path_parity import PathReport, check_path, clips_of
from sfn_export.trace import specs_of, trace_part
from sfn_rt.backends.base import PartSpec
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import FULL, Manifest, load_bundle, write_manifest
from sfn_rt.bundle_folder import bundle_folder
from sfn_rt.datasets import Video
from sfn_rt.prediction_error import VisualConfig
from sfn_train.checkpoint import Run, load_run
from sfn_train.model import SFN
from sfn_train.systems import open_backend
from sfn_train.text import TextModel

PARITY = "parity.json"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a run is exported; what the model is stands in the run."""

    form: Form = FASTEST  # of the SFFM
    also: tuple[Form, ...] = ()  # further forms, beside it as variants of the decoder
    clips: Path | None = None  # data set for the whole path; None: what the run was trained on
    frames: int = 120  # of each clip
    fps: float | None = None  # where the clips do not state it
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.frames < 8:
            raise ExportError(f"--frames must be at least 8, got {self.frames}")


@dataclass(frozen=True)
class Exported:
    """What `bundle` answers."""

    out: Path
    parts: ParityReport
    path: PathReport | None  # None: the clips are not on this machine
    seconds: float


def build_bundle(path: Path, out: Path, options: ExportOptions, say: Say) -> Exported:
    """Export the run in `path` to a bundle in `out`; nothing appears there unless all agrees."""
    start = time.perf_counter()
    run = load_run(path)
    text = text_of(run)
    videos = find_clips(run, options)
    with bundle_folder(out) as folder:
        specs = trace(run, text, folder, options.form, say)
        parts = compare_parts(run, text, folder, specs, options.threads)
        device, beside = device_graphs(run, folder, specs, options.threads)
        forms, others = trace_forms(run, folder, options, say)
        parts = joined(parts, beside, *others)
        say(parts.text())
        manifest = with_forms(pack(folder, run, text, specs, device), forms)
        whole = None
        if videos:
            whole = check_path(
                folder, run.model, text, videos, captions=captions_of(run),
                frames=options.frames, fps=options.fps, threads=options.threads,
            )  # fmt: skip
            say(whole.text())
        else:
            say("real clips: not compared, the training data is gone; name some with --clips")
        report = {"parts": parts.to_json(), "path": whole.to_json() if whole else None}
        (folder / PARITY).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        write_manifest(folder, manifest)
        load_bundle(folder)
    return Exported(out, parts, whole, time.perf_counter() - start)


def trace(
    run: Run, text: TextModel | None, folder: Path, form: Form, say: Say
) -> dict[str, PartSpec]:
    """Write PART.onnx for every part that the model has."""
    specs = {}
    for part in specs_of(run.model, text=text is not None):
        start = time.perf_counter()
        specs[part] = trace_part(part, run.model, text, folder / f"{part}.onnx", form=form)
        say(f"traced {part} in {time.perf_counter() - start:.1f} s")
    return specs


def device_graphs(
    run: Run, folder: Path, specs: dict[str, PartSpec], threads: int | None
) -> tuple[dict[str, PartSpec], ParityReport]:
    """Write the graphs that keep a stream on a device, each equal to the host's functions."""
    if run.config.system != "sfn-vad":
        return {}, ParityReport(differences=(), rerouted=())
    preprocessing, windows = run.config.preprocessing, run.config.sfn.n_windows
    visual = VisualConfig(**run.info["visual"])
    device = trace_device(folder, specs["decoder"], preprocessing, visual, windows)
    reference = HostFunctions(device, preprocessing, visual, windows)
    graphs = {part: folder / f"{part}.onnx" for part in device}
    with OrtBackend(graphs, threads=threads) as exported:
        return device, check_device(reference, exported)


def trace_forms(
    run: Run, folder: Path, options: ExportOptions, say: Say
) -> tuple[dict[str, str], list[ParityReport]]:
    """Write the decoder in further forms, each equal to PyTorch: variant -> file."""
    files: dict[str, str] = {}
    reports = []
    if options.also and not isinstance(run.model, SFN):
        raise ExportError("--form is of sfn-vad's filters, which this system has not")
    for form in options.also:
        assert isinstance(run.model, SFN)
        written = written_form(run.model.decoder, form)
        if written is None:
            raise ExportError("--form is of the SFFM, which this model was trained without")
        variant, graph = f"{FULL}-{written}", f"decoder.{written}.onnx"
        if written == written_form(run.model.decoder, options.form) or variant in files:
            say(f"note: {written} is there already")
            continue
        start = time.perf_counter()
        trace_part("decoder", run.model, None, folder / graph, form=written)
        say(f"traced decoder as {variant} in {time.perf_counter() - start:.1f} s")
        files[variant] = graph
        decoder = {"decoder": folder / graph}
        with (
            open_backend(run.model, None) as reference,
            OrtBackend(decoder, threads=options.threads) as exported,
        ):
            reports.append(check_parts(reference, exported, parts=["decoder"]))
    return files, reports


def with_forms(manifest: Manifest, forms: dict[str, str]) -> Manifest:
    """The manifest with further graphs of the decoder."""
    if not forms:
        return manifest
    decoder = manifest.parts["decoder"]
    more = replace(decoder, files=decoder.files | forms)
    return replace(manifest, parts=manifest.parts | {"decoder": more})


def joined(*reports: ParityReport) -> ParityReport:
    """All comparisons in one report."""
    return ParityReport(
        differences=tuple(d for report in reports for d in report.differences),
        rerouted=tuple(r for report in reports for r in report.rerouted),
    )


def compare_parts(
    run: Run,
    text: TextModel | None,
    folder: Path,
    specs: dict[str, PartSpec],
    threads: int | None,
) -> ParityReport:
    """Every graph in `folder` against the model in PyTorch."""
    graphs = {part: folder / f"{part}.onnx" for part in specs}
    with open_backend(run.model, text) as reference, OrtBackend(graphs, threads=threads) as ours:
        return check_parts(
            reference,
            ours,
            tokenizer=text.tokenizer_json if text else None,
            max_tokens=text.max_tokens if text else 0,
        )


def text_of(run: Run) -> TextModel | None:
    """The sentence encoder that the run was trained with, None with its text branch off."""
    if not run.config.model.use_text:
        return None
    text, width = TextModel.of(run.config.semantics), run.config.sfn.text_dim
    if text.width != width:
        raise ExportError(
            f"{text.folder} embeds in {text.width} numbers, the run was trained with "
            f"{width}; put the sentence encoder back that it was trained with"
        )
    return text


def captions_of(run: Run) -> Path | None:
    """The folder of captions that the run was trained on, where it still is."""
    folder = run.config.semantics.captions if run.config.model.use_text else None
    return Path(folder) if folder is not None and Path(folder).is_dir() else None


def find_clips(run: Run, options: ExportOptions) -> Sequence[Video]:
    """Videos for the whole path: those asked for, else the run's own where they still are."""
    if options.clips is not None:
        return clips_of(options.clips, options.fps)
    data = Path(str(run.info.get("data", "")))
    return clips_of(data, options.fps) if data.is_absolute() and data.is_dir() else ()
