import json
import subprocess
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from sfn_rt import doctor
from sfn_rt.doctor import DOUBLING_GRAPH, Diagnosis, Finding, diagnose
from sfn_rt.options import BackendOptions


def test_this_machine_can_score() -> None:
    diagnosis = diagnose()
    assert diagnosis.can_score, diagnosis.text()
    assert "This machine can score video." in diagnosis.text()
    assert "onnxruntime" in json.dumps(diagnosis.to_json())


def test_the_built_in_graph_is_what_it_says() -> None:
    onnx.checker.check_model(onnx.load_from_string(DOUBLING_GRAPH), full_check=True)
    pair = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", pair[:1], pair[1:])
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    assert onnx.load_from_string(DOUBLING_GRAPH) == made


def test_a_probe_that_raises_is_a_finding() -> None:
    def broken() -> Finding:
        raise ImportError("libnvinfer.so.11: cannot open shared object file\nmore")

    finding = doctor.guarded("tensorrt", broken)
    assert finding.state == "broken"
    assert finding.detail == "ImportError: libnvinfer.so.11: cannot open shared object file"


def test_without_a_backend_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    diagnosis = diagnose()
    assert not diagnosis.can_score
    assert 'pip install "sfn-rt[cpu]"' in diagnosis.text()


def test_both_onnxruntimes_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: "1.31.1")
    finding = doctor.probe_onnxruntime_cpu()
    assert finding.state == "broken"
    assert "overwrite each other" in finding.detail
    assert "pip uninstall" in finding.advice


def test_a_session_that_falls_back_does_not_count_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fallen:
        def __init__(self, *args: object, **kwargs: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr("onnxruntime.InferenceSession", Fallen)
    finding = doctor.run_session("onnxruntime gpu", "CUDAExecutionProvider")
    assert finding.state == "broken"
    assert "fell back to CPUExecutionProvider" in finding.detail


@pytest.mark.parametrize(
    ("returncode", "stdout", "state", "detail"),
    [
        (
            0,
            "NVIDIA L4, 580.65\nNVIDIA L4, 580.65\n",
            "works",
            "NVIDIA L4, 580.65; NVIDIA L4, 580.65",
        ),
        (9, "NVIDIA-SMI has failed\n", "broken", "NVIDIA-SMI has failed"),
        (9, "", "broken", "nvidia-smi fails"),
    ],
)
def test_the_driver(
    monkeypatch: pytest.MonkeyPatch, returncode: int, stdout: str, state: str, detail: str
) -> None:
    def run(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, returncode, stdout, "")

    monkeypatch.setattr(subprocess, "run", run)
    finding = doctor.probe_driver()
    assert (finding.state, finding.detail) == (state, detail)


def test_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.probe_driver().state == "absent"


def test_a_bundle_is_looked_at_but_decides_nothing(dual_bundle: Path, tmp_path: Path) -> None:
    found = doctor.probe_bundle(dual_bundle)
    assert (found.state, found.detail) == (
        "works",
        f"{dual_bundle} holds dual-memory, profile mean",
    )
    assert doctor.probe_bundle(None).state == "absent"
    broken = doctor.probe_bundle(tmp_path)
    assert broken.state == "broken"
    assert "manifest.json does not exist" in broken.detail
    assert diagnose(tmp_path).can_score


def test_scoring_needs_a_backend_and_video() -> None:
    works = [Finding(name, "works", "") for name in ("video", "opencv", "onnxruntime cpu")]
    assert Diagnosis({}, {}, tuple(works)).can_score
    for missing in range(3):
        assert not Diagnosis({}, {}, tuple(works[:missing] + works[missing + 1 :])).can_score


def test_a_backend_that_is_asked_for_must_open_the_bundle(tiny_bundle: Path) -> None:
    fine = diagnose(tiny_bundle, BackendOptions())
    assert fine.can_score
    assert "on cpu            works" in fine.text()
    missing = diagnose(tiny_bundle, BackendOptions(name="tensorrt"))
    assert not missing.can_score  # though the cpu could
    assert "sfn-rt[trt]" in missing.text()
    assert "cannot score video on tensorrt yet" in missing.text()
    assert not diagnose(None, BackendOptions()).can_score


def test_onnx_runtime_reports_to_nobody() -> None:
    import os

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
