"""PyTorch to ONNX, one graph a part, each checked and loaded before anyone relies on it.

A part's inputs, outputs and shapes are those that sfn_train.torch_backend declares, so graph and
reference cannot drift apart.

A node is called `<module>/<operator>_<n>`, the n-th of its kind in that module of the part, e.g.
`mjad.filters.0.router/MatMul_0`: what a parser refuses, a calibration measures and an engine fuses
then names its source by itself, and keeps its name when another module changes.
"""

import ast
import contextlib
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor, nn

from sfn_export.dispatch import BLOCK, FASTEST, Form, exported_decoder
from sfn_export.exceptions import ExportError
from sfn_rt.backends.base import PartSpec, TensorSpec
from sfn_rt.backends.ort import OrtBackend
from sfn_train.dual_memory import DualMemory
from sfn_train.dual_memory import part_specs as dual_specs
from sfn_train.model import SFN
from sfn_train.model.sfn import Decoder
from sfn_train.model.tmfe import AppearanceEncoder
from sfn_train.text import TextModel
from sfn_train.torch_backend import DECODER_INPUTS, part_specs, vision_spec

if TYPE_CHECKING:
    from sfn_train.model.tower import VisionTower

OPSET = 20  # the newest that TensorRT always built; 23's Attention in fp32 does not
# Of each dynamic axis the size to trace at (an axis of 1 would be taken for fixed), and its range.
EXAMPLE = {"batch": 2, "tokens": 9, "sequence": 5, "past": 7, "height": 11, "width": 13}
SMALLEST = {"batch": 1, "tokens": 2, "sequence": 1, "past": 0, "height": 1, "width": 1}
LARGEST = {"batch": 1024, "tokens": 512} | dict.fromkeys(("sequence", "past"), 1 << 15)
LARGEST |= dict.fromkeys(("height", "width"), 1 << 14)  # pixels of a frame
SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: its modules from the outside in, and itself
OUTSIDE = "part"  # what belongs to no module: axes that are looked up, outputs put together
# Larger weights lie beside their graph: protobuf ends at 2 GiB, and a graph that holds its weights
# is in memory twice while it loads, where a file beside it is mapped.
INLINE_BYTES = 1 << 30
TORCH_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (  # torch about torch, while it exports
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
    (
        r"# The axis name: (\w+) will not be used, since it shares .* another axis: \1\.",
        UserWarning,
    ),
)


class DecoderPart(nn.Module):
    """The decoder with the inputs that this model has, in the order its spec names them."""

    def __init__(self, decoder: Decoder, spec: PartSpec) -> None:
        super().__init__()
        self.decoder = decoder
        self.inputs = [tensor.name for tensor in spec.inputs]
        self.outputs = [tensor.name for tensor in spec.outputs]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors in and out as `inputs` and `outputs` name them."""
        fed = dict(zip(self.inputs, tensors, strict=True))
        prediction = self.decoder(*(fed.get(n) for n in DECODER_INPUTS))
        names = ("next_frame", "semantic", "distilled")
        computed = {name: getattr(prediction, name) for name in names}
        if "routing" in self.outputs:
            computed["routing"] = torch.stack([r.chosen for r in prediction.routings], dim=1)
        return tuple(computed[name] for name in self.outputs)


class EncoderPart(nn.Module):
    """Any other part: positional inputs, a tuple of outputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors in and out in the order of the part's spec."""
        result = self.module(*tensors)
        return result if isinstance(result, tuple) else (result,)


class ProjectionPart(nn.Module):
    """The appearance branch behind a vision tower, which is a part of its own."""

    def __init__(self, encoder: AppearanceEncoder) -> None:
        super().__init__()
        self.project, self.project_skip = encoder.project, encoder.project_skip

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(B, 1 + N, C) and (B, N, C), each at the decoder's width."""
        hidden, embedded = tensors
        return self.project(hidden), self.project_skip(embedded)


