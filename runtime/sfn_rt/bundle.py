"""The bundle: a folder with everything a device needs, and the contract between export and runtime.

manifest.json says what the model is; the other files are ONNX graphs, a tokenizer, and the
statistics of the normal footage. Export writes with these dataclasses, the runtime reads with
them and refuses what it does not understand. A change of meaning raises SCHEMA_VERSION.
"""

import hashlib
import json
import os
import types
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from zipfile import BadZipFile

import numpy as np

from sfn_rt.backends.base import Array, PartSpec, TensorSpec
from sfn_rt.exceptions import BundleError
from sfn_rt.options import TERMS
from sfn_rt.preprocess import Preprocessing
from sfn_rt.systems import System, check_parts

SCHEMA_VERSION = 4
MANIFEST = "manifest.json"
VLM_PARTS = ("vision", "projector", "language")
DEVICE_PARTS = ("prepare", "difference", "measure")
FULL = "fp32"  # the precision that every bundle has: the default of each part
EXPORT_AGAIN = "export the model again with a matching sfn_export"

Scalar = bool | int | float | str
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PartEntry:
    """One graph and its variants."""

    files: dict[str, str]  # variant, e.g. "fp32", -> file in the bundle
    default: str  # the variant a backend takes unless asked otherwise
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if self.default not in self.files:
            raise ValueError(f"default {self.default!r} is none of {sorted(self.files)}")

    @property
    def spec(self) -> PartSpec:
        """What every variant takes and gives."""
        return PartSpec(self.inputs, self.outputs)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """A lower precision of the whole model that held its gate on normal footage; sfn_calib adds it.

    The parts take and give the same float32 arrays: casts are inside their graphs.
    """

    parts: dict[str, str]  # every part of the model -> variant, a key of its files
    recipe: str  # name; the report has all of it
    gate: dict[str, float]  # what held: AUCs and their loss in points, correlations and shares
    report: str  # file in the bundle: clips, recipe, SQNR by layer, gate, as JSON
    picture: str  # file in the bundle: score against score, as PNG


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The sentence encoder in the bundle."""

    model: str  # where its weights came from, for people
    width: int  # S
    max_tokens: int  # longer sentences are cut
    tokenizer: str  # file in the bundle


@dataclass(frozen=True, kw_only=True)
class CaptionOrigin:
    """What made the captions that a model was trained on."""

    model: str  # sha256 of the VLM's weights, config and tokenizer
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Semantics:
    """How clips are described, and how descriptions become numbers."""

    captioner: Literal["scene", "cached"]  # what the model was trained with
    stride: int  # frames for which one caption holds
    windows: tuple[int, ...]  # frames that each caption of a clip tells of, shortest first
    captions: CaptionOrigin | None  # None: the scene was described, or captions written by hand
    scene: dict[str, Scalar]  # sfn_rt.semantics.scene.SceneConfig
    text: TextSettings | None  # None: the model was trained without its semantic branch

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")
        rising = sorted({window for window in self.windows if window >= 1})
        if not rising or list(self.windows) != rising:
            raise ValueError(f"windows must rise from 1 frame on, got {list(self.windows)}")

    @property
    def embedded_width(self) -> int:
        """Of all captions of a clip side by side; 0 where none is embedded."""
        return len(self.windows) * self.text.width if self.text else 0


@dataclass(frozen=True, kw_only=True)
class VlmSettings:
    """A vision-language model that describes clips on the device; an optional part of a bundle.

    Its graphs are `vision` (frame -> hidden, embedded), `projector` (hidden -> image vectors) and
    `language` (vectors and a key-value cache -> logits). `vision` is absent where the model's own
    part of that name is the same graph: one frame is then never encoded twice.
    """

    model: str  # where its weights came from, for people
    origin: CaptionOrigin  # what CaptionOrigin says of captions that it makes
    parts: dict[str, PartEntry]
    tokenizer: str  # file in the bundle
    embeddings: str  # file in the bundle: (vocabulary, width), a .npy that is mapped, not read
    embeddings_dtype: Literal["float32", "bfloat16"]  # bfloat16 is stored as the uint16 of its bits
    tile: Preprocessing  # of each frame
    frames: int  # a clip
    tokens_per_frame: int
    image_token: int  # id that stands for each of a picture's vectors
    chat: str  # the chat template around a user's message, {message} where that stands
    picture: str  # what stands for <image> in a message: as text, image tokens and all
    stops: tuple[int, ...]  # ids that end a caption
    max_tokens: int  # a caption is cut there

    def __post_init__(self) -> None:
        if self.chat.count("{message}") != 1:
            raise ValueError(f"chat must hold {{message}} once, got {self.chat!r}")
        if not self.stops or self.max_tokens < 1:
            raise ValueError("stops must name a token, and max_tokens be at least 1")
        if unknown := sorted(self.parts.keys() - set(VLM_PARTS)):
            raise ValueError(f"parts of the VLM are {list(VLM_PARTS)}, got {unknown[0]!r} too")
        if missing := [part for part in ("projector", "language") if part not in self.parts]:
            raise ValueError(f"parts of the VLM must have {missing[0]!r}, got {sorted(self.parts)}")

    @property
    def forms(self) -> tuple[str, ...]:
        """Other graphs of the same arithmetic in full precision, e.g. "fp32-dispatch".

        Export adds them where asked to, proven like the default: a device that runs them faster
        asks for them as it asks for a precision.
        """
        variants = {variant for part in self.parts.values() for variant in part.files}
        return tuple(sorted(v for v in variants if v.startswith(f"{FULL}-")))

    @property
    def named_files(self) -> set[str]:
        """Files that the settings give a meaning."""
        graphs = {name for part in self.parts.values() for name in part.files.values()}
        return graphs | {self.tokenizer, self.embeddings}


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How evidence becomes one score and when it is an event, fitted on normal footage."""

    ema_alpha: float
    threshold: float
    rule: str  # how the threshold was found, for people
    false_alarms_per_hour: float  # that it was fitted for
    terms: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 < self.ema_alpha <= 1:
            raise ValueError(f"ema_alpha must be above 0 and at most 1, got {self.ema_alpha}")
        if not self.terms or not set(self.terms) <= set(TERMS):
            raise ValueError(f"terms must be some of {list(TERMS)}, got {list(self.terms)}")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the model comes from."""

    data: str
    n_videos: int
    n_frames: int
    seed: int
    config_sha256: str
    licences: dict[str, str]  # part of the bundle -> licence


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All of manifest.json."""

    schema_version: int
    system: System
    profile: str
    sfn_version: str
    observed: int  # T, input frames of a clip
    lag: int  # frames between the newest frame seen and the one scored; 0: the newest itself
    preprocessing: Preprocessing
    parts: dict[str, PartEntry]
    semantics: Semantics | None  # None: a system that knows pictures only
    vlm: VlmSettings | None  # None: no captioner but what moves, or captions from files
    visual: dict[str, Scalar]  # sfn_rt.prediction_error.VisualConfig
    score: ScoreSettings
    normal: str  # file with the statistics of normal footage
    device: dict[str, PartEntry]  # graphs that keep a stream on a GPU, by DEVICE_PARTS
    precisions: dict[str, Precision]  # below FULL, by name
    provenance: Provenance
    files: dict[str, str] = field(default_factory=dict)  # every other file -> its sha256

    def __post_init__(self) -> None:
        if not 0 <= self.lag < self.observed:
            raise ValueError(
                f"lag must be at least 0 and below observed {self.observed}, got {self.lag}"
            )
        if self.system == "sfn-vad" and self.lag:
            raise ValueError(f"lag must be 0 for sfn-vad, which predicts a frame, got {self.lag}")
        takes_captions = self.system == "sfn-vad"
        if takes_captions != (self.semantics is not None):
            raise ValueError(
                f"semantics must be {'given' if takes_captions else 'null'} for {self.system}, "
                f"got {self.semantics}"
            )
        if self.vlm is not None:
            if not takes_captions:
                raise ValueError(f"vlm must be null for {self.system}, which takes no captions")
            if "vision" not in {*self.vlm.parts, *self.parts}:
                raise ValueError("vlm must have the part 'vision', as the model has none")
        if unknown := sorted(self.device.keys() - set(DEVICE_PARTS)):
            raise ValueError(f"device parts are {list(DEVICE_PARTS)}, got {unknown[0]!r} too")
        for name, precision in self.precisions.items():
            self._check_precision(name, precision)
        check_parts(
            self.system,
            {name: part.spec for name, part in self.parts.items()},
            observed=self.observed,
            size=(self.preprocessing.height, self.preprocessing.width),
            text_width=self.semantics.embedded_width if self.semantics else 0,
        )

    def _check_precision(self, name: str, precision: Precision) -> None:
        if name == FULL:
            raise ValueError(f"precisions must not have {FULL!r}: it is every part's default")
        if precision.parts.keys() != self.parts.keys():
            raise ValueError(
                f"precision {name!r} must name a variant of {sorted(self.parts)}, got "
                f"{sorted(precision.parts)}"
            )
        for part, variant in precision.parts.items():
            if variant not in (there := self.parts[part].files):
                raise ValueError(
                    f"precision {name!r} names the variant {variant!r} of {part}, which has "
                    f"{sorted(there)}"
                )

    @property
    def forms(self) -> tuple[str, ...]:
        """Other graphs of the same arithmetic in full precision, e.g. "fp32-dispatch".

        Export adds them where asked to, proven like the default: a device that runs them faster
        asks for them as it asks for a precision.
        """
        variants = {variant for part in self.parts.values() for variant in part.files}
        return tuple(sorted(v for v in variants if v.startswith(f"{FULL}-")))

    @property
    def named_files(self) -> set[str]:
        """The files that the manifest gives a meaning; each must also be in `files`."""
        parts = (*self.parts.values(), *self.device.values())
        named = {name for part in parts for name in part.files.values()}
        named |= {file for p in self.precisions.values() for file in (p.report, p.picture)}
        text = self.semantics.text if self.semantics else None
        vlm = self.vlm.named_files if self.vlm else set()
        return named | vlm | {self.normal} | ({text.tokenizer} if text else set())


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest was understood and whose files are there."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """A file of the bundle."""
        return self.folder / name

    def graph(self, part: str, variant: str | None = None, *, vlm: bool = False) -> Path:
        """The ONNX file of a part, of the VLM's where told; None takes the manifest's default."""
        settings = self.manifest.vlm
        assert settings is not None or not vlm
        parts = settings.parts if settings is not None and vlm else self.manifest.parts
        entry = parts[part]
        chosen = variant or entry.default
        if chosen not in entry.files:
            raise BundleError(
                f"{self.folder}: {part} has no variant {chosen!r}; it has {sorted(entry.files)}"
            )
        return self.path(entry.files[chosen])

    def graphs(self, precision: str = FULL) -> dict[str, Path]:
        """The model's ONNX files, part by part, at a precision."""
        return {
            part: self.graph(part, variant) for part, variant in self.variants(precision).items()
        }

    def variants(self, precision: str = FULL) -> dict[str, str]:
        """Which variant of each part makes up a precision."""
        manifest = self.manifest
        if precision == FULL:
            return {part: entry.default for part, entry in manifest.parts.items()}
        if precision in manifest.forms:
            entries = manifest.parts.items()
            return {p: precision if precision in e.files else e.default for p, e in entries}
        if precision not in manifest.precisions:
            raise BundleError(
                f"{self.folder}: has no precision {precision!r}; it has "
                f"{', '.join([FULL, *manifest.forms, *manifest.precisions])}; {_way_to(precision)}"
            )
        return dict(manifest.precisions[precision].parts)

    def device_graphs(self) -> dict[str, Path]:
        """The graphs that keep a stream on a GPU; none for a system that has no use for them."""
        entries = self.manifest.device.items()
        return {part: self.path(entry.files[entry.default]) for part, entry in entries}

    def normal(self) -> dict[str, Array]:
        """The statistics of normal footage."""
        path = self.path(self.manifest.normal)
        try:
            # Opened here, because numpy leaves a damaged file open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, TypeError, BadZipFile) as error:
            raise BundleError(
                f"{path}: not a file of plain arrays ({error}); {EXPORT_AGAIN}"
            ) from error


