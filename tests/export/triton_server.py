"""Triton Inference Server's rules for a model repository, with ONNX Runtime behind them.

No server is here. `Server` follows what Triton's core does with these files: ensemble_utils.cc
checks the maps, ensemble_scheduler.cc (ReshapeTensorDims) cuts and strips the first axis between
models that batch and models that do not, and ONNX Runtime runs each graph. The configs are parsed
as Triton's own message, which tritonclient carries.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from google.protobuf import text_format

from sfn_rt.backends.base import Array

DTYPES = {"TYPE_FP32": "float32", "TYPE_INT64": "int64", "TYPE_UINT8": "uint8"}
ORT_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}
Dims = Sequence[int]


class Refused(Exception):
    """What Triton would not load, or not run."""


class Served:
    """One graph, checked and run as Triton's ONNX Runtime backend does."""

    def __init__(self, folder: Path, config: Any) -> None:
        self.config, self.batching = config, config.max_batch_size > 0
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        graph = folder / "1" / "model.onnx"
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        require(config.backend == "onnxruntime", f"{config.name}: backend {config.backend!r}")
        self._check(config.input, self._session.get_inputs(), every=True)
        self._check(config.output, self._session.get_outputs(), every=False)

    def _check(self, ports: Any, values: Any, every: bool) -> None:
        there = {value.name: value for value in values}
        names = [port.name for port in ports]
        require(set(names) <= there.keys(), f"{self.config.name}: {names} are not {list(there)}")
        require(not every or len(names) == len(there), f"{self.config.name}: lacks an input")
        for port in ports:
            value, dtype = there[port.name], dtype_of(port)
            require(len(port.dims) > 0, f"{port.name}: dims may not be empty")
            require(ORT_DTYPES[value.type] == dtype, f"{port.name}: {value.type} is not {dtype}")
            shape = [axis if isinstance(axis, int) else -1 for axis in value.shape]
            full = [-1, *graph_dims(port)] if self.batching else list(graph_dims(port))
            require(like(full, shape), f"{self.config.name}/{port.name}: {full} is not {shape}")
            free = min(*port.dims, *graph_dims(port), 1) < 0
            same = free or np.prod(port.dims) == np.prod(list(graph_dims(port)))
            require(bool(same), f"{port.name}: reshape changes the number of elements")

    def run(
        self, feeds: Mapping[str, Array], wanted: Sequence[str]
    ) -> tuple[int, dict[str, Array]]:
        """The batch (0: none) and the outputs, in the shapes that the config states."""
        batch, given = 0, {}
        for port in self.config.input:
            array = feeds[port.name]
            shape = array.shape[1:] if self.batching else array.shape
            fits = like(port.dims, shape) and array.dtype == dtype_of(port)
            require(fits, f"{self.config.name}/{port.name}: got {array.dtype}{array.shape}")
            batch = len(array) if self.batching else 0
            given[port.name] = reshaped(array, port, batch)
        require(batch <= self.config.max_batch_size, f"{self.config.name}: a batch of {batch}")
        found = self._session.run(list(wanted), given)
        outputs = dict(zip(wanted, found, strict=True))
        for port in (port for port in self.config.output if port.name in outputs):
            array = outputs[port.name]
            shape = array.shape[1:] if self.batching else array.shape
            require(like(graph_dims(port), shape), f"{port.name}: gave {array.shape}")
            head = (len(array),) if self.batching else ()
            if port.HasField("reshape"):
                outputs[port.name] = array.reshape(*head, *port.dims)
        return batch, outputs


class Server:
    """A model repository, loaded: every config parsed strictly, every map checked."""

    def __init__(self, repository: Path) -> None:
        from tritonclient.grpc.model_config_pb2 import ModelConfig

        self.models: dict[str, Served] = {}
        self.ensembles: dict[str, Any] = {}
        for folder in sorted(path for path in repository.iterdir() if path.is_dir()):
            config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
            require(config.name == folder.name, f"{folder.name} is called {config.name}")
            require((folder / "1").is_dir(), f"{folder.name}: no version")
            if config.platform == "ensemble":
                require(not config.backend and not config.instance_group, "an ensemble has neither")
                self.ensembles[config.name] = config
            else:
                self.models[config.name] = Served(folder, config)
        for config in self.ensembles.values():
            self._check(config)

    def _check(self, config: Any) -> None:
        known: dict[str, tuple[str, list[int], list[int]]] = {}
        for port in (*config.input, *config.output):
            known[port.name] = (dtype_of(port), list(port.dims), list(port.dims))
        for step in config.ensemble_scheduling.step:
            model = self.models[step.model_name]
            sides = ((step.input_map, model.config.input), (step.output_map, model.config.output))
            for wires, ports in sides:
                require(set(wires) <= {port.name for port in ports}, f"{step.model_name}: {wires}")
                for port in (port for port in ports if port.name in wires):
                    full = [-1, *port.dims] if model.batching else list(port.dims)
                    mine = (dtype_of(port), list(port.dims), full)
                    other = known.setdefault(wires[port.name], mine)
                    shapes = like(mine[1], other[1]) or like(mine[2], other[2])
                    require(mine[0] == other[0] and shapes, f"{port.name}: {mine} is not {other}")
            missing = {port.name for port in model.config.input} - set(step.input_map)
            require(not missing, f"{step.model_name}: nothing gives {missing}")

    def infer(self, ensemble: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One request, whose steps are run when what they take is there."""
        config = self.ensembles[ensemble]
        for port in config.input:
            array = feeds[port.name]
            fits = like(port.dims, array.shape) and array.dtype == dtype_of(port)
            require(fits, f"{ensemble}/{port.name}: got {array.dtype}{array.shape}")
        tensors = {name: (0, array) for name, array in feeds.items()}
        steps = list(config.ensemble_scheduling.step)
        while steps:
            ready = next((s for s in steps if set(s.input_map.values()) <= tensors.keys()), None)
            require(ready is not None, f"{ensemble}: deadlock before {steps[0].model_name}")
            steps.remove(ready)
            self._step(ready, tensors)
        return {port.name: cut(port.dims, False, *tensors[port.name]) for port in config.output}

    def _step(self, step: Any, tensors: dict[str, tuple[int, Array]]) -> None:
        model = self.models[step.model_name]
        dims = {port.name: port.dims for port in model.config.input}
        given = {
            name: cut(dims[name], model.batching, *tensors[tensor])
            for name, tensor in step.input_map.items()
        }
        batch, outputs = model.run(given, list(step.output_map))
        for name, tensor in step.output_map.items():
            tensors[tensor] = (batch, outputs[name])


def cut(dims: Dims, batching: bool, batch: int, array: Array) -> Array:
    """ReshapeTensorDims of ensemble_scheduler.cc."""
    if batching and not batch and like(dims, array.shape):
        return array[None]
    if not batching and batch == 1 and not like(dims, array.shape):
        return array[0]
    return array


def reshaped(array: Array, port: Any, batch: int) -> Array:
    if not port.HasField("reshape"):
        return array
    return array.reshape(*([batch] if batch else []), *port.reshape.shape)


def graph_dims(port: Any) -> Dims:
    return list(port.reshape.shape if port.HasField("reshape") else port.dims)


def dtype_of(port: Any) -> str:
    kind = port.DESCRIPTOR.fields_by_name["data_type"].enum_type
    return DTYPES[kind.values_by_number[port.data_type].name]


def like(dims: Dims, other: Dims) -> bool:
    """CompareDimsWithWildcard."""
    pairs = zip(dims, other, strict=False)
    return len(dims) == len(other) and all(a == b or -1 in (a, b) for a, b in pairs)


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Refused(message)
