"""How far do a bundle's graphs get without a GPU?

    python benchmarks/engines_cpu.py BUNDLE [BUNDLE ...] [--target SM89 ...] [--out FILE]

Every part and device graph is built ahead of time by TensorRT-RTX for each target and in each
precision that the bundle has; what the builder says of the engine's layers is counted: how many
there are, how many hold several nodes, which share of the matrix products has which type.
Then each precision runs on the CPU and is compared with fp32 on the same inputs. Nothing here says
anything about speed on a GPU. Prints a table, then one line of JSON.
"""

import argparse
import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("benchmarks", "runtime", "train", "export", "calibration")
sys.path[:0] = [str(ROOT / f) for f in FOLDERS if (ROOT / f).is_dir()]

import numpy as np  # noqa: E402

from sfn_rt.backends.base import Array, Backend, PartSpec  # noqa: E402
from sfn_rt.backends.ort import OrtBackend  # noqa: E402
from sfn_rt.bundle import FULL, Bundle, load_bundle  # noqa: E402
from sfn_rt.engines.build import build  # noqa: E402
from sfn_rt.engines.flavour import Flavour, load_flavour  # noqa: E402
from sfn_rt.engines.parts import EnginePart, engine_parts  # noqa: E402
from sfn_rt.exceptions import SfnError  # noqa: E402

TARGETS = ("SM86", "SM89", "SM120")  # Ampere, Ada and Blackwell cards
EMULATED = ("bf16", "fp8")  # no kernels of ONNX Runtime's on a CPU: the workshop emulates them
OLDEST = {"fp8": 89, "bf16": 80}  # the first architecture that computes it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--target", action="append", help="default: SM86, SM89 and SM120")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    try:
        flavour = load_flavour("tensorrt-rtx")
        report = measure(asked.bundle, flavour, asked.target or TARGETS, asked.threads)
    except SfnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = table(report)
    print(text + "\n")
    if asked.out:
        asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        asked.out.with_suffix(".md").write_text(f"# Engines without a GPU\n\n{text}\n", "utf-8")
    print(json.dumps(report))
    return 1 if any(not row["built"] for row in report["engines"]) else 0


def measure(
    paths: list[Path], flavour: Flavour, targets: list[str] | tuple[str, ...], threads: int | None
) -> dict[str, Any]:
    """All bundles in all of their precisions."""
    engines: list[dict[str, Any]] = []
    parity: list[dict[str, Any]] = []
    seen: set[Path] = set()
    for path in paths:
        bundle = load_bundle(path)
        profile = bundle.manifest.profile
        for precision in (FULL, *bundle.manifest.forms, *bundle.manifest.precisions):
            able = [t for t in targets if int(t[2:]) >= OLDEST.get(precision, 0)]
            for part in engine_parts(bundle, precision):
                if part.graph.path in seen:
                    continue  # a part that this precision leaves as it is
                seen.add(part.graph.path)
                say(f"{profile}: {part.name} at {precision} for {', '.join(able)}")
                row = {"profile": profile, "asked": precision}
                engines.append(row | built(part, flavour, able))
        parity += compared(bundle, threads)
    return {
        "benchmark": "engines_cpu",
        "versions": {flavour.name: flavour.version},
        "engines": engines,
        "parity": parity,
    }


def built(part: EnginePart, flavour: Flavour, targets: list[str]) -> dict[str, Any]:
    """One graph as an engine for all targets; what was refused says why."""
    row: dict[str, Any] = {"part": part.name, "precision": part.precision, "targets": targets}
    try:
        done = build(part.graph, flavour, targets=targets)
    except SfnError as error:
        return row | {"built": False, "why": str(error)}
    report = done.report
    return row | {
        "built": True,
        "seconds": round(done.seconds, 1),
        "megabytes": round(len(done.plan) / 1e6, 2),
        "layers": len(report.layers),
        "fused": len(report.fusions),
        "nodes": len(report.nodes),
        "products": len(report.products),
        "shares": {kind: round(share, 3) for kind, share in report.shares.items()},
    }


