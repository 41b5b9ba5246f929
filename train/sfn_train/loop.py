"""Training: Lightning runs the loop, a step number decides everything else.

Batches, learning rate and stopping depend on the step (and, where minutes limit the run, on the
time trained), so a run that was interrupted and resumed ends with the weights, bit for bit, that it
would have had. Ctrl-C finishes the step, saves, and stops.
"""

import ctypes
import logging
import math
import os
import pickle
import shutil
import signal
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from sfn_rt.sinks.files import output_errors, write_atomic
from sfn_train.checkpoint import (
    CHECKPOINT,
    CONFIG,
    INFO,
    NORMAL,
    WEIGHTS,
    Run,
    load_config,
    save_run,
)
from sfn_train.config import Config, TrainConfig, parse_config
from sfn_train.data.clips import StepSampler, spread_runs, usable_spans
from sfn_train.data.prepare import Prepared
from sfn_train.exceptions import RunError
from sfn_train.logs import MetricsCsv, StepBar
from sfn_train.statistics import fit_statistics
from sfn_train.systems import build_network, clip_dataset, training_losses

METRICS, TENSORBOARD = "metrics.csv", "tensorboard"
WRITTEN = (WEIGHTS, NORMAL, INFO, CONFIG, METRICS, TENSORBOARD, CHECKPOINT.parts[0])
EXPECTED_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
    r"The '(train|val)_dataloader' does not have many workers",  # reading a map needs none
    "Checkpoint directory .* exists and is not empty",  # it holds what --resume reads
    "The dirpath has changed from",  # the run folder may be moved
)
Loader = DataLoader[dict[str, Tensor]]
MAY_CHANGE = ("steps", "epochs", "minutes", "devices", "accelerator", "strategy", "workers")


class Interrupted(KeyboardInterrupt):
    """Training stopped by a signal, with everything saved for --resume."""


