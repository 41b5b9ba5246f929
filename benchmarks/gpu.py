"""How fast is a bundle on this GPU, and how far from what the GPU could do?

    python benchmarks/gpu.py --bundle FOLDER [--bundle ...] [--route tensorrt ...] [--quick]

Motion encoder and decoder, one SFFM in both exported forms, and whole streams (upload, all parts,
score), for each route that works here and each precision that a bundle has; beside them PyTorch,
eager and compiled with CUDA graphs, where torch is installed. Floors are counted: gpu_costs.py says
what must be computed and moved, gpu_floor.py what the device could do. What is not run says why.
Prints a table, then one line of JSON; --out also writes it. scripts/gpu_check.py runs all of this
on a device. Without a GPU only `--route cpu` runs, the same code on this processor.
"""

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / f) for f in ("benchmarks", "scripts", "runtime", "train", "export")]

from gpu_floor import Rates, part_cost, sffm_cost, stream_floor_ms  # noqa: E402
from gpu_machine import NoGpu, describe_machine, find_gpus  # noqa: E402
from gpu_routes import ON_CPU, ROUTES, ask, open_graph, open_route  # noqa: E402
from gpu_rows import EIGHT_BITS, Row, compare, select, table  # noqa: E402
from gpu_timing import Repeats, spread, time_parts, time_streams  # noqa: E402
from gpu_torch import read_model, torch_times, why_not  # noqa: E402

from sfn_rt.backends.base import PartSpec, TensorSpec  # noqa: E402
from sfn_rt.bundle import FULL, Bundle, load_bundle  # noqa: E402
from sfn_rt.exceptions import SfnError  # noqa: E402
from sfn_rt.networks import NetworkSettings  # noqa: E402
from sfn_rt.prediction_error import VisualConfig  # noqa: E402

PARTS = ("motion", "decoder")
STEP = ("prepare", "vision", "appearance", "difference", "motion", "decoder", "measure")
GATE = ("auc_loss",)  # figures of a precision's gate that belong beside its speed
QUICK = Repeats(warmup=2, runs=5)


@dataclass(frozen=True)
class Subject:
    """A bundle, and what was counted of it."""

    bundle: Bundle
    costs: dict[str, Any] | None
    sffm: Path | None  # folder with dense.onnx, dispatch.onnx, size.json
    step: Path | None  # folder with PRECISION.onnx and step.json

    @classmethod
    def read(cls, path: Path) -> "Subject":
        """Counts lie where the wheelhouse puts them, else they are made here."""
        label = name_of(path)
        folders = (path.resolve().parents[i] / "costs" for i in (1, 2))
        counted = [f for folder in folders if (f := folder / f"{label}.json").is_file()]
        sffm, step = path.parent / "sffm", path.parent / "step"
        return cls(
            load_bundle(path),
            json.loads(counted[0].read_text()) if counted else count(path),
            sffm if sffm.is_dir() else None,
            step if step.is_dir() else None,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, action="append", required=True)
    parser.add_argument("--route", action="append", choices=[*ROUTES, ON_CPU])
    parser.add_argument("--precision", action="append", help="default: all that a bundle has")
    parser.add_argument("--engines", type=Path, help="folder of engines")
    parser.add_argument("--frame", default="360x240", help="size of the camera's pictures")
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    asked = parser.parse_args()
    try:
        report = measure(asked)
    except (SfnError, NoGpu) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report["table"] + "\n")
    line = json.dumps(report)
    if asked.out:
        asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(line)
    return 0


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """All rows of all bundles."""
    on_cpu = asked.route == [ON_CPU]
    gpus = [] if on_cpu else find_gpus()
    subjects = named(asked.bundle)
    first = next(iter(subjects.values())).bundle
    routes: dict[str, Any] = {
        name: {"works": True, "version": "", "why": None} if name == ON_CPU else ask(name, first)
        for name in asked.route or ROUTES
    }
    precisions = {
        name: [p for p in precisions_of(s.bundle) if p in (asked.precision or [p])]
        for name, s in subjects.items()
    }
    sffms = [name for name, subject in subjects.items() if subject.sffm is not None]
    steps = {
        name: [p for p in precisions[name] if (s.step / f"{p}.onnx").is_file()]
        for name, s in subjects.items()
        if s.step is not None
    }
    rates = Rates.of(gpus[0]) if gpus else None
    run = Run(
        subjects, rates, asked.engines, QUICK if asked.quick else Repeats(), size(asked.frame)
    )
    rows = [run.row(row) for row in select(precisions, sffms, routes, why_not(), steps)]
    rows = compare(rows)
    return {
        "benchmark": "gpu",
        "machine": describe_machine() | {"gpus": gpus},
        "routes": routes,
        "frame": asked.frame,
        "warmup": run.repeats.warmup,
        "runs": run.repeats.runs,
        "bandwidth": rates.bandwidth if rates else None,
        "rows": [row.to_json() for row in rows],
        "table": table(rows),
    }


