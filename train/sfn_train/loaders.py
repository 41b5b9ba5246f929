"""Batches of training without end, batches of validation always the same."""

import lightning
from torch import Tensor
from torch.utils.data import DataLoader

from sfn_train.config import Config, TrainConfig
from sfn_train.data.clips import StepSampler, spread_runs, usable_spans
from sfn_train.data.prepare import Prepared
from sfn_train.systems import clip_dataset, clip_sampler

Loader = DataLoader[dict[str, Tensor]]


def total_steps(c: TrainConfig, steps_per_epoch: int) -> int | None:
    """Steps of the optimiser until the end; None where only time limits the run."""
    limits = [c.steps, None if c.epochs is None else c.epochs * steps_per_epoch]
    return min((limit for limit in limits if limit is not None), default=None)


def make_sampler(
    prepared: Prepared, config: Config, module: lightning.LightningModule
) -> StepSampler:
    """Batches for the step that the trainer is at, and for this device."""
    spans = usable_spans(prepared, prepared.split.train, config.data.run_length)
    return clip_sampler(spans, config, lambda: (module.global_step, module.global_rank))


def make_loaders(prepared: Prepared, config: Config, sampler: StepSampler) -> tuple[Loader, Loader]:
    """Training without end, and the same held-out runs at every validation, on every device."""
    length, c = config.data.run_length, config.train
    held_out = spread_runs(
        usable_spans(prepared, prepared.split.held_out, length),
        run_length=length,
        clips=config.clips_per_run,
        most=c.validation_batches * c.batch,
    )
    batches = [held_out[i : i + c.batch] for i in range(0, len(held_out), c.batch)]
    workers, keep = c.workers, c.workers > 0
    return (
        DataLoader(
            clip_dataset(prepared, config, vary=True),
            batch_sampler=sampler,
            num_workers=workers,
            persistent_workers=keep,
        ),
        DataLoader(clip_dataset(prepared, config, vary=False), batch_sampler=batches),
    )
