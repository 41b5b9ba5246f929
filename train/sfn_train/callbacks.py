"""What happens around the steps of training: stopping, the progress line, checkpoints."""

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast

import lightning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from sfn_train.checkpoint import CHECKPOINT
from sfn_train.config import Config
from sfn_train.logs import StepBar

TENSORBOARD = "tensorboard"


class Progressing(Protocol):
    """What the callbacks ask of a training."""

    config: Config
    last_loss: float  # nan: none read yet

    def minutes(self) -> float: ...


def ends_step(config: Config, index: int) -> bool:
    """Whether the optimiser steps after the batch of this index, counted from 0."""
    return (index + 1) % config.train.accumulate == 0


class Stopper(Callback):
    """Ends training at the time limit or on a signal, always after a whole step."""

    def __init__(self) -> None:
        self.signalled = False

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """All devices stop at the same step."""
        training = cast(Progressing, pl_module)
        if not ends_step(training.config, batch_idx):
            return
        limit = training.config.train.minutes
        stop = self.signalled or (limit is not None and training.minutes() >= limit)
        if trainer.strategy.reduce_boolean_decision(stop, all=False):
            trainer.should_stop = True

    def interrupted(self, trainer: lightning.Trainer) -> bool:
        """Whether any device was signalled; all of them must ask."""
        return bool(trainer.strategy.reduce_boolean_decision(self.signalled, all=False))

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
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        training = cast(Progressing, pl_module)
        if not ends_step(training.config, batch_idx):
            return
        if not math.isnan(training.last_loss):
            self._bar.label = f"training  loss {training.last_loss:.4f}"
        self._bar.advance()

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._bar.__exit__()


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
