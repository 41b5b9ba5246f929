"""An ONNX graph opened for rewriting: types, who computes what, what is constant.

Weights may lie in a file beside the graph, and may be too large for a protobuf: types are
inferred on a copy without them, and a large result gets its own file beside it again.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from sfn_calib.exceptions import ConversionError
from sfn_rt.backends.base import Array

FLOAT = int(TensorProto.FLOAT)
INLINE_BYTES = 1 << 30  # larger weights lie beside their graph, as sfn_export leaves them
SMALL = 1024  # elements; shapes and axes, which inference needs the values of
MOVES = frozenset(  # operators that copy values and compute nothing
    {
        *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "Tile"),
        *("Slice", "Split", "Concat", "Pad", "DepthToSpace", "SpaceToDepth"),
        *("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"),
    }
)


class Graph:
    """What conversions ask of a graph; every node has a name of its own."""

    def __init__(self, model: ModelProto, source: Path) -> None:
        self.model, self.source = model, source
        self.nodes = list(model.graph.node)
        _check_names(self.nodes, source)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.types = _types(model, source)
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in model.graph.output}
        self.opset = {entry.domain: entry.version for entry in model.opset_import}
        self._fed = self._fed_values()

    @classmethod
    def load(cls, path: Path) -> "Graph":
        """Open a file, with weights that lie beside it."""
        try:
            return cls(onnx.load(path), path)
        except FileNotFoundError as error:
            raise ConversionError(
                f"{path}: {error.filename or 'its weights'} does not exist; copy it again"
            ) from None
        except ConversionError:
            raise
        except Exception as error:  # protobuf and onnx share no other base
            raise ConversionError(
                f"{path}: not an ONNX graph ({error}); export it again"
            ) from error

    def is_float(self, name: str) -> bool:
        """Whether a value is an array of float32."""
        return self.types.get(name) == FLOAT

    def is_constant(self, name: str) -> bool:
        """Whether a value follows from constants and shapes alone, not from what is fed."""
        return name not in self._fed

    def array(self, name: str) -> Array:
        """The values of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def float_inputs(self, node: NodeProto) -> list[str]:
        """Names of a node's inputs in float32."""
        return [name for name in node.input if self.is_float(name)]

    def touches_floats(self, node: NodeProto) -> bool:
        """Whether a node takes or makes arrays of float32."""
        return any(self.is_float(name) for name in (*node.input, *node.output))

    def before(self, name: str) -> Iterator[NodeProto]:
        """The node that computes a value, if one does."""
        if name in self.producer:
            yield self.producer[name]

    def _fed_values(self) -> set[str]:
        """The inputs and all that is computed of their values; a shape is not their value."""
        found = {value.name for value in self.model.graph.input} - self.constants.keys()
        for node in self.nodes:
            if node.op_type not in {"Shape", "Size"} and any(n in found for n in node.input):
                found.update(name for name in node.output if name)
        return found


def rebuilt(
    graph: Graph, nodes: Iterable[NodeProto], more: Iterable[TensorProto] = ()
) -> ModelProto:
    """A model of other nodes between the same inputs and outputs; constants no one reads go."""
    model = _shell(graph.model)
    model.graph.node.extend(nodes)
    used = {name for node in model.graph.node for name in node.input} | graph.outputs
    tensors = (*graph.constants.values(), *more)
    model.graph.initializer.extend(tensor for tensor in tensors if tensor.name in used)
    return model


def save_graph(model: ModelProto, out: Path) -> None:
    """Write a graph and have onnx.checker accept it."""
    try:
        onnx.checker.check_model(out, full_check=write_graph(model, out) <= INLINE_BYTES)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"{out}: onnx.checker refuses what was written: {reason}") from error


def write_graph(model: ModelProto, out: Path) -> int:
    """Write a graph, with large weights in `out`.data; return how many bytes of them there are."""
    size = sum(_nbytes(tensor) for tensor in model.graph.initializer)
    beside = out.with_name(out.name + ".data")
    beside.unlink(missing_ok=True)  # onnx appends to it
    if size > INLINE_BYTES:
        onnx.save(
            model, out, save_as_external_data=True, location=beside.name, size_threshold=SMALL
        )
    else:
        out.write_bytes(model.SerializeToString(deterministic=True))
    return size


def _check_names(nodes: list[NodeProto], source: Path) -> None:
    seen: set[str] = set()
    for number, node in enumerate(nodes):
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            raise ConversionError(
                f"{source}: {node.name!r} is a {node.op_type}, which holds graphs of its own; "
                f"export the model without control flow"
            )
        if not node.name:
            node.name = f"{node.op_type}_{number}"
        if node.name in seen:
            raise ConversionError(f"{source}: two nodes are called {node.name!r}; export it again")
        seen.add(node.name)


def _types(model: ModelProto, source: Path) -> dict[str, int]:
    """Element type of every value."""
    try:
        inferred = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
    except onnx.shape_inference.InferenceError as error:
        raise ConversionError(f"{source}: types cannot be inferred: {error}") from error
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if unknown := [name for name in node.output if name and not types.get(name)]:
            raise ConversionError(
                f"{source}: the type of {unknown[0]!r}, made by the {node.op_type} {node.name!r}, "
                f"is unknown to onnx; export the model with ONNX's own operators"
            )
    return types


def _without_weights(model: ModelProto) -> ModelProto:
    """The same graph with the values of large constants left out."""
    bare = _shell(model)
    bare.graph.node.extend(model.graph.node)
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims)) <= SMALL:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            )
    return bare


def _shell(model: ModelProto) -> ModelProto:
    """A model with the same inputs, outputs and operator sets, and nothing in it."""
    shell = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    shell.graph.name = model.graph.name
    shell.graph.input.extend(model.graph.input)
    shell.graph.output.extend(model.graph.output)
    return shell


def _nbytes(tensor: TensorProto) -> int:
    return len(tensor.raw_data) or 8 * int(np.prod(tensor.dims))
