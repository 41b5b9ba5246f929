"""A run folder to a bundle: trace, compare with PyTorch, pack, compare the whole path on clips."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfn_export.device_graphs import trace_device
from sfn_export.device_parity import HostFunctions, check_device
from sfn_export.dispatch import FASTEST, Form
from sfn_export.exceptions import ExportError
from sfn_export.pack import pack
from sfn_export.parity import ParityReport, check_parts
from sfn_export.path_parity import PathReport, check_path, clips_of
from sfn_export.trace import specs_of, trace_part
from sfn_rt.backends.base import PartSpec
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import load_bundle, write_manifest
from sfn_rt.bundle_folder import bundle_folder
from sfn_rt.datasets import Video
from sfn_rt.prediction_error import VisualConfig
from sfn_train.checkpoint import Run, load_run
from sfn_train.systems import open_backend
from sfn_train.text import TextModel

PARITY = "parity.json"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a run is exported; what the model is stands in the run."""

    form: Form = FASTEST  # of the SFFM
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
        device, extra = device_graphs(run, folder, specs, options.threads)
        parts = ParityReport(
            differences=parts.differences + extra.differences, rerouted=parts.rerouted
        )
        say(parts.text())
        manifest = pack(folder, run, text, specs, device)
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
    return device, check_device(reference, folder, threads)


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
