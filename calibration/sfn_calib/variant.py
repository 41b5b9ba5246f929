"""A lower precision into a bundle: graphs, report and picture, whole or not at all."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sfn_rt.bundle import FULL, MANIFEST, Bundle, Manifest, PartEntry, Precision, write_manifest


def copy_without(bundle: Bundle, work: Path, name: str) -> Manifest:
    """The bundle's files into `work`, without those of an earlier precision of that name."""
    manifest = without(bundle.manifest, name)
    left_out = bundle.manifest.named_files - manifest.named_files
    own = {f"{name}.json", f"{name}.png"} & left_out
    for file in bundle.manifest.files:
        graph = file.removesuffix(".data")  # weights beside a graph go with it
        if file in left_out or graph in left_out or file in own:
            continue
        target = work / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(file), target)
    return manifest


def without(manifest: Manifest, name: str) -> Manifest:
    """The manifest as it was before a precision was added."""
    if name not in manifest.precisions:
        return manifest
    parts = {
        part: replace(entry, files={v: file for v, file in entry.files.items() if v != name})
        for part, entry in manifest.parts.items()
    }
    rest = {other: p for other, p in manifest.precisions.items() if other != name}
    return replace(manifest, parts=parts, precisions=rest)


def add_precision(
    work: Path,
    manifest: Manifest,
    name: str,
    variants: Mapping[str, str],
    gate: Mapping[str, float],
) -> Manifest:
    """Complete `work`, which holds PART.NAME.onnx of every part that `variants` gives the name."""
    for part, variant in variants.items():
        if variant == FULL:  # written, but nothing in it was converted
            for file in work.glob(f"{part}.{name}.onnx*"):
                file.unlink()
    parts = {
        part: _with_variant(part, e, name, variants[part]) for part, e in manifest.parts.items()
    }
    precision = Precision(
        parts={p: entry.default if variants[p] == FULL else name for p, entry in parts.items()},
        recipe=name,
        gate=dict(gate),
        report=f"{name}.json",
        picture=f"{name}.png",
    )
    whole = replace(manifest, parts=parts, precisions={**manifest.precisions, name: precision})
    return write_manifest(work, whole)


def _with_variant(part: str, entry: PartEntry, name: str, variant: str) -> PartEntry:
    if variant == FULL:
        return entry
    return replace(entry, files={**entry.files, name: f"{part}.{name}.onnx"})


def taken(bundle: Bundle, name: str) -> str | None:
    """A file of the bundle that a precision of that name would overwrite; None where none is."""
    ours = {f"{name}.json", f"{name}.png", MANIFEST}
    ours |= {f"{part}.{name}.onnx" for part in bundle.manifest.parts}
    others = without(bundle.manifest, name)
    earlier = bundle.manifest.named_files - others.named_files
    return next((file for file in bundle.manifest.files if file in ours - earlier), None)
