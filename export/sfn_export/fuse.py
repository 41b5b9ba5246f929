"""All graphs of a step in one: picture and memory in, what was measured and the memory out.

    image -> prepare -> vision, appearance -.
    frame - previous -> motion              |-> next memory
    memory, text -> decoder -> measure -> measured

One engine then holds the whole step, and the ring of the last T frames needs no copies: it goes in
as `old.NAME` and comes out as `new.NAME`, so that two sets of buffers take turns. The weights of
all parts are in it once more, which is why no bundle carries it: benchmarks/gpu.py times it against
the parts, and until that has run somewhere the parts are what runs.

Axes: batch streams, a frame each.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from sfn_export.exceptions import ExportError
from sfn_export.trace import INLINE_BYTES, check_graph
from sfn_rt.backends.base import PartSpec, TensorSpec
from sfn_rt.bundle import FULL, Bundle

RINGS = ("appearance", "motion")  # of the decoder: the last T frames, the last T - 1 differences
STEP = "step"
GPU_ONLY = (TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN)


class _Step:
    """A graph that grows part by part; tensors are called PART.NAME."""

    def __init__(self) -> None:
        self.graph, self.ir_version = GraphProto(name=STEP), 0
        self.opsets: dict[str, int] = {}  # domain -> version

    def add(self, part: str, model: ModelProto, feeds: Mapping[str, str]) -> dict[str, str]:
        """Put a part in; which tensors it reads, and what its outputs are called."""
        for opset in model.opset_import:
            known = self.opsets.setdefault(opset.domain, opset.version)
            if known != opset.version:
                raise ExportError(
                    f"{part} is of opset {opset.version}, the parts before it of {known}; export "
                    f"all parts again with one version"
                )
        self.ir_version = max(self.ir_version, model.ir_version)
        names = {value.name: feeds[value.name] for value in model.graph.input}

        def renamed(name: str) -> str:
            return names.get(name) or (f"{part}.{name}" if name else "")

        for node in model.graph.node:
            copied = self.graph.node.add()
            copied.CopyFrom(node)
            copied.name = f"{part}/{node.name}"
            copied.input[:] = [renamed(name) for name in node.input]
            copied.output[:] = [renamed(name) for name in node.output]
        for weight in model.graph.initializer:
            copied_weight = self.graph.initializer.add()
            copied_weight.CopyFrom(weight)
            copied_weight.name = renamed(weight.name)
        return {value.name: renamed(value.name) for value in model.graph.output}

    def shift(self, ring: str, old: str, newest: str, length: int) -> None:
        """new.RING: the ring less its oldest entry, with the newest behind."""
        axis, first, last = (self._number(f"{ring}.{n}", n) for n in (1, 1, length))
        self.graph.node.append(_node("Unsqueeze", [newest, axis], f"{ring}.newest"))
        self.graph.node.append(_node("Slice", [old, first, last, axis], f"{ring}.kept"))
        kept = helper.make_node(
            "Concat", [f"{ring}.kept", f"{ring}.newest"], [f"new.{ring}"], f"{ring}/Concat", axis=1
        )
        self.graph.node.append(kept)

    def rename(self, tensor: str, output: str) -> None:
        """Let a tensor of a part be an output of the whole."""
        self.graph.node.append(_node("Identity", [tensor], output))

    def _number(self, name: str, value: int) -> str:
        if all(weight.name != name for weight in self.graph.initializer):
            tensor = helper.make_tensor(name, TensorProto.INT64, [1], [value])
            self.graph.initializer.append(tensor)
        return name


def fuse(bundle: Bundle, out: Path, precision: str = FULL) -> PartSpec:
    """Write the graph of one step of `bundle` to `out`; what it takes and gives."""
    manifest, device = bundle.manifest, bundle.device_graphs()
    if "measure" not in device or "appearance" not in manifest.parts:
        raise ExportError(
            f"{bundle.folder}: a step is fused of device graphs and an appearance branch, and this "
            f"bundle lacks one; fuse another, or export the run again"
        )
    models = {p: onnx.load(path) for p, path in (bundle.graphs(precision) | device).items()}
    decoder = {tensor.name: tensor for tensor in manifest.parts["decoder"].inputs}
    step = _Step()
    frame = step.add("prepare", models["prepare"], {n: n for n in ("image", "rows", "columns")})
    seen = frame
    if "vision" in models:
        seen = step.add("vision", models["vision"], {"frame": frame["frame"]})
    seen = step.add("appearance", models["appearance"], seen)
    step.shift("appearance", "old.appearance", seen["tokens"], int(decoder["appearance"].shape[1]))
    fed = {"appearance": "old.appearance", "skip": "old.skip", "last_frame": "old.frame"}
    if "motion" in models:
        pair = {"frame": frame["frame"], "previous": "old.frame"}
        change = step.add("difference", models["difference"], pair)
        moved = step.add("motion", models["motion"], change)
        step.shift("motion", "old.motion", moved["tokens"], int(decoder["motion"].shape[1]))
        fed["motion"] = "old.motion"
    fed = {name: fed.get(name, name) for name in decoder}
    predicted = step.add("decoder", models["decoder"], fed)
    measured = step.add(
        "measure", models["measure"], predicted | {"frame": frame["frame"], "text": "text"}
    )
    step.rename(measured["measured"], "measured")
    step.rename(seen["skip"], "new.skip")
    step.rename(frame["frame"], "new.frame")
    _declare(step.graph, models, set(fed.values()))
    return _write(step, out)


def _declare(graph: GraphProto, models: Mapping[str, ModelProto], fed: set[str]) -> None:
    """Inputs and outputs of the whole, shaped as the parts' are."""
    shapes = {
        "text": ("decoder", "text"), "old.appearance": ("decoder", "appearance"),
        "old.motion": ("decoder", "motion"), "old.skip": ("decoder", "skip"),
    }  # fmt: skip
    states = [name for name in ("old.appearance", "old.motion", "old.skip") if name in fed]
    for name in ("image", "rows", "columns"):
        graph.input.append(_value(models["prepare"].graph.input, name, name))
    for name in (*(["text"] if "text" in fed else []), *states):
        part, tensor = shapes[name]
        graph.input.append(_value(models[part].graph.input, tensor, name))
    frame = _value(models["prepare"].graph.output, "frame", "old.frame")
    graph.input.append(frame)
    graph.output.append(_value(models["measure"].graph.output, "measured", "measured"))
    for name in (*states, "old.frame"):
        value = next(v for v in graph.input if v.name == name)
        graph.output.add().CopyFrom(value)
        graph.output[-1].name = name.replace("old.", "new.")


