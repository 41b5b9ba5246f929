"""An engine on the GPU: what it takes, for which sizes, and the contexts that it runs in.

Scratch memory is given to contexts from outside: all engines run in one stream, one after another,
so one piece, as large as the largest need, serves them all.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sfn_rt.backends.base import PartSpec, TensorSpec
from sfn_rt.engines.build import NO_MEMORY
from sfn_rt.engines.cache import Record
from sfn_rt.engines.flavour import Flavour, open_engine
from sfn_rt.exceptions import BackendError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Profile:
    """The sizes that one optimization profile takes."""

    index: int
    smallest: Shapes
    largest: Shapes

    def takes(self, shapes: Shapes) -> bool:
        """Whether every input is within its ends."""
        return all(
            len(shape) == len(self.smallest[name])
            and all(
                low <= size <= high
                for low, size, high in zip(
                    self.smallest[name], shape, self.largest[name], strict=True
                )
            )
            for name, shape in shapes.items()
        )

    @property
    def volume(self) -> int:
        """How much goes in at most: the profile with the least is tuned the closest."""
        return sum(prod(shape) for shape in self.largest.values())


class OpenEngine:
    """A deserialized engine of one part."""

    def __init__(
        self, part: str, spec: PartSpec, record: Record, flavour: Flavour, engine: Any
    ) -> None:
        self.part, self.spec, self.record = part, spec, record
        self._flavour, self._engine = flavour, engine
        self._check(spec)
        profiles = [self._profile(i) for i in range(engine.num_optimization_profiles)]
        self.profiles = tuple(sorted(profiles, key=lambda profile: profile.volume))
        self._settings, self._kernels = self._runtime_settings()

    @classmethod
    def load(
        cls, part: str, spec: PartSpec, record: Record, graph: Path, flavour: Flavour, messages: Any
    ) -> "OpenEngine":
        """Put a plan on the GPU, and its weights where it was built without."""
        plan = record.read_plan()
        compatible = bool(record.options["version_compatible"])
        engine = open_engine(flavour, plan, messages, version_compatible=compatible)
        if engine is None:
            said = messages.said()
            if any(word in said for word in NO_MEMORY):
                raise BackendError(
                    f"{record.path}: the weights of {part}, {len(plan) / 1e6:.0f} MB, do not fit "
                    f"into the GPU's memory; take a lower --precision, or close what else runs "
                    f"there ({said})"
                )
            raise BackendError(f"{record.path}: {flavour.title} refuses this engine: {said}")
        if record.options["strip_weights"]:
            _refit(engine, graph, record, flavour, messages)
        return cls(part, spec, record, flavour, engine)

    @property
    def max_batch(self) -> int | None:
        """The largest first axis of those called batch; None: there is none."""
        sizes = [
            profile.largest[tensor.name][0]
            for profile in self.profiles
            for tensor in self.spec.inputs
            if tensor.shape and tensor.shape[0] == "batch"
        ]
        return max(sizes, default=None)

    def profile_for(self, shapes: Shapes) -> Profile | None:
        """The closest profile that takes these sizes."""
        return next((profile for profile in self.profiles if profile.takes(shapes)), None)

    def scratch_bytes(self) -> int:
        """Scratch memory for the largest sizes."""
        return max((self._scratch_bytes_of(profile) for profile in self.profiles), default=0)

    def scratch_bytes_at(self, batch: int) -> int:
        """About what a batch takes: between the profile for one and that for many it is linear."""
        one, many = self._scratch_bytes_of(self.profiles[0]), self.scratch_bytes()
        largest = self.max_batch or 1
        share = (batch - 1) / (largest - 1) if largest > 1 else 1.0
        return round(one + (many - one) * min(share, 1.0))

    def _scratch_bytes_of(self, profile: Profile) -> int:
        return int(self._engine.get_device_memory_size_for_profile_v2(profile.index))

    def context(self, profile: Profile, stream: int, scratch: tuple[int, int]) -> Any:
        """A new context at a profile, with scratch memory at (pointer, bytes)."""
        context = self._engine.create_execution_context(self._settings)
        if context is None:
            raise BackendError(
                f"{self.record.path}: {self._flavour.title} makes no context for {self.part}: the "
                f"GPU's memory is full; close what else runs there"
            )
        context.set_optimization_profile_async(profile.index, stream)
        context.set_device_memory(*scratch)
        return context

    def save_kernels(self) -> None:
        """Keep what TensorRT-RTX compiled on this device, so that the next start is quick."""
        if self._kernels is None or not os.access(self.record.folder, os.W_OK):
            return  # a folder that is only read from was filled with purpose
        from sfn_rt.sinks.files import write_atomic

        compiled, path = bytes(self._kernels.serialize()), self._kernels_path
        if not path.is_file() or path.read_bytes() != compiled:
            write_atomic(path, compiled)

    @property
    def _kernels_path(self) -> Path:
        return self.record.path.with_suffix(".jit")

    def _runtime_settings(self) -> tuple[Any, Any]:
        """How contexts are made; TensorRT-RTX's cache of compiled kernels, None for the other."""
        trt = self._flavour.module
        outside = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._flavour.ahead_of_time:
            return outside, None
        settings = self._engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(outside)
        # Kernels for a shape at once: those compiled later would not be in a recording.
        settings.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        kernels = settings.create_runtime_cache()
        if self._kernels_path.is_file():
            kernels.deserialize(self._kernels_path.read_bytes())  # another GPU's changes nothing
        settings.set_runtime_cache(kernels)
        return settings, kernels

    def _profile(self, index: int) -> Profile:
        ranges = {
            tensor.name: self._engine.get_tensor_profile_shape(tensor.name, index)
            for tensor in self.spec.inputs
        }
        return Profile(
            index,
            {name: tuple(shapes[0]) for name, shapes in ranges.items()},
            {name: tuple(shapes[2]) for name, shapes in ranges.items()},
        )

    def _check(self, spec: PartSpec) -> None:
        """An engine of the right graph can still be of another export: names, types, shapes."""
        engine = self._engine
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        declared = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
        if names != declared.keys():
            raise BackendError(
                f"{self.record.path}: the engine has {sorted(names)}, {self.part} has "
                f"{sorted(declared)}; build it again"
            )
        for name, tensor in declared.items():
            found = self._tensor(name)
            if not _agree(found, tensor):
                raise BackendError(
                    f"{self.record.path}: {name!r} of the engine is {found}, of {self.part} "
                    f"{tensor}; build it again"
                )

    def _tensor(self, name: str) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name).name
        shape = tuple("any" if size < 0 else size for size in self._engine.get_tensor_shape(name))
        return TensorSpec(name, DTYPES.get(kind, kind.lower()), shape)


def _agree(found: TensorSpec, declared: TensorSpec) -> bool:
    return (
        found.dtype == declared.dtype
        and len(found.shape) == len(declared.shape)
        and all(
            size == axis or (size == "any" and isinstance(axis, str))
            for size, axis in zip(found.shape, declared.shape, strict=True)
        )
    )


def _refit(engine: Any, graph: Path, record: Record, flavour: Flavour, messages: Any) -> None:
    """Give a stripped engine the weights of the graph that it was built from."""
    trt = flavour.module
    refitter = trt.Refitter(engine, messages)
    parser = trt.OnnxParserRefitter(refitter, messages)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        raise BackendError(
            f"{record.path}: the weights of {graph} do not go into it: {messages.said()}; build "
            f"it again"
        )
