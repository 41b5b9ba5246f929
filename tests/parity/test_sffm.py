"""Training module, per-expert loop and both exported forms of the SFFM compute one function."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfn_export.dispatch import DenseSFFM, DispatchSFFM, exported_sffm, fastest_form
from sfn_export.parity import SCALES, TOLERANCE, assert_parity
from sfn_export.trace import check_graph, export_onnx
from sfn_rt.backends.base import PartSpec, TensorSpec
from sfn_rt.backends.ort import OrtBackend
from sfn_train.config import read_config
from sfn_train.model.sffm import SFFM

N, D, R, E, K = 98, 96, 6, 63, 7  # tokens; the rest as in the edge profile
B = 3
FORMS = ("dispatch", "dense")


class TokensAndRouting(nn.Module):
    def __init__(self, sffm: nn.Module) -> None:
        super().__init__()
        self.sffm = sffm

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        y, routing = self.sffm(inputs[0])
        return y, routing.chosen


def make_sffm(gate: str = "renormalised_x2", n_filters: int = E, n_active: int = K) -> SFFM:
    torch.manual_seed(0)
    sffm = SFFM(D, R, n_filters, n_active, gate).eval()  # type: ignore[arg-type]
    with torch.no_grad():  # no bias zero, no gain one: each must be seen to arrive
        for parameter in sffm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return sffm


@pytest.fixture(scope="module")
def sffm() -> SFFM:
    return make_sffm()


@pytest.fixture(scope="module")
def graphs(sffm: SFFM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sffm")
    spec = PartSpec(
        (TensorSpec("x", "float32", ("batch", N, D)),),
        (TensorSpec("y", "float32", ("batch", N, D)), TensorSpec("c", "int64", ("batch", N, K))),
    )
    paths = {form: folder / f"{form}.onnx" for form in FORMS}
    for form, path in paths.items():
        export_onnx(TokensAndRouting(exported_sffm(sffm, form)), spec, path)
        assert check_graph(form, path) == spec
    return paths


def tokens(scale: float = 1.0, batch: int = B, n_tokens: int = N) -> Tensor:
    # No zeros: equal router scores tie, and frameworks break ties differently.
    generator = torch.Generator().manual_seed(1)
    return scale * torch.randn(batch, n_tokens, D, generator=generator)


@pytest.mark.parametrize("batch", [1, B], ids=lambda b: f"batch{b}")
@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("form", FORMS)
def test_onnx_equals_training_module(
    sffm: SFFM, graphs: dict[str, Path], form: str, kind: str, batch: int
) -> None:
    x = tokens(SCALES[kind], batch)
    with torch.inference_mode():
        expected, routing = sffm(x)
    with OrtBackend(graphs, threads=1) as backend:
        actual = backend.infer(form, {"x": x.numpy()})
    np.testing.assert_array_equal(np.sort(actual["c"]), np.sort(routing.chosen.numpy()))
    assert_parity(f"sffm.{form}", expected.numpy(), actual["y"], TOLERANCE["fp32"], kind)


@pytest.mark.parametrize("kind", SCALES)
def test_loop_equals_training_module(sffm: SFFM, kind: str) -> None:
    x = tokens(SCALES[kind])
    with torch.inference_mode():
        expected, actual = sffm(x)[0], sffm.filter_one_by_one(x)
    assert_parity("sffm.loop", expected.numpy(), actual.numpy(), TOLERANCE["fp32"], kind)


@pytest.mark.parametrize("gate", ["raw", "renormalised", "renormalised_x2"])
@pytest.mark.parametrize("form", FORMS)
def test_folding_is_exact(form: str, gate: str) -> None:
    sffm, x = make_sffm(gate).double(), tokens().double()
    with torch.inference_mode():
        printed = sffm.filter_one_by_one(x)  # unfolded, as equations (5) and (6) stand
        folded = exported_sffm(sffm, form)(x)[0]  # type: ignore[arg-type]
    assert (printed - folded).abs().max() < 1e-12 * printed.abs().max()


@pytest.mark.parametrize(("block", "n_tokens"), [(1, 5), (5, 3), (24, N), (64, 10), (512, N)])
def test_any_block_size_drops_no_token(sffm: SFFM, block: int, n_tokens: int) -> None:
    x = tokens(n_tokens=n_tokens)
    with torch.inference_mode():
        expected, actual = sffm(x)[0], DispatchSFFM(sffm, block)(x)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0], ids=["all scores tie", "one token repeated"])
def test_all_tokens_choose_the_same_filters(sffm: SFFM, scale: float) -> None:
    x = (scale * torch.randn(D, generator=torch.Generator().manual_seed(2))).expand(B, N, D)
    with torch.inference_mode():
        expected, routing = sffm(x)
        actual = DispatchSFFM(sffm)(x)[0]
    assert len(routing.chosen.unique()) == K
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_every_filter_active(sffm: SFFM) -> None:
    everything, x = make_sffm(n_filters=5, n_active=5), tokens()
    with torch.inference_mode():
        expected, actual = everything(x)[0], DispatchSFFM(everything)(x)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_dispatch_has_no_operator_that_tensorrt_refuses(graphs: dict[str, Path]) -> None:
    import onnx

    nodes = onnx.load(graphs["dispatch"]).graph.node
    assert not {"NonZero", "Loop", "If", "Scan"} & {node.op_type for node in nodes}
    adding = [a for node in nodes for a in node.attribute if a.name == "reduction"]
    assert all(attribute.s in (b"none", b"") for attribute in adding)


@pytest.mark.parametrize(
    ("profile", "form"),
    [
        ("edge", "dense"),
        ("paper_ped2", "dense"),
        ("paper_shanghaitech", "dispatch"),
        ("paper_avenue", "dispatch"),
    ],
)
def test_the_form_that_is_written_goes_by_the_filters_size(profile: str, form: str) -> None:
    c = read_config(profile).sfn
    with torch.device("meta"):
        sffm = SFFM(c.dim, c.rank, c.n_filters, c.n_active, c.gate, c.n_shared)
    assert fastest_form(sffm) == form
    assert sffm.dispatches == (profile == "paper_avenue")  # in training, on whole batches


def test_fastest_is_one_of_the_two(sffm: SFFM) -> None:
    assert isinstance(exported_sffm(sffm, "fastest"), DenseSFFM)
    assert isinstance(exported_sffm(sffm, "dispatch"), DispatchSFFM)
