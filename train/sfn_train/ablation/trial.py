"""One row with one seed: trained for the steps of its configuration, calibrated, measured.

    train     the trainer's own loop, without validation, checkpoints and curves
    measure   tails on held-out normal footage, then every labelled test frame under both protocols

The attribute term takes no part: no network learns it. Axes: T frames of one video.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sfn_rt.exceptions import DataError
from sfn_rt.metrics import average_precision, equal_error_rate, macro_auc, roc_auc
from sfn_rt.normal import NormalFootage
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.scores import (
    OBSERVED,
    FloatArray,
    Tail,
    causal_scores,
    moving_average,
    paper_scores,
    paper_term,
)
from sfn_train.ablation.footage import Material, View, cached_blocks
from sfn_train.ablation.rows import scored_terms
from sfn_train.callbacks import Stopper
from sfn_train.checkpoint import Run
from sfn_train.config import Config
from sfn_train.data.split import Span
from sfn_train.devices import choose_precision, tune_allocator
from sfn_train.loaders import make_loaders, make_sampler
from sfn_train.loop import Interrupted, Training, quiet
from sfn_train.statistics import evidence_of, fit_statistics, open_perception
from sfn_train.systems import training_losses

TOGETHER = "together"
PROTOCOLS = ("paper", "causal")

Figures = dict[str, dict[str, float]]  # by protocol: micro_auc and its like, as shares of 1
Columns = list[dict[str, FloatArray]]  # a video: (T,) by term


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one trial found; JSON holds exactly this."""

    config_sha256: str
    seed: int
    steps: int
    terms: tuple[str, ...]  # that score
    parameters: int  # trained ones
    losses: Mapping[str, float]  # of the trained network on held-out normal clips
    figures: Mapping[str, Figures]  # by evidence: each term alone, and `together`
    train_s: float
    measure_s: float  # tails on normal footage, and all test videos
    precision: str
    threads: int


def run_trial(material: Material, config: Config) -> Trial:
    """Train one row with one seed and measure it."""
    view = material.view(config)
    start = time.perf_counter()
    network, losses, precision = train(view, config)
    trained = time.perf_counter()
    figures = measure(network, config, view, material)
    return Trial(
        config_sha256=config.fingerprint(),
        seed=config.train.seed,
        steps=int(config.train.steps or 0),
        terms=scored_terms(config),
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        losses=losses,
        figures=figures,
        train_s=trained - start,
        measure_s=time.perf_counter() - trained,
        precision=precision,
        threads=torch.get_num_threads(),
    )


def train(view: View, config: Config) -> tuple[nn.Module, dict[str, float], str]:
    """The trained network, its losses on some held-out clips, and the precision it trained in."""
    lightning.seed_everything(config.train.seed, workers=True, verbose=False)
    tune_allocator()
    precision = choose_precision(config.train)
    module = Training(config)
    module.total_steps = config.train.steps
    sampler = make_sampler(view.prepared, config, module)
    clips, held_out = make_loaders(view.prepared, config, sampler)
    stopper = Stopper()
    with quiet():
        trainer = lightning.Trainer(
            accelerator=config.train.accelerator,
            devices=1,
            precision=precision,
            max_steps=config.train.steps or -1,
            max_epochs=-1,
            accumulate_grad_batches=config.train.accumulate,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            callbacks=[stopper],
        )
        with stopper.signals():
            trainer.fit(module, clips, held_out)
    if stopper.signalled:
        raise Interrupted
    device = trainer.strategy.root_device  # Lightning leaves the network on the CPU
    network = module.model.to(device).eval()
    batch = {name: tensor.to(device) for name, tensor in next(iter(held_out)).items()}
    with torch.inference_mode():
        found = training_losses(network, batch, config)
    losses = {name: float(loss) for name, loss in found.items()}
    if not np.isfinite(list(losses.values())).all():
        raise DataError(
            f"training with seed {config.train.seed} ended in losses {losses}; lower "
            f"train.learning_rate, or set train.gradient_clip"
        )
    return network, losses, precision


def measure(
    network: nn.Module, config: Config, view: View, material: Material
) -> dict[str, Figures]:
    """Figures of every term alone and of all together, on the labelled test videos."""
    terms = scored_terms(config)
    columns, tails = evidence(network, config, view)
    labels = material.labels()
    truth = [labels[video.name] for video in view.test]
    chosen = {term: (term,) for term in terms} | {TOGETHER: terms}
    figures = {}
    for name, some in chosen.items():
        videos = [{term: column[term] for term in some} for column in columns]
        scores = {
            "paper": [paper_scores(video, material.constants) for video in videos],
            "causal": [causal_scores(video, tails) for video in videos],
        }
        first = max(OBSERVED, config.model.observed)
        figures[name] = {protocol: _figures(s, truth, first) for protocol, s in scores.items()}
    return figures


def evidence(network: nn.Module, config: Config, view: View) -> tuple[Columns, Mapping[str, Tail]]:
    """Evidence (T,) of each term and test video, and the tails of held-out normal footage."""
    terms = scored_terms(config)
    run = fit_statistics(
        Run(Path(), config, network, {}, {}),
        view.prepared,
        blocks=cached_blocks,
        text=view.text,
        terms=terms,
        progress=False,
    )
    normal = NormalFootage.from_arrays(run.normal)
    visual = VisualConfig(**run.info["visual"])
    nan = float("nan")
    columns: Columns = []
    with open_perception(run, normal.scene, visual, view.text) as perception:
        perception = replace(perception, terms=terms)
        for video in view.test:
            span = Span(0, 0, video.n_frames)
            rows = list(evidence_of(perception, config, video, span, cached_blocks, False, "test"))
            columns.append({t: np.array([r.terms.get(t, nan) for r in rows]) for t in terms})
    return columns, normal.tails


def baseline_figures(material: Material) -> dict[str, Figures]:
    """What no model scores on the same frames, under both protocols."""
    labels = material.labels()
    truth = list(labels.values())
    return {
        name: {
            "paper": _baseline(
                [paper_term(_unscored(by_video[v]), constants) for v in labels], truth
            ),
            "causal": _baseline([moving_average(_unscored(by_video[v])) for v in labels], truth),
        }
        for constants in [material.constants]
        for name, by_video in material.baselines().items()
    }


def _baseline(scores: Sequence[FloatArray], truth: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    return _figures(scores, truth, OBSERVED)


def _unscored(evidence: FloatArray) -> FloatArray:
    masked = np.array(evidence, dtype=np.float64)
    masked[:OBSERVED] = np.nan
    return masked


def _figures(
    scores: Sequence[FloatArray], truth: Sequence[NDArray[np.uint8]], first: int
) -> dict[str, float]:
    """Of one evidence under one protocol; the first frames of each video are left out."""
    scored, labels = [s[first:] for s in scores], [y[first:] for y in truth]
    every, known = np.concatenate(scored), np.concatenate(labels)
    return {
        "micro_auc": roc_auc(every, known),
        "macro_auc": macro_auc(scored, labels),
        "average_precision": average_precision(every, known),
        "equal_error_rate": equal_error_rate(every, known),
    }
