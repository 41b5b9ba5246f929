"""Which models a bundle becomes in a Triton repository, and how many rows each takes at once.

The parts and device graphs are the bundle's files; `prepare` is changed where the camera's size is
known, and the glue between (triton_glue.py) is made here. triton_ensemble.py ties them together.

Axes: T observed frames of a clip, h and w the model's frame size, K captions a clip of S numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from sfn_export.exceptions import ExportError
from sfn_export.triton_config import EnsembleConfig, GraphConfig
from sfn_export.triton_ensemble import ensemble, split_outputs
from sfn_export.triton_glue import (
    evidence_graph,
    fix_inputs,
    join_graph,
    join_spec,
    split_graph,
    split_spec,
)
from sfn_rt.backends.base import PartSpec, TensorSpec
from sfn_rt.bundle import DEVICE_PARTS, EXPORT_AGAIN, Bundle, Manifest
from sfn_rt.measured import measured_layout
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.preprocess import resize_matrix

CLIPS = 8  # that Triton's dynamic batcher puts together
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Model:
    """One graph of the repository: a file of the bundle, or made here."""

    graph: Path | onnx.ModelProto
    config: GraphConfig


@dataclass(frozen=True)
class Plan:
    """Everything that the repository will hold."""

    models: dict[str, Model]
    ensembles: tuple[EnsembleConfig, ...]


def plan(bundle: Bundle, precision: str, size: Size | None) -> Plan:
    """The models of a bundle and the ensembles over them; `size` is the camera's."""
    manifest = bundle.manifest
    graphs = bundle.graphs(precision)
    if manifest.system == "dual-memory":
        if size is not None:
            raise ExportError(
                "--size: dual-memory takes clips of the model's own frame size, normalised by the "
                "client; leave it out"
            )
        specs = {part: entry.spec for part, entry in manifest.parts.items()}
        models = {p: Model(graphs[p], GraphConfig.of(p, spec, CLIPS)) for p, spec in specs.items()}
        return Plan(models, ())
    if not manifest.device:
        raise ExportError(
            f"{bundle.folder}: has no device graphs ({', '.join(DEVICE_PARTS)}), which the "
            f"ensemble is made of; {EXPORT_AGAIN}"
        )
    models = {**_parts(manifest, graphs), **_device(bundle, size)}
    models |= _glue(manifest)
    configs = {name: model.config for name, model in models.items()}
    ways = (False, True) if "text" in manifest.parts else (False,)
    return Plan(models, tuple(ensemble(manifest, configs, embedded) for embedded in ways))


def _parts(manifest: Manifest, graphs: Mapping[str, Path]) -> dict[str, Model]:
    """The model's parts; the rows of a request that each can take at once."""
    windows = len(manifest.semantics.windows) if manifest.semantics else 1
    rows = {
        "vision": manifest.observed,
        "appearance": manifest.observed,
        "motion": manifest.observed - 1,
        "text": windows,
        "decoder": 1,
    }
    return {
        part: Model(graphs[part], GraphConfig.of(part, entry.spec, CLIPS * rows[part]))
        for part, entry in manifest.parts.items()
    }


def _device(bundle: Bundle, size: Size | None) -> dict[str, Model]:
    """The device graphs; with `size` the resize is fixed, else the client gives its matrices."""
    manifest, graphs = bundle.manifest, bundle.device_graphs()
    rows = {"measure": 1}
    if wanted := split_outputs(manifest):
        rows["prepare"] = manifest.observed + 1
    if "later" in wanted:
        rows["difference"] = manifest.observed - 1
    models = {}
    for part, most in rows.items():
        spec, graph = manifest.device[part].spec, graphs[part]
        if part == "prepare" and size is not None:
            fixed, model = _for_camera(spec, graph, manifest, size)
            models[part] = Model(model, GraphConfig.of(part, fixed, CLIPS * most))
        else:
            models[part] = Model(graph, GraphConfig.of(part, spec, CLIPS * most))
    return models


def _for_camera(
    spec: PartSpec, graph: Path, manifest: Manifest, size: Size
) -> tuple[PartSpec, onnx.ModelProto]:
    """`prepare` for frames of one size."""
    wanted = manifest.preprocessing
    matrices = {
        "rows": resize_matrix(size[0], wanted.height, wanted.resize),
        "columns": resize_matrix(size[1], wanted.width, wanted.resize),
    }
    image = TensorSpec("image", "uint8", ("batch", *size, 3))
    return PartSpec((image,), spec.outputs), fix_inputs(graph, matrices)


def _glue(manifest: Manifest) -> dict[str, Model]:
    size = (manifest.preprocessing.height, manifest.preprocessing.width)
    decoder = manifest.parts["decoder"].spec
    visual = VisualConfig(**manifest.visual)  # type: ignore[arg-type]
    layout = measured_layout({tensor.name for tensor in decoder.outputs}, visual)
    measured = manifest.device["measure"].spec.outputs[0]
    join = join_spec(_rows(manifest), decoder)
    evidence = evidence_graph(layout, visual, size)
    spec = PartSpec((measured,), tuple(map(_spec_of, evidence.graph.output)))
    models = {
        "join": Model(join_graph(join), GraphConfig.of("join", join, 0)),
        "evidence": Model(evidence, GraphConfig.of("evidence", spec, CLIPS)),
    }
    if wanted := split_outputs(manifest):
        split = split_spec(manifest.observed, size, wanted)
        models["split"] = Model(split_graph(split), GraphConfig.of("split", split, 0))
    return models


def _rows(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Decoder input -> shape of the encoders' rows for one clip that it is joined from."""
    t, parts, rows = manifest.observed, manifest.parts, {}
    if "appearance" in parts:
        spec = parts["appearance"].spec
        for name, output in (("appearance", "tokens"), ("skip", "skip")):
            rows[name] = (t, *_ints(spec.output(output).shape[1:]))
    if "motion" in parts:
        rows["motion"] = (t - 1, *_ints(parts["motion"].spec.output("tokens").shape[1:]))
    if "text" in parts and manifest.semantics is not None:
        width = parts["text"].spec.output("sentence_embedding").shape[1:]
        rows["text"] = (len(manifest.semantics.windows), *_ints(width))
    taken = {tensor.name for tensor in parts["decoder"].inputs}
    return {name: shape for name, shape in rows.items() if name in taken}


def _spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    axes = value.type.tensor_type.shape.dim
    shape = tuple(axis.dim_param or axis.dim_value for axis in axes)
    return TensorSpec(value.name, "float32", shape)


def _ints(axes: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in axes)
