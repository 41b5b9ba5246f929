"""The second system: a 3-D convolutional autoencoder with a normal and an anomaly memory.

*Video anomaly detection with both normal and anomaly memory modules* (The Visual Computer, 2024).
docs/dual_memory.md says what is the paper's, what is a switch here, and what differs and why.
"""

from sfn_train.dual_memory.backend import DualMemoryBackend, part_specs
from sfn_train.dual_memory.clips import DualClips, DualSampler
from sfn_train.dual_memory.config import DualMemoryConfig
from sfn_train.dual_memory.losses import dual_losses
from sfn_train.dual_memory.model import DualMemory

__all__ = [
    "DualClips",
    "DualMemory",
    "DualMemoryBackend",
    "DualMemoryConfig",
    "DualSampler",
    "dual_losses",
    "part_specs",
]