@dataclass(frozen=True)
class Run:
    """What every row is measured with."""

    subjects: dict[str, Subject]
    rates: Rates | None
    engines: Path | None
    repeats: Repeats
    frame: tuple[int, int]

    def row(self, row: Row) -> Row:
        """The row with its figures, or with the reason why it has none."""
        if row.not_run is not None:
            return row
        print(f"{row.what} {row.mode}, {row.profile}, {row.route}, {row.precision}, batch "
              f"{row.batch}", file=sys.stderr, flush=True)  # fmt: skip
        try:
            return {
                "parts": self.parts, "sffm": self.sffm, "step": self.step, "stream": self.stream,
                "torch": self.torch,
            }[row.kind](row)  # fmt: skip
        except SfnError as error:
            return replace(row, not_run=str(error))

    def parts(self, row: Row) -> Row:
        """Motion encoder and decoder, on the device."""
        subject = self.subjects[row.profile]
        with ExitStack() as stack:
            backend = open_route(stack, row.route, subject.bundle, row.precision, self.engines)
            there = [part for part in PARTS if part in backend.parts]
            times = time_parts(backend, there, row.batch, self.repeats)
        floor = None
        if self.rates and subject.costs:
            floor = sum(
                self.rates.floor_ms(part_cost(subject.costs[part], row.batch), row.precision)
                for part in there
            )
        return with_times(row, times, floor)

    def sffm(self, row: Row) -> Row:
        """One SFFM by itself."""
        folder = self.subjects[row.profile].sffm
        assert folder is not None
        size = json.loads((folder / "size.json").read_text())
        shape = ("batch", size["tokens"], size["dim"])
        spec = PartSpec.of({"x": shape}, {"y": shape})
        with ExitStack() as stack:
            path = folder / f"{row.mode}.onnx"
            backend = open_graph(stack, row.route, path, spec, self.engines)
            times = time_parts(backend, [row.mode], row.batch, self.repeats)
        cost = sffm_cost(size, row.batch)
        floor = self.rates.floor_ms(cost, row.precision) if self.rates else None
        return with_times(row, times, floor)

    def step(self, row: Row) -> Row:
        """A frame of each stream through all graphs, in parts or fused; ring copies left out."""
        subject = self.subjects[row.profile]
        assert subject.step is not None
        with ExitStack() as stack:
            if row.mode == "fused":
                path = subject.step / f"{row.precision}.onnx"
                spec = read_spec(subject.step / "step.json")
                backend = open_graph(stack, row.route, path, spec, self.engines)
                parts = [path.stem]
            else:
                backend = open_route(stack, row.route, subject.bundle, row.precision, self.engines)
                parts = [part for part in STEP if part in backend.parts]
            times = time_parts(backend, parts, row.batch, self.repeats, self.frame)
        return with_times(row, times, None)

    def stream(self, row: Row) -> Row:
        """Pictures in, scores out."""
        subject = self.subjects[row.profile]
        with ExitStack() as stack:
            backend = open_route(stack, row.route, subject.bundle, row.precision, self.engines)
            found = time_streams(
                backend, settings_of(subject.bundle), streams=row.streams,
                block=row.batch // row.streams, frame=self.frame, repeats=self.repeats,
            )  # fmt: skip
        floor = None
        if self.rates and subject.costs:
            floor = stream_floor_ms(self.rates, subject.costs, row.batch, row.precision)
        done = with_times(row, found.ms, floor)
        figures = {"frames_per_second": round(found.frames_per_second, 1), **found.copies}
        if row.precision in EIGHT_BITS:
            gate = subject.bundle.manifest.precisions[row.precision].gate
            figures |= {f"gate_{name}": value for name, value in gate.items() if name in GATE}
        if floor is not None:
            figures["of_floor"] = round(floor * found.frames_per_second / row.batch / 1e3, 3)
        return replace(done, figures=figures)

    def torch(self, row: Row) -> Row:
        """PyTorch on the same GPU."""
        path = self.subjects[row.profile].bundle.folder
        model = read_model(path)
        if model is None:
            return replace(row, not_run="the bundle brings no model.json to build the network of")
        return with_times(
            row, torch_times(model, row.mode, row.precision, row.batch, self.repeats), None
        )


def with_times(row: Row, times: list[float], floor: float | None) -> Row:
    """The row with percentiles, and how many times its floor it takes."""
    ms = spread(times)
    figures = {} if not floor else {"over_floor": round(ms["p50"] / floor, 2)}
    return replace(row, ms=ms, floor_ms=floor, figures=figures)


def read_spec(path: Path) -> PartSpec:
    """What a fused step takes and gives."""
    raw = json.loads(path.read_text())
    return PartSpec(
        *(
            tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in raw[side])
            for side in ("inputs", "outputs")
        )
    )


def precisions_of(bundle: Bundle) -> list[str]:
    """Full precision, other forms of it such as "fp32-dispatch", and what was calibrated."""
    return [FULL, *bundle.manifest.forms, *bundle.manifest.precisions]


def settings_of(bundle: Bundle) -> NetworkSettings:
    """As scoring makes them of a manifest."""
    manifest = bundle.manifest
    return NetworkSettings(
        observed=manifest.observed, preprocessing=manifest.preprocessing,
        visual=VisualConfig(**manifest.visual),  # type: ignore[arg-type]
        n_windows=len(manifest.semantics.windows) if manifest.semantics else 1,
    )  # fmt: skip


def count(path: Path) -> dict[str, Any] | None:
    """What gpu_costs.py counts, where onnx is installed."""
    try:
        from gpu_costs import bundle_costs
    except ImportError:
        return None
    return bundle_costs(path)


def named(paths: list[Path]) -> dict[str, Subject]:
    """By profile, which decides what a row must reach; by folder, too, where two have the same."""
    subjects: dict[str, Subject] = {}
    for path in paths:
        subject = Subject.read(path)
        profile = subject.bundle.manifest.profile
        taken = profile in subjects
        subjects[f"{profile}, {name_of(path)}" if taken else profile] = subject
    return subjects


def name_of(path: Path) -> str:
    """A bundle's name in tables: samples lie in a folder `bundle` of their own."""
    path = path.resolve()
    return path.parent.name if (path.parent / "model.json").is_file() else path.name


def size(text: str) -> tuple[int, int]:
    """360x240 as (height, width)."""
    width, _, height = text.partition("x")
    return int(height), int(width)


if __name__ == "__main__":
    sys.exit(main())
