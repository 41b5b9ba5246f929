"""config.pbtxt: what Triton is told of a model, as text of its published ModelConfig message.

A model that batches says its shapes without the first axis; `dims` may not be empty, so an axis
is put in where nothing is left (`reshape`). An ensemble here takes one clip and does not batch:
the frames of a clip are the batch of its encoders, and Triton's dynamic batcher puts the frames
of several clips together.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from sfn_export.exceptions import ExportError
from sfn_rt.backends.base import PartSpec, TensorSpec

BATCH = "batch"  # the first axis of everything that can be cut along it
TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
}
Kind = Literal["KIND_GPU", "KIND_CPU"]


@dataclass(frozen=True)
class Port:
    """An input or output as a client or another model sees it; -1 is an axis of any length."""

    name: str
    dtype: str  # numpy's name
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None  # what the graph has instead, where that is not `dims`

    def __post_init__(self) -> None:
        if self.dtype not in TYPES:
            raise ExportError(
                f"{self.name}: Triton's ONNX Runtime backend takes {', '.join(TYPES)} here, got "
                f"{self.dtype}; export the model again at another precision"
            )

    def text(self, kind: str) -> str:
        """As an entry of `input` or `output`."""
        lines = [f'  name: "{self.name}"', f"  data_type: {TYPES[self.dtype]}"]
        lines.append(f"  dims: [ {', '.join(map(str, self.dims))} ]")
        if self.reshape is not None:
            shape = "".join(f" {axis}," for axis in self.reshape).rstrip(",")
            lines.append(f"  reshape {{ shape: [{shape} ] }}")
        return "\n".join([f"{kind} {{", *lines, "}"])


@dataclass(frozen=True)
class Placement:
    """Where the graphs run, and how many at once."""

    kind: Kind = "KIND_GPU"
    instances: int = 1  # of each model; on a GPU, of each GPU that Triton sees

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise ExportError(f"--instances must be at least 1, got {self.instances}")


@dataclass(frozen=True)
class GraphConfig:
    """One ONNX graph as a model of the repository."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    max_batch: int  # 0: no axis that can be cut

    @classmethod
    def of(cls, name: str, spec: PartSpec, max_batch: int) -> "GraphConfig":
        """Of a graph's own shapes; it batches where all of them begin with that axis."""
        tensors = (*spec.inputs, *spec.outputs)
        batched = max_batch > 0 and all(tensor.shape[:1] == (BATCH,) for tensor in tensors)
        inputs, outputs = (
            tuple(_port(tensor, batched) for tensor in side) for side in (spec.inputs, spec.outputs)
        )
        return cls(name, inputs, outputs, max_batch if batched else 0)

    def text(self, placement: Placement) -> str:
        """The whole of config.pbtxt."""
        head = [
            f'name: "{self.name}"',
            'backend: "onnxruntime"',
            f"max_batch_size: {self.max_batch}",
        ]
        group = f"instance_group {{ count: {placement.instances} kind: {placement.kind} }}"
        tail = ["dynamic_batching { }"] if self.max_batch else []
        return _document(head, self.inputs, self.outputs, [group, *tail])


@dataclass(frozen=True)
class Step:
    """A model of an ensemble, its ports tied to tensors of the ensemble."""

    model: str
    inputs: Mapping[str, str]  # port -> tensor
    outputs: Mapping[str, str]

    def text(self) -> str:
        """As an entry of `step`."""
        maps = [
            f'    {kind} {{ key: "{port}" value: "{tensor}" }}'
            for kind, wires in (("input_map", self.inputs), ("output_map", self.outputs))
            for port, tensor in wires.items()
        ]
        name = f'    model_name: "{self.model}"'
        return "\n".join(["  step {", name, "    model_version: -1", *maps, "  }"])


@dataclass(frozen=True)
class EnsembleConfig:
    """Models tied together; Triton moves what lies between, on the GPU where both are there."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    steps: tuple[Step, ...]

    def text(self) -> str:
        """The whole of config.pbtxt."""
        head = [f'name: "{self.name}"', 'platform: "ensemble"', "max_batch_size: 0"]
        steps = "\n".join(["ensemble_scheduling {", *(step.text() for step in self.steps), "}"])
        return _document(head, self.inputs, self.outputs, [steps])


def _port(tensor: TensorSpec, batched: bool) -> Port:
    axes = tensor.shape[1:] if batched else tensor.shape
    dims = tuple(-1 if isinstance(axis, str) else axis for axis in axes)
    return Port(tensor.name, tensor.dtype, dims or (1,), None if dims else ())


def _document(
    head: Iterable[str], inputs: Iterable[Port], outputs: Iterable[Port], tail: Iterable[str]
) -> str:
    ports = [port.text("input") for port in inputs] + [port.text("output") for port in outputs]
    return "\n".join([*head, *ports, *tail]) + "\n"
