"""The systems that can be trained: network, losses, clips, order of clips, backend of each.

Training, run folders and statistics ask here and know no system by name. A system's code is
imported where it is asked for, so one does not load the other.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sfn_rt.backends.base import Backend
from sfn_train.config import Config
from sfn_train.data.clips import Runs, StepSampler
from sfn_train.data.prepare import Prepared
from sfn_train.data.split import Span
from sfn_train.losses import compute_losses
from sfn_train.model import SFN, ModelConfig
from sfn_train.text import TextModel
from sfn_train.torch_backend import TorchBackend


def build_network(config: Config) -> nn.Module:
    """An untrained network, its weights drawn from torch's generator."""
    if isinstance(config.model, ModelConfig):
        return SFN(config.model)
    from sfn_train.dual_memory import DualMemory

    return DualMemory(config.model)


def training_losses(
    network: nn.Module, batch: Mapping[str, Tensor], config: Config
) -> dict[str, Tensor]:
    """Each loss of a batch of runs, unweighted, and their weighted `total`."""
    if not isinstance(config.model, ModelConfig):
        from sfn_train.dual_memory import dual_losses

        return dual_losses(network, batch, config)
    frames, text = batch["frames"], batch.get("text")
    if "hidden" in batch:  # the frozen tower's outputs, from the cache
        prediction = network(frames, text, (batch["hidden"], batch["embedded"]))
    else:
        prediction = network(frames, text)
    # The losses are differences of near-equal numbers: never in half precision.
    with torch.autocast(frames.device.type, enabled=False):
        return compute_losses(prediction, frames, text, config.model, config.train.loss)


def loss_names(config: Config) -> tuple[str, ...]:
    """Every loss that the system may have, in the order of the log's columns."""
    if isinstance(config.model, ModelConfig):
        return ("frame", "text", "motion", "balance")
    return ("reconstruction", "entropy", "distance", "pseudo")


def every_weight_learns(config: Config) -> bool:
    """Whether each trained weight has a part in the losses of every step; heads may have none."""
    if isinstance(config.model, ModelConfig):
        return not config.model.use_text or config.train.loss.text > 0
    return True


def clip_dataset(prepared: Prepared, config: Config, *, vary: bool) -> Dataset[dict[str, Tensor]]:
    """Runs of footage, indexed by video and first frame; `vary` for training."""
    if isinstance(config.model, ModelConfig):
        return Runs(prepared, config, vary=vary)
    from sfn_train.dual_memory import DualClips

    return DualClips(prepared)


def clip_sampler(
    spans: Sequence[Span], config: Config, begin: Callable[[], tuple[int, int]]
) -> StepSampler:
    """The training batches of each device, from the step and for the rank that `begin` gives."""
    c = config.train
    if isinstance(config.model, ModelConfig):
        return StepSampler(
            spans,
            run_length=config.data.run_length,
            clips=config.clips_per_run,
            batch=c.batch,
            seed=c.seed,
            begin=begin,
            world=c.devices,
            accumulate=c.accumulate,
        )
    from sfn_train.dual_memory import DualSampler

    return DualSampler(
        spans,
        config.model,
        batch=c.batch,
        seed=c.seed,
        begin=begin,
        world=c.devices,
        accumulate=c.accumulate,
    )


def open_backend(network: nn.Module, text: TextModel | None) -> Backend:
    """The network as the runtime's pipeline runs it, in eager PyTorch."""
    if isinstance(network, SFN):
        return TorchBackend(network, text)
    from sfn_train.dual_memory import DualMemory, DualMemoryBackend

    assert isinstance(network, DualMemory)
    return DualMemoryBackend(network)
