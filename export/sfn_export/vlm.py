"""A vision-language model into a bundle: traced, compared with PyTorch, and packed.

    vlm/vision.onnx       unless the model's own part `vision` is the same graph of the same frames
    vlm/projector.onnx
    vlm/language.onnx     and .data beside it: weights of 1 GiB and more are not inside a graph
    vlm/embeddings.npy    mapped by the device, in the type they were published in
    vlm/tokenizer.json
    vlm/language.int4.onnx  and .data, or fp16, where asked for; vlm/variants.json says what changed
    vlm/parity.json       what was compared

The weights are never changed and no code of their folder runs. The chat template is rendered here,
around {message}, so that a device needs no template language.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from sfn_export.exceptions import ExportError
from sfn_export.pack import stated_licence
from sfn_export.trace import tower_graph, traced
from sfn_export.vlm_changes import compare_variants, table
from sfn_export.vlm_changes import to_json as changes_json
from sfn_export.vlm_int4 import PROVIDERS, Precision, check_heads, find_builder, write_variant
from sfn_export.vlm_parity import TOKENS, CaptionReport, check_captions, check_vlm_parts
from sfn_export.vlm_parts import (
    LanguagePart,
    ProjectorPart,
    TorchVlm,
    check_exportable,
    language_spec,
    projector_spec,
)
from sfn_export.vlm_prompt import (
    chat_around,
    check_question,
    check_same_text,
    check_special,
    picture_text,
)
from sfn_rt.backends.base import PartSpec
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import (
    Bundle,
    CaptionOrigin,
    Manifest,
    PartEntry,
    Provenance,
    VlmSettings,
    load_bundle,
    write_manifest,
)
from sfn_rt.bundle_folder import bundle_folder
from sfn_rt.preprocess import Preprocessing
from sfn_rt.semantics import vlm as device
from sfn_train.captions.vlm import FRAMES, QUESTION, Vlm, model_sha256, read_tile
from sfn_train.model.tower import VisionTower
from sfn_train.weights.folder import find_folder, hash_files, list_tensors, read_tensors
from sfn_train.weights.internvl import stored_name
from sfn_train.weights.tokenizer import load_tokenizer

FOLDER = "vlm"  # in the bundle: all of it belongs to the VLM
EMBEDDINGS, TOKENIZER, PARITY = "embeddings.npy", "tokenizer.json", "parity.json"
CHANGES = "variants.json"
EMBED = "language_model.model.embed_tokens.weight"
MAX_TOKENS = 1024
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class VlmOptions:
    """What is added to which bundle."""

    weights: str  # a folder of an InternVL in transformers' native layout, or its name on the hub
    bundle: Path
    out: Path | None = None  # None: the bundle itself is replaced
    question: str = QUESTION
    max_tokens: int | None = None  # None: 1024, or what the model has positions for
    # Of the language model: the first is what a device takes; fp32 is there in any case.
    precisions: tuple[Literal["fp32"] | Precision, ...] = ("fp32",)
    clips: Path | None = None  # data whose captions tell what a precision changes; None: drawn
    threads: int | None = None

    def __post_init__(self) -> None:
        check_question(self.question)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ExportError(f"--max-tokens must be at least 1, got {self.max_tokens}")
        if self.clips is not None and not self.variants:
            raise ExportError("--clips are what --precision int4 or fp16 is compared on; say one")

    @property
    def variants(self) -> tuple[Precision, ...]:
        """The precisions beside fp32, each once."""
        return tuple(precision for precision in PROVIDERS if precision in self.precisions)


@dataclass(frozen=True)
class Added:
    """What `vlm` answers."""

    out: Path
    megabytes: float  # that the VLM adds
    seconds: float


def add_vlm(options: VlmOptions, say: Say) -> Added:
    """Export a VLM into a bundle; nothing changes there unless all of it agrees with PyTorch."""
    start = time.perf_counter()
    bundle = load_bundle(options.bundle)
    check_bundle(bundle)
    folder = find_folder(options.weights)
    read_tile(folder)  # refuses what is no InternVL of transformers' class
    check_special(options.question, load_tokenizer(folder))
    vlm = Vlm(folder, question=options.question, device="cpu")
    check_exportable(vlm.model.config, folder)
    chat = chat_around(vlm.tokenizer, folder)
    most = cap(vlm, options.max_tokens)
    for variant in options.variants:  # before anything that takes minutes
        find_builder(variant)
        check_heads(folder, variant, language_spec(vlm.model))
    origin = CaptionOrigin(model=model_sha256(folder), prompt=vlm.prompt)
    for line in remarks(bundle, origin):
        say(line)
    out = options.out or options.bundle
    if options.out is not None and out.exists() and out.resolve() != options.bundle.resolve():
        say(f"note: replaces the bundle in {out}")
    with bundle_folder(out) as work:
        copy_without_vlm(bundle, work)
        specs = trace_vlm(vlm, work / FOLDER, say)
        dtype = write_embeddings(folder, work / FOLDER / EMBEDDINGS)
        write_tokenizer(vlm, work / FOLDER / TOKENIZER)
        graphs = {part: work / FOLDER / f"{part}.onnx" for part in specs}
        with OrtBackend(graphs, threads=options.threads) as ours:
            parts = check_vlm_parts(TorchVlm(vlm.model, specs), ours)
        say(parts.text())
        if same_frames(bundle, vlm.tile) and drop_shared(bundle, work):
            specs.pop("vision")
            say("vision: the model's own part is the same graph, which serves both")
        for variant in options.variants:
            begin = time.perf_counter()
            path = work / FOLDER / f"language.{variant}.onnx"
            write_variant(folder, variant, path, specs["language"])
            say(f"built vlm.language at {variant} in {time.perf_counter() - begin:.1f} s")
        settings = VlmSettings(
            model=model_name(options.weights),
            origin=origin,
            parts={name: _entry(name, spec, options) for name, spec in specs.items()},
            tokenizer=f"{FOLDER}/{TOKENIZER}",
            embeddings=f"{FOLDER}/{EMBEDDINGS}",
            embeddings_dtype=dtype,
            tile=vlm.tile,
            frames=FRAMES,
            tokens_per_frame=vlm.model.config.image_seq_length,
            image_token=vlm.model.config.image_token_id,
            chat=chat,
            picture=picture_text(vlm.model.config.image_seq_length),
            stops=tuple(sorted(vlm.stops)),
            max_tokens=most,
        )
        manifest = replace(
            bundle.manifest, vlm=settings, provenance=_licensed(bundle, settings, folder)
        )
        whole = compare_captions(vlm, Bundle(work, manifest), options.threads)
        say(whole.text())
        report = {"parts": parts.to_json(), "captions": whole.to_json()}
        (work / FOLDER / PARITY).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if options.variants:
            changes = compare_variants(
                Bundle(work, manifest),
                options.variants,
                clips=options.clips,
                threads=options.threads,
            )
            say(table(changes))
            text = json.dumps(changes_json(changes), indent=1, ensure_ascii=False)
            (work / FOLDER / CHANGES).write_text(text + "\n", encoding="utf-8")
        write_manifest(work, manifest)
        load_bundle(work, verify=False)
        n_bytes = sum(file.stat().st_size for file in (work / FOLDER).iterdir())
    return Added(out, n_bytes / 1e6, time.perf_counter() - start)


def check_bundle(bundle: Bundle) -> None:
    """Refuse a bundle whose model could do nothing with captions of four frames."""
    manifest = bundle.manifest
    if manifest.semantics is None:
        raise ExportError(
            f"{bundle.folder}: a {manifest.system} model takes no captions; add the VLM to a "
            f"bundle of sfn-vad"
        )
    if manifest.observed != FRAMES:
        raise ExportError(
            f"{bundle.folder}: its clips have {manifest.observed} frames, the VLM's prompt tells "
            f"of {FRAMES}; add the VLM to a bundle of clips of {FRAMES}"
        )


def remarks(bundle: Bundle, origin: CaptionOrigin) -> list[str]:
    """What a user should know of a VLM in this bundle."""
    manifest, lines = bundle.manifest, []
    if manifest.vlm is not None:
        lines.append(f"note: replaces the VLM {manifest.vlm.model} in {bundle.folder}")
    if because := why_not_counting(manifest, origin):
        lines.append(f"note: {because}: captions of this VLM will explain its events, not count")
    return lines


def why_not_counting(manifest: Manifest, origin: CaptionOrigin) -> str | None:
    """Why captions of this origin are none that the model was trained on; None where they are."""
    semantics = manifest.semantics
    assert semantics is not None
    if semantics.text is None:
        return "the model was trained without its semantic branch"
    if semantics.captions == origin:
        return None
    if semantics.captions is not None:
        other = "prompt" if semantics.captions.model == origin.model else "VLM"
        return f"the model was trained on captions of another {other}"
    if semantics.captioner == "scene":
        return "the model was trained on the scene captioner's words"
    return "the model was trained on captions that state no VLM"


def cap(vlm: Vlm, asked: int | None) -> int:
    """Tokens at which a caption is cut: those asked for, or as many as usual and possible."""
    positions, length = (
        vlm.model.config.text_config.max_position_embeddings,
        vlm.prompt_ids.shape[1],
    )
    room = positions - length
    if room < (asked or 1):
        raise ExportError(
            f"{vlm.folder}: it has {positions} positions and the prompt takes {length} of them, so "
            f"that {max(room, 0)} tokens can be said, not {asked or 1}; "
            f"{'lower --max-tokens' if room > 0 else 'shorten --prompt'}"
        )
    return asked or min(MAX_TOKENS, room)


def copy_without_vlm(bundle: Bundle, work: Path) -> None:
    """All of a bundle but its manifest and its VLM."""
    settings = bundle.manifest.vlm
    theirs = settings.named_files if settings else set()
    for name in bundle.manifest.files:
        if name not in theirs and not name.startswith(f"{FOLDER}/"):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path(name), work / name)


def trace_vlm(vlm: Vlm, folder: Path, say: Say) -> dict[str, PartSpec]:
    """Write the three graphs of a VLM."""
    folder.mkdir()
    specs: dict[str, PartSpec] = {}

    def trace(part: str, write: Callable[[Path], PartSpec]) -> None:
        start = time.perf_counter()
        specs[part] = write(folder / f"{part}.onnx")
        say(f"traced vlm.{part} in {time.perf_counter() - start:.1f} s")

    # From the files, as a model's own tower is read, so that the same weights are the same graph.
    trace("vision", lambda path: tower_graph(VisionTower.load(str(vlm.folder)), path))
    projector = projector_spec(vlm.model, specs["vision"].output("hidden"))
    trace("projector", lambda path: traced("projector", ProjectorPart(vlm.model), projector, path))
    language = language_spec(vlm.model)
    trace("language", lambda path: traced("language", LanguagePart(vlm.model), language, path))
    return specs


def write_embeddings(folder: Path, path: Path) -> Literal["float32", "bfloat16"]:
    """The rows of the vocabulary in the type they were published in; says which."""
    entries = list_tensors(folder)
    (name,) = (name for name in entries if stored_name(name) == EMBED)
    rows = read_tensors(entries, [name])[name]  # (V, D)
    if rows.dtype == torch.bfloat16:
        np.save(path, rows.view(torch.int16).numpy().view(np.uint16))
        return "bfloat16"
    np.save(path, rows.float().numpy())
    return "float32"


def write_tokenizer(vlm: Vlm, path: Path) -> None:
    """What transformers tokenises with; it neither pads nor cuts."""
    backend = vlm.tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(path))


def same_frames(bundle: Bundle, tile: Preprocessing) -> bool:
    """Whether the model's own tower, if it has one, is shown what the VLM's is."""
    return "vision" in bundle.manifest.parts and bundle.manifest.preprocessing == tile


def drop_shared(bundle: Bundle, work: Path) -> bool:
    """Remove the VLM's graph of the tower where the bundle has the very same already."""
    files = sorted((work / FOLDER).glob("vision.onnx*"))  # with its weights, where they lie beside
    own = bundle.manifest.parts["vision"].files[bundle.manifest.parts["vision"].default]
    hashes = hash_files(files)
    if own.rpartition("/")[2] != "vision.onnx" or any(
        bundle.manifest.files.get(own.removesuffix("vision.onnx") + name) != digest
        for name, digest in hashes.items()
    ):
        return False
    for file in files:
        file.unlink()
    return True


