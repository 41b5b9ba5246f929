"""Every part becomes an engine; what became of it is a report, and what did not run is said.

Engines are built by TensorRT-RTX ahead of time: none is executed here, tests/gpu has that.
"""

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from sfn_calib.convert import convert
from sfn_calib.ranges import measure_ranges
from sfn_calib.recipe import Recipe
from sfn_calib.variant import add_precision, copy_without
from sfn_export.cli import app
from sfn_export.engine import EngineResult, examine_engines
from sfn_export.engine_build import build_part, make_config, polygraphy
from sfn_export.engine_parity import precisions_of, record_feeds
from sfn_export.engine_place import EngineSettings, choose_place
from sfn_export.exceptions import EngineError, ParityError
from sfn_export.parity import TOLERANCE
from sfn_export.path_parity import clips_of
from sfn_rt.backends.base import PartSpec
from sfn_rt.bundle import load_bundle
from sfn_rt.engines.flavour import load_flavour
from sfn_rt.exceptions import BackendError

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="tensorrt-rtx is made for Linux x86-64",
)
MODEL_PARTS = ["appearance", "motion", "decoder", "text"]
DEVICE_PARTS = ["prepare", "difference", "measure"]
SENSITIVE = ("Softmax", "LayerNormalization", "TopK")


@pytest.fixture(scope="module")
def lower_bundle(
    tiny_bundle: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny bundle with a decoder and encoders in fp16 and int8, ungated."""
    bundle, work = load_bundle(tiny_bundle), tmp_path_factory.mktemp("lower") / "bundle"
    work.mkdir()
    manifest = copy_without(bundle, work, "none")
    feeds = record_feeds(bundle, clips_of(tiny_data), frames=24, fps=None, threads=1)
    for name in ("fp16", "int8"):
        recipe = Recipe.load(name)
        for part in MODEL_PARTS[:3]:
            graph = bundle.graph(part)
            ranges = measure_ranges(graph, recipe, feeds[part]) if recipe.needs_ranges else None
            convert(graph, work / f"{part}.{name}.onnx", recipe, ranges)
        (work / f"{name}.json").write_text(json.dumps({"recipe": recipe.to_json()}))
        (work / f"{name}.png").write_bytes(b"made up")
        variants = dict.fromkeys(MODEL_PARTS, name) | {"text": "fp32"}
        manifest = add_precision(work, manifest, name, variants, {})
    return work


def settings_for(bundle: Path, out: Path, **changes: Any) -> EngineSettings:
    given = {"bundle": bundle, "out": out, "targets": ("SM89",), "threads": 1, "frames": 24}
    return EngineSettings(**(given | changes))


def read_report(result: EngineResult, folder: Path) -> dict[str, Any]:
    """The JSON, which the text beside it and the answer agree with."""
    raw = json.loads((folder / "report.json").read_bytes())
    assert isinstance(raw, dict)
    assert (folder / "report.txt").read_text("utf-8") == result.text()
    assert list(raw["engines"]) == [*MODEL_PARTS, *DEVICE_PARTS]
    assert raw["executed"] is False
    assert any(note.startswith("no engine was executed") for note in raw["notes"])
    return raw


def types_of(engine: Mapping[str, Any], *operators: str) -> set[str]:
    operator_of = {node["name"]: node["operator"] for node in engine["nodes"]}
    return {engine["types"][name] for name, op in operator_of.items() if op in operators}


def test_the_command_in_full_precision(tiny_bundle: Path, tiny_run: Path, tmp_path: Path) -> None:
    arguments = ["engine", str(tiny_bundle), "--run", str(tiny_run), "--target", "SM89"]
    arguments += ["--out", str(tmp_path), "--threads", "1"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "no engine was executed: there is no NVIDIA GPU here" in done.output
    raw = json.loads((tmp_path / "fp32" / "report.json").read_bytes())
    assert {each["tensor"].partition(".")[0] for each in raw["compared"]} == set(MODEL_PARTS)
    assert {(each["tested"], each["reference"]) for each in raw["compared"]} == {
        ("ONNX Runtime", "PyTorch")
    }
    for part, engine in raw["engines"].items():
        assert engine["layers"], part
        assert set(engine["products"].values()) <= {"fp32"}
    fused = [layer for layer in raw["engines"]["decoder"]["layers"] if len(layer["nodes"]) > 1]
    assert any("mjad.filters" in node for layer in fused for node in layer["nodes"])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_is_sensitive_stays_in_fp32(
    lower_bundle: Path, tiny_run: Path, tmp_path: Path, precision: str
) -> None:
    settings = settings_for(lower_bundle, tmp_path / "out", run=tiny_run, precision=precision)
    raw = read_report(examine_engines(settings, lambda line: None), tmp_path / "out")
    decoder = raw["engines"]["decoder"]
    assert types_of(decoder, *SENSITIVE) == {"fp32"}
    products = decoder["products"]
    routers = {name: kind for name, kind in products.items() if ".router/" in name}
    assert len(routers) == 2
    assert set(routers.values()) == {"fp32"}
    lowered = [name for name, kind in products.items() if kind == precision]
    assert len(lowered) > len(products) / 3
    assert raw["engines"]["text"]["shares"] == {"fp32": 1.0}
    tested = [c for c in raw["compared"] if c["precision"] == precision]
    assert {c["reference"] for c in tested} == {"PyTorch", "ONNX Runtime, fp32"}
    # Not each of them: an output that fp16 only moves, or that stayed above it, is exact.
    worst = min(c["sqnr_db"] for c in tested)
    assert worst < TOLERANCE["fp32"].min_sqnr_db, "not lower at all"


def test_a_variant_over_budget_is_refused_and_no_report_is_left(
    lower_bundle: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(TOLERANCE["fp16"], min_sqnr_db=140, why="stricter than any fp16")
    monkeypatch.setitem(TOLERANCE, "fp16", strict)
    settings = settings_for(lower_bundle, tmp_path / "out", run=tiny_run, precision="fp16")
    with pytest.raises(ParityError, match=r"SQNR .*fp16, ONNX Runtime against .*real clips"):
        examine_engines(settings, lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_lower_precision_wants_real_video(lower_bundle: Path, tmp_path: Path) -> None:
    settings = settings_for(lower_bundle, tmp_path / "out", precision="int8")
    with pytest.raises(EngineError, match="int8 is compared on what real video feeds"):
        examine_engines(settings, lambda line: None)


def test_arithmetic_is_the_recipes(lower_bundle: Path, tiny_bundle: Path) -> None:
    bundle = load_bundle(lower_bundle)
    found = precisions_of(bundle, "int8")
    assert found == dict.fromkeys(MODEL_PARTS[:3], "int8") | {"text": "fp32"}
    assert set(precisions_of(load_bundle(tiny_bundle), "fp32").values()) == {"fp32"}


def test_full_precision_is_not_tf32(tiny_bundle: Path) -> None:
    flavour, graph = load_flavour("tensorrt-rtx"), tiny_bundle / "motion.onnx"
    spec = load_bundle(tiny_bundle).manifest.parts["motion"].spec
    with polygraphy(flavour, flavour.messages()) as loaders:
        builder, network, _parser = loaders.network_from_onnx_path(str(graph), strongly_typed=True)
        config = make_config(loaders, spec, ("SM89",), 8, flavour)(builder, network)
        assert not config.get_flag(flavour.module.BuilderFlag.TF32)
        assert config.num_optimization_profiles == 2


def test_targets_have_the_type(tmp_path: Path) -> None:
    settings = replace(settings_for(tmp_path, tmp_path), targets=())
    assert choose_place(settings, {"decoder": "int8"}).targets == ("SM86", "SM89", "SM120")
    assert choose_place(settings, {"decoder": "fp8"}).targets == ("SM89", "SM120")
    asked = settings_for(tmp_path, tmp_path, targets=("SM75",))
    assert choose_place(asked, {"decoder": "fp8"}).targets == ("SM75",)


def test_an_unsupported_operator_is_named_with_its_module(tmp_path: Path) -> None:
    node = helper.make_node(
        "Unknown", ["x"], ["y"], name="mjad.filters.0/Unknown_0", domain="nowhere"
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 3))],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
    path = tmp_path / "bad.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    spec = PartSpec.of({"x": (2, 3)}, {"y": (2, 3)})
    flavour = load_flavour("tensorrt-rtx")
    with pytest.raises(BackendError, match=r"Unknown 'mjad\.filters\.0/Unknown_0': "):
        build_part(path, spec, flavour, targets=("SM89",), max_batch=8)


def test_node_names_survive_onnxruntime(tiny_bundle: Path, tmp_path: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = tiny_bundle / "motion.onnx"
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {"difference": np.ones((1, 3, 20, 30), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_bytes())
    ran = {event["name"].removesuffix("_kernel_time") for event in events}
    names = {node.name for node in onnx.load(path).graph.node if node.op_type == "MatMul"}
    assert names <= ran


@pytest.mark.parametrize("option", ["max_batch", "frames"])
def test_settings_are_checked(tmp_path: Path, option: str) -> None:
    with pytest.raises(EngineError, match="at least 8, got 4"):
        settings_for(tmp_path, tmp_path, **{option: 4})
