"""Hard shrinkage at a tie: a weight of exactly the limit is cut, by PyTorch and by its graph."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfn_export.trace import export_onnx
from sfn_rt.backends.base import PartSpec, TensorSpec
from sfn_rt.backends.ort import OrtBackend
from sfn_train.dual_memory.memory import shrink_hard
from sfn_train.model.memory import shrink

LIMIT = 2.0**-11  # exact in fp32
SLOTS = 4


class Shrinkage(nn.Module):
    """The function as a graph of its own."""

    def __init__(self, function: Callable[[Tensor, float], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor]:
        return (self.function(tensors[0], LIMIT),)


@pytest.mark.parametrize("function", [shrink, shrink_hard])
def test_a_weight_of_exactly_the_limit_is_cut(
    function: Callable[[Tensor, float], Tensor], tmp_path: Path
) -> None:
    shape = ("batch", SLOTS)
    spec = PartSpec(
        (TensorSpec("weights", "float32", shape),), (TensorSpec("kept", "float32", shape),)
    )
    graph = tmp_path / "shrinkage.onnx"
    export_onnx(Shrinkage(function), spec, graph)
    tied = np.array([[LIMIT, 0.25, 0.75 - LIMIT, 0.0], [LIMIT / 2, 0.5, 0.0, 0.5]], np.float32)
    expected = np.where(tied > LIMIT, tied, 0)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(function(torch.from_numpy(tied), LIMIT), expected, atol=1e-7)
    with OrtBackend({"shrinkage": graph}, threads=1) as backend:
        kept = backend.infer("shrinkage", {"weights": tied})["kept"]
    np.testing.assert_allclose(kept, expected, atol=1e-7)
