"""Real builds by TensorRT-RTX, ahead of time on this processor: every precision, every refusal."""

import _thread
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from onnx import helper

from sfn_rt.engines.build import EngineOptions, build
from sfn_rt.engines.flavour import Flavour, load_flavour, release_of
from sfn_rt.exceptions import BackendError, InputError

MakeGraph = Callable[..., Path]
needs_rtx = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="tensorrt-rtx is made for Linux x86-64",
)
SMALL = EngineOptions(max_batch=4)


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return load_flavour("tensorrt-rtx")


@needs_rtx
@pytest.mark.parametrize(
    ("precision", "target"),
    [
        ("fp32", "SM86"),
        ("fp16", "SM86"),
        ("int8", "SM86"),
        ("fp8", "SM89"),
        ("fp8", "SM120"),
        ("int8", "SM120"),
    ],
)
def test_the_precision_of_the_graph_is_that_of_the_engine(
    rtx: Flavour, make_graph: MakeGraph, precision: str, target: str
) -> None:
    built = build(make_graph(precision), rtx, targets=(target,), options=SMALL)
    assert len(built.plan) > 1000
    assert built.report.products == dict.fromkeys(
        ("vit.mlp/MatMul_1", "vit.mlp/MatMul_3"), precision
    )
    assert built.report.shares == {precision: 1.0}


@needs_rtx
def test_one_engine_for_three_generations(rtx: Flavour, make_graph: MakeGraph) -> None:
    one = build(make_graph(), rtx, targets=("SM89",), options=SMALL)
    three = build(make_graph(), rtx, targets=("SM86", "SM89", "SM120"), options=SMALL)
    assert three.plan != one.plan
    assert three.report.shares == {"fp32": 1.0}


@needs_rtx
@pytest.mark.parametrize(
    ("batch", "max_batch", "profiles"), [("batch", 4, 2), ("batch", 1, 1), (2, 4, 0)]
)
def test_one_frame_has_a_profile_of_its_own(
    rtx: Flavour, make_graph: MakeGraph, batch: int | str, max_batch: int, profiles: int
) -> None:
    options = EngineOptions(max_batch=max_batch)
    built = build(make_graph(batch=batch), rtx, targets=("SM89",), options=options)
    assert built.profiles == profiles


@needs_rtx
def test_fused_nodes_and_those_in_no_layer(rtx: Flavour, make_graph: MakeGraph) -> None:
    doubled = helper.make_node("Identity", ["c"], ["y"], name="head/Identity_9")
    report = build(make_graph(extra=[doubled]), rtx, targets=("SM89",), options=SMALL).report
    assert any(
        {"vit.mlp/MatMul_1", "vit.mlp/Relu_2"} <= set(layer.nodes) for layer in report.fusions
    )
    assert [node.name for node in report.unnamed] == ["head/Identity_9"]


# --- refusals


@needs_rtx
def test_an_unsupported_operator_is_named_with_its_module(
    rtx: Flavour, make_graph: MakeGraph
) -> None:
    node = helper.make_node(
        "Unknown", ["c"], ["y"], name="mjad.filters.3/Unknown_7", domain="nowhere"
    )
    message = r"part.onnx: TensorRT-RTX .* cannot parse Unknown 'mjad.filters.3/Unknown_7': "
    with pytest.raises(BackendError, match=message):
        build(make_graph(extra=[node]), rtx, targets=("SM89",))


@needs_rtx
def test_an_operator_whose_importer_names_no_node(rtx: Flavour, make_graph: MakeGraph) -> None:
    node = helper.make_node(
        "ScatterElements", ["c", "c", "c"], ["y"], name="sffm/Scatter_4", reduction="add"
    )
    with pytest.raises(BackendError, match="ScatterElements 'sffm/Scatter_4': "):
        build(make_graph(extra=[node]), rtx, targets=("SM89",))


