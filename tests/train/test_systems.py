"""Both systems go through one trainer: built, fed, taught, logged and resumed alike."""

import csv
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import default_collate

from sfn_rt.datasets import open_dataset
from sfn_train import loop
from sfn_train.checkpoint import load_run
from sfn_train.config import Config, parse_config
from sfn_train.data.clips import usable_spans
from sfn_train.data.prepare import Prepared, prepare
from sfn_train.loop import fit
from sfn_train.run_folder import check_out, resumed_config
from sfn_train.systems import (
    build_network,
    clip_dataset,
    clip_sampler,
    every_weight_learns,
    loss_names,
    open_backend,
    training_losses,
)

DUAL = {
    "system": "dual-memory",
    "model": {
        "frame_height": 16,
        "frame_width": 24,
        "widths": [4, 6, 8],
        "skips": ["none", "none"],
        "slots": 10,
    },
    "data": {"run_length": 16},
    "visual": {"measure": "psnr"},
}


@pytest.fixture(params=["sfn-vad", "dual-memory"])
def config(request: pytest.FixtureRequest, tiny_yaml: str) -> Config:
    if request.param == "dual-memory":
        tiny_yaml = yaml.safe_dump(DUAL | {"train": yaml.safe_load(tiny_yaml)["train"]})
    return parse_config(tiny_yaml, request.param, ["data.held_out=0.4"])


@pytest.fixture
def prepared(footage: Path, config: Config, tmp_path: Path) -> Prepared:
    return prepare(open_dataset(footage), config, tmp_path / "cache", say=lambda text: None)


def test_a_batch_of_a_systems_own_clips_teaches_every_weight(
    prepared: Prepared, config: Config
) -> None:
    spans = usable_spans(prepared, prepared.split.train, config.data.run_length)
    sampler = clip_sampler(spans, config, lambda: (0, 0))
    clips = clip_dataset(prepared, config, vary=True)
    network = build_network(config)
    for places in islice(sampler, 3):
        batch = default_collate([clips[place] for place in places])  # type: ignore[index]
        network.zero_grad()
        losses = training_losses(network, batch, config)
        assert set(losses) - {"total"} <= set(loss_names(config))
        losses["total"].backward()
        assert every_weight_learns(config)
        assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert open_backend(network.eval(), None).parts


def test_a_step_learns_from_the_same_clips_however_they_are_shared_out(
    prepared: Prepared, config: Config
) -> None:
    spans = usable_spans(prepared, prepared.split.train, config.data.run_length)

    def taken(batch: int, accumulate: int, devices: int) -> list[list[tuple[int, ...]]]:
        """The runs of each of 5 steps, which end and begin epochs."""
        train = replace(config.train, batch=batch, accumulate=accumulate, devices=devices)
        steps: list[list[tuple[int, ...]]] = [[] for _ in range(5)]
        for rank in range(devices):
            given = replace(config, train=train)
            batches = clip_sampler(spans, given, lambda rank=rank: (0, rank))  # type: ignore[misc]
            for i, places in enumerate(islice(batches, 5 * accumulate)):
                steps[i // accumulate] += places
        return [sorted(step) for step in steps]

    expected = taken(4, 1, 1)
    assert taken(2, 2, 1) == taken(1, 4, 1) == taken(2, 1, 2) == taken(1, 2, 2) == expected
    assert expected[0] != expected[1]


def test_interrupted_and_resumed_it_ends_with_the_same_bits(
    prepared: Prepared, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "fit_statistics", lambda run, prepared: run)
    config = replace(config, train=replace(config.train, accumulate=2))
    for name, first in (("straight", config), ("run", replace_steps(config, 3))):
        check_out(tmp_path / name, resume=False, force=False)
        assert fit(prepared, first, tmp_path / name) is not None
    whole = resumed_config(tmp_path / "run", ["train.steps=6"])
    assert fit(prepared, whole, tmp_path / "run", resume=True) is not None
    straight, run = load_run(tmp_path / "straight"), load_run(tmp_path / "run")
    found = run.model.state_dict()
    assert all(torch.equal(v, found[name]) for name, v in straight.model.state_dict().items())
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        logged = list(csv.DictReader(file))
    columns = ["step", "split", "total", *loss_names(config), "learning_rate", "minutes"]
    assert list(logged[0]) == columns
    assert [row["step"] for row in logged if row["split"] == "train"] == ["2", "4", "6"]
    assert run.info["clips_per_step"] == config.clips_per_step


def replace_steps(config: Config, steps: int) -> Config:
    return replace(config, train=replace(config.train, steps=steps))
