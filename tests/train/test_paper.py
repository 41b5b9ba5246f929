"""The paper's profiles: sizes to the unit, and the whole chain on tiny weights of the real classes.

Weights, captions and data of the published model are not here (docs/reproduction.md); everything
else takes the way that it would take with them.
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from sfn_export.cli import app as export_app
from sfn_export.path_parity import described
from sfn_rt.bundle import load_bundle
from sfn_rt.cli import app as runtime_app
from sfn_rt.datasets import open_dataset
from sfn_rt.model import open_model
from sfn_rt.sinks.files import read_scores
from sfn_train.checkpoint import CHECKPOINT, load_run
from sfn_train.cli import app
from sfn_train.config import read_config
from sfn_train.model import SFN
from sfn_train.systems import build_network, training_losses
from tiny_weights import BERT_WIDTH, WIDTH, make_bert, make_internvl

# profile -> trained parameters with the follow-up's joint attention, and without it
PARAMETERS = {
    "paper_ped2": (10_938_036, 8_299_180),
    "paper_shanghaitech": (11_988_660, 9_349_804),
    "paper_avenue": (35_102_388, 32_463_532),
}
SMALL = (
    "model.frame_height=56",
    "model.frame_width=56",
    f"model.appearance_dim={WIDTH}",
    "model.motion_dim=16",
    "model.motion_depth=1",
    "model.dim=32",
    "model.decoder_depth=2",
    "model.n_filters=9",
    "model.n_active=3",
    f"model.text_dim={BERT_WIDTH}",
    "train.epochs=null",
    "train.steps=2",
    "train.batch=2",
    "train.accumulate=2",
    "train.checkpoint_every=1",
    "train.workers=0",
    "train.precision=32-true",
    "train.accelerator=cpu",
)
SAID = ("Two people walk along a path.", "A man is riding a bicycle.", "One people left.")


def invoke(program: object, *arguments: object) -> Result:
    return CliRunner().invoke(program, list(map(str, arguments)))  # type: ignore[arg-type]


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


# ------------------------------------------------------------------------------------- at full size


@pytest.fixture(scope="module")
def wide_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as InternVL2.5-1B's and for its frames, but only two layers deep."""
    return make_internvl(tmp_path_factory.mktemp("wide"), image_size=448, width=1024)


@pytest.mark.parametrize("profile", PARAMETERS)
@pytest.mark.parametrize("joint", [4, 0], ids=["follow-up", "paper"])
def test_trained_parameters_to_the_unit(profile: str, joint: int, wide_tower: Path) -> None:
    changes = [f"model.tower={wide_tower}", f"model.joint_attention={joint}"]
    network = build_network(read_config(profile, changes))
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained == PARAMETERS[profile][joint == 0]
    assert isinstance(network, SFN)
    assert network.appearance is not None
    assert not any(p.requires_grad for p in network.appearance.vit.parameters())
    assert not any(name.startswith("appearance.vit") for name in network.state_dict())


@pytest.mark.parametrize("profile", PARAMETERS)
def test_a_profile_is_what_the_paper_says(profile: str) -> None:
    config = read_config(profile)
    assert config.profile == profile
    assert config.clips_per_step == 64
    assert config.clips_per_run == 1
    assert config.model.grid == (32, 32)
    assert config.sfn.joint_attention == 0
    assert (config.sfn.gate, config.visual.measure) == ("renormalised_x2", "mean")
    assert config.preprocessing.resize == "bicubic"
    loss = config.train.loss
    assert (loss.frame, loss.text, loss.motion, loss.balance) == (1, 1, 1, 0.001)
    assert (config.train.learning_rate, config.train.weight_decay) == (2e-4, 1e-5)
    epochs = {"paper_ped2": 1000, "paper_avenue": 10, "paper_shanghaitech": 5}
    rank = {"paper_ped2": 8, "paper_avenue": 192, "paper_shanghaitech": 16}
    assert (config.train.epochs, config.sfn.rank) == (epochs[profile], rank[profile])


