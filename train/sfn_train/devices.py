"""Where training computes and in which precision: what is settled here is not left to Lightning."""

import ctypes
import os
import sys
from typing import Literal

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, Strategy

from sfn_train.config import Config, TrainConfig
from sfn_train.systems import every_weight_learns

PrecisionName = Literal["32-true", "bf16-mixed", "16-mixed"]


def is_first() -> bool:
    """Whether this process is the first of those that share the work."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def on_cpu(c: TrainConfig) -> bool:
    """Whether the processor computes, by choice or for want of anything else."""
    found = torch.cuda.is_available() or torch.backends.mps.is_available()
    return c.accelerator == "cpu" or (c.accelerator == "auto" and not found)


def device_name(c: TrainConfig) -> str:
    """The kind of device that computes, as torch calls it."""
    return "cpu" if on_cpu(c) else "cuda" if torch.cuda.is_available() else "mps"


def choose_precision(c: TrainConfig) -> PrecisionName:
    """The precision asked for; auto is bf16 where the device computes in it.

    Elsewhere bf16 is emulated and slower than fp32.
    """
    if c.precision != "auto":
        return c.precision
    if on_cpu(c):
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
    return "bf16-mixed" if native else "32-true"


def precision_plugin(name: PrecisionName, c: TrainConfig) -> Precision:
    """Made here because Lightning turns fp16 on a CPU into bf16 with no more than a warning."""
    if name == "32-true":
        return Precision()
    return MixedPrecision(name, device_name(c))


def strategy(config: Config) -> str | Strategy:
    """How several devices share a step: DDP, unless another of Lightning's is asked for.

    Weights without a gradient it waits for in vain, unless it looks for them at every step.
    """
    c = config.train
    if c.strategy == "ddp" or (c.strategy == "auto" and c.devices > 1):
        return DDPStrategy(find_unused_parameters=not every_weight_learns(config))
    return c.strategy


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
