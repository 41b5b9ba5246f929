"""The student in the exported decoder: the same numbers, and the others as without it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sfn_export.exceptions import ParityError
from sfn_export.parity import check_parts
from sfn_export.trace import trace_part
from sfn_rt.backends.ort import OrtBackend
from sfn_train.checkpoint import load_run
from sfn_train.model import SFN
from sfn_train.torch_backend import TorchBackend


def with_student(run: Path) -> SFN:
    """The model of a run with a student that knows a scale and has weights of no special kind."""
    model = load_run(run).model
    assert isinstance(model, SFN)
    torch.manual_seed(2)
    taught = SFN(replace(model.config, student=12)).eval()
    taught.load_state_dict(model.state_dict(), strict=False)
    student, c = taught.decoder.student, taught.config
    assert student is not None
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        n = 1 + c.n_patches
        student.calibrate(
            0.3 * torch.randn(4, c.observed, n, c.dim) + 0.1,
            2.0 * torch.randn(4, c.observed - 1, n, c.motion_dim),
        )
    return taught


@pytest.mark.parametrize("form", ["dense", "dispatch"])
def test_the_exported_student_is_the_trained_one(tiny_run: Path, tmp_path: Path, form: str) -> None:
    model, path = with_student(tiny_run), tmp_path / "decoder.onnx"
    trace_part("decoder", model, None, path, form=form)  # type: ignore[arg-type]
    with TorchBackend(model, None) as reference, OrtBackend({"decoder": path}, threads=1) as ours:
        report = check_parts(reference, ours)
        assert "decoder.distilled" in {d.tensor for d in report.differences}
        assert model.decoder.student is not None
        with torch.no_grad():
            model.decoder.student.place.bias += 1e-2
        with pytest.raises(ParityError, match=r"decoder\.distilled: max"):
            check_parts(reference, ours)


def test_the_other_outputs_are_the_same_bits_as_without_it(tiny_run: Path, tmp_path: Path) -> None:
    taught = with_student(tiny_run)
    alone = load_run(tiny_run).model
    found = []
    for name, model in (("with", taught), ("without", alone)):
        path = tmp_path / f"{name}.onnx"
        spec = trace_part("decoder", model, None, path)
        random = np.random.default_rng(0)
        feeds = {
            tensor.name: random.standard_normal((3, *tensor.shape[1:])).astype(np.float32)  # type: ignore[arg-type]
            for tensor in spec.inputs
        }
        with OrtBackend({"decoder": path}, threads=1) as backend:
            found.append(backend.infer("decoder", feeds))
    assert found[0].keys() - found[1].keys() == {"distilled"}
    for name, array in found[1].items():
        np.testing.assert_array_equal(found[0][name], array, err_msg=name)
