"""A VLM's language model at lower precision, for ONNX Runtime: another file of the same part.

    int4    weights of 4 bits in blocks of 32, sums of 8 bits; made for CPUs
    fp16    half of everything; made for GPUs, and runs on a CPU too

onnxruntime-genai's model builder writes them, with operators that ONNX Runtime alone has: a bundle
keeps its fp32 graph for everything else. What the builder wrote is then given the very inputs and
outputs of that graph, so that whoever drives the part need not know which file it is.

The builder runs as a program of its own that may neither ask the network nor write outside a
temporary folder. The library around it, which reports its use, is never loaded.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import TensorProto, helper

from sfn_export.exceptions import ExportError
from sfn_rt.backends.base import PartSpec
from sfn_rt.backends.ort import OrtBackend
from sfn_train.weights.folder import CONFIG, SINGLE, list_tensors, read_json, read_tensors
from sfn_train.weights.internvl import build_config, stored_name
from sfn_train.weights.tokenizer import TOKENIZER_FILES

Precision = Literal["int4", "fp16"]
PROVIDERS: dict[Precision, str] = {"int4": "cpu", "fp16": "cuda"}  # whose kernels it is made for
PACKAGE = "onnxruntime_genai"
# Only the last position's logits: of a whole prompt they would be 600 MB at full size.
OPTIONS = ("exclude_embeds=true", "prune_lm_head=true", "shared_embeddings=false", "hf_token=false")
LANGUAGE, HEAD = "language_model.model.", "language_model.lm_head.weight"
MASK = "attention_mask"
HEAD_MULTIPLE = 8  # of a head's width, which ONNX Runtime's attention asks for

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
# Runs builder.py as the program it is, behind a guard. `None` makes the package impossible to
# import: the builder would, for the sake of its version, and load the library that reports.
GUARDED = """
import os, runpy, sys

builder, work = sys.argv[1], os.path.realpath(sys.argv[2])
writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def outside(path):
    if isinstance(path, int) or os.fspath(path) in (os.devnull, os.fsencode(os.devnull)):
        return False
    place = os.path.realpath(os.fsdecode(path))
    return place != work and not place.startswith(work + os.sep)

def guard(event, given):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise PermissionError("the model builder may not use the network")
    if event == "os.mkdir" or event == "open" and given[2] & writes:
        if outside(given[0]):
            raise PermissionError(f"the model builder may not write {given[0]!r}")

sys.addaudithook(guard)
sys.modules["onnxruntime_genai"] = None
sys.path.insert(0, os.path.dirname(builder))
sys.argv[:] = [builder, *sys.argv[3:]]
runpy.run_path(builder, run_name="__main__")
"""


def write_variant(weights: Path, precision: Precision, path: Path, spec: PartSpec) -> None:
    """Write `path`, and .data beside it: the language model of `weights`, as `spec` declares it."""
    builder = find_builder(precision)
    check_heads(weights, precision, spec)
    with tempfile.TemporaryDirectory(prefix="sfn-genai-") as name:
        work = Path(name)
        source = write_source(weights, work / "source")
        built = work / "built"
        arguments = ("-i", source, "-o", built, "-c", work / "cache", "-p", precision)
        provider = PROVIDERS[precision]
        run_builder(builder, work, [*arguments, "-e", provider, "--extra_options", *OPTIONS])
        fit(built / "model.onnx", spec, path)
    with OrtBackend({"language": path}, threads=1) as backend:
        if (found := backend.parts["language"]) != spec:
            raise ExportError(f"{path}: language was built as {found}, expected {spec}")


def find_builder(precision: Precision) -> Path:
    """The builder's program, found without running any of its package."""
    found = importlib.util.find_spec(PACKAGE)
    places = found.submodule_search_locations if found else None
    path = Path(places[0]) / "models" / "builder.py" if places else None
    if path is None or not path.is_file():
        raise ExportError(
            f"--precision {precision} needs the model builder of onnxruntime-genai, which is not "
            f"installed; `pip install 'sfn-rt[genai]'` (beside onnxruntime, not onnxruntime-gpu)"
        )
    return path


def check_heads(weights: Path, precision: Precision, spec: PartSpec) -> None:
    """Refuse what builds and then does not run."""
    width: Any = spec.inputs[1].shape[-1]
    if width % HEAD_MULTIPLE:
        raise ExportError(
            f"{weights}: its language model has heads of width {width}; ONNX Runtime's attention "
            f"at {precision} takes multiples of {HEAD_MULTIPLE}, so leave --precision {precision} "
            f"out"
        )


