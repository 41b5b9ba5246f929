"""All settings of a training run: read from YAML, checked on construction, saved into the run.

YAML holds values only. Every key must exist and have the type its dataclass states, so a typing
mistake never trains a default in silence. `system` names what is trained, and decides which
settings the section `model` has.
"""

import dataclasses
import difflib
import hashlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from sfn_rt.preprocess import Preprocessing
from sfn_rt.semantics.scene import SceneConfig
from sfn_train.exceptions import ConfigError
from sfn_train.model import ModelConfig

if TYPE_CHECKING:
    from sfn_train.dual_memory import DualMemoryConfig

    AnyModelConfig: TypeAlias = ModelConfig | DualMemoryConfig
else:
    AnyModelConfig = object  # `model_class` decides; a system's code loads where it is used

System = Literal["sfn-vad", "dual-memory"]
T = TypeVar("T")
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How videos become clips."""

    resize: Literal["area", "bicubic"] = "area"
    run_length: int = 8  # consecutive frames trained on together: run_length - observed clips
    held_out: float = 0.2  # share of the normal footage kept for validation and statistics
    cache_gb: float = 20.0  # most that prepared frames may take on disk
    features: str | None = None  # folder of cached features of the frozen tower

    def __post_init__(self) -> None:
        if self.run_length < 2:
            raise ValueError(f"run_length must be at least 2, got {self.run_length}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be between 0 and 1, got {self.held_out}")
        if not 0 < self.cache_gb < float("inf"):
            raise ValueError(f"cache_gb must be above 0, got {self.cache_gb}")


@dataclass(frozen=True, kw_only=True)
class SemanticsConfig:
    """Where captions come from and what embeds them."""

    captioner: Literal["scene", "cached"] = "scene"
    captions: str | None = None  # cached: folder with a NAME.json a video
    stride: int = 4  # frames a caption holds for
    text: str | None = None  # sentence-transformers or plain BERT folder; none: all-MiniLM-L6-v2
    pooling: Literal["pooler", "cls", "mean"] | None = None  # of a plain BERT, which states none
    scene: SceneConfig = field(default_factory=SceneConfig)

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")
        if (self.captioner == "cached") != (self.captions is not None):
            raise ValueError("captions names the folder of the cached captioner: set both or none")
        if self.pooling is not None and self.text is None:
            raise ValueError("pooling is of the plain BERT folder that text names: set both")


@dataclass(frozen=True, kw_only=True)
class EvidenceConfig:
    """What of a model's errors is evidence; goes into the bundle's manifest."""

    # Of a frame; the paper's is the mean, the dual-memory system's the PSNR.
    measure: Literal["largest_box", "mean", "psnr"] = "largest_box"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weight of each loss; a branch that is off has none."""

    frame: float = 1.0
    text: float = 1.0
    motion: float = 1.0
    balance: float = 0.001  # the paper's alpha, on the sum over layers

    def __post_init__(self) -> None:
        for name, weight in dataclasses.asdict(self).items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} must be 0 or above, got {weight}")
        if not any(dataclasses.asdict(self).values()):
            raise ValueError("every loss has weight 0: nothing to learn")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation. Training ends at whichever of steps, epochs and minutes comes first."""

    seed: int = 0
    steps: int | None = None
    epochs: int | None = None
    minutes: float | None = None  # of training, interruptions not counted
    batch: int = 4  # runs a device computes at once; memory goes with it
    accumulate: int = 1  # batches an optimiser step, on each device
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-5
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    gradient_clip: float | None = None  # norm
    loss: LossConfig = field(default_factory=LossConfig)
    precision: Precision = "auto"  # auto: bf16 where it is native
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    strategy: str = "auto"  # Lightning's name for how several devices share the work
    workers: int = 0  # processes that load clips
    log_every: int = 10  # steps
    validate_every: int = 250  # steps
    validation_batches: int = 16  # at most, spread evenly over the held-out clips
    checkpoint_every: int = 250  # steps; what --resume may lose

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None and self.minutes is None:
            raise ValueError("training has no end: set steps, epochs or minutes")
        counts = ("batch", "accumulate", "devices", "log_every", "validate_every")
        for name in (*counts, "validation_batches", "checkpoint_every", "steps", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("seed", "weight_decay", "warmup_steps", "workers"):
            if not 0 <= getattr(self, name) < 2**32:
                raise ValueError(f"{name} must be 0 or above, got {getattr(self, name)}")
        for name in ("minutes", "learning_rate", "gradient_clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0, got {value}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """How the student learns, after the rest has; without model.student nothing of this applies."""

    steps: int = 240
    batch: int = 16  # clips
    learning_rate: float = 2e-3
    speeds: tuple[int, ...] = (1, 2, 3, 4, 5)  # of normal footage; captions made elsewhere: 1
    alone: float = 0.5  # share of the faster clips in which one thing alone is faster

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if 1 not in self.speeds or any(speed < 1 for speed in self.speeds):
            raise ValueError(f"speeds must be 1 and whole numbers above, got {list(self.speeds)}")
        if not 0 <= self.alone <= 1:
            raise ValueError(f"alone must be a share from 0 to 1, got {self.alone}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that makes a run what it is."""

    profile: str = "custom"  # what the settings are called, in the bundle and its reports
    system: System = "sfn-vad"
    model: AnyModelConfig
    data: DataConfig
    semantics: SemanticsConfig
    visual: EvidenceConfig = field(default_factory=EvidenceConfig)
    train: TrainConfig
    distil: DistilConfig = field(default_factory=DistilConfig)

    def __post_init__(self) -> None:
        clip = self.model.observed + (self.system == "sfn-vad")  # whose target comes after it
        if self.data.run_length < clip:
            raise ValueError(
                f"data.run_length {self.data.run_length} holds no clip: it must be above "
                f"{clip - 1}, as a clip of {self.system} takes {clip} frames"
            )

    @property
    def sfn(self) -> ModelConfig:
        """The architecture, for code that only SFN-VAD has a use for."""
        if not isinstance(self.model, ModelConfig):
            raise ConfigError(f"this needs a model of the system sfn-vad, got one of {self.system}")
        return self.model

    @property
    def clips_per_run(self) -> int:
        """Clips in a run of consecutive frames; a run of the dual-memory system is one clip."""
        if self.system == "dual-memory":
            return 1
        return self.data.run_length - self.model.observed

    @property
    def clips_per_step(self) -> int:
        """Clips that one step of the optimiser learns from, all devices together."""
        c = self.train
        return c.batch * c.accumulate * c.devices * self.clips_per_run

    @property
    def preprocessing(self) -> Preprocessing:
        """What every frame passes, in training and on the device."""
        spec = Preprocessing(
            height=self.model.frame_height, width=self.model.frame_width, resize=self.data.resize
        )
        if self.system == "dual-memory":  # standardises each frame by itself, inside the network
            spec = dataclasses.replace(spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return spec

    def to_yaml(self) -> str:
        """All settings, defaults included; `read_config` gives an equal Config back."""
        return str(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False))

    def fingerprint(self) -> str:
        """sha256 of the settings."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()


def read_config(name: str, changes: Sequence[str] = ()) -> Config:
    """A Config that comes with sfn_train, by name, or from a YAML file, by path; then `changes`.

    A change is `section.setting=value`, as given to --set.
    """
    return parse_config(_read_text(name), name, changes)


def parse_config(text: str, source: str, changes: Sequence[str] = ()) -> Config:
    """Build a Config from YAML, refusing whatever it does not know."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{source} must hold the sections {sorted(_known(Config))}")
    for change in changes:
        _apply(raw, change)
    system: System = _convert(System, raw.get("system", "sfn-vad"), source, "system")
    config = _build(Config, raw, source, "", {"model": model_class(system)})
    assert isinstance(config, Config)
    return config


