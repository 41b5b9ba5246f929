"""What does a lower precision cost in AUC? Every precision of a bundle on one labelled data set.

    python benchmarks/precision_ped2.py BUNDLE --data $SFN_DATA/ped2 [--threads 1]

Each frame is looked at once and then passes the networks of every precision on ONNX Runtime's CPU:
int8 and fp8 as Q/DQ graphs (fp8 with optimisations off), fp16 mostly computed in fp32 there, bf16
emulated by rounding. The figures are of the numbers; the speed is no GPU's. Frame-level micro AUC
in %, both protocols, the no-model baselines beside. These are test videos: nothing is chosen by
what is printed here, and the gate (docs/calibration.md) never sees them. Prints a table, then a
JSON line.
"""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from student_ped2 import baseline_auc, labels_of

from sfn_calib.emulate import open_variant
from sfn_rt.backends.base import Backend
from sfn_rt.bundle import FULL, load_bundle
from sfn_rt.datasets import Dataset, Video, check_length, open_dataset
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
    paper_constants,
    paper_scores,
    scored_span,
)
from sfn_rt.semantics.text_encoder import TextEncoder
from sfn_rt.streams import open_stream

Columns = Mapping[str, FloatArray]  # term -> (T,) of one video's scored frames
Figures = dict[str, float]  # protocol -> AUC in %


def in_precision(model: Model, backend: Backend) -> Model:
    """The model computed by another backend, its sentences too."""
    perception = replace(model.perception, backend=backend)
    settings = model.bundle.manifest.semantics
    if settings is not None and settings.text is not None:
        tokenizer = model.bundle.path(settings.text.tokenizer)
        text = TextEncoder(backend, tokenizer, settings.text.max_tokens)
        perception = replace(perception, text=text)
    return replace(model, perception=perception)


def measure(models: Mapping[str, Model], dataset: Dataset, video: Video) -> dict[str, Columns]:
    """Evidence of each scored frame in every precision."""
    streams = {name: open_stream(model.perception) for name, model in models.items()}
    first = next(iter(streams.values()))
    rows: dict[str, list[Mapping[str, float]]] = {name: [] for name in streams}
    with open_source(video.path, fps=dataset.fps) as source:
        for frames in grouped(source, BLOCK):
            block = first.look(frames)
            for name, stream in streams.items():
                rows[name] += [row.terms for row in stream.predict(block)]
    found: dict[str, Columns] = {}
    for name, terms in rows.items():
        check_length(video, len(terms))
        wanted = models[name].perception.terms
        columns = {t: np.array([row.get(t, float("nan")) for row in terms]) for t in wanted}
        span = scored_span(columns)
        found[name] = {term: column[span] for term, column in columns.items()}
    return found


def auc(
    videos: Sequence[Columns],
    truth: Sequence[NDArray[np.bool_]],
    terms: tuple[str, ...],
    constants: PaperConstants,
    tails: Mapping[str, Tail],
) -> Figures:
    """Micro AUC of some terms together, under both protocols."""
    chosen = [{term: columns[term] for term in terms} for columns in videos]
    scores = {
        "paper": [paper_scores(columns, constants) for columns in chosen],
        "causal": [causal_scores(columns, tails) for columns in chosen],
    }
    labels = np.concatenate(truth)
    return {name: 100 * roc_auc(np.concatenate(s), labels) for name, s in scores.items()}


def run(bundle: Path, data: Path, threads: int | None) -> dict[str, object]:
    """Measure, print the table, and return what the JSON line says."""
    dataset = open_dataset(data)
    videos = [video for video in dataset.test if video.labels is not None]
    opened = load_bundle(bundle)
    names = [FULL, *opened.manifest.precisions]
    if len(names) == 1:
        raise InputError(f"{bundle}: has {FULL} alone; `make calibrate` adds precisions")
    with ExitStack() as stack:
        model = stack.enter_context(open_model(bundle, threads=threads))
        models = {}
        for name in names:
            backend = open_variant(opened.graphs(name), opened.variants(name), threads=threads)
            models[name] = in_precision(model, stack.enter_context(backend))
        found = [measure(models, dataset, video) for video in videos]
        tails, system = model.tails, opened.manifest.system
    _, constants = paper_constants(system, dataset.published)
    terms = tuple(tails)
    paper_terms = tuple(t for t in terms if t != "attribute")
    choices = dict.fromkeys([*((t,) for t in paper_terms), paper_terms, terms])
    lengths = [len(columns[FULL][terms[0]]) for columns in found]
    truth = [labels_of(v)[-n:] for v, n in zip(videos, lengths, strict=True)]
    table = {
        name: {
            " + ".join(choice): auc([c[name] for c in found], truth, choice, constants, tails)
            for choice in choices
        }
        for name in names
    }
    baselines = baseline_auc(dataset, videos, lengths, constants)
    say(data.name, table, baselines, sum(lengths))
    return {
        "data": data.name,
        "labels": dataset.fingerprint,
        "frames": sum(lengths),
        "auc_percent": table,
        "gate": {name: opened.manifest.precisions[name].gate for name in names[1:]},
        "no_model": baselines,
        "constants": constants.text(),
        "backend": {name: model.perception.backend.name for name, model in models.items()},
        "machine": platform.machine(),
    }


def say(
    data: str,
    table: Mapping[str, Mapping[str, Figures]],
    baselines: Mapping[str, Figures],
    n_frames: int,
) -> None:
    """The table for people: AUC, and in brackets what it is more or less than in fp32."""
    print(f"{data}: {n_frames} scored frames\n\n| precision | evidence | paper | causal |")
    print("|---|---|---|---|")
    for precision, rows in table.items():
        for evidence, row in rows.items():
            cells = [
                f"{value:.2f} ({value - table[FULL][evidence][protocol]:+.2f})"
                for protocol, value in row.items()
            ]
            print(f"| {precision} | {evidence} | {' | '.join(cells)} |")
    for name, row in baselines.items():
        print(f"| - | no model: {name} | {row['paper']:.1f} | {row['causal']:.1f} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="with precisions that make calibrate added")
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