def write_source(weights: Path, folder: Path) -> Path:
    """The language model alone, as transformers saves one: what the builder reads."""
    from safetensors.torch import save_file

    folder.mkdir()
    entries = list_tensors(weights)
    wanted = {
        name: stored_name(name).removeprefix("language_model.")
        for name in entries
        if stored_name(name).startswith(LANGUAGE) or stored_name(name) == HEAD
    }
    tensors = {wanted[name]: tensor for name, tensor in read_tensors(entries, wanted).items()}
    config: Any = build_config(read_json(weights / CONFIG), weights).text_config
    config.architectures = ["Qwen2ForCausalLM"]
    config.tie_word_embeddings = "lm_head.weight" not in tensors
    config.dtype = next(iter(tensors.values())).dtype  # loaded as they are stored
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    config.save_pretrained(folder)
    for name in TOKENIZER_FILES:  # the builder copies them; nobody reads the copies
        if (weights / name).is_file():
            shutil.copyfile(weights / name, folder / name)
    return folder


def run_builder(builder: Path, work: Path, arguments: Sequence[object]) -> None:
    """Run the builder, guarded, inside `work`; an ExportError says why it stopped."""
    folders = {"HF_HOME": work / "hf", "XDG_CACHE_HOME": work / "xdg", "TMPDIR": work}
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, *map(str, (builder, work, *arguments))],
        cwd=work,
        env={**os.environ, **OFFLINE, **{name: str(path) for name, path in folders.items()}},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = said[-1] if said else f"exit code {done.returncode}"
        raise ExportError(
            f"the model builder of onnxruntime-genai stopped ({reason}); leave --precision out, or "
            f"try the version that the extra 'genai' names"
        )


def fit(source: Path, spec: PartSpec, path: Path) -> None:
    """Give a built graph the inputs and outputs of `spec`, and its file the name `path`."""
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    wanted = {tensor.name for tensor in (*spec.inputs, *spec.outputs)}
    if types.keys() - {MASK} != wanted:
        differ = sorted((types.keys() - {MASK}) ^ wanted)
        raise ExportError(f"{path}: the model builder's graph differs in {differ[0]!r}")
    before = _mask(spec) if MASK in types else []
    after: list[onnx.NodeProto] = []
    for tensors, nodes in ((spec.inputs, before), (spec.outputs, after)):
        for tensor in tensors:
            if types[tensor.name] == TensorProto.FLOAT16:
                nodes.append(_cast(graph, tensor.name, is_input=nodes is before))
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    for tensors, values in ((spec.inputs, graph.input), (spec.outputs, graph.output)):
        for tensor in tensors:
            shape = list(tensor.shape)
            values.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, shape))
    data = f"{path.name}.data"
    for tensor in graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data
    model.producer_version = importlib.metadata.version("onnxruntime-genai")
    shutil.move(source.with_name(f"{source.name}.data"), path.with_name(data))
    path.write_bytes(model.SerializeToString(deterministic=True))


def _mask(spec: PartSpec) -> list[onnx.NodeProto]:
    """Nothing is masked, as no prompt is padded: ones of (batch, past + sequence)."""
    embeds, cache = spec.inputs[0].name, spec.inputs[1].name
    node, one = helper.make_node, helper.make_tensor("one", TensorProto.INT64, [1], [1])
    return [
        node("Shape", [embeds], ["mask.batch"], start=0, end=1),
        node("Shape", [embeds], ["mask.sequence"], start=1, end=2),
        node("Shape", [cache], ["mask.past"], start=2, end=3),
        node("Add", ["mask.past", "mask.sequence"], ["mask.total"]),
        node("Concat", ["mask.batch", "mask.total"], ["mask.shape"], axis=0),
        node("ConstantOfShape", ["mask.shape"], [MASK], value=one),
    ]


def _cast(graph: onnx.GraphProto, name: str, *, is_input: bool) -> onnx.NodeProto:
    """The node between a float32 input or output and its half in the graph, which it renames."""
    half = f"{name}.half"
    for node in graph.node:
        for names in (node.input, node.output):
            for i, used in enumerate(names):
                if used == name:
                    names[i] = half
    if is_input:
        return helper.make_node("Cast", [name], [half], to=TensorProto.FLOAT16)
    return helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT)
