"""Do the paper's graphs compute what PyTorch computes, at full size?

    python benchmarks/paper_parity.py [--profiles paper_ped2,paper_avenue] [--set SETTING=VALUE]

Motion encoder and decoder of each profile with random weights, exported in the form of the SFFM
that export chooses, and compared by export's own parity check: faint, unit and outlying inputs, two
batch sizes, outputs divided by the largest magnitude expected. A difference over the budget raises.
Prints a table, then one line of JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("runtime", "train", "export")]

import torch  # noqa: E402

from sfn_export.dispatch import fastest_form  # noqa: E402
from sfn_export.parity import TOLERANCE, check_parts  # noqa: E402
from sfn_export.trace import trace_part  # noqa: E402
from sfn_rt.backends.ort import OrtBackend  # noqa: E402
from sfn_train.config import read_config  # noqa: E402
from sfn_train.model import SFN, ModelConfig  # noqa: E402
from sfn_train.model.sffm import SFFM  # noqa: E402
from sfn_train.torch_backend import TorchBackend  # noqa: E402

PROFILES = "paper_ped2,paper_avenue,paper_shanghaitech"
PARTS = ("motion", "decoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profiles", default=PROFILES)
    parser.add_argument("--set", action="append", default=[], dest="changes")
    arguments = parser.parse_args()
    rows = []
    for profile in arguments.profiles.split(","):
        rows += compare(profile, read_config(profile, arguments.changes).sfn)
    budget = TOLERANCE["fp32"]
    print(
        f"fp32, ONNX Runtime on the CPU; budget {budget.max_abs:.0e}, {budget.min_sqnr_db:.0f} dB\n"
    )
    print("| profile | tensor | SFFM | largest difference | SQNR, dB | rerouted tokens | seconds |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['profile']} | {row['tensor']} | {row['form']} | {row['max_abs']:.1e} "
            f"| {row['sqnr_db']:.0f} | {row['rerouted']} of {row['tokens']} | {row['seconds']} |"
        )
    print("\n" + json.dumps({"benchmark": "paper_parity", "rows": rows}))


def compare(profile: str, c: ModelConfig) -> list[dict[str, Any]]:
    """The worst case of every output of the two parts."""
    torch.manual_seed(0)
    # Neither part sees the tower; in its place stands a ViT without blocks.
    model = SFN(replace(c, tower=None, appearance_depth=0)).eval()
    with torch.no_grad():  # no bias zero, no gain one: each must be seen to arrive
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    sffm = next(module for module in model.modules() if isinstance(module, SFFM))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            begin = time.perf_counter()
            path = Path(folder) / f"{part}.onnx"
            trace_part(part, model, None, path)
            with TorchBackend(model, None) as reference, OrtBackend({part: path}) as exported:
                report = check_parts(reference, exported, parts=[part])
            seconds = round(time.perf_counter() - begin, 1)
            for tensor in dict.fromkeys(d.tensor for d in report.differences):
                found = [d for d in report.differences if d.tensor == tensor]
                rows.append(
                    {
                        "profile": profile,
                        "tensor": tensor,
                        "form": fastest_form(sffm) if part == "decoder" else "-",
                        "max_abs": max(d.max_abs for d in found),
                        "sqnr_db": min(d.sqnr_db for d in found),
                        "rerouted": sum(r.differ for r in report.rerouted),
                        "tokens": sum(r.tokens for r in report.rerouted),
                        "seconds": seconds,
                    }
                )
    return rows


if __name__ == "__main__":
    main()