def compare_captions(vlm: Vlm, bundle: Bundle, threads: int | None) -> CaptionReport:
    """The device's captioner on what was written, against PyTorch."""
    assert bundle.manifest.vlm is not None
    tokens = min(TOKENS, bundle.manifest.vlm.max_tokens)
    exact = {"language": "fp32"}  # whichever the device will take
    with device.Vlm(bundle, threads=threads, variants=exact, max_tokens=tokens) as ours:
        check_same_text(ours, vlm)
        return check_captions(vlm, ours)


def model_name(weights: str) -> str:
    """Where the weights came from, for people."""
    folder = Path(weights).expanduser()
    return folder.resolve().name if folder.is_dir() else weights


def _entry(part: str, spec: PartSpec, options: VlmOptions) -> PartEntry:
    files, default = {"fp32": f"{FOLDER}/{part}.onnx"}, "fp32"
    if part == "language":
        files |= {variant: f"{FOLDER}/{part}.{variant}.onnx" for variant in options.variants}
        default = options.precisions[0]
    return PartEntry(
        files=files,
        default=default,
        inputs=spec.inputs,
        outputs=spec.outputs,
    )


def _licensed(bundle: Bundle, settings: VlmSettings, folder: Path) -> Provenance:
    """The bundle's licences and those of the VLM, an earlier one's forgotten."""
    stated = f"{settings.model}: {stated_licence(folder)}"
    provenance = bundle.manifest.provenance
    own = {k: v for k, v in provenance.licences.items() if not k.startswith(f"{FOLDER}.")}
    added = {f"{FOLDER}.{name}": stated for name in (*settings.parts, "embeddings", "tokenizer")}
    return replace(provenance, licences=own | added)
