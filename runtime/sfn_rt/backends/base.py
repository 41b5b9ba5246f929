"""The seam between the pipeline and whatever computes: named parts, arrays in, arrays out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from sfn_rt.exceptions import InputError

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, Array]
Shapes = Mapping[str, tuple[int | str, ...]]

# A key-value cache holds nothing before the first token: these axes alone may be 0.
EMPTY_AXES = ("past", "past_sequence_length")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a part."""

    name: str
    dtype: str  # numpy's name
    shape: tuple[int | str, ...]  # a str is a dynamic axis, e.g. "batch"

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(str(axis) for axis in self.shape)}]"


@dataclass(frozen=True)
class PartSpec:
    """What one graph takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, inputs: Shapes, outputs: Shapes, input_dtype: str = "float32") -> Self:
        """From shapes by name; what comes out is float32."""
        return cls(
            tuple(TensorSpec(name, input_dtype, shape) for name, shape in inputs.items()),
            tuple(TensorSpec(name, "float32", shape) for name, shape in outputs.items()),
        )

    def output(self, name: str) -> TensorSpec:
        """The output called `name`."""
        for spec in self.outputs:
            if spec.name == name:
                return spec
        raise InputError(f"no output {name!r}; there are {[spec.name for spec in self.outputs]}")


class Backend(Protocol):
    """Runs the exported graphs. Arrays in, arrays out; no backend types leak.

    A branch of the model that is switched off is a part that is absent.
    """

    @property
    def name(self) -> str: ...

    @property
    def parts(self) -> Mapping[str, PartSpec]: ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...

    def infer(
        self, part: str, feeds: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run one batch through `part`, computing only the outputs asked for (None: all).

        The returned arrays belong to the caller.
        """
        ...


class CheckedBackend(ABC):
    """A backend that refuses what a part does not declare before it computes anything."""

    name: str
    parts: Mapping[str, PartSpec]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def infer(
        self, part: str, feeds: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run one batch through `part`, computing only the outputs asked for (None: all)."""
        spec = find_part(self.name, self.parts, part)
        names = check_outputs(self.name, part, spec.outputs, outputs)
        check_feeds(self.name, part, spec.inputs, feeds)
        computed = self.compute(part, feeds, names)
        return {name: computed[name] for name in names}

    @abstractmethod
    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """The outputs called `names`, and others where they come at no cost."""


def find_part(backend: str, parts: Mapping[str, PartSpec], part: str) -> PartSpec:
    """The spec of `part`, or an InputError that lists the parts there are."""
    if part not in parts:
        raise InputError(f"{backend}: no part {part!r}; this model has {sorted(parts)}")
    return parts[part]


def check_outputs(
    backend: str, part: str, specs: Sequence[TensorSpec], asked: Sequence[str] | None
) -> list[str]:
    """The outputs to compute; refuses names the part does not have."""
    known = [spec.name for spec in specs]
    if asked is None:
        return known
    if unknown := [name for name in asked if name not in known]:
        raise InputError(f"{backend}: {part} has no output {unknown[0]!r}; it has {known}")
    return list(asked)


def check_feeds(backend: str, part: str, specs: Sequence[TensorSpec], feeds: Arrays) -> None:
    """Refuse feeds that are not what the part declares, before a backend sees them."""
    known = [spec.name for spec in specs]
    if missing := [name for name in known if name not in feeds]:
        raise InputError(f"{backend}: {part} needs input {missing[0]!r}, got {sorted(feeds)}")
    if unknown := [name for name in feeds if name not in known]:
        raise InputError(f"{backend}: {part} has no input {unknown[0]!r}; it has {known}")
    bound: dict[str, tuple[int, str]] = {}  # dynamic axis -> its size, and the input that set it
    for spec in specs:
        array = feeds[spec.name]
        if array.dtype != spec.dtype or not _fits(array.shape, spec.shape):
            arrived = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
            raise InputError(
                f"{backend}: {part}: input {spec.name!r} must be {spec}, got {arrived}"
            )
        for size, axis in zip(array.shape, spec.shape, strict=True):
            if isinstance(axis, str):
                expected, source = bound.setdefault(axis, (size, spec.name))
                if size != expected:
                    raise InputError(
                        f"{backend}: {part}: input {spec.name!r} has {axis} {size}, "
                        f"but {source!r} has {axis} {expected}"
                    )


def _fits(shape: tuple[int, ...], declared: tuple[int | str, ...]) -> bool:
    return len(shape) == len(declared) and all(
        size >= (axis not in EMPTY_AXES) if isinstance(axis, str) else size == axis
        for size, axis in zip(shape, declared, strict=True)
    )
