"""A recipe: which precision, what stays above it, how ranges are found, and the budget of the gate.

Recipes are YAML files of plain values, in sfn_calib/recipes or anywhere else, read as strictly as a
training configuration. The whole recipe goes into the report of the bundle that it made.
"""

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from sfn_calib.exceptions import CalibrationError
from sfn_train.config import build_settings

Lower = Literal["fp16", "bf16", "int8", "fp8"]
Beside = Literal["fp16", "fp32"]
Rule = Literal["minmax", "percentile", "entropy"]
HALF: tuple[Lower, ...] = ("fp16", "bf16")
EIGHT_BIT: tuple[Lower, ...] = ("int8", "fp8")
PRODUCTS = ("MatMul", "Gemm", "Conv")  # operators that can be quantised


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a variant may lose against fp32 on the gate's clips."""

    auc_points: float  # of AUC, in points, under either protocol
    spearman: float  # least rank correlation of scores
    rerouted: float  # largest share of tokens that reach other filters

    def __post_init__(self) -> None:
        if not 0 < self.auc_points <= 100:
            raise ValueError(f"auc_points must be above 0 and at most 100, got {self.auc_points}")
        for name in ("spearman", "rerouted"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Stay:
    """Products that this recipe leaves in what runs beside int8 or fp8."""

    nodes: str  # their names, with * and ?; a name begins with that of its module
    why: str  # for the report


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to write a bundle's graphs in a lower precision."""

    name: str
    precision: Lower
    budget: Budget
    beside: Beside = "fp32"  # int8, fp8: what all else computes in that need not be fp32
    operators: tuple[str, ...] = PRODUCTS  # int8, fp8: quantised where they have a constant weight
    ranges: Rule = "minmax"  # int8, fp8: what of the activations seen is representable
    percentile: float = 99.99  # of magnitudes, for `ranges: percentile`
    stay: tuple[Stay, ...] = ()  # int8, fp8: beside what every recipe keeps
    leave: tuple[str, ...] = ()  # parts of the model that stay fp32

    def __post_init__(self) -> None:
        if self.precision in HALF and self.beside != "fp32":
            raise ValueError(f"beside is of int8 and fp8; {self.precision} must leave it fp32")
        if unknown := sorted(set(self.operators) - set(PRODUCTS)):
            raise ValueError(f"operators must be some of {list(PRODUCTS)}, got {unknown[0]!r}")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must be above 50, at most 100, got {self.percentile}")

    @classmethod
    def load(cls, name: str) -> Self:
        """A recipe that comes with sfn_calib, by name, or from a YAML file, by path."""
        try:
            raw = yaml.safe_load(_read(name))
        except yaml.YAMLError as error:
            raise CalibrationError(f"{name} is not YAML: {' '.join(str(error).split())}") from None
        if isinstance(raw, dict):
            raw.setdefault("name", Path(name).stem)
        return build_settings(cls, raw, name)

    @property
    def needs_ranges(self) -> bool:
        """Whether activations must be seen before a graph can be written."""
        return self.precision in EIGHT_BIT

    def to_json(self) -> dict[str, Any]:
        """All settings, for the report."""
        return dataclasses.asdict(self)


def known_recipes() -> list[str]:
    """Recipes that come with sfn_calib."""
    folder = resources.files("sfn_calib") / "recipes"
    names = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _read(name: str) -> str:
    if name in known_recipes():
        resource = resources.files("sfn_calib") / "recipes" / f"{name}.yaml"
        return resource.read_text(encoding="utf-8")
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CalibrationError(
            f"no recipe {name!r}: it is neither a file nor one of {', '.join(known_recipes())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{name}: cannot read the recipe: {error}") from None
