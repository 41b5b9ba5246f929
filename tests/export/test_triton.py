"""The Triton repository: read as Triton reads it, its ensemble run as Triton runs it."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from sfn_export.cli import app
from sfn_export.device_graphs import trace_device
from sfn_export.exceptions import ExportError
from sfn_export.trace import specs_of, trace_part
from sfn_export.triton import parse_size
from sfn_rt.backends.base import Array
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import PartEntry, Precision, load_bundle, write_manifest
from sfn_rt.evidence import FrameEvidence
from sfn_rt.features import Predictor
from sfn_rt.frames import Frame, open_source
from sfn_rt.model import open_model
from sfn_rt.prediction_error import VisualConfig, absolute_error, measure_error, semantic_error
from sfn_rt.preprocess import preprocess, resize_matrix
from sfn_rt.semantics.text_encoder import TextEncoder, load_tokenizer
from sfn_rt.streams import open_stream
from sfn_train.checkpoint import load_run
from sfn_train.model import SFN, ModelConfig
from tiny_weights import WIDTH, make_internvl
from triton_server import Refused, Server

SIZE = "60x40"  # of tiny_data's frames
SLOW = pytest.mark.slow


# --- what is served ----------------------------------------------------------------------------


def write(bundle: Path, out: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["triton", str(bundle), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module", params=["any", SIZE])
def repository(
    request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("triton") / "repository"
    write(tiny_bundle, out, *(() if request.param == "any" else ("--size", request.param)))
    return out


@pytest.fixture(scope="module")
def footage(
    tiny_bundle: Path, tiny_data: Path
) -> Iterator[tuple[list[Frame], list[FrameEvidence]]]:
    """Real frames, and what the runtime finds in them."""
    frames = list(open_source(tiny_data / "testing" / "frames" / "01"))
    with open_model(tiny_bundle, threads=1) as model:
        stream = open_stream(model.perception)
        yield frames, stream.predict(stream.look(frames))


def requests(
    bundle: Path, server: Server, frames: Sequence[Frame], rows: Sequence[FrameEvidence]
) -> Iterator[tuple[FrameEvidence, dict[str, Array]]]:
    """Each predicted frame with what a client sends for it."""
    manifest = load_bundle(bundle).manifest
    assert manifest.semantics is not None
    assert manifest.semantics.text is not None
    text = manifest.semantics.text
    tokenizer = load_tokenizer(bundle / text.tokenizer, text.max_tokens)
    takes = {port.name for port in server.ensembles["sfn_vad"].input}
    wanted = manifest.preprocessing
    for row in rows[manifest.observed :]:
        clip = np.stack([f.image for f in frames[row.index - manifest.observed : row.index + 1]])
        assert row.caption is not None
        found = tokenizer.encode(row.caption)
        feeds = {
            "clip": clip,
            "input_ids": np.array([found.ids], np.int64),
            "attention_mask": np.array([found.attention_mask], np.int64),
            "rows": resize_matrix(clip.shape[1], wanted.height, wanted.resize),
            "columns": resize_matrix(clip.shape[2], wanted.width, wanted.resize),
        }
        yield row, {name: array for name, array in feeds.items() if name in takes}


def check(row: FrameEvidence, found: Mapping[str, Array]) -> None:
    assert row.heat is not None
    # Shares of pixels on either side of a threshold: one pixel of 25 is 0.04.
    assert found["visual"] == pytest.approx([row.terms["visual"]], abs=1e-5)
    assert found["box"] == pytest.approx(row.box, abs=1e-6)
    assert found["heat"] == pytest.approx(row.heat.astype(np.float32), abs=2e-3)  # it is float16
    if row.caption_weight == 1:
        assert found["semantic"] == pytest.approx([row.terms["semantic"]], abs=1e-5)


def test_the_ensemble_finds_what_the_runtime_finds(
    repository: Path, tiny_bundle: Path, footage: tuple[list[Frame], list[FrameEvidence]]
) -> None:
    server = Server(repository)
    compared = 0
    for row, feeds in requests(tiny_bundle, server, *footage):
        check(row, server.infer("sfn_vad", feeds))
        compared += row.caption_weight == 1
    assert compared > 5


def test_an_embedding_in_the_tokens_place_finds_the_same(
    repository: Path, tiny_bundle: Path, footage: tuple[list[Frame], list[FrameEvidence]]
) -> None:
    server = Server(repository)
    with open_model(tiny_bundle, threads=1) as model:
        encoder = model.perception.text
        assert isinstance(encoder, TextEncoder)
        for row, feeds in list(requests(tiny_bundle, server, *footage))[::5]:
            tokens = [feeds.pop(name) for name in ("input_ids", "attention_mask")]
            assert tokens[0].shape == tokens[1].shape
            embedding = encoder.encode([row.caption or ""])  # (K, S)
            check(row, server.infer("sfn_vad_embedded", {**feeds, "embedding": embedding}))


def test_a_wrong_clip_is_refused(repository: Path, tiny_bundle: Path, footage: Any) -> None:
    server = Server(repository)
    _, feeds = next(requests(tiny_bundle, server, *footage))
    with pytest.raises(Refused, match="sfn_vad/clip"):
        server.infer("sfn_vad", {**feeds, "clip": feeds["clip"][1:]})
    with pytest.raises(Refused, match="sfn_vad/clip"):
        server.infer("sfn_vad", {**feeds, "clip": feeds["clip"].astype(np.float32)})


@pytest.mark.parametrize(
    ("model", "old", "new"),
    [
        ("decoder", 'name: "skip"', 'name: "skipped"'),
        ("join", "TYPE_FP32", "TYPE_INT64"),
        ("sfn_vad", 'value: "clip_text"', 'value: "differences"'),
        ("sfn_vad", 'value: "sentences"', 'value: "nobody_gives_this"'),
    ],
)
def test_what_does_not_fit_is_found(
    repository: Path,
    tiny_bundle: Path,
    footage: Any,
    tmp_path: Path,
    model: str,
    old: str,
    new: str,
) -> None:
    """The checks above can fail."""
    shutil.copytree(repository, tmp_path / "broken")
    config = tmp_path / "broken" / model / "config.pbtxt"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    _, feeds = next(requests(tiny_bundle, Server(repository), *footage))
    with pytest.raises(Refused):
        Server(tmp_path / "broken").infer("sfn_vad", feeds)


def test_placement_and_size_stand_in_the_configs(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    write(tiny_bundle, out, "--size", "1920x1080", "--cpu", "--instances", "3")
    server = Server(out)
    assert list(server.ensembles["sfn_vad"].input[0].dims) == [5, 1080, 1920, 3]
    for model in server.models.values():
        (group,) = model.config.instance_group
        assert (group.count, group.kind) == (3, group.KIND_CPU)
    record = json.loads((out / "sfn_triton.json").read_text())
    assert record["frame"] == {"height": 1080, "width": 1920}
    assert set(record["models"]) == server.models.keys() | server.ensembles.keys()


def test_a_precision_is_served_with_what_lies_beside_its_graph(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    graph = onnx.load(bundle / "decoder.onnx")
    onnx.save_model(
        graph, bundle / "decoder.low.onnx", save_as_external_data=True, location="low.data",
        size_threshold=1024,
    )  # fmt: skip
    for name in ("low.json", "low.png"):
        (bundle / name).write_text("{}")
    manifest = load_bundle(tiny_bundle).manifest
    decoder = manifest.parts["decoder"]
    files = {**decoder.files, "low": "decoder.low.onnx"}
    variants = {part: entry.default for part, entry in manifest.parts.items()}
    low = Precision(
        parts={**variants, "decoder": "low"}, recipe="low", gate={},
        report="low.json", picture="low.png",
    )  # fmt: skip
    parts = {**manifest.parts, "decoder": replace(decoder, files=files)}
    write_manifest(bundle, replace(manifest, parts=parts, precisions={"low": low}))
    write(bundle, tmp_path / "repository", "--precision", "low")
    served = tmp_path / "repository" / "decoder" / "1"
    assert {path.name for path in served.iterdir()} == {"model.onnx", "low.data"}
    assert (served / "model.onnx").read_bytes() == (bundle / "decoder.low.onnx").read_bytes()
    Server(tmp_path / "repository")
    assert (
        json.loads((tmp_path / "repository" / "sfn_triton.json").read_text())["precision"] == "low"
    )


def test_an_earlier_repository_is_replaced(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    write(tiny_bundle, out, "--size", SIZE)
    write(tiny_bundle, out)
    assert "rows" in {port.name for port in Server(out).ensembles["sfn_vad"].input}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repository"]


# --- models that are made otherwise ------------------------------------------------------------


def variant(bundle: Path, run: Path, out: Path, **changes: Any) -> Path:
    """A bundle whose network is another; `windows` are frames that its captions tell of."""
    manifest = load_bundle(bundle).manifest
    assert manifest.semantics is not None
    torch.manual_seed(3)
    tiny = load_run(run).config.model
    assert isinstance(tiny, ModelConfig)
    network = SFN(replace(tiny, **changes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    config = network.config
    semantics = replace(manifest.semantics, windows=config.caption_windows)
    parts = {"text": manifest.parts["text"]}
    if not config.use_text:
        parts, semantics = {}, replace(semantics, text=None)
    out.mkdir()
    specs = specs_of(network, text=False)
    for name, spec in specs.items():
        usual = manifest.parts.get(name)
        if name != "decoder" and usual is not None and usual.spec == spec:
            shutil.copyfile(bundle / f"{name}.onnx", out / f"{name}.onnx")  # as good, and there
        else:
            trace_part(name, network, None, out / f"{name}.onnx", form="dense")
    wanted = replace(manifest.preprocessing, height=config.frame_height, width=config.frame_width)
    visual = VisualConfig(**manifest.visual)  # type: ignore[arg-type]
    device = trace_device(out, specs["decoder"], wanted, visual, config.n_windows)
    entries = {
        name: PartEntry(
            files={"fp32": f"{name}.onnx"}, default="fp32", inputs=spec.inputs, outputs=spec.outputs
        )
        for name, spec in {**specs, **device}.items()
    }  # fmt: skip
    kept = [manifest.normal, *(["text.onnx", "tokenizer.json"] if config.use_text else [])]
    for name in kept:
        shutil.copyfile(bundle / name, out / name)
    parts |= {name: entries[name] for name in specs}
    changed = replace(
        manifest, parts=parts, device={name: entries[name] for name in device},
        semantics=semantics, preprocessing=wanted,
    )  # fmt: skip
    write_manifest(out, changed)
    return out


def host(bundle: Path, clip: Array, text: Array | None) -> dict[str, Array]:
    """The measures of the last frame of one clip by the runtime's functions."""
    opened = load_bundle(bundle)
    manifest, visual = opened.manifest, VisualConfig(**opened.manifest.visual)  # type: ignore[arg-type]
    frames = np.stack([preprocess(image, manifest.preprocessing) for image in clip])
    with OrtBackend.from_bundle(opened, threads=1) as backend:
        predictor = Predictor(backend, manifest.observed)
        prediction = predictor.decode(predictor.encode(frames), text)
    assert prediction is not None
    found: dict[str, Array] = {}
    if prediction.next_frame is not None:
        error = measure_error(absolute_error(prediction.next_frame, frames[-1:])[0], visual)
        found |= {"visual": np.array([error.evidence]), "box": np.array(error.box)}
        found["heat"] = error.heat.astype(np.float32)
    if prediction.semantic is not None and text is not None:
        assert manifest.semantics is not None
        found["semantic"] = semantic_error(
            prediction.semantic, text, len(manifest.semantics.windows)
        )
    if prediction.distilled is not None:
        found["distilled"] = prediction.distilled
    return found


