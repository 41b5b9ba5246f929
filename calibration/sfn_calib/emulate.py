"""Runs graphs of any precision on a CPU, for parity and for the gate.

fp16 and int8 run as they are. fp8 runs with ONNX Runtime's graph optimisations off, one of which
moves a Transpose into types that it has no kernel for. bf16 has no kernels on a CPU: its graph runs
in fp32 with every value rounded to bf16 where a bf16 kernel would write it. No speed can be read
from the last two, nor from fp16, which a CPU computes in fp32 between casts.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from sfn_calib.graph import FLOAT, MOVES, Graph, rebuilt
from sfn_calib.sessions import open_session, session_of
from sfn_rt.backends.base import Arrays, Backend, CheckedBackend, PartSpec, TensorSpec
from sfn_rt.backends.ort import DTYPES
from sfn_rt.exceptions import BackendError

BF16 = TensorProto.BFLOAT16


class VariantBackend(CheckedBackend):
    """Sessions of a model's parts, each in its own precision."""

    def __init__(
        self, graphs: Mapping[str, Path], precisions: Mapping[str, str], threads: int | None
    ) -> None:
        """Open part -> ONNX file."""
        self._stack = ExitStack()
        self._sessions: dict[str, Any] = {}
        with self._stack:
            for part, path in graphs.items():
                self._sessions[part] = self._open(path, precisions[part], threads)
            self._stack = self._stack.pop_all()
        self.parts: Mapping[str, PartSpec] = {
            part: _spec(session) for part, session in self._sessions.items()
        }
        how = {"bf16": "bf16 rounded in fp32", "fp8": "fp8 unoptimised"}
        said = sorted({how.get(precision, precision) for precision in precisions.values()})
        self.name = f"ort ({', '.join(said)})"

    def _open(self, path: Path, precision: str, threads: int | None) -> Any:
        if precision == "bf16":
            model = emulated(Graph.load(path))
            return self._stack.enter_context(session_of(model, threads=threads, optimised=False))
        return open_session(path, threads=threads, optimised=opens_optimised(precision))

    def __exit__(self, *exc_info: object) -> None:
        self._sessions.clear()
        self._stack.close()

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """What the session of `part` says."""
        if part not in self._sessions:
            raise BackendError(f"{self.name}: closed; use it inside its `with` block")
        results = self._sessions[part].run(list(names), dict(feeds))
        return dict(zip(names, results, strict=True))


def open_variant(
    graphs: Mapping[str, Path], precisions: Mapping[str, str], *, threads: int | None = None
) -> Backend:
    """part -> ONNX file, part -> precision; the backend's name says what is emulated."""
    return VariantBackend(graphs, precisions, threads)


def opens_optimised(precision: str) -> bool:
    """Whether ONNX Runtime may rewrite a graph of this precision."""
    return precision != "fp8"


def emulated(graph: Graph) -> ModelProto:
    """A bf16 graph as one in fp32 that rounds to bf16 wherever the other holds a bf16 value."""
    half = {name for name, kind in graph.types.items() if kind == BF16}
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(node.output):
            if name in half and node.op_type not in MOVES:
                copy.output[i] = f"{name}/exact" if node.op_type != "Cast" else f"{name}/rounded"
        nodes.append(copy)
        for inner, name in zip(copy.output, node.output, strict=True):
            if inner != name:
                nodes.extend(_rounding(inner, name))
    model = rebuilt(graph, nodes)
    for tensor in model.graph.initializer:
        if tensor.data_type == BF16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


def _rounding(inner: str, name: str) -> list[NodeProto]:
    """Casts from a value to bf16 and back; a value that is bf16 already only goes back."""
    to = f"{name}/rounded"
    back = onnx.helper.make_node("Cast", [to], [name], name=f"{name}/Cast_back", to=FLOAT)
    if inner == to:
        return [back]
    return [onnx.helper.make_node("Cast", [inner], [to], name=f"{name}/Cast_to", to=BF16), back]


def _spec(session: Any) -> PartSpec:
    def tensor(value: Any) -> TensorSpec:
        return TensorSpec(value.name, DTYPES.get(value.type, value.type), tuple(value.shape))

    return PartSpec(
        tuple(tensor(value) for value in session.get_inputs()),
        tuple(tensor(value) for value in session.get_outputs()),
    )