class AutoencoderPart(nn.Module):
    """The dual-memory system: a clip to the error of its scored frame."""

    def __init__(self, network: DualMemory) -> None:
        super().__init__()
        self.network = network

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(B, T, 3, H, W) to (B, H, W)."""
        return (self.network.error(*tensors),)


def specs_of(model: nn.Module, *, text: bool) -> dict[str, PartSpec]:
    """What the parts of a model of either system take and give."""
    if isinstance(model, DualMemory):
        return dual_specs(model.config)
    assert isinstance(model, SFN)
    return part_specs(model.config, text=text)


def part_module(
    part: str, model: nn.Module, text: TextModel | None, form: Form, block: int = BLOCK
) -> nn.Module:
    """The module to trace for one part."""
    if isinstance(model, DualMemory):
        return AutoencoderPart(model)
    assert isinstance(model, SFN)
    if part == "decoder":
        spec = part_specs(model.config, text=False)["decoder"]
        return DecoderPart(exported_decoder(model.decoder, form, block), spec)
    if part == "text":
        if text is None:
            raise ExportError("this model has a semantic branch; give its sentence encoder")
        return EncoderPart(text.module())
    encoder = model.appearance
    if encoder is not None and model.config.tower is not None:
        if part == "vision":
            return EncoderPart(encoder.vit)
        if part == "appearance":
            return ProjectionPart(encoder)
    module = {"appearance": encoder, "motion": model.motion}.get(part)
    if module is None:
        raise ExportError(f"the model has no part {part!r}: its branch was off in training")
    return EncoderPart(module)


def trace_part(
    part: str,
    model: nn.Module,
    text: TextModel | None,
    path: Path,
    *,
    form: Form = FASTEST,
    block: int = BLOCK,
) -> PartSpec:
    """Write one part's graph to `path` and return what it takes and gives."""
    spec = specs_of(model, text=True)[part]
    return traced(part, part_module(part, model, text, form, block), spec, path)


