"""What does no model at all score? Every baseline on one labelled data set, both protocols.

    python benchmarks/baselines_ped2.py                      Ped2, under $SFN_DATA/ped2
    python benchmarks/baselines_ped2.py --walkway            the synthetic set, made on the spot
    python benchmarks/baselines_ped2.py --data FOLDER        training|testing/…, frame_labels.npz

Frame-level AUC in %, frames 4 to the end of each test video, on the raw evidence: `paper` is
min-max a video and Gaussian sigma 5, `no min-max` the Gaussian alone, `causal` an exponential
moving average with alpha 0.2. macro is the mean over the test videos, `causal`.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sfn_rt.baselines import Baselines, from_length
from sfn_rt.frames import open_source
from sfn_rt.metrics import macro_auc, roc_auc
from sfn_rt.scores import OBSERVED, PaperConstants, moving_average, paper_term

SMOOTHED = PaperConstants(visual=1, semantic=0, sigma=5, minmax=False)
PAPER = PaperConstants(visual=1, semantic=0, sigma=5, minmax=True)


def videos(root: Path, split: str) -> list[Path]:
    """Video files or folders of frames, in order."""
    folder = root / split / "videos"
    return sorted((folder if folder.is_dir() else root / split / "frames").iterdir())


def images(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The frames of one video."""
    with open_source(path) as source:
        for frame in source:
            yield frame.image


def measure(root: Path) -> tuple[dict[str, dict[str, float]], float]:
    """AUC in % by baseline and protocol, and milliseconds a test frame."""
    train, test = videos(root, "training"), videos(root, "testing")
    baselines = Baselines.fit(lambda: (images(path) for path in train))
    labels = dict(np.load(root / "frame_labels.npz"))
    evidence: dict[str, list[NDArray[np.float64]]] = {}
    start = time.perf_counter()
    for path in test:
        baselines.reset()
        rows = [baselines.update(image) for image in images(path)]
        columns = {name: np.array([row[name] for row in rows]) for name in baselines.names}
        for name, values in (from_length(len(rows)) | columns).items():
            evidence.setdefault(name, []).append(values)  # (T,)
    ms = 1e3 * (time.perf_counter() - start) / sum(len(v) for v in evidence["centre bump"])

    truth = [labels[path.stem][OBSERVED:] for path in test]
    table: dict[str, dict[str, float]] = {}
    for name, per_video in evidence.items():
        scored = [values[OBSERVED:] for values in per_video]
        protocols = {
            "paper": [paper_term(values, PAPER) for values in scored],
            "no min-max": [paper_term(values, SMOOTHED) for values in scored],
            "causal": [moving_average(values) for values in scored],
        }
        joined = np.concatenate(truth)
        row = {key: roc_auc(np.concatenate(value), joined) for key, value in protocols.items()}
        row["macro"] = macro_auc(protocols["causal"], truth)
        table[name] = {key: round(100 * value, 2) for key, value in row.items()}
    return table, ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--data", type=Path, help="a labelled data set; default $SFN_DATA/ped2")
    which.add_argument("--walkway", action="store_true", help="make and measure the synthetic set")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic set")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.walkway:
            from sfn_train.data.synthetic import make_walkway

            root = make_walkway(Path(scratch), seed=arguments.seed)
        elif arguments.data is not None:
            root = arguments.data
        elif "SFN_DATA" in os.environ:
            root = Path(os.environ["SFN_DATA"]) / "ped2"
        else:
            sys.exit("error: no data set; set SFN_DATA, or pass --data FOLDER or --walkway")
        table, ms = measure(root)

    print(f"{'evidence':28}{'paper':>8}{'no min-max':>12}{'causal':>8}{'macro':>8}")
    for name, row in table.items():
        print(
            f"{name:28}{row['paper']:8.1f}{row['no min-max']:12.1f}"
            f"{row['causal']:8.1f}{row['macro']:8.1f}"
        )
    print(f"{ms:.1f} ms a frame, decoding included, 1 thread, {platform.machine()}")
    data = "walkway" if arguments.walkway else root.name
    print(json.dumps({"data": data, "auc_percent": table, "ms_per_frame": round(ms, 2)}))


if __name__ == "__main__":
    main()