TOWER_SIZES = {"frame_height": 56, "frame_width": 56, "patch": 14, "appearance_dim": WIDTH}
VARIANTS = [
    pytest.param({"student": 12, "windows": (5, 8)}, id="student, two captions"),
    pytest.param({"use_text": False, "use_appearance": False}, id="motion alone", marks=SLOW),
    pytest.param({"use_motion": False, "use_appearance": False}, id="text alone", marks=SLOW),
    pytest.param({"tower": "internvl", **TOWER_SIZES}, id="vision tower", marks=SLOW),
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_every_kind_of_model_is_served(
    tiny_bundle: Path, tiny_run: Path, footage: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if "tower" in changes:
        changes = {**changes, "tower": str(make_internvl(tmp_path / "internvl"))}
    bundle = variant(tiny_bundle, tiny_run, tmp_path / "bundle", **changes)
    write(bundle, tmp_path / "repository", "--size", SIZE)
    server = Server(tmp_path / "repository")
    clip = np.stack([frame.image for frame in footage[0][3:8]])
    name = "sfn_vad_embedded" if changes.get("use_text", True) else "sfn_vad"
    feeds: dict[str, Array] = {"clip": clip}
    text = None
    if name == "sfn_vad_embedded":
        (shape,) = (p.dims for p in server.ensembles[name].input if p.name == "embedding")
        feeds["embedding"] = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        text = feeds["embedding"].reshape(1, -1)
    taken = {port.name for port in server.ensembles[name].input}
    found = server.infer(name, {k: v for k, v in feeds.items() if k in taken})
    expected = host(bundle, clip, text)
    assert found.keys() == expected.keys()
    for output, array in expected.items():
        budget = 2e-3 if output == "heat" else 1e-5
        assert np.abs(found[output] - array).max() < budget, output


def test_dual_memory_is_one_model(dual_bundle: Path, tmp_path: Path) -> None:
    said = write(dual_bundle, tmp_path / "repository")
    server = Server(tmp_path / "repository")
    assert "no ensemble" in said
    assert not server.ensembles
    (model,) = server.models.values()
    clips = np.random.default_rng(0).random((2, 16, 3, 20, 30), np.float32)
    batch, found = model.run({"clip": clips}, ["error"])
    assert batch == 2
    mean = np.square(clips[:, 8] - clips.mean(axis=1)).mean(axis=1)
    assert np.abs(found["error"] - mean).max() < 1e-5


# --- what cannot be written --------------------------------------------------------------------


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["triton", *arguments])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    return line


def test_a_bundle_without_device_graphs_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = load_bundle(tiny_bundle).manifest
    for entry in manifest.device.values():
        (tmp_path / "bundle" / entry.files[entry.default]).unlink()
    write_manifest(tmp_path / "bundle", replace(manifest, device={}))
    said = refused(str(tmp_path / "bundle"), "--out", str(tmp_path / "repository"))
    assert "has no device graphs" in said
    assert "export the model again" in said
    assert not (tmp_path / "repository").exists()


def test_a_folder_with_other_files_is_left_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "not a model repository" in refused(str(tiny_bundle), "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_models_of_somebody_else_are_not_lost(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    write(tiny_bundle, out)
    (out / "resnet").mkdir()
    assert "also holds 'resnet'" in refused(str(tiny_bundle), "--out", str(out))
    assert (out / "resnet").is_dir()
    assert (out / "sfn_vad").is_dir()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--size", "1080"), "WIDTHxHEIGHT"),
        (("--size", "0x40"), "WIDTHxHEIGHT"),
        (("--size", "1e3x40"), "WIDTHxHEIGHT"),
        (("--size", "99999x99999"), "WIDTHxHEIGHT"),
        (("--instances", "0"), "--instances"),
        (("--precision", "int3"), "int3"),
    ],
)
def test_nonsense_is_refused(
    tiny_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "repository"
    assert said in refused(str(tiny_bundle), "--out", str(out), *arguments)
    assert not list(tmp_path.iterdir())


def test_dual_memory_takes_no_camera_size(dual_bundle: Path, tmp_path: Path) -> None:
    said = refused(str(dual_bundle), "--out", str(tmp_path / "r"), "--size", SIZE)
    assert "--size" in said
    assert not list(tmp_path.iterdir())


def test_size_is_width_by_height() -> None:
    assert parse_size("1920x1080") == (1080, 1920)
    with pytest.raises(ExportError, match="1920x1080"):
        parse_size("1920*1080")