def compared(bundle: Bundle, threads: int | None) -> list[dict[str, Any]]:
    """Each precision on the CPU against fp32: relative error of every output."""
    rows: list[dict[str, Any]] = []
    with OrtBackend.from_bundle(bundle, threads=threads) as reference:
        feeds = {part: inputs(spec) for part, spec in reference.parts.items() if part != "text"}
        expected = {part: reference.infer(part, fed) for part, fed in feeds.items()}
        for precision in bundle.manifest.precisions:
            say(f"{bundle.manifest.profile}: {precision} on the CPU")
            row = {"profile": bundle.manifest.profile, "precision": precision}
            try:
                with variant(bundle, precision, threads) as backend:
                    rows += [
                        row | {"by": backend.name, "part": part, "output": name, **difference(e, a)}
                        for part, fed in feeds.items()
                        for name, a in backend.infer(part, fed).items()
                        for e in [expected[part][name]]
                    ]
            except (SfnError, ImportError) as error:
                rows.append(row | {"not_run": str(error)})
    return rows


def variant(bundle: Bundle, precision: str, threads: int | None) -> AbstractContextManager[Backend]:
    """What runs a precision on a CPU."""
    if precision not in EMULATED:
        variants = bundle.variants(precision)
        return OrtBackend.from_bundle(bundle, threads=threads, variants=variants)
    from sfn_calib.emulate import open_variant

    return open_variant(bundle.graphs(precision), bundle.variants(precision), threads=threads)


def inputs(spec: PartSpec) -> dict[str, Array]:
    """Two of a batch, ordinary values; no zeros, which would tie the router's scores."""
    random = np.random.default_rng(0)
    return {
        tensor.name: random.standard_normal(
            [2 if isinstance(axis, str) else axis for axis in tensor.shape]
        ).astype(tensor.dtype)
        for tensor in spec.inputs
    }


def difference(expected: Array, actual: Array) -> dict[str, float]:
    """Relative L2; of routing, the share of tokens that reach other filters."""
    if expected.dtype.kind == "i":
        differ = np.sort(expected, axis=-1) != np.sort(actual, axis=-1)
        return {"rerouted": round(float(differ.any(axis=-1).mean()), 5)}
    scale = float(np.linalg.norm(expected)) or 1.0
    return {"relative_l2": float(f"{np.linalg.norm(actual - expected) / scale:.3g}")}


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"TensorRT-RTX {report['versions']['tensorrt-rtx']}, ahead of time; no GPU took part.",
        "",
        "| bundle | precision | part | of | targets | layers of nodes | fused "
        "| matrix products | MB | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["engines"]:
        head = f"| {row['profile']} | {row['asked']} | {row['part']} | {row['precision']} "
        if not row["built"]:
            lines.append(f"{head}| {', '.join(row['targets'])} | not built: {row['why']} |||||")
            continue
        shares = ", ".join(f"{share:.0%} {kind}" for kind, share in row["shares"].items())
        lines.append(
            f"{head}| {', '.join(row['targets'])} | {row['layers']} of {row['nodes']} "
            f"| {row['fused']} | {row['products']}: {shares or 'none'} | {row['megabytes']} "
            f"| {row['seconds']} |"
        )
    lines += [
        "",
        "| bundle | precision | by | output | difference from fp32 |",
        "|---|---|---|---|---|",
    ]
    for row in report["parity"]:
        head = f"| {row['profile']} | {row['precision']} "
        if "not_run" in row:
            lines.append(f"{head}| not run: {row['not_run']} |||")
            continue
        figure = next(name for name in ("relative_l2", "rerouted") if name in row)
        shown = f"{row[figure]:.2%} of tokens rerouted" if figure == "rerouted" else row[figure]
        lines.append(f"{head}| {row['by']} | {row['part']}.{row['output']} | {shown} |")
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