def tower_graph(tower: "VisionTower", path: Path) -> PartSpec:
    """Write the part `vision` of a tower alone: the bytes that `trace_part` writes of a model's.

    So a VLM whose tower a model was trained with brings no second graph of it. Large weights lie
    beside the graph, which names their file: the bytes are the same under the same name.
    """
    side = tower.image_size
    spec = vision_spec((side, side), (side // tower.patch) ** 2, tower.width)
    return traced("vision", EncoderPart(tower), spec, path)


def traced(part: str, module: nn.Module, spec: PartSpec, path: Path) -> PartSpec:
    """Write a graph that is valid, loads, and takes and gives what `spec` says."""
    export_onnx(module, spec, path)
    found = check_graph(part, path)
    if found != spec:
        raise ExportError(f"{path}: {part} was traced as {found}, expected {spec}")
    return spec


def export_onnx(module: nn.Module, spec: PartSpec, path: Path) -> None:
    """Trace `module` with the shapes and names of `spec`; nothing of this machine is recorded."""
    names = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
    dims = {n: torch.export.Dim(n, min=SMALLEST[n], max=LARGEST[n]) for n in sorted(names)}
    dynamic = tuple(
        {i: dims[axis] for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        for tensor in spec.inputs
    )
    inputs = tuple(_example(tensor) for tensor in spec.inputs)
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                module.eval(),
                inputs,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(dynamic,),
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            traced_again = torch.export.export(module, inputs, dynamic_shapes=(dynamic,))
            raise ExportError(f"{path}: {unsupported(error, traced_again)}") from error
    if program is None:
        raise ExportError(f"{path}: torch.onnx.export returned no program")
    graph = _graph_of(program, path)
    _name_nodes(graph, _wrapped(module))
    _anonymise(graph)
    _leave_unsorted(graph)
    _name_axes(graph, spec)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def unsupported(error: Exception, program: torch.export.ExportedProgram) -> str:
    """Which operator of which module torch.onnx has no ONNX for, from what it raised."""
    found = re.search(r"node %(\w+) .*target=torch\.ops\.([\w.]+)", str(error.__cause__))
    if found is None:
        return f"torch.onnx cannot write it: {' '.join(str(error.__cause__ or error).split())}"
    name, operator = found[1], found[2].removesuffix(".default")
    # torch.onnx has taken some operators apart by then: aten.special_bessel_j0 is prims.bessel_j0.
    for node in [*program.graph.nodes, *program.run_decompositions().graph.nodes]:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        if stack and node.name.endswith(name):
            path, module = stack[-1]
            kind = getattr(module, "__name__", str(module).rpartition(".")[2])
            return (
                f"ONNX has no operator for {operator}, node {node.name!r} of the module {path!r} "
                f"({kind}); write that module with others"
            )
    return f"ONNX has no operator for {operator}, node {name!r}; write its module with others"


def check_graph(part: str, path: Path) -> PartSpec:
    """Have onnx.checker and ONNX Runtime accept a graph; return what it takes and gives."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"{path}: onnx.checker refuses {part}: {reason}") from error
    with OrtBackend({part: path}, threads=1) as backend:
        return backend.parts[part]


def _example(tensor: TensorSpec) -> Tensor:
    shape = [EXAMPLE[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
    if tensor.dtype != "float32":
        return torch.ones(shape, dtype=getattr(torch, tensor.dtype))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _graph_of(program: torch.onnx.ONNXProgram, path: Path) -> onnx.ModelProto:
    """The graph with its weights, or without them where they are put into a file beside `path`."""
    weights = program.model.graph.initializers.values()
    if sum(weight.const_value.nbytes for weight in weights if weight.const_value) <= INLINE_BYTES:
        return program.model_proto
    program.save(path, external_data=True)  # to `path` with .data behind it, tensor after tensor
    return onnx.load(path, load_external_data=False)


def _name_axes(graph: onnx.ModelProto, spec: PartSpec) -> None:
    """Call an output's axis what the spec calls it: torch says `past + sequence`."""
    for value, tensor in zip(graph.graph.output, spec.outputs, strict=True):
        for axis, name in zip(value.type.tensor_type.shape.dim, tensor.shape, strict=True):
            if axis.dim_param and isinstance(name, str):
                axis.dim_param = name


def _wrapped(module: nn.Module) -> str:
    """The one child of a module that only hands through to it, which says nothing in a name."""
    children = [name for name, _ in module.named_children()]
    return children[0] if len(children) == 1 else ""


def _name_nodes(graph: onnx.ModelProto, wrapped: str) -> None:
    """Call every node what the module docstring says; the names are unique by their counting."""
    count: Counter[str] = Counter()
    for node in graph.graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get(SCOPES, "[]")
        path = next(reversed(ast.literal_eval(scopes)[1:-1]), "")  # without root and node itself
        module = path if path != wrapped else ""
        kind = f"{module.removeprefix(f'{wrapped}.') or OUTSIDE}/{node.op_type}"
        node.name = f"{kind}_{count[kind]}"
        count[kind] += 1


def _anonymise(graph: onnx.ModelProto) -> None:
    """Drop stack traces: they hold this machine's paths and differ from export to export."""
    del graph.metadata_props[:], graph.graph.metadata_props[:]
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*graph.graph.value_info, *graph.graph.initializer]:
        del value.metadata_props[:]
    for value in [*graph.graph.input, *graph.graph.output]:
        del value.metadata_props[:]


def _leave_unsorted(graph: onnx.ModelProto) -> None:
    """Spare TopK sorting what it found: gates and filters keep together in any order."""
    for node in graph.graph.node:
        for attribute in node.attribute if node.op_type == "TopK" else ():
            if attribute.name == "sorted":
                attribute.i = 0


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what torch.onnx says about its own dependencies, and nothing else."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # "torchvision is not installed", once an operator
    try:
        with warnings.catch_warnings():
            for message, category in TORCH_WARNINGS:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        logger.setLevel(level)
