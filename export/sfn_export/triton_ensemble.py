"""How Triton's ensemble ties the models of a bundle together: one clip in, its evidence out.

    clip -> prepare -> split -> vision -> appearance ----.
                         |----> difference -> motion ----|
            tokens -> text -> (embedding) ---------------> join -> decoder -> measure -> evidence

Encoders batch over the frames of a clip, `split` and `join` know that T of them are one clip, and
the decoder batches over clips: Triton cuts and strips the first axis where a model that batches
meets one that does not. What no part asks for is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sfn_export.triton_config import EnsembleConfig, GraphConfig, Port, Step
from sfn_rt.bundle import Manifest

ENSEMBLE = "sfn_vad"  # takes the sentence's tokens
EMBEDDED = "sfn_vad_embedded"  # takes its embedding: one sentence stands for many clips


@dataclass
class Wiring:
    """An ensemble while its steps are being put together: who gives which tensor."""

    models: Mapping[str, GraphConfig]
    steps: list[Step] = field(default_factory=list)
    taken: dict[str, Port] = field(default_factory=dict)  # tensors that the client gives

    def run(self, model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        """A step, whose ports are tied to the tensors named."""
        self.steps.append(Step(model, dict(inputs), dict(outputs)))

    def client(self, model: str, port: str, tensor: str, *first: int) -> str:
        """A tensor that the client gives for a port, its first axes in front of the port's."""
        (found,) = (p for p in self.models[model].inputs if p.name == port)
        self.taken[tensor] = Port(tensor, found.dtype, (*first, *found.dims))
        return tensor


def split_outputs(manifest: Manifest) -> tuple[str, ...]:
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


def ensemble(
    manifest: Manifest, models: Mapping[str, GraphConfig], embedded: bool
) -> EnsembleConfig:
    """The steps from a clip to its evidence; `embedded`: the client embeds what was said."""
    wires = Wiring(models)
    tied = _encoders(wires, manifest)
    if "text" in manifest.parts:
        tied["text_rows"] = _sentences(wires, manifest, embedded)
    joined = {port.name: f"clip_{port.name}" for port in models["join"].outputs}
    wires.run("join", {port.name: tied[port.name] for port in models["join"].inputs}, joined)
    clip = {"last_frame": "last", **joined}
    decoder = manifest.parts["decoder"]
    measured = {t.name for t in manifest.device["measure"].inputs}
    predicted = {t.name: t.name + "_expected" for t in decoder.outputs if t.name in measured}
    wires.run("decoder", {t.name: clip[t.name] for t in decoder.inputs}, predicted)
    actual = {"frame": "target", "text": clip.get("text", "")}
    compared = {name: predicted.get(name) or actual[name] for name in sorted(measured)}
    wires.run("measure", compared, {"measured": "measured"})
    outputs = models["evidence"].outputs
    wires.run("evidence", {"measured": "measured"}, {port.name: port.name for port in outputs})
    name = EMBEDDED if embedded else ENSEMBLE
    return EnsembleConfig(name, tuple(wires.taken.values()), outputs, tuple(wires.steps))


def _encoders(wires: Wiring, manifest: Manifest) -> dict[str, str]:
    """Steps from the clip to the encoders' rows; port of `join` -> tensor."""
    wanted = split_outputs(manifest)
    tied: dict[str, str] = {}
    if wanted:
        prepare, clip = wires.models["prepare"], manifest.observed + 1
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
