"""A builder of TensorRT engines without TensorRT: the plan names the graph and for what it is.

Stands in for the classes that sfn_rt.engines.build uses; fake_tensorrt.py runs the plans.
"""

import json
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx

from sfn_rt.backends.base import TensorSpec

Shape = tuple[int, ...]


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


def make_plan(
    graph: Path,
    architectures: tuple[str, ...],
    version: str,
    profiles: list[dict[str, tuple[int, int, int]]],
    *,
    scratch: int = 4096,
    stripped: bool = False,
) -> bytes:
    """An engine: ranges of dynamic axes by name, a profile each; `scratch` bytes an entry."""
    return json.dumps(
        {
            "graph": str(graph),
            "architectures": architectures,
            "version": version,
            "profiles": profiles,
            "scratch": scratch,
            "stripped": stripped,
        }
    ).encode()


def tensor_of(value: Any) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, shape)


class Config:
    """Stands in for IBuilderConfig."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.flags: set[str] = {"TF32"}
        self.profiles: list[Any] = []
        self.limits: dict[str, int] = {}
        self.progress_monitor: Any = None
        self.profiling_verbosity: Any = None
        self.timing_cache: Any = None

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: str, pool_size: int) -> None:
        self.limits[pool] = pool_size

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        grown = serialized_timing_cache + b"timed;"
        return SimpleNamespace(read=serialized_timing_cache, serialize=lambda: grown)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.timing_cache = cache
        return True

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)


class Network:
    """Stands in for INetworkDefinition."""

    def __init__(self) -> None:
        self.graph: Path | None = None
        self.inputs: list[TensorSpec] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Any:
        tensor = self.inputs[index]
        return SimpleNamespace(
            name=tensor.name,
            shape=tuple(-1 if isinstance(axis, str) else axis for axis in tensor.shape),
            get_dimension_name=lambda i: (
                tensor.shape[i] if isinstance(tensor.shape[i], str) else ""
            ),
        )


class Parser:
    """Stands in for OnnxParser."""

    num_errors = 0

    def __init__(self, network: Network, logger: Any) -> None:
        self.network = network

    def parse_from_file(self, model: str) -> bool:
        self.network.graph = Path(model)
        graph = onnx.load(model, load_external_data=False).graph
        self.network.inputs = [tensor_of(value) for value in graph.input]
        return True


class Profile:
    """Stands in for IOptimizationProfile."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Shape, Shape, Shape]] = {}

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None:
        self.shapes[input] = (min, opt, max)


class Builder:
    """Stands in for Builder; `trt.configs` keeps how each build was set up."""

    def __init__(self, trt: Any, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << 1, "TensorRT 10 builds a weakly typed network unless told"
        return Network()

    def create_builder_config(self) -> Config:
        self.trt.configs.append(Config(self.trt))
        return self.trt.configs[-1]

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        config.progress_monitor.phase_start("Building engine", None, 3)
        for step in range(3):
            if not config.progress_monitor.step_complete("Building engine", step):
                self.logger.log(Severity.ERROR, "Build canceled by user")
                return None
        config.progress_monitor.phase_finish("Building engine")
        if self.trt.fails:
            self.logger.log(Severity.ERROR, self.trt.fails)
            return None
        ranges = [self._ranges(network, profile) for profile in config.profiles]
        major, minor = self.trt.gpu.capability
        assert network.graph is not None
        return make_plan(
            network.graph,
            (f"sm_{major}{minor}",),
            self.trt.__version__,
            ranges,
            stripped="STRIP_PLAN" in config.flags,
        )

    def _ranges(self, network: Network, profile: Profile) -> dict[str, tuple[int, int, int]]:
        return {
            axis: tuple(shape[i] for shape in profile.shapes[tensor.name])  # type: ignore[misc]
            for tensor in network.inputs
            for i, axis in enumerate(tensor.shape)
            if isinstance(axis, str)
        }
