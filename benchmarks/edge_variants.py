"""What does each part of the edge profile add? Short trainings of its variants, measured on Ped2.

    python benchmarks/edge_variants.py --data $SFN_DATA/ped2 --steps 600 [names ...]

Every variant trains for the same steps with the same seed; its test videos are scored by the
runtime's own evidence code with the model in PyTorch. One seed a variant: differences of a point
are noise. A finished variant is not trained again. Prints a Markdown table, then one JSON line.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from sfn_rt.datasets import Dataset, open_dataset
from sfn_rt.evidence import BLOCK, EvidenceStream, Perception
from sfn_rt.frames import open_source
from sfn_rt.metrics import roc_auc
from sfn_rt.normal import NormalFootage
from sfn_rt.pipeline import grouped
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.scores import OBSERVED, PUBLISHED, FloatArray, causal_scores, paper_scores
from sfn_rt.semantics.describe import SceneCaptioner
from sfn_train.checkpoint import load_run
from sfn_train.systems import open_backend
from sfn_train.text import TextModel

VARIANTS: dict[str, tuple[str, ...]] = {
    "edge": (),
    "SFFM is the identity": ("model.filter=none",),
    "appearance off": ("model.use_appearance=false",),
    "motion off": ("model.use_motion=false",),
    "text off": ("model.use_text=false",),
    "draws the whole frame": ("model.predict=frame",),
    "128 x 192, patch 8": ("model.frame_height=128", "model.frame_width=192", "model.patch=8"),
    "D 96": ("model.dim=96", "model.appearance_dim=96", "model.heads=3", "model.motion_dim=48"),
}
CHOICES = {
    "visual": ("visual",),
    "semantic": ("semantic",),
    "visual + semantic": ("visual", "semantic"),
    "all": ("visual", "semantic", "attribute"),
}


def train(data: Path, out: Path, steps: int, changes: tuple[str, ...]) -> None:
    """A run folder at `out`, unless there is one."""
    if (out / "model.safetensors").exists():
        return
    command = [sys.executable, "-m", "sfn_train", "train", str(data), "--out", str(out), "--force"]
    for change in (f"train.steps={steps}", *changes):
        command += ["--set", change]
    subprocess.run(command, check=True)


def measure(dataset: Dataset, run_folder: Path) -> dict[str, float]:
    """Micro AUC in % of every choice of terms, and the time of a test frame."""
    run = load_run(run_folder)
    run.model.eval()
    normal = NormalFootage.from_arrays(run.normal)
    text = TextModel() if run.config.model.use_text else None
    perception = Perception(
        backend=open_backend(run.model, text),
        observed=run.config.model.observed,
        preprocessing=run.config.preprocessing,
        visual=VisualConfig(**run.info["visual"]),
        scene_config=run.config.semantics.scene,
        scene=normal.scene,
        captioner=SceneCaptioner(normal.scene.attributes),
        text=text,
        stride=run.config.semantics.stride,
        terms=(),
    )
    perception = replace(perception, terms=perception.available_terms)
    columns: list[dict[str, FloatArray]] = []
    for video in dataset.test:
        stream = EvidenceStream(perception)
        with open_source(video.path) as source:
            rows = [r for b in grouped(source, BLOCK) for r in stream.predict(stream.look(b))]
        nan = float("nan")
        columns.append({t: np.array([r.terms.get(t, nan) for r in rows]) for t in perception.terms})
    truth = np.concatenate([v.labels[OBSERVED:] for v in dataset.test if v.labels is not None])
    constants = PUBLISHED[dataset.published or "default"]
    figures = {"minutes": float(run.info["minutes"])}
    for name, terms in CHOICES.items():
        there = [term for term in terms if term in perception.terms]
        if len(there) < len(terms) and name != "all":
            continue
        chosen = [{term: c[term] for term in there} for c in columns]
        tails = {term: normal.tails[term] for term in there}
        paper = [paper_scores(c, constants)[OBSERVED:] for c in chosen]
        causal = [causal_scores(c, tails)[OBSERVED:] for c in chosen]
        figures[f"{name}, paper"] = 100 * roc_auc(np.concatenate(paper), truth)
        figures[f"{name}, causal"] = 100 * roc_auc(np.concatenate(causal), truth)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(VARIANTS)}; default all")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/variants"))
    parser.add_argument("--steps", type=int, default=600)
    asked = parser.parse_args()
    dataset = open_dataset(asked.data)
    found: dict[str, dict[str, float]] = {}
    start = time.perf_counter()
    for name in asked.names or VARIANTS:
        folder = asked.out / name.replace(" ", "_").replace(",", "")
        train(asked.data, folder, asked.steps, VARIANTS[name])
        found[name] = measure(dataset, folder)
        print(name, {key: round(value, 1) for key, value in found[name].items()}, flush=True)
    heads = list(CHOICES)
    print(f"\n| variant | training, min | {' | '.join(heads)} |")
    print(f"|---|---|{'---|' * len(heads)}")
    for name, figures in found.items():
        cells = [
            f"{figures[f'{h}, paper']:.1f} / {figures[f'{h}, causal']:.1f}"
            if f"{h}, paper" in figures
            else "-"
            for h in heads
        ]
        print(f"| {name} | {figures['minutes']:.1f} | {' | '.join(cells)} |")
    minutes = (time.perf_counter() - start) / 60
    print(json.dumps({"steps": asked.steps, "minutes": minutes, "variants": found}))


if __name__ == "__main__":
    main()
