"""A bundle may carry the decoder in both forms of the SFFM; each is asked for by name."""

import shutil
from pathlib import Path

import onnx
import pytest

from sfn_export.build import ExportOptions, trace_forms, with_forms
from sfn_export.exceptions import ExportError
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import load_bundle, write_manifest
from sfn_rt.exceptions import BundleError
from sfn_train.checkpoint import Run, load_run
from sfn_train.dual_memory import DualMemory


def test_both_forms_in_one_bundle(tiny_run: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    said: list[str] = []
    options = ExportOptions(also=("dispatch", "dense", "dispatch"), threads=1)
    run, folder = load_run(tiny_run), tmp_path / "bundle"
    files, reports = trace_forms(run, folder, options, said.append)
    assert files == {"fp32-dispatch": "decoder.dispatch.onnx"}
    assert [line for line in said if "there already" in line] == [
        "note: dense is there already",
        "note: dispatch is there already",
    ]
    assert {d.tensor for report in reports for d in report.differences} == {
        "decoder.next_frame",
        "decoder.semantic",
    }
    write_manifest(folder, with_forms(load_bundle(tiny_bundle).manifest, files))
    bundle = load_bundle(folder)
    assert bundle.variants("fp32-dispatch") == {
        "appearance": "fp32",
        "motion": "fp32",
        "decoder": "fp32-dispatch",
        "text": "fp32",
    }
    assert bundle.variants() == dict.fromkeys(bundle.manifest.parts, "fp32")
    graphs = bundle.graphs("fp32-dispatch")
    operators = {node.op_type for node in onnx.load(graphs["decoder"]).graph.node}
    assert "CumSum" in operators
    with OrtBackend(graphs, threads=1) as backend:
        assert backend.parts["decoder"] == bundle.manifest.parts["decoder"].spec
    with pytest.raises(BundleError, match="has no precision 'int8'; it has fp32, fp32-dispatch"):
        bundle.variants("int8")


def test_forms_are_of_models_with_filters(tiny_run: Path, tmp_path: Path) -> None:
    run = load_run(tiny_run)
    other = Run(run.path, run.config, DualMemory.__new__(DualMemory), run.normal, run.info)
    with pytest.raises(ExportError, match="--form is of sfn-vad's filters"):
        trace_forms(other, tmp_path, ExportOptions(also=("dense",)), print)
