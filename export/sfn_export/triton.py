"""A bundle as a model repository of NVIDIA Triton Inference Server: `python -m sfn_export triton`.

    REPO/<part>/config.pbtxt, 1/model.onnx     every part, the device graphs, and the glue between
    REPO/sfn_vad/config.pbtxt                  the ensemble: a clip and tokens in, evidence out
    REPO/sfn_vad_embedded/config.pbtxt         the same with the sentence's embedding
    REPO/sfn_triton.json                       which bundle, precision and frame size it is

The backend is onnxruntime, on a server that has other GPUs tomorrow too; engines are made where
they run, so a TensorRT plan in a model's place is the device's matter (docs/deploy.md).
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from sfn_export.exceptions import ExportError
from sfn_export.triton_config import Placement
from sfn_export.triton_plan import Model, Plan, Size, plan
from sfn_rt import __version__
from sfn_rt.bundle import FULL, MANIFEST, Bundle, load_bundle
from sfn_rt.bundle_folder import bundle_folder
from sfn_rt.exceptions import OutputError

RECORD = "sfn_triton.json"
CONFIG = "config.pbtxt"
VERSION = "1"  # of every model
GRAPH = "model.onnx"
SIDES = range(16, 16385)  # pixels that a camera's frame may have


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """How a bundle is written for Triton."""

    precision: str = FULL
    size: Size | None = None  # height, width of the camera's frames; None: any
    placement: Placement = field(default_factory=Placement)


@dataclass(frozen=True)
class Repository:
    """What was written."""

    out: Path
    models: tuple[str, ...]
    ensembles: tuple[str, ...]
    left_out: tuple[str, ...]  # what the bundle has and the repository does not

    def text(self) -> str:
        """For people."""
        ensembles = ", ".join(self.ensembles) or "no ensemble"
        lines = [f"{self.out}: {len(self.models)} models ({', '.join(self.models)}); {ensembles}"]
        return "\n".join([*lines, *(f"left out: {what}" for what in self.left_out)])


def write_repository(path: Path, out: Path, options: TritonOptions) -> Repository:
    """Write the bundle in `path` as a model repository to `out`, whole or not at all."""
    _check_out(out)
    bundle = load_bundle(path)
    planned = plan(bundle, options.precision, options.size)
    with bundle_folder(out, RECORD, "a model repository written from a bundle") as folder:
        for name, model in planned.models.items():
            _write_model(folder / name, model, options.placement)
        for ensemble in planned.ensembles:
            (folder / ensemble.name / VERSION).mkdir(parents=True)
            (folder / ensemble.name / CONFIG).write_text(ensemble.text(), encoding="utf-8")
        record = _record(bundle, planned, options)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    left_out = ("the VLM: its language model keeps a cache from token to token",)
    return Repository(
        out,
        tuple(planned.models),
        tuple(ensemble.name for ensemble in planned.ensembles),
        left_out if bundle.manifest.vlm else (),
    )


def parse_size(text: str) -> Size:
    """WIDTHxHEIGHT in pixels to (height, width)."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None or not all(int(side) in SIDES for side in found.groups()):
        raise ExportError(
            f"--size must be WIDTHxHEIGHT in pixels, each from {SIDES[0]} to {SIDES[-1]}, as in "
            f"1920x1080, got {text!r}"
        )
    return int(found[2]), int(found[1])


def _write_model(folder: Path, model: Model, placement: Placement) -> None:
    version = folder / VERSION
    version.mkdir(parents=True)
    if isinstance(model.graph, Path):
        shutil.copyfile(model.graph, version / GRAPH)
        for name in _external(model.graph):
            shutil.copyfile(model.graph.parent / name, version / name)
    else:
        (version / GRAPH).write_bytes(model.graph.SerializeToString(deterministic=True))
    (folder / CONFIG).write_text(model.config.text(placement), encoding="utf-8")


def _external(graph: Path) -> set[str]:
    """Files beside a graph that its weights lie in."""
    initializers = onnx.load(graph, load_external_data=False).graph.initializer
    entries = (entry for tensor in initializers for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def _record(bundle: Bundle, planned: Plan, options: TritonOptions) -> dict[str, object]:
    height, width = options.size or (None, None)
    return {
        "sfn_version": __version__,
        "bundle": hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest(),
        "system": bundle.manifest.system,
        "precision": options.precision,
        "frame": {"height": height, "width": width},
        "models": sorted([*planned.models, *(ensemble.name for ensemble in planned.ensembles)]),
    }


def _check_out(out: Path) -> None:
    """Refuse a folder that holds models which would be lost with the earlier repository."""
    record = out / RECORD
    if not record.is_file():
        return  # nothing of ours: `bundle_folder` refuses what else is there
    try:
        known = {RECORD, *json.loads(record.read_bytes())["models"]}
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{record}: cannot be read ({error}); choose another --out") from error
    if foreign := sorted(path.name for path in out.iterdir() if path.name not in known):
        raise OutputError(f"{out} also holds {foreign[0]!r}; choose another --out")