class Training(lightning.LightningModule):
    """One optimisation of a network on normal clips."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.total_steps: int | None = None  # None: only time limits the run
        self.model = build_network(config)
        # 5 % of a step on a CPU: the frame head's convolutions.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained_s = 0.0  # by earlier processes
        self.last_loss = math.nan
        self._started = time.monotonic()

    def training_step(self, batch: Mapping[str, Tensor], index: int) -> Tensor:
        """Losses of one batch of runs."""
        losses = training_losses(self.model, batch, self.config)
        if (self.global_step + 1) % self.config.train.log_every == 0:  # reading a loss waits for it
            values: dict[str, Any] = {f"train/{k}": loss.detach() for k, loss in losses.items()}
            values["train/learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            values["train/minutes"] = self.minutes()
            self.log_dict(values | {"step": float(self.global_step + 1)})
            self.last_loss = float(losses["total"].detach())
        return losses["total"]

    def validation_step(self, batch: Mapping[str, Tensor], index: int) -> None:
        """The same losses on held-out normal clips."""
        found = training_losses(self.model, batch, self.config)
        losses = {f"validation/{name}": loss for name, loss in found.items()}
        size = len(batch["frames"])
        self.log_dict(losses, batch_size=size, sync_dist=True)
        self.log("step", float(self.global_step), batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam as in the paper; fused, one pass over all weights."""
        c = self.config.train
        return torch.optim.Adam(
            self.parameters(), c.learning_rate, c.betas, weight_decay=c.weight_decay, fused=True
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip here: Lightning refuses to with a fused optimizer, for the sake of fp16 alone."""
        if (norm := self.config.train.gradient_clip) is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), norm)

    def on_train_start(self) -> None:
        """Time counts from here; what is logged again is cut from the log."""
        self._started = time.monotonic()
        for logger in self.loggers:
            if isinstance(logger, MetricsCsv):
                logger.start(self.global_step)

    def on_train_batch_start(self, batch: object, index: int) -> None:
        """Set the learning rate of this step."""
        rate = learning_rate(self.config.train, self.global_step, self.done())
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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trained_s = float(checkpoint["trained_s"])


def learning_rate(c: TrainConfig, step: int, done: float) -> float:
    """Linear warm-up, then constant or a half cosine down to 1 % as `done` goes to 1."""
    rate = c.learning_rate * min(1.0, (step + 1) / (c.warmup_steps + 1))
    if c.schedule == "cosine":
        rate *= 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
    return rate


class Stopper(Callback):
    """Ends training at the time limit or on a signal, always after a whole step."""

    def __init__(self) -> None:
        self.signalled = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any
    ) -> None:
        """All devices stop at the same step."""
        assert isinstance(pl_module, Training)
        limit = pl_module.config.train.minutes
        stop = self.signalled or (limit is not None and pl_module.minutes() >= limit)
        if trainer.strategy.reduce_boolean_decision(stop, all=False):
            trainer.should_stop = True

    @contextmanager
    def signals(self) -> Iterator[None]:
        """The first Ctrl-C asks to stop; the second one stops on the spot."""

        def ask(number: int, frame: FrameType | None) -> None:
            self.signalled = True
            signal.signal(number, before[signal.Signals(number)])

        before: dict[signal.Signals, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.getsignal(number)
                signal.signal(number, ask)
        except ValueError:  # not in the main thread, where no signal arrives either
            before.clear()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Bar(Callback):
    """Steps, rate, loss and time left on a terminal."""

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        total = trainer.max_steps if trainer.max_steps > 0 else None
        enabled = trainer.is_global_zero
        self._bar = StepBar("training", total, done=trainer.global_step, enabled=enabled)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any
    ) -> None:
        assert isinstance(pl_module, Training)
        if not math.isnan(pl_module.last_loss):
            self._bar.label = f"training  loss {pl_module.last_loss:.4f}"
        self._bar.advance()

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._bar.__exit__()


@dataclass(frozen=True)
class Summary:
    """What training tells at its end."""

    path: Path
    steps: int
    minutes: float
    losses: Mapping[str, float]  # on held-out normal clips

    def text(self) -> str:
        """For people, with the next command."""
        losses = "  ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
        return (
            f"run      {self.path}\n"
            f"trained  {self.steps} steps in {self.minutes:.1f} min\n"
            f"held out {losses}\n"
            f"next     make export RUN={self.path}"
        )


def check_out(out: Path, *, resume: bool, force: bool) -> None:
    """Refuse to write over a run before anything slow begins; --force clears what is there."""
    if resume:
        load_config(out)
        if not (out / CHECKPOINT).exists():
            raise RunError(
                f"{out / CHECKPOINT} does not exist: nothing to resume; leave out --resume and "
                f"add --force to start again"
            )
        check_checkpoint(out / CHECKPOINT)
        return
    with output_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            if not force:
                raise RunError(
                    f"{out} exists; --resume continues it, --force replaces it, or choose "
                    f"another --out"
                )
            for name in WRITTEN:
                target = out / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)


def check_checkpoint(path: Path) -> None:
    """Refuse a checkpoint that is damaged, or that would run code when loaded."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no checkpoint of torch, or is cut short")
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"{path} cannot be resumed from ({reason}); leave out --resume and add --force to "
            f"start again"
        ) from None


def resumed_config(out: Path, changes: Sequence[str]) -> Config:
    """The run's own settings; only where and how long it trains may change."""
    saved = load_config(out)
    config = parse_config(saved.to_yaml(), str(out / CONFIG), changes)
    allowed = {name: getattr(config.train, name) for name in MAY_CHANGE}
    if replace(saved, train=replace(saved.train, **allowed)) != config:
        raise RunError(
            f"{out}: a resumed run may change only "
            f"{', '.join(f'train.{name}' for name in MAY_CHANGE)}; leave out --resume and choose "
            f"another --out to train with other settings"
        )
    return config


