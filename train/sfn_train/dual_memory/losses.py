"""Losses of the dual-memory system.

    L = mean over clips of [MSE + 2e-4 H] - 2e-5 mean over pairs of |m - m'|

MSE and the entropy H of the addressing weights (mean over queries) are those of the memory that
each clip belongs to: normal clips the normal one, pseudo-anomalies the other. m and m' run over the
slots of the two memories; slots have no order, so all pairs count.

With `maximise_pseudo` the error of pseudo-anomalies through the normal memory is raised, too: the
error that will be the score. It counts up to 1, which is what a blank picture errs: without a
bound, one clip drawn ever more wrongly would outweigh all that is to be learnt.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfn_train.config import Config
from sfn_train.dual_memory.config import DualMemoryConfig
from sfn_train.dual_memory.memory import entropy
from sfn_train.dual_memory.model import DualMemory, Reconstruction
from sfn_train.exceptions import ConfigError

BLANK = 1.0  # mean squared error of an all-zero picture of a standardised frame


def dual_losses(
    network: nn.Module, batch: Mapping[str, Tensor], config: Config
) -> dict[str, Tensor]:
    """Each loss of a batch, unweighted, and their weighted `total`.

    `frames` is (B, T, 3, H, W); `pseudo` (B,) bool marks pseudo-anomalies, absent: none are.
    """
    c = config.model
    assert isinstance(c, DualMemoryConfig)
    frames, pseudo = batch["frames"], batch.get("pseudo")
    if frames.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # Seen with torch 2.13: gradients of small 3-D convolutions that nobody had written.
        raise ConfigError(
            "train.precision: 3-D convolutions in bf16 have wrong gradients on the CPU, and a run "
            "ends in NaN; set train.precision=32-true"
        )
    found: Reconstruction = network(frames, pseudo, also_as_normal=c.maximise_pseudo)
    assert isinstance(network, DualMemory)
    # Small differences and small weights: never in half precision.
    with torch.autocast(frames.device.type, enabled=False):
        return combine(found, pseudo, network, c)


def combine(
    found: Reconstruction, pseudo: Tensor | None, network: DualMemory, c: DualMemoryConfig
) -> dict[str, Tensor]:
    """The losses of what the network made of a batch."""
    losses = {
        "reconstruction": errors(found.picture, found.target).mean(),
        "entropy": entropy(found.weights).mean(),
        "distance": torch.cdist(network.normal.slots, network.anomalous.slots).mean(),
    }
    total = losses["reconstruction"] + c.entropy * losses["entropy"]
    total = total - c.distance * losses["distance"]
    if found.as_normal is not None and pseudo is not None:
        raised = errors(found.as_normal, found.target[pseudo]).clamp_max(BLANK)  # (marked,)
        losses["pseudo"] = raised.sum() / len(pseudo)  # 0 in a batch without one
        total = total - losses["pseudo"]
    return losses | {"total": total}


def errors(picture: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each clip, (B, C, T, H, W) twice to (B,)."""
    return (picture.float() - target.float()).square().mean(dim=(1, 2, 3, 4))
