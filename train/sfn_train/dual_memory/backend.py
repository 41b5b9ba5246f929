"""The dual-memory network in eager PyTorch behind the runtime's Backend protocol.

Statistics of normal footage are fitted with it, and the exported graph is compared with it.
"""

from collections.abc import Sequence

import torch

from sfn_rt.backends.base import Arrays, CheckedBackend, PartSpec
from sfn_train.dual_memory.config import CLIP, DualMemoryConfig
from sfn_train.dual_memory.model import DualMemory

PART = "autoencoder"


def part_specs(c: DualMemoryConfig) -> dict[str, PartSpec]:
    """The one part: a clip of RGB in 0..1 to the squared error of its scored frame."""
    size = (c.frame_height, c.frame_width)
    return {PART: PartSpec.of({"clip": ("batch", CLIP, 3, *size)}, {"error": ("batch", *size)})}


class DualMemoryBackend(CheckedBackend):
    """Runs the network in fp32 on the device its weights are on; the parity reference."""

    name = "torch"

    def __init__(self, network: DualMemory) -> None:
        self.parts = part_specs(network.config)
        self._network = network.eval()
        self._device = next(network.parameters()).device

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """The error of each clip's scored frame."""
        with torch.inference_mode():
            clip = torch.tensor(feeds["clip"], device=self._device)
            return {"error": self._network.error(clip).cpu().numpy()}
