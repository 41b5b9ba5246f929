"""A GPU out of memory: which batch would fit, and how to keep the batch of a step with it.

Memory is measured with steps of one and of two runs, after the failed batch has been given up, and
grows from one to the next as it does from there on:

    peak(n) = peak(1) + (n - 1) (peak(2) - peak(1)) + what the optimiser adds at its first step
"""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfn_train.config import TrainConfig
from sfn_train.exceptions import DeviceError

Batch = Mapping[str, Tensor]
Losses = Callable[[Batch], Tensor]  # the total of a batch

USABLE = 0.9  # of the memory; the rest is for fragments and the libraries' workspaces
ADAM_BYTES = 8  # a weight: two averages in fp32


@dataclass(frozen=True)
class Memory:
    """What a device has and what training takes of it, in bytes."""

    device: str  # for people
    usable: int
    one_run: int  # at the peak of a step
    two_runs: int | None  # None: out of memory
    optimiser: int


def runs_that_fit(memory: Memory) -> int:
    """The largest batch whose step stays within the memory, by a straight line."""
    left = memory.usable - memory.one_run - memory.optimiser
    if left < 0:
        return 0
    if memory.two_runs is None:
        return 1
    return 1 + left // max(1, memory.two_runs - memory.one_run)


def smaller_batch(batch: int, accumulate: int, fits: int) -> tuple[int, int] | None:
    """Batch and accumulate for steps of as many runs as before; None where none is smaller."""
    runs = batch * accumulate
    most = min(fits, batch - 1)
    found = max((n for n in range(1, most + 1) if runs % n == 0), default=None)
    return None if found is None else (found, runs // found)


def out_of_memory(train: TrainConfig, memory: Memory | None, *, resumable: bool) -> DeviceError:
    """The error that names the batch to try; without a measurement, half of what failed."""
    failed = f"out of GPU memory with train.batch {train.batch}"
    if memory is None:
        fits, estimate = train.batch // 2, "half of it may fit"
    else:
        fits = runs_that_fit(memory)
        failed += f" on {memory.device} ({memory.usable / 2**30:.1f} GiB usable)"
        estimate = (
            f"about {fits} would fit, estimated from the {memory.one_run / 2**30:.2f} GiB that a "
            f"step of one run takes"
        )
        if fits >= train.batch:  # something else took the memory when it failed
            fits, estimate = train.batch - 1, "it would fit alone: something else uses the memory"
    change = smaller_batch(train.batch, train.accumulate, fits)
    if change is None:
        return DeviceError(
            f"{failed}, and less than one run fits: take a smaller data.run_length or model, or "
            f"--set train.precision=bf16-mixed"
        )
    batch, accumulate = change
    how = "continue with --resume and" if resumable else "start again with --force and"
    return DeviceError(
        f"{failed}; {estimate}: {how} --set train.batch={batch} --set train.accumulate="
        f"{accumulate}, which leaves the {train.batch * train.accumulate} runs a step as they were"
    )


def measure(
    network: nn.Module, losses: Losses, batch: Batch, device: torch.device
) -> Memory | None:
    """Memory of steps of one and two runs of `batch` on a CUDA device; None on any other."""
    if device.type != "cuda":
        return None
    network.to(device)
    peaks = [_peak(network, losses, batch, device, n) for n in (1, 2)]
    _release(network)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    weights = sum(p.numel() for p in network.parameters() if p.requires_grad)
    usable = int(USABLE * free)
    return Memory(
        torch.cuda.get_device_name(device),
        usable,
        usable + 1 if peaks[0] is None else peaks[0],
        peaks[1],
        ADAM_BYTES * weights,
    )


def _peak(
    network: nn.Module, losses: Losses, batch: Batch, device: torch.device, n: int
) -> int | None:
    """Bytes at the peak of a step of the batch's first run, n times; None: out of memory."""
    _release(network)
    torch.cuda.reset_peak_memory_stats(device)
    runs = {
        name: value[:1].expand(n, *value.shape[1:]).contiguous().to(device)
        for name, value in batch.items()
    }
    try:
        losses(runs).backward()
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(device)


def _release(network: nn.Module) -> None:
    network.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
