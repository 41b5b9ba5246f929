"""Two processes train what one would, through the real command line."""

import csv
import os
import signal
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from sfn_train.config import parse_config
from sfn_train.devices import strategy
from sfn_train.systems import build_network, every_weight_learns, training_losses

PAPER = {
    "frame_height": 56,
    "frame_width": 56,
    "patch": 14,
    "appearance_dim": 64,
    "motion_norm": False,
    "joint_attention": 1,
    "bottleneck": 12,  # 3/4 of dim, as Avenue's
    "predict": "frame",
}
SHARED = ("train.batch=1", "train.accumulate=2", "train.validation_batches=4")
ONE = ("train.batch=4", "train.validation_batches=1")


@pytest.fixture(scope="module")
def settings(tiny_yaml: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny configurations: edge.yaml, and paper.yaml with a frozen tower."""
    folder = tmp_path_factory.mktemp("settings")
    edge = yaml.safe_load(tiny_yaml)
    (folder / "edge.yaml").write_text(tiny_yaml)
    tower = tiny_weights().make_internvl(folder / "InternVL", image_size=56)
    paper = {
        "model": edge["model"] | PAPER | {"tower": str(tower)},
        "data": {"resize": "bicubic", "run_length": 5},
        "train": edge["train"] | {"steps": 4},
    }
    (folder / "paper.yaml").write_text(yaml.safe_dump(paper))
    return folder


def tiny_weights() -> ModuleType:
    """The makers of tiny weights beside this file; tests are no package."""
    spec = spec_from_file_location("tiny_weights", Path(__file__).with_name("tiny_weights.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(
    footage: Path, out: Path, *arguments: object, changes: tuple[str, ...] = ()
) -> list[str]:
    given = [str(argument) for argument in arguments]
    given += [word for change in changes for word in ("--set", change)]
    where = ["--out", str(out), "--cache", str(out.parent / "cache")]
    return [sys.executable, "-m", "sfn_train", "train", str(footage), *where, *given]


def environment() -> dict[str, str]:
    """A process that imports what this one does, and does not already belong to a group."""
    mine = {k: v for k, v in os.environ.items() if k not in {"LOCAL_RANK", "WORLD_SIZE"}}
    return mine | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }


def train(footage: Path, out: Path, *arguments: object, changes: tuple[str, ...] = ()) -> str:
    """Run the command to its end; what it wrote to the error stream."""
    called = command(footage, out, *arguments, changes=changes)
    done = subprocess.run(called, capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained  ") == 1  # only the first process speaks
    return done.stderr


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "minutes"} for row in csv.DictReader(file)]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model.safetensors")


@pytest.fixture(scope="module")
def shared(footage: Path, settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of edge on two processes, nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "shared"
    chosen = ("train.strategy=ddp", "train.accelerator=cpu", *SHARED)
    stderr = train(footage, out, "--config", settings / "edge.yaml", "--devices", 2, changes=chosen)
    assert stderr == ""  # no warning of Lightning or torch
    return out


def assert_one_process_trains_the_same(shared: Path, single: Path) -> None:
    for one, two in zip(rows(single), rows(shared), strict=True):
        assert (one["step"], one["split"]) == (two["step"], two["split"])
        for name in set(one) - {"step", "split"}:
            assert float(one[name] or 0) == pytest.approx(float(two[name] or 0), rel=1e-4), name
    found = weights(shared)
    for name, value in weights(single).items():
        assert (value - found[name]).abs().max() < 1e-4, name


def test_two_processes_give_the_loss_curve_of_one(
    footage: Path, settings: Path, shared: Path
) -> None:
    single = shared.parent / "single"
    train(footage, single, "--config", settings / "edge.yaml", changes=ONE)
    assert_one_process_trains_the_same(shared, single)


def test_the_papers_model_trains_on_two_processes(
    footage: Path, settings: Path, tmp_path: Path
) -> None:
    config = settings / "paper.yaml"
    train(footage, tmp_path / "shared", "--config", config, "--devices", 2, changes=SHARED)
    train(footage, tmp_path / "single", "--config", config, changes=ONE)
    assert_one_process_trains_the_same(tmp_path / "shared", tmp_path / "single")
    kept = weights(tmp_path / "shared")
    assert not [name for name in kept if name.startswith("appearance.vit")]  # the frozen tower


def test_two_processes_resume_to_the_bits_of_an_uninterrupted_run(
    footage: Path, settings: Path, shared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(
        footage,
        out,
        *("--config", settings / "edge.yaml", "--devices", 2),
        changes=("train.steps=3", *SHARED),
    )
    train(footage, out, "--resume", changes=("train.steps=6",))
    found = weights(out)
    assert all(torch.equal(value, found[name]) for name, value in weights(shared).items())


@pytest.mark.slow
def test_ctrl_c_to_the_first_process_stops_both_after_the_same_step(
    footage: Path, settings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    changes = ("train.steps=1000000", *SHARED)
    config = settings / "edge.yaml"
    process = subprocess.Popen(
        command(footage, out, "--config", config, "--devices", 2, changes=changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    checkpoint = out / "checkpoints" / "last.ckpt"
    waited_until = time.monotonic() + 300
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < waited_until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert stderr.count("\n") == stderr.count("interrupted; everything is saved") == 1
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    train(footage, out, "--resume", changes=(f"train.steps={step + 1}",))


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("model.use_text=false",),
        ("model.use_motion=false",),
        ("model.use_appearance=false",),
        ("model.use_appearance=false", "model.use_motion=false"),
        ("train.loss.text=0",),
        ("train.loss.frame=0", "train.loss.motion=0", "train.loss.balance=0"),
        ("model.joint_attention=1",),
        ("model.filter=none", "model.memory=input"),
        ("model.filter=none", "model.memory=every_layer"),
        ("model.bottleneck=12",),
    ],
)
def test_ddp_looks_for_weights_without_a_gradient_where_there_are_some(
    tiny_yaml: str, changes: tuple[str, ...]
) -> None:
    config = parse_config(tiny_yaml, "tiny", [*changes, "train.devices=2"])
    torch.manual_seed(0)
    network, model = build_network(config), config.sfn
    batch = {"frames": torch.randn(2, 8, 3, model.frame_height, model.frame_width)}
    if model.use_text:
        batch["text"] = torch.randn(2, 4, model.text_width)
    training_losses(network, batch, config)["total"].backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert every_weight_learns(config) == (not without), without
    chosen = strategy(config)
    assert not isinstance(chosen, str)
    assert chosen._ddp_kwargs["find_unused_parameters"] == bool(without)  # type: ignore[attr-defined]