def _way_to(precision: str) -> str:
    """How a bundle gets it."""
    if precision.startswith(f"{FULL}-"):
        return "export the run again with `--form fastest --form dispatch`"
    return "`make calibrate DATA=... PRECISION=...` adds fp16, bf16, int8 or fp8"


def load_bundle(path: Path, verify: bool = True) -> Bundle:
    """Open a bundle, refusing anything that is missing, unknown, outside, or (`verify`) altered."""
    source = path / MANIFEST
    if not source.is_file():
        raise BundleError(f"{source} does not exist; is {path} a bundle folder?")
    try:
        raw = json.loads(source.read_bytes())
    except ValueError as error:
        raise BundleError(f"{source}: not JSON ({error}); {EXPORT_AGAIN}") from error
    manifest = parse_manifest(raw, source)
    folder = path.resolve()
    for name in sorted(manifest.files.keys() | manifest.named_files):
        _check_inside(folder, name, source)
    if unlisted := sorted(manifest.named_files - manifest.files.keys()):
        raise BundleError(f"{source}: {unlisted[0]!r} has no sha256 in 'files'; {EXPORT_AGAIN}")
    present = _files_of(folder)
    if missing := sorted(manifest.files.keys() - present):
        raise BundleError(
            f"{path / missing[0]} is missing, the manifest lists it; copy the whole folder again"
        )
    if unknown := sorted(present - manifest.files.keys()):
        raise BundleError(
            f"{path / unknown[0]} is not listed in the manifest; remove it, or export again"
        )
    if verify:
        for name, digest in _sha256_all(folder, manifest.files).items():
            if digest != manifest.files[name]:
                raise BundleError(
                    f"{path / name} was altered: its sha256 is {digest[:12]}…, the manifest says "
                    f"{manifest.files[name][:12]}…; copy the folder again or export again"
                )
    return Bundle(path, manifest)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json over the finished files of `folder`, with their checksums filled in."""
    names = _files_of(folder)
    if absent := sorted(manifest.named_files - names):
        raise BundleError(f"{folder}: the manifest names {absent[0]!r}, which is not there")
    complete = replace(manifest, files=_sha256_all(folder, names))
    text = json.dumps(asdict(complete), indent=2, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return complete


def parse_manifest(raw: Any, source: Path) -> Manifest:
    """Build a Manifest, refusing anything this runtime does not understand."""
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION or isinstance(version, bool):
        origin = raw.get("sfn_version") if isinstance(raw, dict) else None
        raise BundleError(
            f"{source}: schema_version is {version!r}"
            f"{f' (written by sfn {origin})' if isinstance(origin, str) else ''}, this runtime "
            f"reads {SCHEMA_VERSION}; {EXPORT_AGAIN}"
        )
    manifest: Manifest = _read(Manifest, raw, str(source), "")
    return manifest


def _read(kind: Any, raw: Any, source: str, at: str) -> Any:
    """Convert JSON to the annotated type, strictly: `at` is the place inside the manifest."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, raw, source, at)
    if origin is Literal:
        if raw in arguments:
            return raw
    elif origin in (Union, types.UnionType):
        if raw is None and type(None) in arguments:
            return None
        choices = [a for a in arguments if a is not type(None)]
        if len(choices) == 1:
            return _read(choices[0], raw, source, at)
        if type(raw) in choices:
            return raw
    elif origin is tuple and isinstance(raw, list):
        repeated = len(arguments) == 2 and arguments[1] is Ellipsis
        kinds = arguments[:1] * len(raw) if repeated else arguments
        if len(kinds) == len(raw):
            pairs = enumerate(zip(kinds, raw, strict=True))
            return tuple(_read(k, value, source, f"{at}[{i}]") for i, (k, value) in pairs)
    elif origin is dict and isinstance(raw, dict):
        return {key: _read(arguments[1], raw[key], source, _below(at, key)) for key in raw}
    elif kind is float and type(raw) in (int, float):
        return float(raw)
    elif type(raw) is kind:
        return raw
    wanted = getattr(kind, "__name__", None) if origin is None else str(kind)
    raise BundleError(f"{source}: {at} must be {wanted}, got {raw!r}; {EXPORT_AGAIN}")


