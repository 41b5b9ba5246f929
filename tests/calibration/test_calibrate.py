"""The whole of it on a walkway: footage to a bundle with one more precision, or to a refusal."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from sfn_calib.cli import app
from sfn_rt.bundle import load_bundle

pytestmark = pytest.mark.slow


def run(bundle: Path, data: Path, precision: str | Path, out: Path) -> Result:
    arguments = [bundle, "--data", data, "--precision", precision, "--out", out, "--threads", "1"]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def calibrated(
    walkway_bundle: Path, walkway: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "bundle"
    done = run(walkway_bundle, walkway, "fp16", out)
    assert done.exit_code == 0, done.output
    assert "has fp16 now" in done.stdout
    return out


def test_the_bundle_has_graphs_report_and_picture(calibrated: Path, walkway_bundle: Path) -> None:
    bundle = load_bundle(calibrated)
    precision = bundle.manifest.precisions["fp16"]
    assert set(precision.parts.values()) == {"fp16"}
    assert precision.gate["auc_loss"] <= 0.05
    assert bundle.path(precision.picture).read_bytes().startswith(b"\x89PNG")
    report = json.loads(bundle.path(precision.report).read_text())
    assert report["holds"]
    for protocol in ("paper", "causal"):
        assert 75 < report["gate"]["protocols"][protocol]["auc_fp32"] < 98
    used = [{s["video"] for s in report["clips"][part]} for part in ("calibration", "gate")]
    assert not used[0] & used[1]
    assert report["anomalies"]["opacity"]
    assert all(0 < opacity <= 1 for opacity in report["anomalies"]["opacity"].values())
    assert report["layers"]
    assert "fp16" not in load_bundle(walkway_bundle).manifest.precisions


def test_a_second_precision_keeps_the_first_and_begins_where_it_ended(
    calibrated: Path, walkway: Path, tmp_path: Path
) -> None:
    done = run(calibrated, walkway, "bf16", tmp_path / "both")
    if done.exit_code:  # of a model trained for 60 steps; what it must not do is change anything
        assert "does not hold its gate" in done.stderr
        assert not (tmp_path / "both").exists()
        return
    both = load_bundle(tmp_path / "both")
    assert set(both.manifest.precisions) == {"fp16", "bf16"}
    opacity = [
        json.loads(both.path(p.report).read_text())["anomalies"]["opacity"]
        for p in both.manifest.precisions.values()
    ]
    assert opacity[0] == opacity[1]


def test_a_budget_that_cannot_be_met_is_refused_with_the_figures(
    walkway_bundle: Path, walkway: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "strict.yaml"
    budget = {"auc_points": 0.3, "spearman": 1.0, "rerouted": 0.0}
    recipe.write_text(yaml.safe_dump({"precision": "fp8", "budget": budget}))
    done = run(walkway_bundle, walkway, recipe, tmp_path / "new")
    assert done.exit_code == 2
    assert "nothing is packed" in done.stderr
    assert not (tmp_path / "new").exists()
    report = json.loads((tmp_path / "new-strict-refused.json").read_text())
    assert not report["holds"]
    assert report["given_back"]
    assert len(report["rounds"]) > 1
    assert (tmp_path / "new-strict-refused.png").read_bytes().startswith(b"\x89PNG")
