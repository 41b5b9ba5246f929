"""Training: Lightning runs the loop, a step number decides everything else.

Batches, learning rate and stopping depend on the step (and, where minutes limit the run, on the
time trained), so a run that was interrupted and resumed ends with the weights, bit for bit, that it
would have had. Ctrl-C finishes the step, saves, and stops.
"""

import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from sfn_rt.sinks.files import output_errors, write_atomic
from sfn_train.callbacks import Bar, Stopper, checkpoints, ends_step, tensorboard
from sfn_train.checkpoint import CHECKPOINT, CONFIG, Run, save_run
from sfn_train.config import Config, TrainConfig
from sfn_train.data.prepare import Prepared
from sfn_train.devices import (
    choose_precision,
    is_first,
    precision_plugin,
    strategy,
    tune_allocator,
)
from sfn_train.distil import has_lessons, student_text, teach
from sfn_train.exceptions import DeviceError
from sfn_train.gpu_memory import measure, out_of_memory
from sfn_train.loaders import Loader, make_loaders, make_sampler, total_steps
from sfn_train.logs import MetricsCsv
from sfn_train.run_folder import METRICS, sole_training
from sfn_train.sources import check_tower, tower_record
from sfn_train.statistics import fit_statistics
from sfn_train.systems import build_network, loss_names, training_losses

EXPECTED_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
    r"The '(train|val)_dataloader' does not have many workers",  # reading a map needs none
    "Checkpoint directory .* exists and is not empty",  # it holds what --resume reads
    "The dirpath has changed from",  # the run folder may be moved
    r"Found \d+ module\(s\) in eval mode",  # the frozen tower
)


class Interrupted(KeyboardInterrupt):
    """Training stopped by a signal, with everything saved for --resume."""


