"""The dual-memory network in eager PyTorch behind the runtime's Backend protocol.

Statistics of normal footage are fitted with it, and the exported graph is compared with it.
"""

from collections.abc import Sequence
from typing import Self

import torch

from sfn_rt.backends.base import (
    Array,
    Arrays,
    PartSpec,
    TensorSpec,
    check_feeds,
    check_outputs,
    find_part,
)
from sfn_train.dual_memory.config import CLIP, DualMemoryConfig
from sfn_train.dual_memory.model import DualMemory

PART = "autoencoder"


def part_specs(c: DualMemoryConfig) -> dict[str, PartSpec]:
    """The one part: a clip of RGB in 0..1 to the squared error of its scored frame."""
    size = (c.frame_height, c.frame_width)
    clip = TensorSpec("clip", "float32", ("batch", CLIP, 3, *size))
    error = TensorSpec("error", "float32", ("batch", *size))
    return {PART: PartSpec((clip,), (error,))}


class DualMemoryBackend:
    """Runs the network in fp32 on the device its weights are on; the parity reference."""

    name = "torch"

    def __init__(self, network: DualMemory) -> None:
        self.parts = part_specs(network.config)
        self._network = network.eval()
        self._device = next(network.parameters()).device

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def infer(
        self, part: str, feeds: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run one batch through `part`."""
        spec = find_part(self.name, self.parts, part)
        names = check_outputs(self.name, part, spec.outputs, outputs)
        check_feeds(self.name, part, spec.inputs, feeds)
        with torch.inference_mode():
            clip = torch.tensor(feeds["clip"], device=self._device)
            computed = {"error": self._network.error(clip)}
        return {name: computed[name].cpu().numpy() for name in names}
