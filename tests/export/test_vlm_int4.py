"""Another precision of the language model: the same part, other words, and a report of which."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import InternVLForConditionalGeneration
from typer.testing import CliRunner

from sfn_export import vlm_int4
from sfn_export.cli import app
from sfn_export.exceptions import ExportError
from sfn_export.parity import measure
from sfn_export.vlm_changes import agreement, read_clips
from sfn_export.vlm_int4 import PROVIDERS, Precision, find_builder, run_builder, write_variant
from sfn_export.vlm_parts import TorchVlm, language_spec
from sfn_rt.backends.base import Array, PartSpec
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import load_bundle
from sfn_rt.datasets import open_dataset
from sfn_rt.frames import open_source
from sfn_rt.semantics.captioner import Said
from sfn_rt.semantics.vlm import Vlm
from tiny_weights import make_internvl

# Relative to the largest value. fp16 has 10 bits; 4 bits leave a seventh of a weight, and random
# weights, unlike trained ones, average nothing of it away.
LARGEST: dict[Precision, float] = {"fp16": 5e-3, "int4": 0.4}
SMALLEST: dict[Precision, float] = {"fp16": 1e-5, "int4": 1e-2}  # or it is another precision


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With heads of a width that ONNX Runtime's attention takes."""
    return make_internvl(tmp_path_factory.mktemp("weights") / "InternVL-tiny", lm_width=64)


@pytest.fixture(scope="module")
def torch_vlm(weights: Path) -> TorchVlm:
    model = InternVLForConditionalGeneration.from_pretrained(weights).eval()
    return TorchVlm(model, {"language": language_spec(model)})


@pytest.fixture(scope="module")
def variants(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, torch_vlm: TorchVlm
) -> dict[Precision, Path]:
    folder = tmp_path_factory.mktemp("variants")
    paths = {precision: folder / f"language.{precision}.onnx" for precision in PROVIDERS}
    for precision, path in paths.items():
        write_variant(weights, precision, path, torch_vlm.parts["language"])
    assert {p.name for p in folder.iterdir()} == {
        f"{path.name}{end}" for path in paths.values() for end in ("", ".data")
    }
    return paths


