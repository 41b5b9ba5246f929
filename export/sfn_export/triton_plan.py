"""Which models a bundle becomes in a Triton repository, and how an ensemble ties them together.

    clip -> prepare -> split -> vision -> appearance ----.
                         |----> difference -> motion ----|
            tokens -> text -> (embedding) ---------------> join -> decoder -> measure -> evidence

Encoders batch over the frames of a clip, `split` and `join` know that T of them are one clip, and
the decoder batches over clips: Triton cuts and strips the first axis where a model that batches
meets one that does not. What no part asks for is left out.

Axes: T observed frames of a clip, h and w the model's frame size, K captions a clip of S numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from sfn_export.exceptions import ExportError
from sfn_export.triton_config import EnsembleConfig, GraphConfig, Port, Step
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
ENSEMBLE = "sfn_vad"  # takes the sentence's tokens
EMBEDDED = "sfn_vad_embedded"  # takes its embedding: one sentence stands for many clips
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


@dataclass
class Wiring:
    """An ensemble while its steps are being put together: who gives which tensor."""

    models: Mapping[str, Model]
    steps: list[Step] = field(default_factory=list)
    taken: dict[str, Port] = field(default_factory=dict)  # tensors that the client gives

    def run(self, model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        """A step, whose ports are tied to the tensors named."""
        self.steps.append(Step(model, dict(inputs), dict(outputs)))

    def client(self, model: str, port: str, tensor: str, *first: int) -> str:
        """A tensor that the client gives for a port, its first axes in front of the port's."""
        (found,) = (p for p in self.models[model].config.inputs if p.name == port)
        self.taken[tensor] = Port(tensor, found.dtype, (*first, *found.dims))
        return tensor


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
    models |= _glue(manifest, _wanted(manifest))
    tokens = (False, True) if "text" in manifest.parts else (True,)
    return Plan(models, tuple(_ensemble(manifest, models, embedded) for embedded in tokens))


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
    if wanted := _wanted(manifest):
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


def _glue(manifest: Manifest, wanted: tuple[str, ...]) -> dict[str, Model]:
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
    if wanted:
        split = split_spec(manifest.observed, size, wanted)
        models["split"] = Model(split_graph(split), GraphConfig.of("split", split, 0))
    return models


def _wanted(manifest: Manifest) -> tuple[str, ...]:
    """Outputs of `split` that something takes."""
    decoder = {tensor.name for tensor in manifest.parts["decoder"].inputs}
    measure = {tensor.name for tensor in manifest.device["measure"].inputs}
    takes = {
        "observed": "appearance" in manifest.parts,
        "earlier": "motion" in manifest.parts,
        "later": "motion" in manifest.parts,
        "last": "last_frame" in decoder,
        "target": "frame" in measure,
    }
    return tuple(name for name, taken in takes.items() if taken)


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


def _ensemble(manifest: Manifest, models: Mapping[str, Model], embedded: bool) -> EnsembleConfig:
    wires = Wiring(models)
    tied = _encoders(wires, manifest)
    if "text" in manifest.parts:
        tied["text_rows"] = _sentences(wires, manifest, embedded)
    joined = {port.name: f"clip_{port.name}" for port in models["join"].config.outputs}
    wires.run("join", {port.name: tied[port.name] for port in models["join"].config.inputs}, joined)
    clip = {"last_frame": "last", **joined}
    decoder = manifest.parts["decoder"]
    measured = {t.name for t in manifest.device["measure"].inputs}
    predicted = {t.name: t.name + "_expected" for t in decoder.outputs if t.name in measured}
    wires.run("decoder", {t.name: clip[t.name] for t in decoder.inputs}, predicted)
    actual = {"frame": "target", "text": clip.get("text", "")}
    compared = {name: predicted.get(name) or actual[name] for name in sorted(measured)}
    wires.run("measure", compared, {"measured": "measured"})
    outputs = models["evidence"].config.outputs
    wires.run("evidence", {"measured": "measured"}, {port.name: port.name for port in outputs})
    name = EMBEDDED if embedded and "text" in manifest.parts else ENSEMBLE
    return EnsembleConfig(name, tuple(wires.taken.values()), outputs, tuple(wires.steps))


def _encoders(wires: Wiring, manifest: Manifest) -> dict[str, str]:
    """Steps from the clip to the encoders' rows; port of `join` -> tensor."""
    wanted, tied = _wanted(manifest), {}
    if wanted:
        prepare, clip = wires.models["prepare"].config, manifest.observed + 1
        first = (clip,) if prepare.max_batch else ()
        feeds = {"image": wires.client("prepare", "image", "clip", *first)}
        if not first:
            taken = wires.taken["clip"]
            wires.taken["clip"] = Port("clip", taken.dtype, (clip, *taken.dims[1:]))
            feeds |= {name: wires.client("prepare", name, name) for name in ("rows", "columns")}
        wires.run("prepare", feeds, {"frame": "frames"})
        wires.run("split", {"frames": "frames"}, {name: name for name in wanted})
    if "appearance" in manifest.parts:
        seen = {"frame": "observed"}
        if "vision" in manifest.parts:
            outputs = [tensor.name for tensor in manifest.parts["appearance"].inputs]
            wires.run("vision", seen, {name: name for name in outputs})
            seen = {name: name for name in outputs}
        tied |= {"appearance_rows": "tokens_of_frames", "skip_rows": "skips_of_frames"}
        rows = {"tokens": "tokens_of_frames", "skip": "skips_of_frames"}
        wires.run("appearance", seen, rows)
    if "motion" in manifest.parts:
        pairs = {"frame": "later", "previous": "earlier"}
        wires.run("difference", pairs, {"difference": "differences"})
        wires.run("motion", {"difference": "differences"}, {"tokens": "tokens_of_differences"})
        tied["motion_rows"] = "tokens_of_differences"
    return tied


def _sentences(wires: Wiring, manifest: Manifest, embedded: bool) -> str:
    """The tensor that holds a row a caption: of the client, or of the text encoder."""
    if embedded:
        return wires.client("join", "text_rows", "embedding")
    assert manifest.semantics is not None, "a text part without captions"
    windows = len(manifest.semantics.windows)
    names = [tensor.name for tensor in manifest.parts["text"].inputs]
    feeds = {name: wires.client("text", name, name, windows) for name in names}
    wires.run("text", feeds, {"sentence_embedding": "sentences"})
    return "sentences"


def _spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    axes = value.type.tensor_type.shape.dim
    shape = tuple(axis.dim_param or axis.dim_value for axis in axes)
    return TensorSpec(value.name, "float32", shape)


def _ints(axes: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in axes)
