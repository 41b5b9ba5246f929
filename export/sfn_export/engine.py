"""A bundle's graphs as engines: built, looked into, and compared with ONNX Runtime and PyTorch.

With an NVIDIA GPU and `tensorrt`, every part and every device graph becomes an engine for that GPU
and runs through Polygraphy beside ONNX Runtime and, given the run, PyTorch. Without, TensorRT-RTX
builds them ahead of time; ONNX Runtime is still compared, no engine is executed, and the report
says so. Engines themselves are not kept: a device builds its own (`sfn-rt build`).

    report.txt      for people: layers, fusions, types, differences
    report.json     all of it
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sfn_export.engine_build import PartEngine, build_part
from sfn_export.engine_compare import compare_all, videos_for
from sfn_export.engine_parity import Compared, precisions_of
from sfn_export.engine_place import EngineSettings, Place, choose_place
from sfn_rt.bundle import Bundle, load_bundle
from sfn_rt.bundle_folder import bundle_folder
from sfn_train.checkpoint import load_run

JSON_FILE, TEXT_FILE = "report.json", "report.txt"
Say = Callable[[str], None]


@dataclass(frozen=True)
class EngineResult:
    """What `engine` answers, and what its report holds."""

    precision: str
    precisions: Mapping[str, str]  # by part; device graphs are fp32
    place: Place
    engines: Mapping[str, PartEngine]
    compared: tuple[Compared, ...]
    notes: tuple[str, ...]  # what was not done, and why

    def text(self) -> str:
        """For people."""
        lines = [f"{self.precision}, {self.place.text()}", ""]
        for part, engine in self.engines.items():
            types = Counter(engine.types.values()).most_common()
            lines.append(f"{part}: {len(engine.plan) / 1e6:.1f} MB, {engine.seconds:.1f} s")
            lines.append(f"  typed             {', '.join(f'{t} {n}' for t, n in types)}")
            lines += [f"  {line}" for line in engine.report.text().splitlines()]
        lines += ["", *(each.text() for each in self.compared), *self.notes]
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        place = self.place
        return {
            "precision": self.precision,
            "precisions": dict(self.precisions),
            "flavour": place.flavour.name,
            "version": place.flavour.version,
            "targets": list(place.targets or ()),
            "gpu": place.gpu.name if place.gpu is not None else None,
            "executed": place.gpu is not None,
            "engines": {
                part: {
                    "bytes": len(engine.plan),
                    "seconds": round(engine.seconds, 2),
                    "profiles": engine.profiles,
                    "types": dict(engine.types),
                    **engine.report.to_json(),
                }
                for part, engine in self.engines.items()
            },
            "compared": [each.to_json() for each in self.compared],
            "notes": list(self.notes),
        }


def examine_engines(settings: EngineSettings, say: Say) -> EngineResult:
    """Build every part, compare, and write the report; nothing is written where one is over."""
    bundle = load_bundle(settings.bundle)
    precisions = precisions_of(bundle, settings.precision)
    run = load_run(settings.run) if settings.run is not None else None
    videos = videos_for(run, settings, precisions)
    place = choose_place(settings, precisions)
    with bundle_folder(settings.out, JSON_FILE, "a report of engines") as folder:
        say(place.text())
        engines = build_all(bundle, settings, place, say)
        compared, notes = compare_all(bundle, precisions, engines, settings, place, run, videos)
        for line in (*(each.text() for each in compared), *notes):
            say(line)
        result = EngineResult(
            settings.precision, precisions, place, engines, tuple(compared), tuple(notes)
        )
        (folder / TEXT_FILE).write_text(result.text(), encoding="utf-8")
        (folder / JSON_FILE).write_text(json.dumps(result.to_json()) + "\n", encoding="utf-8")
    return result


def build_all(
    bundle: Bundle, settings: EngineSettings, place: Place, say: Say
) -> dict[str, PartEngine]:
    """An engine for every part at the precision, and for every device graph."""
    manifest = bundle.manifest
    engines = {}
    graphs = bundle.graphs(settings.precision) | bundle.device_graphs()
    for part, path in graphs.items():
        spec = (manifest.parts | manifest.device)[part].spec
        engine = build_part(
            path, spec, place.flavour, targets=place.targets, max_batch=settings.max_batch
        )
        engines[part] = engine
        shares = ", ".join(f"{share:.0%} {t}" for t, share in engine.report.shares.items())
        say(
            f"built {part} in {engine.seconds:.1f} s: {len(engine.report.layers)} layers, "
            f"{len(engine.plan) / 1e6:.1f} MB, matrix products {shares or 'none'}"
        )
    return engines