@pytest.mark.slow
@pytest.mark.parametrize("profile", PARAMETERS)
def test_parity_at_full_size(repository: Path, profile: str) -> None:
    script = repository / "benchmarks" / "paper_parity.py"
    asked = [sys.executable, str(script), "--profiles", profile]
    ran = subprocess.run(asked, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr  # over the budget raises
    rows = json.loads(ran.stdout.splitlines()[-1])["rows"]
    assert {row["tensor"] for row in rows} == {
        "motion.tokens",
        "decoder.next_frame",
        "decoder.semantic",
    }
    assert max(row["max_abs"] for row in rows) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("joint", [0, 4], ids=["paper", "follow-up"])
def test_one_step_at_full_size(repository: Path, joint: int) -> None:
    script = repository / "benchmarks" / "paper_step.py"
    asked = [sys.executable, str(script), "--set", f"model.joint_attention={joint}"]
    ran = subprocess.run(asked, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["trained_parameters"] == PARAMETERS["paper_ped2"][joint == 0]
    assert report["frozen_parameters"] == 304_012_288
    assert report["without_gradient"] == []
    assert report["frozen_with_gradient"] == 0
    inner = [name for name in report["with_gradient_zero"] if ".joint." not in name]
    assert not inner
    assert not any(name.endswith("_gain") for name in report["with_gradient_zero"])
    assert all(map(math.isfinite, report["losses"].values()))
    # Processor time: the wall's is that of whatever else runs here, too.
    assert report["step_cpu_s"] / report["device"]["threads"] < 90
    assert report["peak_gb"] < 12


# ------------------------------------------------------------------------------------ at tiny size


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, footage: Path) -> Path:
    """What a user brings: a tower, a sentence encoder, and a caption for every frame position."""
    root = tmp_path_factory.mktemp("sources")
    make_internvl(root / "tower")
    make_bert(root / "text", tokenizer_json=True)
    (root / "captions").mkdir()
    for number in range(2):
        said = {str(i): SAID[(i + number) // 3 % len(SAID)] for i in range(3, 40)}
        (root / "captions" / f"{number:02d}.json").write_text(json.dumps(said))
    return root


def changes_for(sources: Path) -> list[str]:
    folders = [f"model.tower={sources / 'tower'}", f"semantics.text={sources / 'text'}"]
    return [*SMALL, *folders, f"semantics.captions={sources / 'captions'}"]


def train(data: Path, sources: Path, out: Path, *more: str) -> Result:
    sets = [part for change in changes_for(sources) for part in ("--set", change)]
    return invoke(app, "train", data, "--config", "paper_ped2", "--out", out, *sets, *more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, footage: Path, sources: Path) -> Path:
    out = tmp_path_factory.mktemp("paper") / "run"
    done(train(footage, sources, out))
    return out


def test_the_tower_is_in_no_checkpoint(run: Path, sources: Path) -> None:
    stored = torch.load(run / CHECKPOINT, weights_only=True)
    assert not [name for name in stored["state_dict"] if "appearance.vit" in name]
    whole = (sources / "tower" / "model.safetensors").stat().st_size
    trained = sum(p.numel() for p in load_run(run).model.parameters() if p.requires_grad)
    for file, copies in ((run / "model.safetensors", 1), (run / CHECKPOINT, 3)):  # and Adam's two
        assert file.stat().st_size < copies * 4 * trained + 100_000 < whole + copies * 4 * trained


def test_a_run_names_its_tower_and_takes_no_other(
    run: Path, sources: Path, tmp_path: Path, footage: Path
) -> None:
    copy, own = tmp_path / "run", tmp_path / "own"
    shutil.copytree(run, copy)
    shutil.copytree(sources / "tower", own)
    text = (copy / "config.yaml").read_text().replace(str(sources / "tower"), str(own))
    (copy / "config.yaml").write_text(text)
    recorded = json.loads((copy / "run.json").read_text())["tower"]
    network = load_run(copy).model  # elsewhere, but the same
    assert isinstance(network, SFN)
    assert network.appearance is not None
    assert network.appearance.vit.fingerprint == recorded["sha256"]

    shutil.rmtree(own)
    make_internvl(own, seed=1)
    answer = invoke(export_app, "bundle", copy, "--out", tmp_path / "bundle")
    assert answer.exit_code == 2
    assert f"the vision tower whose sha256 is {recorded['sha256'][:12]}" in answer.stderr
    assert not (tmp_path / "bundle").exists()
    resumed = invoke(app, "train", footage, "--out", copy, "--resume", "--set", "train.steps=3")
    assert resumed.exit_code == 2
    assert "put the one back that it was trained with" in resumed.stderr


def test_resumed_training_ends_with_the_same_weights(
    run: Path, sources: Path, footage: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done(train(footage, sources, out, "--set", "train.steps=1"))
    done(invoke(app, "train", footage, "--out", out, "--resume", "--set", "train.steps=2"))
    one, two = load_run(run).model.state_dict(), load_run(out).model.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_weights_to_scores(run: Path, sources: Path, footage: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    done(invoke(export_app, "bundle", run, "--out", bundle, "--frames", "12", "--threads", "1"))
    manifest = load_bundle(bundle).manifest
    assert manifest.profile == "paper_ped2"
    assert list(manifest.parts) == ["vision", "appearance", "motion", "decoder", "text"]
    assert manifest.visual["measure"] == "mean"
    assert manifest.semantics is not None
    assert (manifest.semantics.captioner, manifest.semantics.stride) == ("cached", 1)
    assert manifest.semantics.captions is None  # written by hand
    licences = manifest.provenance.licences
    assert licences["vision"] == "vision tower tower: not stated in tower"
    assert licences["appearance"].startswith("trained by the bundle's maker")

    (clip, _) = open_dataset(footage).train
    with open_model(bundle) as opened:  # export compares on the captions made for its clips
        described_clip = described(opened, sources / "captions", clip)
        assert described_clip.perception.captioner.name == "cached"
        assert described(opened, tmp_path, clip).perception.captioner.name == "scene"

    captions = sources / "captions" / f"{clip.name}.json"
    out = tmp_path / "scores"
    asked = ("--bundle", bundle, "--captions", captions, "--out", out, "--threads", "1")
    done(invoke(runtime_app, "score", clip.path, *asked, "--fps", "25"))
    rows = read_scores(out / "scores.csv")
    assert {"visual", "semantic"} <= set(rows.terms)
    said = json.loads((out / "captions.json").read_text())
    assert set(said.values()) == set(SAID)
    assert (rows.caption_id[4:] >= 0).all()


@pytest.mark.parametrize(
    ("setting", "folder"),
    [
        ("model.tower", "./weights/InternVL2_5-1B"),
        ("semantics.captions", "./captions/ped2"),
        ("semantics.text", "./weights/sup-simcse-bert-base-uncased"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_read(
    setting: str, folder: str, footage: Path, sources: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    answer = train(footage, sources, out, "--set", f"{setting}={folder}")
    assert answer.exit_code == 2
    assert f"paper_ped2: {setting} is {folder}, which is no folder here" in answer.stderr
    assert f"`--set {setting}=FOLDER` names another" in answer.stderr
    assert not out.exists()


def test_a_tower_of_another_size_is_refused_before_anything_is_read(
    footage: Path, sources: Path, tmp_path: Path
) -> None:
    answer = train(footage, sources, tmp_path / "run", "--set", "model.appearance_dim=32")
    assert answer.exit_code == 2
    assert f"set model.appearance_dim={WIDTH}, or give another model.tower" in answer.stderr
    assert not (tmp_path / "run").exists()


def gradients(network: nn.Module, batch: dict[str, Tensor], joint: int, sources: Path) -> set[str]:
    """Trained parameters whose gradient is exactly zero; every one of them has one."""
    config = read_config("paper_ped2", [*changes_for(sources), f"model.joint_attention={joint}"])
    network.zero_grad()
    training_losses(network, batch, config)["total"].backward()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    return {name for name, p in trained.items() if not p.grad.count_nonzero()}  # type: ignore[union-attr]


@pytest.mark.parametrize("joint", [0, 2])
def test_every_trained_parameter_gets_a_gradient(joint: int, sources: Path) -> None:
    torch.manual_seed(0)
    config = read_config("paper_ped2", [*changes_for(sources), f"model.joint_attention={joint}"])
    network = build_network(config)
    batch = {
        "frames": torch.randn(4, 5, 3, 56, 56),
        "text": nn.functional.normalize(torch.randn(4, 1, BERT_WIDTH), dim=-1),
    }
    zero = gradients(network, batch, joint, sources)
    # Gains of the joint attention start at 0: in the first step they alone learn, in the next all.
    inner = {
        name
        for name, p in network.named_parameters()
        if ".joint." in name and not name.endswith("_gain")
    }
    assert zero == inner
    torch.optim.Adam(p for p in network.parameters() if p.requires_grad).step()
    assert not gradients(network, batch, joint, sources)
