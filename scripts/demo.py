"""`make demo`: the whole path on made-up video, or on a data folder of yours.

Every step is a command that can be typed by hand; each is shown before it runs. Everything
lands in one folder, which nothing but the demo writes to.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from sfn_rt.datasets import Dataset, Video, open_dataset
from sfn_rt.exceptions import SfnError

OWNED = ".sfn-demo"  # marks a folder that the demo may empty
SHORT = ("--set", "train.steps=500")  # the set is small, and who tries a demo waits
SFN_RT = str(Path(sys.executable).with_name("sfn-rt"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="data folder instead of made-up video")
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--config", default="edge")
    asked = parser.parse_args()
    try:
        demo(asked.data, asked.out, asked.config)
    except SfnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: the demo stopped at: {shlex.join(error.cmd)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; make demo starts again from the beginning", file=sys.stderr)
        return 130
    return 0


def demo(data: Path | None, out: Path, config: str) -> None:
    began = time.monotonic()
    if data is not None and data.resolve().is_relative_to(out.resolve()):
        raise SfnError(f"{data} lies in {out}, which the demo empties; move it elsewhere")
    empty(out)
    if data is None:
        data = out / "data"
        step(sys.executable, "-m", "sfn_train", "demo-data", str(data))
    dataset = open_dataset(data)  # a mistake in the data is told before the training
    run, bundle, score, evaluation = (out / name for name in ("run", "bundle", "score", "eval"))
    train = ["train", str(data), "--config", config, "--out", str(run), *SHORT]
    step(sys.executable, "-m", "sfn_train", *train)
    step(sys.executable, "-m", "sfn_export", "bundle", str(run), "--out", str(bundle))
    video = example(dataset)
    scored = ["score", str(video.path), "--bundle", str(bundle), "--out", str(score)]
    step(SFN_RT, *scored)
    measured = any(video.labels is not None for video in dataset.test)
    if measured:
        step(SFN_RT, "eval", str(data), "--bundle", str(bundle), "--out", str(evaluation))

    print(f"\nThe demo took {(time.monotonic() - began) / 60:.1f} minutes and made:")
    made = {
        "trained model": run,
        "bundle": bundle,
        f"scores of video {video.name}": score / "scores.csv",
        "score curve": score / "curve.svg",
        "heat map video": score / "heatmap.mp4",
        "report": score / "report.html",
    }
    if measured:
        made["evaluation, with the AUC table above"] = evaluation
    for what, path in made.items():
        print(f"  {what:<38}{path}")
    if not measured:
        print("  No AUC: the data has no labels, so it can be scored and not evaluated.")


def empty(out: Path) -> None:
    """Start from nothing, without ever emptying a folder that is not the demo's."""
    if out.exists() and not (out / OWNED).exists() and any(out.iterdir()):
        raise SfnError(f"{out} is not a folder of the demo; choose another --out")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / OWNED).write_text("make demo empties this folder when it runs again\n")


def example(dataset: Dataset) -> Video:
    """The first test video with something abnormal in it; without labels, the last video."""
    for video in dataset.test:
        if video.labels is not None and video.labels.any():
            return video
    return (dataset.test or dataset.train)[-1]


def step(*command: str) -> None:
    print(f"\n$ {shlex.join(command)}", flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