def _read_dataclass(kind: type[T], raw: Any, source: str, at: str) -> T:
    place = f"{source}: {at}" if at else source
    if not isinstance(raw, dict):
        raise BundleError(f"{place}: expected an object, got {raw!r}; {EXPORT_AGAIN}")
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(raw.keys() - known):
        raise BundleError(f"{place}: unknown keys {unknown}; known keys are {sorted(known)}")
    if missing := sorted(known - raw.keys()):
        raise BundleError(f"{place}: missing keys {missing}; {EXPORT_AGAIN}")
    hints = get_type_hints(kind)
    values = {key: _read(hints[key], raw[key], source, _below(at, key)) for key in raw}
    try:
        return kind(**values)
    except ValueError as error:
        raise BundleError(f"{place}: {error}; {EXPORT_AGAIN}") from error


def _below(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _check_inside(folder: Path, name: str, source: Path) -> None:
    pure = PurePosixPath(name)
    leaves = pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name
    if leaves or not (folder / name).resolve().is_relative_to(folder):
        raise BundleError(f"{source}: {name!r} leads outside the bundle folder; {EXPORT_AGAIN}")
    if str(pure) != name or name in ("", ".", MANIFEST):
        raise BundleError(f"{source}: {name!r} is not a file name inside the bundle")


def _files_of(folder: Path) -> set[str]:
    """Every file (and linked folder) below `folder` but the manifest, named as it would name it."""
    found = {
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, folders, names in os.walk(folder)
        for name in [*names, *(f for f in folders if Path(parent, f).is_symlink())]
    }
    return found - {MANIFEST}


def _sha256_all(folder: Path, names: Mapping[str, str] | set[str]) -> dict[str, str]:
    ordered = sorted(names)
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        return dict(zip(ordered, pool.map(lambda n: _sha256(folder / n), ordered), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
