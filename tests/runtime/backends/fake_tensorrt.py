"""TensorRT without a GPU: the runtime classes that the project uses, on a FakeCuda.

A plan is JSON that names an ONNX graph; a context runs it with ONNX Runtime on the memory at its
tensors' addresses, when the stream gets there. What TensorRT is particular about is kept: an
engine of another GPU or version is refused, and so are sizes outside of a profile, addresses that
are not aligned, scratch memory that is too small; a context must have run in these shapes before
it is captured, and what was captured is wrong once the context has been given others.
"""

import json
from collections.abc import Callable
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from fake_builder import Builder, Config, Parser, Severity, Shape, tensor_of
from fake_gpu import ALIGNMENT, FakeCuda, IllegalAddress
from sfn_rt.engines.onnx_file import read_onnx


class DataType(Enum):
    FLOAT = "float32"
    INT64 = "int64"
    INT32 = "int32"
    UINT8 = "uint8"


class Engine:
    """Stands in for ICudaEngine."""

    def __init__(
        self, trt: "FakeTensorrt", raw: dict[str, Any], log: Callable[[str], None]
    ) -> None:
        self.trt, self.raw, self.log = trt, raw, log
        graph = onnx.load(raw["graph"], load_external_data=False).graph
        self.inputs = {value.name: tensor_of(value) for value in graph.input}
        self.outputs = {value.name: tensor_of(value) for value in graph.output}
        self.tensors = self.inputs | self.outputs
        self.weights_missing = raw["stripped"]

    @cached_property
    def _session(self) -> Any:
        return onnxruntime.InferenceSession(self.raw["graph"], providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.raw["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.tensors[name].dtype)

    def get_tensor_shape(self, name: str) -> Shape:
        return tuple(-1 if isinstance(axis, str) else axis for axis in self.tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        ranges = self.raw["profiles"][profile_index]
        sizes = [ranges[a] if isinstance(a, str) else (a,) * 3 for a in self.tensors[name].shape]
        return list(zip(*sizes, strict=True)) or [(), (), ()]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        ranges = self.raw["profiles"][profile_index]
        return int(self.raw["scratch"] * ranges.get("batch", (1, 1, 1))[2])

    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig(self.trt)

    def create_engine_inspector(self) -> Any:
        nodes = read_onnx(Path(self.raw["graph"])).nodes
        layers = [
            {
                "Name": node.name,
                "LayerType": node.operator.lower(),
                "Inputs": [{"Name": "x", "Datatype": "Float"}],
                "Outputs": [{"Name": "y", "Datatype": "Float"}],
                "Metadata": f"[ONNX Layer: {node.name}]",
            }
            for node in nodes
        ]
        text = json.dumps({"Layers": layers})
        return SimpleNamespace(get_engine_information=lambda layer_format: text)

    def create_execution_context(self, strategy: Any) -> "Context":
        if isinstance(strategy, RuntimeConfig):
            assert strategy.dynamic_shapes_kernel_specialization_strategy == "eager"
            strategy.cache.content = b"kernels of " + self.trt.gpu.gpu.encode()
            strategy = strategy.strategy
        assert strategy == "user managed"
        self.trt.contexts += 1
        return Context(self)


class RuntimeConfig:
    """Stands in for IRuntimeConfig, TensorRT-RTX's alone."""

    dynamic_shapes_kernel_specialization_strategy = "lazy"

    def __init__(self, trt: "FakeTensorrt") -> None:
        self.trt, self.strategy = trt, "static"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> "RuntimeCache":
        return RuntimeCache(self.trt)

    def set_runtime_cache(self, cache: "RuntimeCache") -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """Stands in for IRuntimeCache."""

    def __init__(self, trt: "FakeTensorrt") -> None:
        self.trt, self.content = trt, b""

    def deserialize(self, blob: bytes) -> bool:
        self.trt.kernels_read.append(blob)
        return blob.endswith(self.trt.gpu.gpu.encode())

    def serialize(self) -> bytes:
        return self.content


class Context:
    """Stands in for IExecutionContext."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.profile = engine, 0
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        self.warm: dict[str, Shape] | None = None  # the shapes it is set up for

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self._fail(f"setInputShape: {name} {shape} is outside of the profile")
        if self.shapes.get(name) != tuple(shape):
            self.warm = None
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % ALIGNMENT:
            return self._fail(f"setTensorAddress: {name} is not aligned")
        self.addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        sizes: dict[Any, int] = {}
        for given, shape in self.shapes.items():
            sizes |= dict(zip(self.engine.inputs[given].shape, shape, strict=True))
        return tuple(sizes.get(axis, axis) for axis in self.engine.tensors[name].shape)

    def update_device_memory_size_for_shapes(self) -> int:
        batched = [n for n, value in self.engine.inputs.items() if "batch" in value.shape]
        batch = self.shapes[batched[0]][0] if batched else 1
        return int(self.engine.raw["scratch"] * batch)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.trt.capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu = self.engine.trt.gpu
        stream = gpu.streams[stream_handle]
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        if missing := self.engine.tensors.keys() - addresses.keys():
            return self._fail(f"enqueueV3: {sorted(missing)[0]} has no address")
        if self.engine.weights_missing:
            return self._fail("enqueueV3: the weights are missing")
        assert self.scratch is not None
        if self.scratch[1] < self.update_device_memory_size_for_shapes():
            return self._fail("enqueueV3: scratch memory is too small")
        if stream.captured is not None and self.warm != shapes:
            return self._fail("enqueueV3: an operation that a capture does not permit")
        self.warm, captured = shapes, stream.captured is not None

        def work() -> None:
            if captured and self.shapes != shapes:
                raise IllegalAddress("the context was given other shapes since")
            assert self.scratch is not None
            gpu.at(*self.scratch)
            feeds = {n: self._array(n, addresses[n], shapes[n]).copy() for n in shapes}
            found = self.engine._session.run(None, feeds)
            for name, array in zip(self.engine.outputs, found, strict=True):
                self._array(name, addresses[name], array.shape)[...] = array

        stream.put(work)
        return True

    def _array(self, name: str, pointer: int, shape: Shape) -> Any:
        kind = np.dtype(self.engine.get_tensor_dtype(name).value)
        size = int(np.prod(shape)) * kind.itemsize
        self.engine.trt.gpu.at(pointer, size)
        room, _ = next(
            held
            for begin, held in self.engine.trt.gpu.memory.items()
            if begin <= pointer < begin + held[1]
        )
        offset = pointer - room.ctypes.data
        return room[offset : offset + size].view(kind).reshape(shape)

    def _fail(self, message: str) -> bool:
        self.engine.log(message)
        return False


class FakeTensorrt:
    """Stands in for the module `tensorrt`, or with `ahead_of_time` for `tensorrt_rtx`."""

    def __init__(self, gpu: FakeCuda, version: str = "11.4.0", ahead_of_time: bool = False) -> None:
        self.gpu, self.__version__ = gpu, version
        self.capturable = True
        self.contexts = 0
        self.kernels_read: list[bytes] = []
        self.refitted: list[str] = []
        if ahead_of_time:
            names = ("NONE", "SM86", "SM89", "SM120", "CURRENT")
            self.ComputeCapability = SimpleNamespace(__members__=dict.fromkeys(names, 0))
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
        self.fails = ""  # what the builder says instead of building
        self.configs: list[Config] = []
        self.OnnxParser = Parser
        names = ("TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL")
        self.BuilderFlag = SimpleNamespace(**{name: name for name in names})
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.LayerInformationFormat = SimpleNamespace(JSON="json")

    def Builder(self, logger: Any) -> "Builder":
        return Builder(self, logger)

    class IProgressMonitor:
        def __init__(self) -> None:
            pass

    class ILogger:
        Severity = Severity

        def __init__(self) -> None:
            pass

        def log(self, level: Severity, message: str) -> None:
            raise NotImplementedError

    def Runtime(self, logger: Any) -> Any:
        def deserialize(plan: bytes) -> Engine | None:
            raw = json.loads(plan)
            major, minor = self.gpu.capability
            if f"sm_{major}{minor}" not in raw["architectures"]:
                return refuse(f"built for {raw['architectures']}: not this GPU's architecture")
            if raw["version"] != self.__version__:
                return refuse(f"serialization version {raw['version']} is not current")
            if len(plan) + raw.get("weights", 0) > self.gpu.total - self.gpu.used:
                return refuse("Cuda Runtime (out of memory)")
            return Engine(self, raw, lambda message: logger.log(Severity.ERROR, message))

        def refuse(message: str) -> None:
            logger.log(Severity.ERROR, f"IRuntime::deserializeCudaEngine: {message}")

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def Refitter(self, engine: Engine, logger: Any) -> Any:
        def refit() -> bool:
            engine.weights_missing = False
            return True

        return SimpleNamespace(engine=engine, logger=logger, refit_cuda_engine=refit)

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:
        def refit_from_file(path: str) -> bool:
            self.refitted.append(path)
            same = (
                read_onnx(Path(path)).nodes == read_onnx(Path(refitter.engine.raw["graph"])).nodes
            )
            if not same:
                logger.log(Severity.ERROR, "the weights are of another model")
            return same

        return SimpleNamespace(refit_from_file=refit_from_file)