def model_class(system: System) -> type:
    """The dataclass of a system's section `model`."""
    if system == "sfn-vad":
        return ModelConfig
    from sfn_train.dual_memory import DualMemoryConfig

    return DualMemoryConfig


def known_names() -> list[str]:
    """Configs that come with sfn_train."""
    folder = resources.files("sfn_train") / "configs"
    return sorted(
        file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")
    )


def _read_text(name: str) -> str:
    if name in known_names():
        resource = resources.files("sfn_train") / "configs" / f"{name}.yaml"
        return resource.read_text(encoding="utf-8")
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"no config {name!r}: it is neither a file nor one of {', '.join(known_names())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot read the config: {error}") from None


def _apply(raw: dict[str, Any], change: str) -> None:
    """Put one `a.b=value` into the parsed YAML."""
    path, equals, value = change.partition("=")
    *sections, setting = path.strip().split(".")
    if not equals or not sections:
        raise ConfigError(f"--set {change}: expected section.setting=value, as in model.dim=64")
    place = raw
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {change}: {section} is a value, not a section")
        place = inner
    try:
        place[setting] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {change}: {value!r} is not a YAML value") from None


def _known(cls: type) -> dict[str, Any]:
    """Settings of a dataclass and their types."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def build_settings(cls: type[T], raw: Any, source: str) -> T:
    """An instance of the settings dataclass `cls` as strict as a Config, for other YAML files."""
    settings = _build(cls, raw, source, "")
    assert isinstance(settings, cls)
    return settings


def _build(
    cls: type, raw: Any, source: str, where: str, chosen: Mapping[str, type] | None = None
) -> object:
    """An instance of the dataclass `cls`; `where` is the section's dotted name.

    `chosen` has the types of settings that another setting decides.
    """
    known = _known(cls) | dict(chosen or {})
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{source}: {where or 'the file'} must hold settings, got {raw!r}")
    if unknown := [key for key in raw if key not in known]:
        near = difflib.get_close_matches(str(unknown[0]), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"{source}: {where or 'the file'} has no setting {unknown[0]!r}; {hint}"
            f"known: {', '.join(sorted(known))}"
        )
    values = {}
    for name, kind in known.items():
        dotted = f"{where}.{name}" if where else name
        if name in raw:
            values[name] = _convert(kind, raw[name], source, dotted)
        elif dataclasses.is_dataclass(kind) and isinstance(kind, type) and not where:
            values[name] = _build(kind, {}, source, dotted)
    required = (f for f in dataclasses.fields(cls) if f.default is f.default_factory)  # MISSING
    if missing := [f.name for f in required if f.name not in values]:
        raise ConfigError(f"{source}: {where or 'the file'} must set {', '.join(missing)}")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {f'{where}: ' if where else ''}{error}") from None


def _convert(kind: Any, value: Any, source: str, where: str) -> Any:
    """`value` as the type a setting states, or a ConfigError that names both."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build(kind, value, source, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (kind,) = [argument for argument in arguments if argument is not type(None)]
        return _convert(kind, value, source, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(
                f"{source}: {where} must be one of {', '.join(arguments)}, got {value!r}"
            )
        return value
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            if not isinstance(value, list):
                raise ConfigError(f"{source}: {where} must be a list, as in [4, 8], got {value!r}")
            return tuple(_convert(arguments[0], item, source, where) for item in value)
        if not isinstance(value, list) or len(value) != len(arguments):
            raise ConfigError(f"{source}: {where} must be {len(arguments)} values, got {value!r}")
        pairs = zip(arguments, value, strict=True)
        return tuple(_convert(argument, item, source, where) for argument, item in pairs)
    if kind is float:
        return _number(value, source, where)
    if type(value) is not kind:  # exactly: True is no number of steps
        words = {int: "a whole number", bool: "true or false", str: "text"}
        raise ConfigError(f"{source}: {where} must be {words[kind]}, got {value!r}")
    return value


def _number(value: Any, source: str, where: str) -> float:
    # YAML 1.1 reads 2e-4, without a dot, as text.
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{source}: {where} must be a number, got {value!r}") from None