class Training(lightning.LightningModule):
    """One optimisation of a network on normal clips."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.total_steps: int | None = None  # None: only time limits the run
        self.model = build_network(config)
        # 5 % of a step on a CPU: the frame head's convolutions; 20 % where all is convolution.
        layout = getattr(self.model, "memory_format", torch.channels_last)
        self.model.to(memory_format=layout)  # type: ignore[call-overload]
        self.trained_s = 0.0  # by earlier processes
        self.last_loss = math.nan
        self._step_losses: dict[str, Tensor] = {}  # summed over the batches of a logged step
        self._started = time.monotonic()

    def training_step(self, batch: Mapping[str, Tensor], index: int) -> Tensor:
        """Losses of one batch of runs; the logged ones are those of the whole step."""
        losses = training_losses(self.model, batch, self.config)
        c = self.config.train
        if (self.global_step + 1) % c.log_every == 0:  # reading a loss waits for it
            for name, loss in losses.items():
                self._step_losses[name] = self._step_losses.get(name, 0) + loss.detach()
            if ends_step(self.config, index):
                self._log_step()
        return losses["total"]

    def _log_step(self) -> None:
        names = list(self._step_losses)
        summed = torch.stack([self._step_losses.pop(name) for name in names])
        means = self.trainer.strategy.reduce(summed / self.config.train.accumulate)  # of devices
        values = {f"train/{name}": mean for name, mean in zip(names, means, strict=True)}
        values["train/learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        values["train/minutes"] = self.minutes()
        self.log_dict(values | {"step": float(self.global_step + 1)})
        self.last_loss = float(values["train/total"])

    def validation_step(self, batch: Mapping[str, Tensor], index: int) -> None:
        """The same losses on held-out normal clips."""
        found = training_losses(self.model, batch, self.config)
        losses = {f"validation/{name}": loss for name, loss in found.items()}
        size = len(batch["frames"])
        self.log_dict(losses, batch_size=size, sync_dist=True)
        self.log("step", float(self.global_step), batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam as in the paper; fused, one pass over all weights that are trained."""
        c, trained = self.config.train, [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(
            trained, c.learning_rate, c.betas, weight_decay=c.weight_decay, fused=True
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip here: Lightning refuses to with a fused optimizer, which unscales by itself in fp16.

        So they are unscaled first. A step with an infinity in it is skipped, and counts.
        """
        if (norm := self.config.train.gradient_clip) is not None:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            if scaler is not None:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters(), norm)

    def on_train_start(self) -> None:
        """Time counts from here; what is logged again is cut from the log."""
        self._started = time.monotonic()
        for logger in self.loggers:
            if isinstance(logger, MetricsCsv):
                logger.start(self.global_step)

    def on_train_batch_start(self, batch: object, index: int) -> None:
        """Set the learning rate of this step."""
        done = self.done()
        if self.config.train.minutes is not None:  # clocks differ, learning rates must not
            done = self.trainer.strategy.broadcast(done)
        rate = learning_rate(self.config.train, self.global_step, done)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def minutes(self) -> float:
        """Trained so far, interruptions not counted."""
        return (self.trained_s + time.monotonic() - self._started) / 60

    def done(self) -> float:
        """Share of the training that is behind, by steps or by time, whichever is further."""
        by_steps = self.global_step / self.total_steps if self.total_steps else 0.0
        limit = self.config.train.minutes
        return min(1.0, max(by_steps, self.minutes() / limit if limit else 0.0))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["trained_s"] = self.minutes() * 60
        if (tower := tower_record(self.model)) is not None:
            checkpoint["tower"] = tower

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning counts batches, of which a step may have more or fewer than it had."""
        check_tower(self.model, checkpoint, CHECKPOINT)
        self.trained_s = float(checkpoint["trained_s"])
        batches = checkpoint["global_step"] * self.config.train.accumulate
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            unfinished = counts["ready"] - counts["completed"]  # 1 where saved at a batch's end
            counts.update(dict.fromkeys(counts, batches), completed=batches - unfinished)


def learning_rate(c: TrainConfig, step: int, done: float) -> float:
    """Linear warm-up, then constant or a half cosine down to 1 % as `done` goes to 1."""
    rate = c.learning_rate * min(1.0, (step + 1) / (c.warmup_steps + 1))
    if c.schedule == "cosine":
        rate *= 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
    return rate


@dataclass(frozen=True)
class Summary:
    """What training tells at its end."""

    path: Path
    steps: int
    minutes: float
    losses: Mapping[str, float]  # on held-out normal clips
    student: Mapping[str, float] = field(default_factory=dict)  # its correlation with the real

    def text(self) -> str:
        """For people, with the next command."""
        losses = "  ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
        return (
            f"run      {self.path}\n"
            f"trained  {self.steps} steps in {self.minutes:.1f} min\n"
            f"held out {losses}\n"
            f"{student_text(self.student)}"
            f"next     make export RUN={self.path}"
        )


def fit(prepared: Prepared, config: Config, out: Path, *, resume: bool = False) -> Summary | None:
    """Train into `out`, which `check_out` has seen; None on all but the first device."""
    train = config.train
    lightning.seed_everything(train.seed, workers=True, verbose=False)
    tune_allocator()
    module = Training(config)
    sampler = make_sampler(prepared, config, module)
    module.total_steps = total_steps(train, sampler.steps_per_epoch)
    loaders = make_loaders(prepared, config, sampler)
    stopper = Stopper()
    with sole_training(out), output_errors(out), quiet():
        trainer = make_trainer(module, out, stopper)
        if is_first():
            write_atomic(out / CONFIG, config.to_yaml())
        with _memory_errors(module, trainer, loaders[1], out):
            with stopper.signals():
                checkpoint = out / CHECKPOINT if resume else None
                trainer.fit(module, *loaders, ckpt_path=checkpoint, weights_only=True)
            minutes = module.minutes()
            trainer.save_checkpoint(out / CHECKPOINT)
            if stopper.interrupted(trainer):
                raise Interrupted
            (losses,) = trainer.validate(module, loaders[1], verbose=False)
        if not trainer.is_global_zero:
            return None
        shown = {
            name.removeprefix("validation/"): float(value)
            for name, value in losses.items()
            if name.startswith("validation/")
        }
        summary = Summary(out, trainer.global_step, minutes, shown)
        info = describe_run(prepared, config, summary)
        if (tower := tower_record(module.model)) is not None:
            info["tower"] = tower
        # Lightning leaves the network on the CPU, where a vision tower takes seconds a frame.
        network = module.model.to(trainer.strategy.root_device).eval()
        run = Run(out, config, network, {}, info)
        if has_lessons(config):
            run = teach(run, prepared)
            summary = replace(summary, student=run.info["student"]["held_out"])
        save_run(fit_statistics(run, prepared))
    return summary


def make_trainer(module: Training, out: Path, stopper: Stopper) -> lightning.Trainer:
    """Lightning's Trainer; it counts batches where it says so, and we count steps."""
    c = module.config.train
    metrics = MetricsCsv(out / METRICS, loss_names(module.config))
    try:
        return lightning.Trainer(
            accelerator=c.accelerator,
            devices=c.devices,
            strategy=strategy(module.config),
            plugins=[precision_plugin(choose_precision(c), c)],
            max_steps=module.total_steps or -1,
            max_epochs=-1,
            accumulate_grad_batches=c.accumulate,
            val_check_interval=c.validate_every * c.accumulate,  # batches
            check_val_every_n_epoch=None,
            log_every_n_steps=c.log_every,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
            logger=[metrics, tensorboard(out)],
            callbacks=[stopper, Bar(), checkpoints(out, c.checkpoint_every)],
        )
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DeviceError(
            f"train.accelerator={c.accelerator}, train.devices={c.devices}, "
            f"train.strategy={c.strategy} cannot train here: {reason}"
        ) from None


@contextmanager
def _memory_errors(
    module: Training, trainer: lightning.Trainer, held_out: Loader, out: Path
) -> Iterator[None]:
    """Where the GPU's memory does not suffice, name the batch that would."""
    device = trainer.strategy.root_device
    try:
        yield
        return
    except torch.OutOfMemoryError:
        pass  # leave the handler first: its traceback holds the failed step's tensors

    def total(batch: Mapping[str, Tensor]) -> Tensor:
        with trainer.precision_plugin.forward_context():
            return training_losses(module.model, batch, module.config)["total"]

    memory = measure(module.model, total, next(iter(held_out)), device)
    raise out_of_memory(module.config.train, memory, resumable=(out / CHECKPOINT).exists())


def describe_run(prepared: Prepared, config: Config, summary: Summary) -> dict[str, Any]:
    """run.json: what made this model, for the bundle's provenance."""
    made = prepared.captions
    return {
        "data": str(prepared.dataset.root.resolve()),
        "n_videos": len(prepared.videos),
        "n_frames": sum(video.n_frames for video in prepared.videos),
        "n_captions": len(prepared.sentences),
        "captions": None if made is None else {"model": made.model, "prompt": made.prompt},
        "seed": config.train.seed,
        "config_sha256": config.fingerprint(),
        "split": prepared.describe_split(),
        "steps": summary.steps,
        "minutes": round(summary.minutes, 3),
        "clips_per_step": config.clips_per_step,
        "precision": choose_precision(config.train),
        "torch": torch.__version__,
        "held_out_losses": dict(summary.losses),
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what Lightning says about choices that are made here on purpose."""
    logs = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
