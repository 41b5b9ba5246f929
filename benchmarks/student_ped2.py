"""What is the student worth beside the captions? Both on one labelled data set, `scene` captions.

    python benchmarks/student_ped2.py BUNDLE --data $SFN_DATA/ped2 [--threads 1]

Every labelled test video passes the runtime once, with a caption at every stride. Each scored frame
then has the semantic error that its caption shows, and what the student expected of the frame
without one: how the two go together (Pearson, Spearman), and the frame-level micro AUC in % of
either, alone and in the place of the semantic term, under both protocols. The student's evidence
is its estimate on the scale of the real error, by the statistics of normal footage, as the runtime
reads it where no caption counts. Baselines are of no model at all. Prints tables, then a JSON line.
"""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfn_rt.datasets import Dataset, Video, check_length, open_dataset
from sfn_rt.evaluate import measure_baselines
from sfn_rt.evidence import BLOCK
from sfn_rt.exceptions import InputError, SfnError
from sfn_rt.frames import open_source
from sfn_rt.metrics import roc_auc
from sfn_rt.model import Model, open_model
from sfn_rt.pipeline import grouped
from sfn_rt.scores import (
    FloatArray,
    PaperConstants,
    Tail,
    causal_scores,
    moving_average,
    paper_constants,
    paper_scores,
    scored_span,
)
from sfn_rt.semantics.levels import Expectation
from sfn_rt.streams import open_stream
from sfn_train.distil import correlations

DISTILLED = "distilled"
Columns = Mapping[str, FloatArray]  # (T,) each, of one video's scored frames
Figures = dict[str, float]  # protocol -> AUC in %


@dataclass(frozen=True)
class Choice:
    """Terms that score together; the semantic one is the captions' or the student's."""

    terms: tuple[str, ...]
    student: bool

    @property
    def name(self) -> str:
        """For people."""
        return " + ".join("student" if t == "semantic" and self.student else t for t in self.terms)


def look(model: Model, dataset: Dataset, video: Video) -> Columns:
    """Evidence and the student's estimate of each scored frame, captions as in training."""
    # Without levels a stream is as while normal footage is measured: the real error, and signals.
    stream = open_stream(replace(model.perception, levels=None))
    with open_source(video.path, fps=dataset.fps) as source:
        rows = [row for b in grouped(source, BLOCK) for row in stream.predict(stream.look(b))]
    check_length(video, len(rows))
    nan = float("nan")
    names = model.perception.terms
    columns = {term: np.array([row.terms.get(term, nan) for row in rows]) for term in names}
    columns[DISTILLED] = np.array([row.signals.get(DISTILLED, nan) for row in rows])
    span = scored_span(columns)
    return {name: column[span] for name, column in columns.items()}


def auc(
    videos: Sequence[Columns],
    truth: Sequence[NDArray[np.bool_]],
    choice: Choice,
    constants: PaperConstants,
    tails: Mapping[str, Tail],
) -> Figures:
    """Micro AUC under both protocols."""
    chosen = [
        {t: c["student" if t == "semantic" and choice.student else t] for t in choice.terms}
        for c in videos
    ]
    scores = {
        "paper": [paper_scores(terms, constants) for terms in chosen],
        "causal": [causal_scores(terms, tails) for terms in chosen],
    }
    labels = np.concatenate(truth)
    return {name: 100 * roc_auc(np.concatenate(s), labels) for name, s in scores.items()}


def baseline_auc(
    dataset: Dataset, videos: Sequence[Video], lengths: Sequence[int], constants: PaperConstants
) -> dict[str, Figures]:
    """Of no model, on the same frames: the last of each video, all but the first few."""
    alone = replace(constants, visual=1.0)
    found = {}
    for name, by_video in measure_baselines(dataset, videos).items():
        cut = [by_video[v.name][-n:] for v, n in zip(videos, lengths, strict=True)]
        scores = {
            "paper": [paper_scores({"visual": x}, alone) for x in cut],
            "causal": [moving_average(x) for x in cut],
        }
        labels = np.concatenate([labels_of(v)[-n:] for v, n in zip(videos, lengths, strict=True)])
        found[name] = {k: 100 * roc_auc(np.concatenate(s), labels) for k, s in scores.items()}
    return found


def run(bundle: Path, data: Path, threads: int | None) -> dict[str, object]:
    """Measure, print the tables, and return what the JSON line says."""
    dataset = open_dataset(data)
    videos = [video for video in dataset.test if video.labels is not None]
    with open_model(bundle, threads=threads) as model:
        tails = model.tails
        if DISTILLED not in model.normal.signals or "semantic" not in tails:
            raise InputError(
                f"{bundle}: no student is in it; `python -m sfn_train distil RUN` gives the run one"
            )
        expected = Expectation(tails["semantic"], model.normal.signals[DISTILLED])
        system = model.bundle.manifest.system
        found = [look(model, dataset, video) for video in videos]
    columns = [
        {**c, "student": np.array([expected.of(float(x)) for x in c[DISTILLED]])} for c in found
    ]
    lengths = [len(c[DISTILLED]) for c in columns]
    truth = [labels_of(v)[-n:] for v, n in zip(videos, lengths, strict=True)]
    whole = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
    labels = np.concatenate(truth)
    together = {
        part: {
            "estimate": correlations(whole[DISTILLED][kept], whole["semantic"][kept]),
            "evidence": correlations(whole["student"][kept], whole["semantic"][kept]),
        }
        for part, kept in (
            ("all", np.ones(len(labels), bool)), ("normal", ~labels), ("abnormal", labels),
        )
    }  # fmt: skip
    _, constants = paper_constants(system, dataset.published)
    terms = tuple(tails)
    picked = [("semantic",), *([("visual", "semantic")] if "visual" in terms else []), terms]
    choices = [Choice(t, student) for t in dict.fromkeys(picked) for student in (False, True)]
    table = {c.name: auc(columns, truth, c, constants, tails) for c in choices}
    baselines = baseline_auc(dataset, videos, lengths, constants)

    print(f"{data.name}: {len(videos)} test videos, {len(labels)} scored frames\n")
    print("| student against the real error | Pearson | Spearman |\n|---|---|---|")
    for part, kinds in together.items():
        for kind, row in kinds.items():
            print(f"| {kind}, {part} frames | {row['pearson']:.3f} | {row['spearman']:.3f} |")
    print("\n| evidence | paper | causal |\n|---|---|---|")
    for name, row in {**table, **{f"no model: {k}": v for k, v in baselines.items()}}.items():
        print(f"| {name} | {row['paper']:.1f} | {row['causal']:.1f} |")
    print()
    return {
        "data": data.name,
        "labels": dataset.fingerprint,
        "frames": len(labels),
        "correlation": together,
        "auc_percent": table,
        "no_model": baselines,
        "constants": constants.text(),
        "machine": platform.machine(),
    }


def labels_of(video: Video) -> NDArray[np.bool_]:
    assert video.labels is not None, "only labelled videos are measured"
    return np.asarray(video.labels > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="of a run with a student")
    parser.add_argument("--data", type=Path, required=True, help="a labelled data set")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime; default its own choice")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    asked = parser.parse_args()
    try:
        line = run(asked.bundle, asked.data, asked.threads)
    except SfnError as error:
        parser.exit(2, f"error: {error}\n")
    if asked.out is not None:
        asked.out.write_text(json.dumps(line, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