@needs_rtx
@pytest.mark.parametrize(
    ("precision", "targets", "options", "message"),
    [
        ("fp8", ("SM86",), {}, "the GPU lacks a type of this precision, take another one"),
        ("fp32", ("SM90",), {}, r"has no target 'SM90'; it has SM75, SM80, SM86, SM89"),
        ("fp32", None, {}, r"for the GPU here: none, or .* too old; name .* --target SM89"),
        ("fp32", ("SM89",), {"version_compatible": True}, "each release needs its own; leave"),
        ("fp32", ("SM89",), {"strip_weights": True}, "no NVIDIA driver; leave --strip-weights out"),
    ],
)
def test_what_cannot_be_built_says_what_to_change(
    rtx: Flavour,
    make_graph: MakeGraph,
    precision: str,
    targets: tuple[str, ...] | None,
    options: dict[str, bool],
    message: str,
) -> None:
    if targets is None or "strip_weights" in options:
        skip_where_a_gpu_is()
    with pytest.raises(BackendError, match=message):
        build(
            make_graph(precision),
            rtx,
            targets=targets,
            options=EngineOptions(max_batch=2, **options),  # type: ignore[arg-type]
        )


def skip_where_a_gpu_is() -> None:
    from sfn_rt.backends.cuda import find_gpu

    try:
        find_gpu()
    except BackendError:
        return
    pytest.skip("this machine has a GPU: it can")


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="--max-batch must be at least 1, got 0"):
        EngineOptions(max_batch=0)
    with pytest.raises(InputError, match="--workspace must be at least 1 MB"):
        EngineOptions(workspace_mb=0)
    with pytest.raises(InputError, match="--max-frame must be at least 16x16"):
        EngineOptions(max_frame=(8, 1920))


# --- progress and Ctrl-C


@needs_rtx
def test_progress_is_told(rtx: Flavour, make_graph: MakeGraph) -> None:
    seen: list[tuple[str, int, int]] = []
    build(
        make_graph(),
        rtx,
        targets=("SM89",),
        options=SMALL,
        progress=lambda phase, step, steps: seen.append((phase, step, steps)),
    )
    assert {phase for phase, _, _ in seen} >= {"Building engine"}
    assert all(0 <= step <= steps for _, step, steps in seen)


@needs_rtx
def test_ctrl_c_stops_the_builder(rtx: Flavour, tiny_bundle: Path) -> None:
    """From inside the build: the main thread is interrupted, the builder stops at its next step."""
    after: list[str] = []

    def interrupt(phase: str, step: int, steps: int) -> None:
        after.append(phase)
        if len(after) == 5:
            _thread.interrupt_main()
            time.sleep(0.5)  # the main thread looks every tenth of a second

    with pytest.raises(KeyboardInterrupt):
        build(
            tiny_bundle / "text.onnx",
            rtx,
            targets=("SM89",),
            options=SMALL,
            progress=interrupt,
        )
    assert len(after) < 100  # a whole build of it takes more than 1000 steps


# --- which TensorRT


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module, extra in (
        ("tensorrt", "tensorrt", "trt"),
        ("tensorrt-rtx", "tensorrt_rtx", "rtx"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        message = rf"{module} cannot be imported .*`pip install 'sfn-rt\[{extra}\]'`"
        with pytest.raises(BackendError, match=message):
            load_flavour(name)
    with pytest.raises(BackendError, match="--backend must be one of tensorrt, tensorrt-rtx, got"):
        load_flavour("openvino")


def test_one_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))
    with pytest.raises(BackendError, match=r"tensorrt is 8\.6\.1, 10\.1 is the oldest that fits"):
        load_flavour("tensorrt")


def test_releases_are_numbers() -> None:
    assert release_of("10.3.0.post1") == (10, 3, 0)
    assert release_of("10.3.0") < release_of("10.16.1") < release_of("11.0.0")


@needs_rtx
def test_targets_rise(rtx: Flavour) -> None:
    assert rtx.targets[:4] == ("SM75", "SM80", "SM86", "SM89")
    assert rtx.title.startswith("TensorRT-RTX 1.")