def prompt(spec: PartSpec, length: int) -> dict[str, Array]:
    """Two prompts before an empty cache."""
    random = np.random.default_rng(length)
    width = spec.inputs[0].shape[-1]
    feeds = {"inputs_embeds": random.standard_normal((2, length, width)).astype(np.float32)}
    for tensor in spec.inputs[1:]:
        feeds[tensor.name] = np.zeros((2, tensor.shape[1], 0, tensor.shape[3]), np.float32)
    return feeds


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_a_variant_is_the_same_part_at_another_precision(
    variants: dict[Precision, Path], torch_vlm: TorchVlm, precision: Precision
) -> None:
    spec = torch_vlm.parts["language"]
    with OrtBackend({"language": variants[precision]}, threads=1) as ours:
        assert ours.parts["language"] == spec
        feeds = prompt(spec, 9)
        for _ in range(3):  # a prompt, then a step at a time
            expected, actual = (which.infer("language", feeds) for which in (torch_vlm, ours))
            assert expected.keys() == actual.keys()
            for name, value in expected.items():
                off = measure(name, value, actual[name], precision).max_abs
                assert SMALLEST[precision] < off < LARGEST[precision], name
            feeds = prompt(spec, 1)
            for name in feeds.keys() - {"inputs_embeds"}:
                feeds[name] = expected[name.replace("past_key_values", "present")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, weights: Path) -> Path:
    out = tmp_path_factory.mktemp("int4") / "bundle"
    arguments = ["vlm", weights, "--bundle", tiny_bundle, "--out", out, "--precision", "int4"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--threads", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (row,) = (line for line in done.output.splitlines() if line.startswith("int4 "))
    assert "tokens until" in done.output
    assert len(row.split()) == 10, row  # one of them is a %
    return out


def test_a_bundle_has_both_and_says_what_changed(bundle: Path, weights: Path) -> None:
    opened = load_bundle(bundle)
    assert opened.manifest.vlm is not None
    entry = opened.manifest.vlm.parts["language"]
    assert entry.files == {"fp32": "vlm/language.onnx", "int4": "vlm/language.int4.onnx"}
    assert entry.default == "int4"  # as it was asked for first
    (changes,) = json.loads((bundle / "vlm" / "variants.json").read_text())
    assert changes["variant"] == "int4"
    assert changes["clips"] == 8
    assert 0 <= changes["identical"] <= 1
    assert 0 <= changes["agreed"] <= 1
    assert changes["identical"] == 1 or len(changes["examples"]) > 0
    assert -1 <= changes["cosine_least"] <= changes["cosine"] <= 1 + 1e-6

    clips = read_clips(opened, None)
    assert len(clips) == 8
    said = {}
    for variant in (None, "fp32", "int4"):
        chosen = {} if variant is None else {"language": variant}
        with Vlm(opened, threads=1, variants=chosen, max_tokens=128) as vlm:
            said[variant] = vlm.describe([vlm.see(clip) for clip in clips])
    assert said[None] == said["int4"]
    same = [a.tokens == b.tokens for a, b in zip(said["fp32"], said["int4"], strict=True)]
    assert changes["identical"] == np.mean(same) < 1
    for example in changes["examples"]:
        assert example["reference"] == said["fp32"][example["clip"]].text
        assert example["variant"] == said["int4"][example["clip"]].text


def test_a_variant_is_the_same_bytes_again_and_knows_no_machine(
    variants: dict[Precision, Path], bundle: Path, weights: Path, repository: Path
) -> None:
    for one in (variants["int4"], variants["int4"].with_suffix(".onnx.data")):
        content = one.read_bytes()
        assert content == (bundle / "vlm" / one.name).read_bytes()
        for trace in (weights.parent, repository, Path("site-packages"), "sfn-genai"):
            assert str(trace).encode() not in content


def test_tensorrt_leaves_out_what_only_onnx_runtime_knows(bundle: Path) -> None:
    done = CliRunner().invoke(app, ["rtx", str(bundle)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    (left,) = (line for line in lines if "language.int4.onnx" in line)
    assert "left out: its operators com.microsoft are ONNX Runtime's alone" in left
    (built,) = (line for line in lines if "language.onnx" in line)
    assert built.endswith("prefill and decode")
    assert {Path(line.partition(":")[0]).name for line in lines} == {
        *("appearance.onnx", "motion.onnx", "decoder.onnx", "text.onnx", "vision.onnx"),
        *("projector.onnx", "language.onnx", "language.int4.onnx"),
        *("prepare.onnx", "difference.onnx", "measure.onnx"),
    }
    done = CliRunner().invoke(app, ["rtx", str(bundle / "vlm" / "language.int4.onnx")])
    assert done.exit_code == 2  # named, so meant
    assert "cannot parse" in done.stderr


def test_clips_of_a_data_set_are_consecutive_frames_spread_over_it(
    bundle: Path, tiny_data: Path
) -> None:
    (video,) = open_dataset(tiny_data).test
    with open_source(video.path) as source:
        images = [frame.image for frame in source]  # 30
    clips = read_clips(load_bundle(bundle, verify=False), tiny_data)
    assert len(clips) == 7  # as many of 4 frames as there are, of at most 8
    for start, clip in zip(range(0, 28, 4), clips, strict=True):
        np.testing.assert_array_equal(clip, images[start : start + 4])


def said(*tokens: int) -> Said:
    return Said(" ".join(map(str, tokens)), cut=False, tokens=tokens)


@pytest.mark.parametrize(
    ("one", "two", "until"),
    [
        ((1, 2, 3), (1, 2, 3), 3),
        ((1, 2, 3), (1, 5, 3), 1),
        ((1, 2, 3), (1, 2), 2),
        ((1,), (2,), 0),
    ],
)
def test_how_far_captions_agree(one: Sequence[int], two: Sequence[int], until: int) -> None:
    assert agreement(said(*one), said(*two)) == until


# ------------------------------------------------------------------------------- what is refused


def test_without_the_builder_the_extra_is_named(
    tiny_bundle: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlm_int4, "PACKAGE", "no_such_package")
    arguments = ["vlm", weights, "--bundle", tiny_bundle, "--out", tmp_path / "new"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--precision", "int4"])
    assert done.exit_code == 2
    assert "pip install 'sfn-rt[genai]'" in done.stderr
    assert not (tmp_path / "new").exists()


def test_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    odd = make_internvl(tmp_path / "odd")  # heads of 12
    model = InternVLForConditionalGeneration.from_pretrained(odd)
    with pytest.raises(ExportError, match=r"heads of width 12.*takes multiples of 8"):
        write_variant(odd, "int4", tmp_path / "language.onnx", language_spec(model))


def test_clips_without_a_precision_to_compare(tiny_bundle: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["vlm", "x", "--bundle", str(tiny_bundle), "--clips", "y"])
    assert done.exit_code == 2
    assert "--clips are what --precision int4 or fp16 is compared on" in done.stderr


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)",
            "may not use the network",
        ),
        ("import urllib.request as u; u.urlopen('http://localhost:9')", "may not use the network"),
        ("open(r'{outside}', 'w')", "may not write"),
        ("import os; os.mkdir(r'{outside}')", "may not write"),
        ("import onnxruntime_genai", "onnxruntime_genai"),
        ("raise SystemExit('no such architecture')", "stopped (no such architecture)"),
    ],
)
def test_the_builder_is_guarded(program: str, message: str, tmp_path: Path) -> None:
    work, outside = tmp_path / "work", tmp_path / "outside"
    work.mkdir()
    builder = tmp_path / "builder.py"
    builder.write_text("open('inside', 'w').close()\n" + program.format(outside=outside))
    with pytest.raises(ExportError) as caught:
        run_builder(builder, work, [])
    assert message in str(caught.value)
    assert (work / "inside").exists()
    assert not outside.exists()


def test_the_builder_is_found_without_running_its_package() -> None:
    assert find_builder("int4").name == "builder.py"
    assert "onnxruntime_genai" not in sys.modules
