"""Train, export, evaluate and score as a user does: every command takes the second system."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sfn_export.cli import app as export_app
from sfn_rt.bundle import load_bundle
from sfn_rt.cli import app as runtime_app
from sfn_rt.sinks.files import read_scores
from sfn_train.cli import app as train_app


def run(app: object, *arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)  # type: ignore[arg-type]
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, walkway: Path, tiny_yaml: str) -> Path:
    folder = tmp_path_factory.mktemp("dual")
    config = folder / "tiny.yaml"
    config.write_text(tiny_yaml, "utf-8")
    run(train_app, "train", walkway, "--config", config, "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def bundle(trained: Path) -> Path:
    out = trained.parent / "bundle"
    run(export_app, "bundle", trained, "--out", out, "--threads", "1", "--frames", "24")
    return out


def test_the_run_says_what_it_lost(trained: Path) -> None:
    info = json.loads((trained / "run.json").read_text())
    assert info["held_out_losses"].keys() == {"reconstruction", "entropy", "distance", "total"}
    assert info["n_captions"] == 0
    assert info["visual"]["measure"] == "psnr"


def test_the_bundle_says_which_system_it_holds(bundle: Path) -> None:
    manifest = load_bundle(bundle).manifest
    assert (manifest.system, manifest.observed, manifest.lag) == ("dual-memory", 16, 7)
    assert manifest.parts.keys() == {"autoencoder"}
    assert manifest.semantics is None
    assert manifest.score.terms == ("visual",)
    parity = json.loads((bundle / "parity.json").read_text())
    assert parity["path"]["n_frames"] > 0
    assert parity["path"]["max_score"] <= 1e-3


def test_the_whole_set_is_measured(bundle: Path, walkway: Path) -> None:
    out = bundle.parent / "evaluation"
    run(runtime_app, "eval", walkway, "--bundle", bundle, "--out", out, "--threads", "1")
    found = json.loads((out / "evaluation.json").read_text())
    assert found["protocols"]["paper"]["constants"] == "dual-memory"
    (row,) = [row for row in found["rows"] if row["evidence"] == "all terms"]
    for protocol in ("paper", "causal"):
        assert 0 < row[protocol]["micro_auc"] < 1
    for scores in (out / "scores").iterdir():
        scored = np.isfinite(read_scores(scores).terms["visual"])
        assert scored.sum() == len(scored) - 15
        assert scored[8]
        assert not scored[:8].any()
        assert not scored[-7:].any()
