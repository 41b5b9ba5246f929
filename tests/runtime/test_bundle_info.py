import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sfn_rt.backends.base import TensorSpec
from sfn_rt.bundle import (
    SCHEMA_VERSION,
    Manifest,
    PartEntry,
    Precision,
    Provenance,
    ScoreSettings,
    Semantics,
    TextSettings,
    write_manifest,
)
from sfn_rt.bundle_info import inspect_bundle
from sfn_rt.cli import app
from sfn_rt.preprocess import Preprocessing

FRAME = TensorSpec("frame", "float32", ("batch", 3, 160, 240))
TOKENS = TensorSpec("tokens", "float32", ("batch", 1 + 600, 96))
TEXT = TensorSpec("text", "float32", ("batch", 384))


def part(*files: str, takes: TensorSpec = FRAME, gives: TensorSpec = TOKENS) -> PartEntry:
    variants = {Path(file).stem.partition("-")[2] or "fp32": file for file in files}
    return PartEntry(files=variants, default="fp32", inputs=(takes,), outputs=(gives,))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that reads well; its graphs are not graphs, as nobody opens them here."""
    names = ["appearance.onnx", "decoder.onnx", "decoder-dense.onnx", "text.onnx"]
    for name in [*names, "tokenizer.json", "normal.npz"]:
        (tmp_path / name).write_bytes(name.encode() * 1000)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        system="sfn-vad",
        profile="edge",
        sfn_version="0.1.0",
        observed=4,
        lag=0,
        preprocessing=Preprocessing(
            height=160, width=240, resize="area", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
        ),
        parts={
            "appearance": part("appearance.onnx"),
            "decoder": part(
                "decoder.onnx",
                "decoder-dense.onnx",
                takes=TEXT,
                gives=replace(FRAME, name="next_frame"),
            ),
            "text": part("text.onnx"),
        },
        semantics=Semantics(
            captioner="scene",
            stride=8,
            windows=(4,),
            captions=None,
            scene={},
            text=TextSettings(
                model="all-MiniLM-L6-v2", width=384, max_tokens=64, tokenizer="tokenizer.json"
            ),
        ),
        vlm=None,
        visual={},
        score=ScoreSettings(
            ema_alpha=0.2,
            threshold=3.25,
            rule="measured on 60 s of held-out\x1b[2J footage",
            false_alarms_per_hour=1.0,
            terms=("visual", "semantic"),
        ),
        normal="normal.npz",
        device={},
        precisions={},
        provenance=Provenance(
            data="walkway",
            n_videos=16,
            n_frames=2550,
            seed=7,
            config_sha256="ab" * 32,
            licences={"model": "Apache-2.0"},
        ),
    )
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_tells_model_files_and_origin(bundle: Path) -> None:
    text = inspect_bundle(bundle).text()
    assert "7 files" in text
    assert "all intact" in text
    assert "4 observed, the next predicted, at 240 x 160 (area)" in text
    assert "fp32* decoder.onnx 0.01 MB, dense decoder-dense.onnx 0.02 MB" in text
    assert "<- frame float32[batch, 3, 160, 240]" in text
    assert "3.25 for 1 false alarms an hour: measured on 60 s of held-out footage" in text
    assert "walkway: 16 videos, 2550 frames, seed 7" in text


def test_tells_which_system_it_holds(bundle: Path) -> None:
    text = inspect_bundle(bundle).text()
    assert "sfn-vad, profile edge, exported by sfn 0.1.0, schema 4" in text
    assert "scene, one for 8 frames, embedded by all-MiniLM-L6-v2 in 384 numbers" in text


def test_tells_of_the_second_system(bundle: Path) -> None:
    manifest = inspect_bundle(bundle).bundle.manifest
    clip = TensorSpec("clip", "float32", ("batch", 16, 3, 160, 240))
    error = TensorSpec("error", "float32", ("batch", 160, 240))
    parts = {"autoencoder": part("decoder.onnx", takes=clip, gives=error)}
    write_manifest(
        bundle,
        replace(
            manifest,
            system="dual-memory",
            observed=16,
            lag=7,
            parts=parts,
            semantics=None,
            vlm=None,
            files={},
        ),
    )
    text = inspect_bundle(bundle).text()
    assert "dual-memory, profile edge" in text
    assert "16 seen, the one 7 before the newest scored by its reconstruction, at 240 x 160" in text
    assert "none: dual-memory knows pictures only" in text


def test_tells_of_caption_windows(bundle: Path) -> None:
    manifest = inspect_bundle(bundle).bundle.manifest
    assert manifest.semantics is not None
    wide = part(
        "decoder.onnx",
        takes=replace(TEXT, shape=("batch", 768)),
        gives=replace(FRAME, name="next_frame"),
    )
    write_manifest(
        bundle,
        replace(
            manifest,
            parts={**manifest.parts, "decoder": wide},
            semantics=replace(manifest.semantics, windows=(4, 16)),
            files={},
        ),
    )
    assert "scene, one of each window (4, 16 frames) for 8 frames" in inspect_bundle(bundle).text()


def test_the_command_prints_it_or_json(bundle: Path) -> None:
    runner = CliRunner()
    assert "all intact" in runner.invoke(app, ["inspect", str(bundle)]).stdout
    told = json.loads(runner.invoke(app, ["inspect", str(bundle), "--json"]).stdout)
    assert told["manifest"]["profile"] == "edge"
    assert told["bytes"] == sum(path.stat().st_size for path in bundle.iterdir())


def test_an_altered_file_is_a_mistake(bundle: Path) -> None:
    (bundle / "decoder.onnx").write_bytes(b"other")
    done = CliRunner().invoke(app, ["inspect", str(bundle)])
    assert done.exit_code == 2
    assert "decoder.onnx was altered" in done.stderr


def test_tells_of_a_vlm_and_whether_it_counts(vlm_bundle: Path) -> None:
    text = inspect_bundle(vlm_bundle).text()
    assert "vlm             InternVL-tiny (" in text
    assert "its captions only explain; 4 frames of 56 x 56, at most" in text
    assert "vlm language" in text
    assert "past_key_values.0.key float32[batch, 2, past, 12]" in text


def test_tells_of_precisions_and_what_they_cost(bundle: Path) -> None:
    manifest = inspect_bundle(bundle).bundle.manifest
    assert "precisions      fp32\n" in inspect_bundle(bundle).text()
    for name in ("dense.json", "dense.png"):
        (bundle / name).write_bytes(b"{}")
    lower = Precision(
        parts={"appearance": "fp32", "decoder": "dense", "text": "fp32"},
        recipe="dense", gate={"auc": 90.125, "rerouted": 0.0625},
        report="dense.json", picture="dense.png",
    )  # fmt: skip
    device = {"difference": part("decoder.onnx")}
    write_manifest(bundle, replace(manifest, precisions={"d": lower}, device=device, files={}))
    text = inspect_bundle(bundle).text()
    assert "precisions      fp32, d (auc 90.12, rerouted 0.0625)" in text
    assert "dev difference  fp32 decoder.onnx" in text
