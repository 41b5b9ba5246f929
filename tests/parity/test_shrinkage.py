"""Hard shrinkage at a tie: a weight of exactly the limit is cut, by PyTorch and by its graph."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sfn_export.trace import export_onnx
from sfn_rt.backends.base import PartSpec
from sfn_rt.backends.ort import OrtBackend
from sfn_train.shrinkage import shrink_hard

LIMIT = 2.0**-11  # exact in fp32
SLOTS = 4


class Shrinkage(nn.Module):
    """The function as a graph of its own."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor]:
        return (shrink_hard(tensors[0], LIMIT),)


def test_a_weight_of_exactly_the_limit_is_cut(tmp_path: Path) -> None:
    shape = ("batch", SLOTS)
    graph = tmp_path / "shrinkage.onnx"
    export_onnx(Shrinkage(), PartSpec.of({"weights": shape}, {"kept": shape}), graph)
    tied = np.array([[LIMIT, 0.25, 0.75 - LIMIT, 0.0], [LIMIT / 2, 0.5, 0.0, 0.5]], np.float32)
    expected = np.where(tied > LIMIT, tied, 0)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shrink_hard(torch.from_numpy(tied), LIMIT), expected, atol=1e-7)
    with OrtBackend({"shrinkage": graph}, threads=1) as backend:
        kept = backend.infer("shrinkage", {"weights": tied})["kept"]
    np.testing.assert_allclose(kept, expected, atol=1e-7)
