"""What the lane costs: captions saved and AUC lost under each policy, and the speed of scoring.

    python benchmarks/lane_ped2.py --data $SFN_DATA/ped2 BUNDLE [--threads 1] [--rounds 3]

Every labelled test video is scored under each policy through `sfn-rt eval`'s own code, with the
captioner that the model was trained with. Saved are the captions that were not made, against one
every stride of the model; an AUC's loss is against that policy too. AUC is frame-level and micro,
in %, under both protocols, with the no-model baselines beside it.

Speed is that of `sfn-rt bench` on the first test video, end to end, the policies in turn
for `--rounds` rounds: a machine that slows down slows all of them. A share is the median over the
rounds of frames/s against those of the same round with the lane off. Prints tables, then one
JSON line; writes nothing but the evaluations below --out.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfn_rt.bench import bench
from sfn_rt.datasets import open_dataset
from sfn_rt.evaluate import EvaluationReport, evaluate_dataset
from sfn_rt.options import BenchOptions, CaptionerName, EvalOptions, LaneOptions

POLICIES = ("every:STRIDE", "every:25", "change", "suspicion", "student", "off")
EVIDENCE = ("semantic", "visual + semantic (the paper's two)", "all terms")


def lane(policy: str, stride: int, captioner: CaptionerName | None = None) -> LaneOptions:
    """The options of one row."""
    if policy == "student":
        return LaneOptions(captioner="student")
    return LaneOptions(captioner=captioner, policy=policy.replace("STRIDE", str(stride)))


def figures(report: EvaluationReport) -> dict[str, dict[str, float]]:
    """AUC in % of each evidence that there is, under both protocols."""
    return {
        row.evidence: {
            "paper": 100 * row.paper.micro_auc,
            "causal": 100 * row.causal.micro_auc,
        }
        for row in report.evaluation.rows
    }


def measure_auc(
    data: Path, bundle: Path, out: Path, stride: int, threads: int | None, policies: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Policy -> captions and AUC."""
    found: dict[str, dict[str, Any]] = {}
    for policy in policies:
        options = EvalOptions(
            out=out / policy.replace(":", "_"), threads=threads, lane=lane(policy, stride)
        )
        report = evaluate_dataset(data, bundle, options)
        assert report.lane is not None
        found[policy] = {
            "captions": report.lane["asked"],
            "frames": report.lane["offered"],
            "auc": figures(report),
        }
    return found


def print_auc(found: dict[str, dict[str, Any]]) -> None:
    """The tables, for people."""
    reference = next(iter(found.values()))
    print(f"\n{'policy':<14}{'captions':>10}{'saved':>9}  AUC, paper / causal (lost)")
    print(f"{'':<14}{'':>19}  " + "".join(f"{name:<34}" for name in EVIDENCE))
    for policy, row in found.items():
        saved = 100 * (1 - row["captions"] / reference["captions"])
        cells = []
        for name in EVIDENCE:
            own, full = row["auc"].get(name), reference["auc"].get(name)
            if own is None or full is None:
                cells.append(f"{'no such term':<34}")
                continue
            lost = {kind: full[kind] - own[kind] for kind in own}
            cells.append(
                f"{own['paper']:.1f} / {own['causal']:.1f} "
                f"({lost['paper']:+.2f} / {lost['causal']:+.2f})".ljust(34)
            )
        print(f"{policy:<14}{row['captions']:>10}{saved:>8.1f}%  {''.join(cells)}")
    print("\nbaselines without a model")
    for name, auc in reference["auc"].items():
        if name not in EVIDENCE and name not in ("visual", "attribute"):
            print(f"  {name:<42}{auc['paper']:.1f} / {auc['causal']:.1f}")


def measure_speed(
    video: Path,
    bundle: Path,
    stride: int,
    threads: int | None,
    rounds: int,
    frames: int,
    policies: Sequence[str],
    captioner: CaptionerName | None,
) -> dict[str, list[float]]:
    """Policy -> frames/s of each round."""
    speeds: dict[str, list[float]] = {policy: [] for policy in policies}
    for _ in range(rounds):
        for policy in policies:
            options = BenchOptions(
                threads=threads, frames=frames, lane=lane(policy, stride, captioner)
            )
            speeds[policy].append(bench(video, bundle, options).frames_per_second)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=500, help="of each speed")
    parser.add_argument("--captioner", help="of the speeds; default as the model was trained")
    parser.add_argument("--only", choices=("auc", "speed"))
    parser.add_argument("--policies", default=",".join(POLICIES), help="the first is what to lose")
    asked = parser.parse_args()
    manifest = json.loads((asked.bundle / "manifest.json").read_text())
    stride = manifest["semantics"]["stride"]
    answer: dict[str, Any] = {"data": asked.data.name, "stride": stride}
    if asked.only != "speed":
        with tempfile.TemporaryDirectory() as out:
            found = measure_auc(
                asked.data, asked.bundle, Path(out), stride, asked.threads,
                asked.policies.split(","),
            )  # fmt: skip
        print_auc(found)
        answer["policies"] = found
    if asked.only != "auc":
        video = open_dataset(asked.data).test[0].path
        policies = ("off", "change", "every:STRIDE")
        speeds = measure_speed(
            video, asked.bundle, stride, asked.threads, asked.rounds, asked.frames, policies,
            asked.captioner,
        )  # fmt: skip
        shares = {
            policy: float(np.median(np.array(speeds[policy]) / np.array(speeds["off"])))
            for policy in policies
        }
        print(f"\n{'policy':<14}{'frames/s':>10}{'of lane off':>13}")
        for policy in policies:
            fps = float(np.median(speeds[policy]))
            print(f"{policy:<14}{fps:>10.1f}{100 * shares[policy]:>12.1f}%")
        answer["speed"] = {"frames_per_second": speeds, "share_of_off": shares}
        answer["captioner"] = asked.captioner or manifest["semantics"]["captioner"]
    answer["machine"] = {"processor": platform.processor() or platform.machine(),
                         "threads": asked.threads, "frames": asked.frames}  # fmt: skip
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