def fit(prepared: Prepared, config: Config, out: Path, *, resume: bool = False) -> Summary | None:
    """Train into `out`, which `check_out` has seen; None on all but the first device."""
    train = config.train
    lightning.seed_everything(train.seed, workers=True, verbose=False)
    tune_allocator()
    precision = native_precision() if train.precision == "auto" else train.precision
    module = Training(config)
    sampler = make_sampler(prepared, config, module)
    module.total_steps = total_steps(train, sampler.steps_per_epoch)
    loaders = make_loaders(prepared, config, sampler)
    stopper, metrics = Stopper(), MetricsCsv(out / METRICS)
    with output_errors(out), quiet():
        if is_first():
            write_atomic(out / CONFIG, config.to_yaml())
        trainer = lightning.Trainer(
            accelerator=train.accelerator,
            devices=train.devices,
            strategy=train.strategy,
            precision=precision,
            max_steps=module.total_steps or -1,
            max_epochs=-1,
            val_check_interval=train.validate_every,
            check_val_every_n_epoch=None,
            log_every_n_steps=train.log_every,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
            logger=[metrics, tensorboard(out)],
            callbacks=[stopper, Bar(), checkpoints(out, train.checkpoint_every)],
        )
        checkpoint = out / CHECKPOINT if resume else None
        with stopper.signals():
            trainer.fit(module, *loaders, ckpt_path=checkpoint, weights_only=True)
        minutes = module.minutes()
        trainer.save_checkpoint(out / CHECKPOINT)
        if stopper.signalled:
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
    info = describe_run(prepared, config, summary, precision)
    run = Run(out, config, module.model.cpu().eval(), {}, info)
    save_run(fit_statistics(run, prepared))
    return summary


def total_steps(c: TrainConfig, steps_per_epoch: int) -> int | None:
    """Steps until the end; None where only time limits the run."""
    limits = [c.steps, None if c.epochs is None else c.epochs * steps_per_epoch]
    return min((limit for limit in limits if limit is not None), default=None)


def make_sampler(prepared: Prepared, config: Config, module: Training) -> StepSampler:
    """Batches for the step the trainer is at."""
    length = config.data.run_length
    return StepSampler(
        usable_spans(prepared, prepared.split.train, length),
        run_length=length,
        clips=config.clips_per_run,
        batch=config.train.batch,
        seed=config.train.seed,
        begin=lambda: (module.global_step, module.global_rank),
        world=config.train.devices,
    )


def make_loaders(prepared: Prepared, config: Config, sampler: StepSampler) -> tuple[Loader, Loader]:
    """Training without end, and the same held-out runs at every validation."""
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


def describe_run(
    prepared: Prepared, config: Config, summary: Summary, precision: str
) -> dict[str, Any]:
    """run.json: what made this model, for the bundle's provenance."""
    split = {
        part: [
            {"video": prepared.videos[span.video].name, "start": span.start, "stop": span.stop}
            for span in spans
        ]
        for part, spans in (("train", prepared.split.train), ("held_out", prepared.split.held_out))
    }
    return {
        "data": str(prepared.dataset.root.resolve()),
        "n_videos": len(prepared.videos),
        "n_frames": sum(video.n_frames for video in prepared.videos),
        "n_captions": len(prepared.sentences),
        "seed": config.train.seed,
        "config_sha256": config.fingerprint(),
        "split": split,
        "steps": summary.steps,
        "minutes": round(summary.minutes, 3),
        "precision": precision,
        "torch": torch.__version__,
        "held_out_losses": dict(summary.losses),
    }


def checkpoints(out: Path, every: int) -> ModelCheckpoint:
    """last.ckpt, replaced whole every so many steps."""
    return ModelCheckpoint(
        dirpath=out / CHECKPOINT.parent,
        filename=CHECKPOINT.stem,
        every_n_train_steps=every,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )


def tensorboard(out: Path) -> TensorBoardLogger:
    """Curves in OUT/tensorboard, one file a start."""
    return TensorBoardLogger(out, name=TENSORBOARD, version="", default_hp_metric=False)


def is_first() -> bool:
    """Whether this process is the first of those that share the work."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def native_precision() -> Literal["bf16-mixed", "32-true"]:
    """bf16 where the processor computes in it; elsewhere it is emulated and slower than fp32."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def tune_allocator() -> None:
    """Let glibc keep freed memory: a step allocates and frees hundreds of MB, and handing them
    back makes the kernel zero the same pages again at every step. No effect elsewhere."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # names in malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
    mallopt(top_pad, 256 << 20)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what Lightning says about choices that are made here on purpose."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        log.setLevel(level)
