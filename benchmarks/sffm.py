"""How fast is the exported SFFM, against the per-expert loop in eager PyTorch?

    python benchmarks/sffm.py [--config edge] [--batch 1,8] [--threads 1,2] [--blocks 48] [--write]

Same seeded weights, same input, same threads, at the size of the config; all forms take turns, so
that a busy machine slows them alike. `best` is each form's fastest turn, and the speed-ups are
ratios of these; the percentiles tell how busy the machine was.
Prints a table, then one line of JSON; --write also puts that into benchmarks/results.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("runtime", "train", "export")]

import numpy as np  # noqa: E402
import onnxruntime as ort  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from sfn_export.dispatch import BLOCK, exported_sffm  # noqa: E402
from sfn_export.trace import export_onnx  # noqa: E402
from sfn_rt.backends.base import PartSpec, TensorSpec  # noqa: E402
from sfn_rt.backends.ort import OrtBackend  # noqa: E402
from sfn_train.config import read_config  # noqa: E402
from sfn_train.model.sffm import SFFM  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
REFERENCE = "loop, PyTorch"
REPEATS = 3  # runs a turn


class TokensOnly(nn.Module):
    """One SFFM whose routing nobody asks for, as in production."""

    def __init__(self, sffm: nn.Module) -> None:
        super().__init__()
        self.sffm = sffm

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.sffm(inputs[0])[0],)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="edge")
    parser.add_argument("--batch", type=numbers, default=[1, 8])
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--blocks", type=numbers, default=[BLOCK], help="rows of a block to try")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=20, help="at most, for a batch and threads"
    )
    parser.add_argument("--write", action="store_true", help="also write the results")
    arguments = parser.parse_args()

    config = read_config(arguments.config)
    model = config.sfn
    n_tokens = model.n_patches + 1 + model.use_text
    torch.manual_seed(0)
    sffm = SFFM(model.dim, model.rank, model.n_filters, model.n_active, model.gate).eval()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        graphs = export_forms(sffm, n_tokens, arguments.blocks, Path(folder))
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            with OrtBackend(graphs, threads=threads) as backend:
                for batch in arguments.batch:
                    x = np.random.default_rng(0).standard_normal((batch, n_tokens, model.dim))
                    forms = runners(sffm, backend, x.astype(np.float32))
                    times = measure(forms, arguments.rounds, arguments.warmup, arguments.seconds)
                    rows += summarise(times, batch, threads)
    report = {
        "benchmark": "sffm",
        "profile": config.profile,
        "device": {"cpu": cpu_name(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "versions": {"onnxruntime": ort.__version__, "torch": torch.__version__},
        "precision": "fp32",
        "size": {
            "tokens": n_tokens,
            "dim": model.dim,
            "rank": model.rank,
            "filters": model.n_filters,
            "active": model.n_active,
        },
        "rounds": arguments.rounds,
        "repeats": REPEATS,
        "warmup": arguments.warmup,
        "rows": rows,
    }
    print_table(report)
    line = json.dumps(report)
    if arguments.write:
        name = "sffm_cpu" if config.profile == "edge" else f"sffm_{config.profile}_cpu"
        text = json.dumps(report, indent=2) + "\n"
        (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    print(line)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def export_forms(sffm: SFFM, n_tokens: int, blocks: list[int], folder: Path) -> dict[str, Path]:
    """ONNX graphs of the dense form and of dispatch with each block size."""
    shape = ("batch", n_tokens, sffm.dim)
    spec = PartSpec((TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", shape),))
    graphs = {"dense, ONNX": folder / "dense.onnx"}
    export_onnx(TokensOnly(exported_sffm(sffm, "dense")), spec, graphs["dense, ONNX"])
    for block in blocks:
        path = graphs[f"dispatch {block}, ONNX"] = folder / f"dispatch{block}.onnx"
        export_onnx(TokensOnly(exported_sffm(sffm, "dispatch", block)), spec, path)
    return graphs


def runners(sffm: SFFM, backend: OrtBackend, x: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Each form as a function of no arguments."""
    tensor = torch.from_numpy(x)
    forms: dict[str, Callable[[], np.ndarray]] = {
        REFERENCE: lambda: sffm.filter_one_by_one(tensor).numpy(),
        "dense, PyTorch": lambda: sffm(tensor)[0].numpy(),
    }
    for name in backend.parts:
        forms[name] = lambda name=name: backend.infer(name, {"x": x})["y"]  # type: ignore[misc]
    return forms


def measure(
    forms: dict[str, Callable[[], np.ndarray]], rounds: int, warmup: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds of every form, in turns; refuses forms that do not agree."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        expected = forms[REFERENCE]()
        for name, run in forms.items():
            assert np.abs(run() - expected).max() < 1e-4, name
        end = time.perf_counter() + seconds
        for turn in range(-warmup, rounds):
            if turn > 0 and time.perf_counter() > end:
                break
            for name, run in forms.items():
                for _ in range(REPEATS):  # the first pays for caches that another form filled
                    start = time.perf_counter()
                    run()
                    if turn >= 0:
                        times[name].append((time.perf_counter() - start) * 1e3)
    return times


def summarise(times: dict[str, list[float]], batch: int, threads: int) -> list[dict[str, object]]:
    best = {name: min(values) for name, values in times.items()}
    return [
        {
            "form": name,
            "batch": batch,
            "threads": threads,
            "best_ms": round(best[name], 3),
            "p50_ms": round(float(np.percentile(values, 50)), 3),
            "p90_ms": round(float(np.percentile(values, 90)), 3),
            "speedup": round(best[REFERENCE] / best[name], 2),
        }
        for name, values in times.items()
    ]


def cpu_name() -> str:
    """The processor as its maker calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def print_table(report: dict[str, object]) -> None:
    print(f"{report['device']}, fp32, {report['size']}")
    print(
        f"{report['rounds']} turns of {REPEATS} after {report['warmup']} of warm-up; milliseconds\n"
    )
    print("| batch | threads | form | best | p50 | p90 | speed-up |")
    print("|---|---|---|---|---|---|---|")
    rows = report["rows"]
    assert isinstance(rows, list)
    for row in rows:
        print(
            f"| {row['batch']} | {row['threads']} | {row['form']} | {row['best_ms']:.2f} "
            f"| {row['p50_ms']:.2f} | {row['p90_ms']:.2f} | {row['speedup']:.1f}x |"
        )
    print()


if __name__ == "__main__":
    main()
