"""One training step of the full size: finite, every weight learns, and what it costs."""

import resource
import sys
import time
from itertools import islice

import pytest
import torch

from sfn_train.config import read_config
from sfn_train.data.split import Span
from sfn_train.dual_memory import DualMemory, DualMemoryConfig, DualSampler, dual_losses


@pytest.mark.slow
def test_a_step_of_the_full_size() -> None:
    config = read_config("dual_memory_ped2")
    assert isinstance(config.model, DualMemoryConfig)
    torch.manual_seed(0)
    network = DualMemory(config.model).to(memory_format=DualMemory.memory_format)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(network.parameters(), config.train.learning_rate)
    frames = torch.rand(config.train.batch, 16, 3, 256, 256)
    pseudo = torch.arange(config.train.batch) == 1
    start = time.perf_counter()
    losses = dual_losses(network, {"frames": frames, "pseudo": pseudo}, config)
    losses["total"].backward()
    optimiser.step()
    seconds = time.perf_counter() - start
    unit = 1e9 if sys.platform == "darwin" else 1e6  # ru_maxrss is in kB elsewhere
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(f"batch {config.train.batch}: {seconds:.0f} s a step, at most {peak_gb:.1f} GB")
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    assert peak_gb < 12


def test_an_epoch_of_the_full_size_starts_a_clip_at_every_frame() -> None:
    model = read_config("dual_memory_ped2").model
    assert isinstance(model, DualMemoryConfig)
    spans = [Span(0, 0, 120), Span(1, 0, 180)]
    sampler = DualSampler(spans, model, batch=2, seed=0, begin=lambda: (0, 0))
    assert sampler.n_runs == 105 + 165  # a clip from every frame that has 15 after it
    assert len(list(islice(sampler, sampler.steps_per_epoch))) == 135
