"""Bundles appear whole or not at all, and say where everything in them comes from."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sfn_export.exceptions import ExportError
from sfn_export.pack import pack, stated_licence
from sfn_rt.bundle import MANIFEST, load_bundle
from sfn_rt.bundle_folder import bundle_folder
from sfn_rt.exceptions import OutputError
from sfn_train.checkpoint import Run, load_run


def test_bundle_is_complete(tiny_bundle: Path, tiny_run: Path) -> None:
    bundle, run = load_bundle(tiny_bundle), load_run(tiny_run)
    manifest = bundle.manifest
    assert list(manifest.parts) == ["appearance", "motion", "decoder", "text"]
    assert manifest.preprocessing == run.config.preprocessing
    assert manifest.provenance.config_sha256 == run.config.fingerprint()
    assert manifest.score.terms == ("visual", "semantic")
    assert manifest.score.threshold == 3.0
    assert set(manifest.files) == {p.name for p in tiny_bundle.iterdir()} - {MANIFEST}
    normal = bundle.normal()
    assert normal.keys() == run.normal.keys()
    assert all(np.array_equal(normal[name], run.normal[name]) for name in normal)


def test_bundle_names_licences_and_no_paths(tiny_bundle: Path, tiny_data: Path) -> None:
    text = (tiny_bundle / MANIFEST).read_text()
    assert str(tiny_data.parent) not in text
    licences = json.loads(text)["provenance"]["licences"]
    assert licences["text"] == "all-MiniLM-L6-v2: apache-2.0"
    assert set(licences) == {"appearance", "motion", "decoder", "text", "tokenizer"}


def test_unstated_licence_is_said(tmp_path: Path) -> None:
    assert stated_licence(tmp_path) == f"not stated in {tmp_path.name}"


def test_nothing_appears_when_export_stops(tmp_path: Path) -> None:
    def stopped() -> None:
        with bundle_folder(tmp_path / "bundle") as folder:
            (folder / "decoder.onnx").write_bytes(b"half")
            raise ExportError("parity")

    with pytest.raises(ExportError, match="parity"):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_earlier_bundle_survives_a_failure_and_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with bundle_folder(out) as folder:
        (folder / MANIFEST).write_text("old")
        (folder / "extra.onnx").write_text("old")
    with pytest.raises(KeyboardInterrupt), bundle_folder(out):
        raise KeyboardInterrupt
    assert (out / MANIFEST).read_text() == "old"
    with bundle_folder(out) as folder:
        (folder / MANIFEST).write_text("new")
    assert [p.name for p in out.iterdir()] == [MANIFEST]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("precious")
    with pytest.raises(OutputError, match="holds files that are not a bundle"):
        bundle_folder(tmp_path).__enter__()
    file = tmp_path / "holiday.jpg"
    with pytest.raises(OutputError, match="is a file"):
        bundle_folder(file).__enter__()
    assert file.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_place_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="choose another --out"):
        bundle_folder(tmp_path / "bundle").__enter__()


def test_run_without_statistics_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    run = load_run(tiny_run)
    bare = Run(run.path, run.config, run.model, run.normal, {})
    with pytest.raises(ExportError, match=r"run.json lacks 'visual'; train again"):
        pack(tmp_path, bare, None, {}, {})
