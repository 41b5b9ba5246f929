"""The folder a training writes: who may begin one, continue one, and replace one."""

import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from sfn_rt.sinks.files import hold_lock, output_errors
from sfn_train.callbacks import TENSORBOARD
from sfn_train.checkpoint import CHECKPOINT, CONFIG, INFO, NORMAL, WEIGHTS, load_config
from sfn_train.config import Config, parse_config
from sfn_train.devices import is_first
from sfn_train.exceptions import RunError

METRICS = "metrics.csv"
LOCK = CHECKPOINT.with_name("lock")  # held while a training writes here, then left
WRITTEN = (WEIGHTS, NORMAL, INFO, CONFIG, METRICS, TENSORBOARD, CHECKPOINT.parts[0])
HOW_LONG = ("steps", "epochs", "minutes")
HOW_SHARED = ("devices", "batch", "accumulate")  # of one step; their product must stay
WHERE = ("accelerator", "strategy", "workers")
MAY_CHANGE = (*HOW_LONG, *HOW_SHARED, *WHERE)


def check_out(out: Path, *, resume: bool, force: bool) -> None:
    """Refuse to write over a run before anything slow begins; --force clears what is there."""
    if resume:
        load_config(out)
        if not (out / CHECKPOINT).exists():
            raise RunError(
                f"{out / CHECKPOINT} does not exist: nothing to resume; leave out --resume and "
                f"add --force to start again"
            )
        _refuse_in_use(out)
        check_checkpoint(out / CHECKPOINT)
        return
    with output_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            if not force:
                raise RunError(
                    f"{out} exists; --resume continues it, --force replaces it, or choose "
                    f"another --out"
                )
            _refuse_in_use(out)
            for name in WRITTEN:
                target = out / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)


@contextmanager
def sole_training(out: Path) -> Iterator[None]:
    """Hold `out` for this training and all its devices; a second one is refused."""
    if not is_first():
        yield
        return
    with output_errors(out):
        (out / LOCK).parent.mkdir(parents=True, exist_ok=True)
        lock = hold_lock(out / LOCK, out)
    try:
        yield
    finally:
        os.close(lock)


def _refuse_in_use(out: Path) -> None:
    if (out / LOCK).exists():
        os.close(hold_lock(out / LOCK, out))


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
    """The run's own settings; only where, how long and in what portions it trains may change."""
    saved = load_config(out)
    config = parse_config(saved.to_yaml(), str(out / CONFIG), changes)
    allowed = {name: getattr(config.train, name) for name in MAY_CHANGE}
    if replace(saved, train=replace(saved.train, **allowed)) != config:
        raise RunError(
            f"{out}: a resumed run may change only "
            f"{', '.join(f'train.{name}' for name in MAY_CHANGE)}; leave out --resume and choose "
            f"another --out to train with other settings"
        )
    if saved.clips_per_step != config.clips_per_step:
        raise RunError(
            f"{out}: a step of this run learns from {saved.clips_per_step} clips, with these "
            f"settings it would from {config.clips_per_step}; with --resume, choose train.batch "
            f"and train.accumulate so that batch * accumulate * devices stays "
            f"{saved.clips_per_step // saved.clips_per_run}"
        )
    return config