def _value(values: object, name: str, called: str) -> onnx.ValueInfoProto:
    found = onnx.ValueInfoProto()
    found.CopyFrom(next(v for v in values if v.name == name))  # type: ignore[attr-defined]
    found.name = called
    return found


def _node(operator: str, inputs: list[str], output: str) -> NodeProto:
    return helper.make_node(operator, inputs, [output], name=f"{output}/{operator}")


def _write(step: _Step, out: Path) -> PartSpec:
    opsets = [helper.make_opsetid(domain, version) for domain, version in step.opsets.items()]
    model = helper.make_model(step.graph, opset_imports=opsets, ir_version=step.ir_version)
    if model.ByteSize() > INLINE_BYTES:
        onnx.save_model(
            model, out, save_as_external_data=True, location=f"{out.name}.data", size_threshold=1024
        )
    else:
        out.write_bytes(model.SerializeToString(deterministic=True))
    values = (step.graph.input, step.graph.output)
    spec = PartSpec(*(tuple(_tensor(value) for value in side) for side in values))
    if {weight.data_type for weight in step.graph.initializer} & set(GPU_ONLY):
        onnx.checker.check_model(out, full_check=True)  # ONNX Runtime's CPU does not load it
    elif (found := check_graph(STEP, out)) != spec:
        raise ExportError(f"{out}: was fused as {found}, expected {spec}")
    return spec


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return TensorSpec(value.name, str(dtype), shape)
