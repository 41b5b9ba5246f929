"""The same network in PyTorch on the same GPU: eager, and torch.compile with CUDA graphs.

Imported only where torch can be: a device installs none, a workshop or a borrowed one has it.
Motion encoder and decoder as the exported parts, with random weights: their values cost no time.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpu_timing import Repeats, timed

WITHOUT = "torch is not installed"
MODES = ("eager", "compiled")


def why_not() -> str | None:
    """Why PyTorch cannot be measured here, None where it can."""
    if importlib.util.find_spec("torch") is None:
        return WITHOUT
    import torch

    return None if torch.cuda.is_available() else "torch is installed without CUDA"


def torch_times(
    model: Mapping[str, Any], mode: str, precision: str, batch: int, repeats: Repeats
) -> list[float]:
    """Milliseconds of motion encoder and decoder, one after the other."""
    import torch

    step = network(model, precision, batch, torch.device("cuda"))
    if mode == "compiled":
        step = torch.compile(step, mode="reduce-overhead")  # CUDA graphs
    with torch.inference_mode():
        return timed(step, torch.cuda.synchronize, repeats)


def network(
    model: Mapping[str, Any], precision: str, batch: int, device: Any
) -> Callable[[], None]:
    """A function that runs both parts once on inputs that lie on the device."""
    import torch

    from sfn_train.model import SFN, ModelConfig
    from sfn_train.torch_backend import DECODER_INPUTS, part_specs

    # Neither part sees the tower; in its place stands a ViT without blocks.
    changes = {"tower": None, "appearance_depth": 0} if model.get("tower") else {}
    config = ModelConfig(**{**model, **changes})
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    made = SFN(config).eval().to(device, dtype)
    assert made.motion is not None
    motion, decoder = made.motion, made.decoder
    specs = part_specs(config, text=False)

    def tensors(part: str) -> dict[str, Any]:
        return {
            tensor.name: torch.randn(
                [batch if isinstance(axis, str) else axis for axis in tensor.shape],
                device=device, dtype=dtype,
            )
            for tensor in specs[part].inputs
        }  # fmt: skip

    difference = tensors("motion")["difference"]
    fed = tensors("decoder")
    inputs = [fed.get(name) for name in DECODER_INPUTS]

    def run() -> None:
        motion(difference)
        decoder(*inputs)

    return run


def read_model(bundle: Path) -> dict[str, Any] | None:
    """The settings of the network that a sample bundle was made of."""
    import json

    path = bundle.parent / "model.json"
    if not path.is_file():
        return None
    settings: dict[str, Any] = json.loads(path.read_text())["model"]
    return settings
