"""Training: it learns, it resumes to the same bits, it sees held-out clips only to validate."""

import csv
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from sfn_rt.datasets import open_dataset
from sfn_rt.exceptions import OutputError
from sfn_train import loop
from sfn_train.checkpoint import load_run
from sfn_train.config import Config, TrainConfig, parse_config
from sfn_train.data.prepare import Prepared, prepare
from sfn_train.exceptions import DeviceError, RunError
from sfn_train.gpu_memory import Memory
from sfn_train.loaders import make_loaders, make_sampler, total_steps
from sfn_train.loop import Interrupted, Training, fit, learning_rate
from sfn_train.run_folder import check_out, resumed_config, sole_training


@pytest.fixture(scope="module")
def config(tiny_yaml: str) -> Config:
    return parse_config(tiny_yaml, "tiny")


@pytest.fixture(scope="module")
def prepared(footage: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    cache = tmp_path_factory.mktemp("cache")
    return prepare(open_dataset(footage), config, cache, say=lambda text: None)


@pytest.fixture(autouse=True)
def statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics have tests of their own; here they only cost time."""
    monkeypatch.setattr(loop, "fit_statistics", lambda run, prepared: run)


def changed(config: Config, **changes: Any) -> Config:
    return replace(config, train=replace(config.train, **changes))


def train(prepared: Prepared, config: Config, out: Path, *, resume: bool = False) -> Path:
    check_out(out, resume=resume, force=False)
    summary = fit(prepared, config, out, resume=resume)
    assert summary is not None
    assert f"make export RUN={out}" in summary.text()
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_run(run).model.state_dict()


def assert_equal_bits(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_close(a: Path, b: Path) -> None:
    """Equal but for rounding: Adam's first steps have the sign of a gradient, however faint."""
    first, second = weights(a), weights(b)
    for name, value in first.items():
        assert (value - second[name]).abs().max() < 1e-4, name
    for one, other in zip(rows(a), rows(b), strict=True):
        assert (one["step"], one["split"]) == (other["step"], other["split"])
        for name in set(one) - {"step", "split"}:
            assert float(one[name] or 0) == pytest.approx(float(other[name] or 0), rel=1e-4), name


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "minutes"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def straight(prepared: Prepared, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fit_statistics", lambda run, prepared: run)
        return train(prepared, config, tmp_path_factory.mktemp("runs") / "straight")


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Interrupt training while it computes the given step, counted from 1."""
    real, calls = Training.training_step, 0

    def training_step(self: Training, batch: Any, index: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == step:
            if how == "crash":
                raise RuntimeError("power cut")
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch, index)

    monkeypatch.setattr(Training, "training_step", training_step)


def test_a_run_holds_what_export_needs_and_says_how_it_came_about(straight: Path) -> None:
    run = load_run(straight)
    assert run.info["steps"] == 6
    assert run.info["n_frames"] == 80
    assert run.info["split"]["held_out"][0] == {"video": "00", "start": 32, "stop": 40}
    assert run.info["config_sha256"] == run.config.fingerprint()
    assert set(run.info["held_out_losses"]) == {"total", "frame", "text", "motion", "balance"}
    assert list((straight / "tensorboard").glob("events.*"))
    logged = [(row["step"], row["split"]) for row in rows(straight)]
    assert logged == [
        ("2", "train"),
        ("4", "train"),
        ("4", "validation"),
        ("6", "train"),
        ("6", "validation"),
    ]


def test_training_lowers_the_loss(straight: Path) -> None:
    losses = [float(row["total"]) for row in rows(straight) if row["split"] == "validation"]
    assert losses[-1] < losses[0]


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    prepared: Prepared, config: Config, straight: Path, tmp_path: Path
) -> None:
    assert_equal_bits(straight, train(prepared, config, tmp_path / "again"))
    other = weights(train(prepared, changed(config, seed=1), tmp_path / "other"))
    assert any(not torch.equal(value, other[name]) for name, value in weights(straight).items())


@pytest.mark.parametrize("step", [1, 3, 5])
def test_ctrl_c_and_resume_end_with_the_bits_of_an_uninterrupted_run(
    prepared: Prepared,
    config: Config,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        stop_at(step, patch, "ctrl-c")
        with pytest.raises(Interrupted):
            train(prepared, config, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == step  # the step was finished, nothing is lost
    with pytest.raises(RunError, match="training is not finished"):
        load_run(tmp_path / "run")
    train(prepared, config, tmp_path / "run", resume=True)
    assert_equal_bits(straight, tmp_path / "run")
    done = [row for row in rows(tmp_path / "run") if row["split"] == "train"]
    assert done == [row for row in rows(straight) if row["split"] == "train"]


def test_a_crash_resumes_from_the_last_checkpoint_to_the_same_bits(
    prepared: Prepared,
    config: Config,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        stop_at(4, patch, "crash")
        with pytest.raises(RuntimeError, match="power cut"):
            train(prepared, config, tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    train(prepared, config, tmp_path / "run", resume=True)
    assert_equal_bits(straight, tmp_path / "run")
    assert rows(tmp_path / "run") == rows(straight)


def test_a_finished_run_can_be_trained_further(
    prepared: Prepared, config: Config, straight: Path, tmp_path: Path
) -> None:
    train(prepared, changed(config, steps=4), tmp_path / "run")
    longer = resumed_config(tmp_path / "run", ["train.steps=6"])
    train(prepared, longer, tmp_path / "run", resume=True)
    assert_equal_bits(straight, tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        "model.use_text=false",
        "model.use_motion=false",
        "model.use_appearance=false",
        "model.filter=none",
        "train.precision=bf16-mixed",
    ],
)
def test_every_configuration_trains(
    footage: Path, tiny_yaml: str, tmp_path: Path, change: str
) -> None:
    changes = [change, "train.steps=2", "train.schedule=cosine", "train.gradient_clip=1.0"]
    config = parse_config(tiny_yaml, "tiny", changes)
    prepared = prepare(open_dataset(footage), config, tmp_path / "cache", say=lambda text: None)
    run = load_run(train(prepared, config, tmp_path / "run"))
    assert ("text" in run.info["held_out_losses"]) == config.model.use_text
    assert ("motion" in run.info["held_out_losses"]) == config.model.use_motion
    assert ("balance" in run.info["held_out_losses"]) == (config.model.filter == "sffm")
    assert all(torch.isfinite(tensor).all() for tensor in run.model.state_dict().values())


def test_minutes_end_training_and_the_run_is_whole(
    prepared: Prepared, config: Config, tmp_path: Path
) -> None:
    limited = changed(config, steps=None, minutes=1e-6)
    assert load_run(train(prepared, limited, tmp_path / "run")).info["steps"] == 1


def test_validation_sees_held_out_clips_only_and_training_none_of_them(
    prepared: Prepared, config: Config
) -> None:
    sampler = make_sampler(prepared, config, Training(config))
    trained = {
        (video, frame)
        for epoch in range(3)
        for video, start in sampler.epoch(epoch)
        for frame in range(start, start + config.data.run_length)
    }
    _, validation = make_loaders(prepared, config, sampler)
    batches: Sequence[list[tuple[int, int]]] = validation.batch_sampler  # type: ignore[assignment]
    validated = {
        (video, frame)
        for batch in batches
        for video, start in batch
        for frame in range(start, start + config.data.run_length)
    }
    held_out = {(video, frame) for video in range(2) for frame in range(32, 40)}
    assert validated == held_out
    assert not trained & held_out


def test_learning_rate_warms_up_and_falls() -> None:
    c = TrainConfig(steps=100, learning_rate=1.0, warmup_steps=4, schedule="cosine")
    assert [learning_rate(c, step, 0.0) for step in range(5)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0]
    )
    assert learning_rate(c, 50, 0.5) == pytest.approx(0.505)
    assert learning_rate(c, 99, 1.0) == pytest.approx(0.01)
    constant = replace(c, schedule="constant")
    assert learning_rate(constant, 99, 1.0) == 1.0


def test_the_first_limit_counts() -> None:
    assert total_steps(TrainConfig(steps=9, epochs=2), 4) == 8
    assert total_steps(TrainConfig(steps=7, epochs=2), 4) == 7
    assert total_steps(TrainConfig(minutes=1), 4) is None


def test_accumulated_batches_train_as_one_large_batch(
    prepared: Prepared, config: Config, tmp_path: Path
) -> None:
    whole = train(prepared, changed(config, batch=4), tmp_path / "whole")
    parts = changed(config, batch=2, accumulate=2, validation_batches=4)
    assert_close(whole, train(prepared, parts, tmp_path / "parts"))
    info = load_run(tmp_path / "parts").info
    assert (info["steps"], info["clips_per_step"]) == (6, 4 * 4)


@pytest.mark.parametrize(("batch", "how"), [(1, "ctrl-c"), (5, "ctrl-c"), (8, "crash")])
def test_an_interruption_amid_accumulation_loses_no_bit(
    prepared: Prepared,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    how: str,
) -> None:
    parts = changed(config, batch=1, accumulate=3, steps=4)
    straight = train(prepared, parts, tmp_path / "straight")
    with monkeypatch.context() as patch:
        stop_at(batch, patch, how)
        with pytest.raises(Interrupted if how == "ctrl-c" else RuntimeError):
            train(prepared, parts, tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == -(-batch // 3) if how == "ctrl-c" else 2  # the step is finished
    train(prepared, parts, tmp_path / "run", resume=True)
    assert_equal_bits(straight, tmp_path / "run")
    done = [row for row in rows(tmp_path / "run") if row["split"] == "train"]
    assert done == [row for row in rows(straight) if row["split"] == "train"]


def test_a_run_may_go_on_in_smaller_batches(
    prepared: Prepared, config: Config, straight: Path, tmp_path: Path
) -> None:
    train(prepared, changed(config, steps=3, checkpoint_every=1), tmp_path / "run")
    smaller = ["train.steps=6", "train.batch=1", "train.accumulate=2", "train.validation_batches=4"]
    with pytest.raises(RunError, match="may change only"):
        resumed_config(tmp_path / "run", smaller)
    config = resumed_config(tmp_path / "run", smaller[:-1])
    train(prepared, config, tmp_path / "run", resume=True)
    first, second = weights(straight), weights(tmp_path / "run")
    assert all((first[name] - second[name]).abs().max() < 1e-4 for name in first)
    assert load_run(tmp_path / "run").info["steps"] == 6


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_trains_clips_and_resumes_to_the_same_bits(
    prepared: Prepared,
    config: Config,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    half = changed(config, precision=precision, gradient_clip=0.1, accumulate=2, batch=1)
    norms = record_norms(monkeypatch)
    train(prepared, half, tmp_path / "whole")
    assert load_run(tmp_path / "whole").info["precision"] == precision
    found = norms.copy()
    norms.clear()
    train(
        prepared, replace(half, train=replace(half.train, precision="32-true")), tmp_path / "full"
    )
    assert found == pytest.approx(norms, rel=0.05)  # what is clipped is not scaled
    with monkeypatch.context() as patch:
        stop_at(5, patch, "ctrl-c")
        with pytest.raises(Interrupted):
            train(prepared, half, tmp_path / "run")
    train(prepared, half, tmp_path / "run", resume=True)
    assert_equal_bits(tmp_path / "whole", tmp_path / "run")


def record_norms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Norms of the gradients as they are clipped, filled while training goes on."""
    norms: list[float] = []
    real = torch.nn.utils.clip_grad_norm_

    def clip_grad_norm_(parameters: Any, norm: float) -> torch.Tensor:
        found = real(parameters, norm)
        norms.append(float(found))
        return found

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_grad_norm_)
    return norms


@pytest.mark.parametrize("clip", [None, 0.1])
def test_fp16_skips_a_step_that_overflows(
    prepared: Prepared,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clip: float | None,
) -> None:
    real, before = Training.training_step, []

    def training_step(self: Training, batch: Any, index: int) -> torch.Tensor:
        before.append(self.model.decoder.state_dict()["fusion.text.weight"].clone())
        return real(self, batch, index) * (1e36 if index == 1 else 1)

    monkeypatch.setattr(Training, "training_step", training_step)
    train(prepared, changed(config, precision="16-mixed", gradient_clip=clip), tmp_path / "run")
    moved = [not torch.equal(a, b) for a, b in pairwise(before)]
    assert moved == [True, False, True, True, True]
    assert load_run(tmp_path / "run").info["steps"] == 6
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def test_out_of_memory_says_what_would_fit_and_the_run_goes_on_with_it(
    prepared: Prepared,
    config: Config,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        exhaust_at(4, patch)
        patch.setattr(loop, "measure", lambda *given: Memory("a GPU", 900, 600, 1100, 100))
        with pytest.raises(DeviceError) as caught:
            train(prepared, config, tmp_path / "run")
    assert "about 1 would fit" in str(caught.value)
    assert "--resume and --set train.batch=1 --set train.accumulate=2, which" in str(caught.value)
    with pytest.raises(RunError, match="training is not finished"):
        load_run(tmp_path / "run")
    smaller = resumed_config(tmp_path / "run", ["train.batch=1", "train.accumulate=2"])
    train(prepared, smaller, tmp_path / "run", resume=True)
    first, second = weights(straight), weights(tmp_path / "run")
    assert all((first[name] - second[name]).abs().max() < 1e-4 for name in first)


def exhaust_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torch report at the given step, counted from 1, that the GPU's memory is gone."""
    real, calls = Training.training_step, 0

    def training_step(self: Training, batch: Any, index: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, batch, index)

    monkeypatch.setattr(Training, "training_step", training_step)


def test_a_second_training_into_a_folder_is_refused(
    prepared: Prepared, config: Config, tmp_path: Path
) -> None:
    out = train(prepared, config, tmp_path / "run")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with sole_training(out):
        for resume, force in ((True, False), (False, True)):
            with pytest.raises(OutputError, match="another run is writing"):
                check_out(out, resume=resume, force=force)
        with pytest.raises(OutputError, match="another run is writing"):
            fit(prepared, config, out, resume=True)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    check_out(out, resume=True, force=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accelerator": "gpu"}, "train.accelerator=gpu, train.devices=1"),
        ({"strategy": "dpp"}, "train.strategy=dpp cannot train here"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    prepared: Prepared, config: Config, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    if torch.cuda.is_available():
        change = {"accelerator": "gpu", "devices": 4096} if "accelerator" in change else change
        message = message.replace("devices=1", "devices=4096")
    with pytest.raises(DeviceError, match=message):
        train(prepared, changed(config, **change), tmp_path / "run")
