"""Which batch a GPU has room for, by numbers, and on a real one where there is one."""

import pytest
import torch
from torch import nn

from sfn_train.config import TrainConfig
from sfn_train.gpu_memory import Memory, measure, out_of_memory, runs_that_fit, smaller_batch

GB = 2**30


def memory(*, one: int, two: int | None, usable: int = 22, optimiser: int = 2) -> Memory:
    more = None if two is None else two * GB
    return Memory("a GPU", usable * GB, one * GB, more, optimiser * GB)


@pytest.mark.parametrize(
    ("measured", "fits"),
    [
        (memory(one=6, two=8), 8),  # 6 + 2 of the optimiser + 7 * 2 = 22
        (memory(one=6, two=9), 5),
        (memory(one=20, two=22), 1),
        (memory(one=20, two=None), 1),
        (memory(one=21, two=None), 0),
        (memory(one=23, two=None), 0),
    ],
)
def test_memory_grows_by_the_same_with_each_run(measured: Memory, fits: int) -> None:
    assert runs_that_fit(measured) == fits


def test_the_runs_of_a_step_stay_what_they_are() -> None:
    assert smaller_batch(64, 1, 24) == (16, 4)
    assert smaller_batch(6, 2, 5) == (4, 3)
    assert smaller_batch(5, 1, 4) == (1, 5)
    assert smaller_batch(4, 1, 9) == (2, 2)  # never what has just failed
    assert smaller_batch(4, 1, 0) is None
    assert smaller_batch(1, 8, 1) is None


def test_the_error_names_the_batch_and_how_to_go_on() -> None:
    c = TrainConfig(epochs=1, batch=64)
    text = str(out_of_memory(c, memory(one=6, two=8), resumable=True))
    assert text == (
        "out of GPU memory with train.batch 64 on a GPU (22.0 GiB usable); about 8 would fit, "
        "estimated from the 6.00 GiB that a step of one run takes: continue with --resume and "
        "--set train.batch=8 --set train.accumulate=8, which leaves the 64 runs a step as they were"
    )
    text = str(out_of_memory(c, None, resumable=False))
    assert "half of it may fit: start again with --force and --set train.batch=32" in text
    text = str(out_of_memory(c, memory(one=6, two=6), resumable=False))
    assert "it would fit alone: something else uses the memory" in text
    for small in (memory(one=30, two=None), memory(one=6, two=8)):
        c = TrainConfig(epochs=1, batch=1)
        if runs_that_fit(small) == 0:
            text = str(out_of_memory(c, small, resumable=False))
            assert "less than one run fits: take a smaller data.run_length or model" in text


def test_nothing_is_measured_where_there_is_no_gpu() -> None:
    network = nn.Linear(2, 2)
    batch = {"x": torch.zeros(3, 2)}
    assert measure(network, lambda b: network(b["x"]).sum(), batch, torch.device("cpu")) is None


@pytest.mark.gpu
def test_the_batch_named_fits_a_real_gpu_and_a_far_larger_one_does_not() -> None:
    device = torch.device("cuda", 0)
    network = nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(1024, 1024), nn.GELU())))
    network.to(device)

    def step(n: int) -> torch.Tensor:
        optimiser = torch.optim.Adam(network.parameters())
        total = network(torch.ones(n, 8192, 1024, device=device)).sum()
        total.backward()
        optimiser.step()
        return total

    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 4 * GB / total), device)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            step(64)
        batch = {"x": torch.ones(1, 8192, 1024)}
        found = measure(network, lambda b: network(b["x"]).sum(), batch, device)
        assert found is not None
        limited = Memory(
            found.device, int(3.6 * GB), found.one_run, found.two_runs, found.optimiser
        )
        fits = runs_that_fit(limited)
        assert 1 <= fits < 64
        step(fits)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
