"""`python -m sfn_export vlm`: what it writes, says and refuses; whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from sfn_export import trace, vlm, vlm_prompt
from sfn_export.build import ExportOptions, build_bundle
from sfn_export.cli import app
from sfn_export.exceptions import ExportError, ParityError
from sfn_export.vlm import MAX_TOKENS, cap, why_not_counting
from sfn_export.vlm_parity import check_captions, check_vlm_parts
from sfn_export.vlm_parts import TorchVlm, check_exportable
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import CaptionOrigin, Manifest, VlmSettings, load_bundle
from sfn_rt.semantics import vlm as device
from sfn_train.captions.vlm import QUESTION, Vlm, full_prompt, model_sha256
from sfn_train.checkpoint import load_run, save_run
from sfn_train.model import SFN
from sfn_train.sources import tower_record
from tiny_weights import make_bert, make_internvl, make_remote_internvl, make_talkative

runner = CliRunner()


def run(*arguments: object) -> tuple[int, str, str]:
    done = runner.invoke(app, ["vlm", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def settings_of(bundle: Path) -> VlmSettings:
    settings = load_bundle(bundle).manifest.vlm
    assert settings is not None
    return settings


def origin_of(weights: Path, question: str) -> CaptionOrigin:
    return CaptionOrigin(model=model_sha256(weights), prompt=full_prompt(question))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def copy(vlm_weights: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vlm_weights, tmp_path / "weights"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


# --- what it writes -----------------------------------------------------------------------------


def test_the_bundle_says_what_captions_would_state(vlm_bundle: Path, vlm_weights: Path) -> None:
    settings, manifest = settings_of(vlm_bundle), load_bundle(vlm_bundle).manifest
    assert settings.model == "InternVL-tiny"
    assert settings.origin == origin_of(vlm_weights, QUESTION)
    assert settings.stops == (322,)
    assert {*settings.parts} == {"vision", "projector", "language"}
    stated = {k: v for k, v in manifest.provenance.licences.items() if k.startswith("vlm.")}
    assert stated == dict.fromkeys(
        ("vlm.vision", "vlm.projector", "vlm.language", "vlm.embeddings", "vlm.tokenizer"),
        "InternVL-tiny: apache-2.0",
    )
    report = json.loads((vlm_bundle / "vlm/parity.json").read_text())
    assert {d["tensor"].split(".")[0] for d in report["parts"]["differences"]} == {
        "vision",
        "projector",
        "language",
    }
    assert report["captions"]["tokens"] == 24


def test_what_the_bundle_had_is_as_it_was(vlm_bundle: Path, tiny_bundle: Path) -> None:
    before, after = contents(tiny_bundle), contents(vlm_bundle)
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"vlm"}


def test_graphs_hold_no_contrib_operators_and_no_paths(vlm_bundle: Path) -> None:
    for path in (vlm_bundle / "vlm").glob("*.onnx"):
        graph = onnx.load(path)
        assert {node.domain for node in graph.graph.node} == {""}
        assert [(one.domain, one.version) for one in graph.opset_import] == [("", trace.OPSET)]
        assert b"/site-packages/" not in path.read_bytes()
        assert str(Path.cwd()).encode() not in path.read_bytes()


@pytest.fixture(scope="module")
def replaced(vlm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Another VLM, as published ones are: bfloat16, one table of words for input and output.

    Its positions are of the dynamic kind, as InternVL3's are, and its weights beside the graphs.
    """
    root = tmp_path_factory.mktemp("replaced")
    weights = make_talkative(make_internvl(root / "weights", seed=3, tied=True), torch.bfloat16)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
    edit(weights / "config.json", lambda c: c["text_config"].update(rope_parameters=rope))
    bundle = Path(shutil.copytree(vlm_bundle, root / "bundle"))
    more = b"some other variant"
    (bundle / "vlm/more.bin").write_bytes(more)
    digest = hashlib.sha256(more).hexdigest()
    edit(bundle / "manifest.json", lambda m: m["files"].update({"vlm/more.bin": digest}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "INLINE_BYTES", 0)
        code, said, wrong = run(
            weights, "--bundle", bundle, "--prompt", "Who {runs}?", "--max-tokens", 30
        )
    assert code == 0, wrong
    return bundle, weights, said


def test_an_earlier_vlm_is_replaced_and_that_is_said(replaced: tuple[Path, Path, str]) -> None:
    bundle, weights, said = replaced
    assert "note: replaces the VLM InternVL-tiny in " in said
    assert "trained on the scene captioner's words: captions of this VLM will explain" in said
    settings = settings_of(bundle)
    assert settings.origin == origin_of(weights, "Who {runs}?")
    assert settings.max_tokens == 30
    assert {file.name for file in (bundle / "vlm").iterdir()} == {
        *(f"{part}.onnx{end}" for part in settings.parts for end in ("", ".data")),
        "embeddings.npy",
        "parity.json",
        "tokenizer.json",
    }
    assert not list(bundle.parent.glob(".*"))


def test_words_are_kept_in_the_type_they_were_published_in(
    replaced: tuple[Path, Path, str],
) -> None:
    from safetensors.torch import load_file

    bundle, weights, _ = replaced
    assert settings_of(bundle).embeddings_dtype == "bfloat16"
    stored = load_file(weights / "model.safetensors")
    (name,) = (name for name in stored if name.endswith("embed_tokens.weight"))
    rows = np.load(bundle / "vlm/embeddings.npy", mmap_mode="r")
    np.testing.assert_array_equal(rows.view(np.int16), stored[name].view(torch.int16).numpy())


def test_it_says_what_pytorch_says(replaced: tuple[Path, Path, str]) -> None:
    bundle, weights, _ = replaced
    frames = [np.random.default_rng(i).integers(0, 256, (9, 9, 3), np.uint8) for i in range(4)]
    reference = Vlm(weights, question="Who {runs}?", max_tokens=30, device="cpu")
    with device.Vlm(load_bundle(bundle), threads=1) as ours:
        (said,) = ours.describe([ours.see(frames)])
    (expected,) = reference.caption(frames, [(0, 1, 2, 3)])
    assert (said.text, said.cut) == (expected.text, expected.cut)
    assert len({*said.tokens}) > 3


# --- a tower that the model has already ---------------------------------------------------------


@pytest.mark.slow
def test_a_tower_that_serves_both_is_in_the_bundle_once(
    tiny_run: Path, vlm_weights: Path, tmp_path: Path
) -> None:
    old = load_run(tiny_run)
    sizes = {"frame_height": 56, "frame_width": 56, "patch": 14, "appearance_dim": 64}
    own = replace(old.config.model, tower=str(vlm_weights), **sizes)
    data = replace(old.config.data, resize="bicubic")
    torch.manual_seed(0)
    config = replace(old.config, model=own, data=data)
    model = SFN(own).eval()
    info = {**old.info, "tower": tower_record(model)}
    save_run(replace(old, path=tmp_path / "run", config=config, model=model, info=info))
    build_bundle(
        tmp_path / "run", tmp_path / "bundle", ExportOptions(threads=1), say=lambda t: None
    )

    code, said, wrong = run(vlm_weights, "--bundle", tmp_path / "bundle", "--threads", 1)
    assert code == 0, wrong
    assert "vision: the model's own part is the same graph, which serves both" in said
    assert {*settings_of(tmp_path / "bundle").parts} == {"projector", "language"}
    assert not list((tmp_path / "bundle/vlm").glob("vision*"))
    assert "vlm.vision" not in load_bundle(tmp_path / "bundle").manifest.provenance.licences

    other = make_internvl(tmp_path / "other", seed=1)
    code, said, wrong = run(other, "--bundle", tmp_path / "bundle", "--out", tmp_path / "two")
    assert code == 0, wrong
    assert "serves both" not in said
    assert (tmp_path / "two/vlm/vision.onnx").is_file()


# --- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt is empty; leave it out"),
        (["--prompt", " \n"], "--prompt is empty; leave it out"),
        (["--prompt", "<image> Who?"], "must not hold <image> itself"),
        (["--prompt", "Who <IMG_CONTEXT>?"], "holds <IMG_CONTEXT>, which is a sign of the model's"),
        (["--prompt", "Who?<|im_end|>"], "holds <|im_end|>, which is a sign of the model's"),
        (["--prompt", "caf\udce9"], "--prompt is not valid UTF-8"),
        (["--max-tokens", "0"], "--max-tokens must be at least 1, got 0"),
        (
            ["--max-tokens", "9999"],
            "it has 512 positions and the prompt takes 100 of them, so that",
        ),
        (["--prompt", "who " * 400], "so that 0 tokens can be said, not 1; shorten --prompt"),
    ],
)
def test_what_cannot_be_asked(
    vlm_weights: Path, vlm_bundle: Path, arguments: list[str], message: str
) -> None:
    before = contents(vlm_bundle)
    code, _, wrong = run(vlm_weights, "--bundle", vlm_bundle, *arguments)
    assert (code, wrong.count("\n")) == (2, 1)
    assert message in wrong
    assert contents(vlm_bundle) == before


def test_a_model_that_takes_no_captions(vlm_weights: Path, dual_bundle: Path) -> None:
    code, _, wrong = run(vlm_weights, "--bundle", dual_bundle)
    assert code == 2
    assert "a dual-memory model takes no captions; add the VLM to a bundle of sfn-vad" in wrong


def test_weights_of_another_kind(tiny_bundle: Path, tmp_path: Path) -> None:
    remote = make_remote_internvl(tmp_path / "remote")
    code, _, wrong = run(remote, "--bundle", tiny_bundle)
    assert code == 2
    assert f"python -m sfn_train weights convert {remote} --out NEW" in wrong
    code, _, wrong = run(make_bert(tmp_path / "bert"), "--bundle", tiny_bundle)
    assert code == 2
    assert "is BERT" in wrong
    code, _, wrong = run(tmp_path / "none", "--bundle", tiny_bundle)
    assert code == 2
    assert "none does not exist; give a folder of weights" in wrong


def test_a_tokenizer_of_another_model(copy: Path, tiny_bundle: Path) -> None:
    edit(copy / "config.json", lambda c: c.update(image_token_id=7))
    code, _, wrong = run(copy, "--bundle", tiny_bundle)
    assert code == 2
    assert "<IMG_CONTEXT> at 325" in wrong
    assert "the image token at 7; the two are not of one model" in wrong


def test_fewer_embeddings_than_tokens(copy: Path, tiny_bundle: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    short = {k: t[:300] if "embed_tokens" in k or "lm_head" in k else t for k, t in tensors.items()}
    save_file(short, copy / "model.safetensors", metadata={"format": "pt"})
    edit(copy / "config.json", lambda c: c["text_config"].update(vocab_size=300))
    code, _, wrong = run(copy, "--bundle", tiny_bundle)
    assert code == 2
    assert "its tokenizer has 326 tokens" in wrong
    assert "300 embeddings" in wrong


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("text_config", "layer_types", ["full_attention", "sliding_attention"]),
        ("text_config", "rope_parameters", {"rope_type": "longrope"}),
        ("", "vision_feature_layer", -2),
        ("", "vision_feature_select_strategy", "full"),
    ],
)
def test_what_the_graphs_would_compute_otherwise(
    vlm_weights: Path, part: str, name: str, value: object
) -> None:
    from transformers import InternVLConfig

    config = InternVLConfig.from_pretrained(vlm_weights)
    check_exportable(config, vlm_weights)
    setattr(getattr(config, part) if part else config, name, value)
    with pytest.raises(
        ExportError, match=rf"its config\.json says {part}.*{name}.* can be exported"
    ):
        check_exportable(config, vlm_weights)


def test_a_chat_template_that_holds_a_slot_of_its_own(copy: Path, tiny_bundle: Path) -> None:
    template = copy / "chat_template.jinja"
    template.write_text("Fill in {message}. " + template.read_text())
    code, _, wrong = run(copy, "--bundle", tiny_bundle)
    assert code == 2
    assert "its chat template shows a message 2 times, expected once" in wrong


def test_a_chat_template_that_changes_its_message(copy: Path, vlm_bundle: Path) -> None:
    """The bundle stands for what an export of these weights has written by then."""
    template = copy / "chat_template.jinja"
    changing = "message['content'] | replace('Frame1', 'Picture1')"
    template.write_text(template.read_text().replace("message['content']", changing))
    reference = Vlm(copy, device="cpu")
    assert vlm_prompt.chat_around(reference.tokenizer, copy) == settings_of(vlm_bundle).chat
    with device.Vlm(load_bundle(vlm_bundle), threads=1) as ours:
        vlm_prompt.check_same_text(ours, Vlm(vlm_bundle.parent / "InternVL-tiny", device="cpu"))
        with pytest.raises(ExportError, match="its chat template changes the message it is given"):
            vlm_prompt.check_same_text(ours, reference)


def test_other_weights_are_not_equal(vlm_bundle: Path, tmp_path: Path) -> None:
    """The comparisons can fail: the bundle's graphs against a model of another seed."""
    bundle = load_bundle(vlm_bundle)
    other = Vlm(make_internvl(tmp_path / "other", seed=1), device="cpu")
    with (
        device.Vlm(bundle, threads=1, max_tokens=8) as ours,
        pytest.raises(ParityError, match=r"caption 0: token \d+ is \d+, PyTorch says \d+"),
    ):
        check_captions(other, ours)
    parts = settings_of(vlm_bundle).parts
    specs = {name: entry.spec for name, entry in parts.items()}
    graphs = {name: bundle.graph(name, vlm=True) for name in parts}
    with OrtBackend(graphs, threads=1) as exported:
        for part in ("vision", "projector", "language"):
            mixed = TorchVlm(mix(vlm_bundle, other, part), specs)
            with pytest.raises(ParityError, match=rf"^{part}\.\w+.*max\|Δ\|"):
                check_vlm_parts(mixed, exported)


def mix(vlm_bundle: Path, other: Vlm, part: str) -> Any:
    """The exported model with one part of another."""
    model: Any = Vlm(vlm_bundle.parent / "InternVL-tiny", device="cpu").model
    if part == "vision":
        model.model.vision_tower = other.model.model.vision_tower
    elif part == "projector":
        model.model.multi_modal_projector = other.model.model.multi_modal_projector
    else:
        model.model.language_model = other.model.model.language_model
    return model


def test_interrupted_it_leaves_the_bundle_as_it_was(
    vlm_weights: Path, vlm_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(vlm_bundle, tmp_path / "bundle"))
    before = contents(tmp_path)

    def interrupt(*anything: object) -> None:
        assert (tmp_path / f".bundle.{os.getpid()}.partial/vlm").is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(vlm, "tower_graph", interrupt)
    code, _, wrong = run(vlm_weights, "--bundle", bundle)
    assert (code, wrong) == (130, "interrupted\n")
    assert contents(tmp_path) == before


# --- what is decided ----------------------------------------------------------------------------


def test_whose_captions_count(vlm_bundle: Path) -> None:
    manifest = load_bundle(vlm_bundle).manifest
    origin = settings_of(vlm_bundle).origin

    def trained(**semantics: Any) -> Manifest:
        assert manifest.semantics is not None
        return replace(manifest, semantics=replace(manifest.semantics, **semantics))

    def why(captions: CaptionOrigin | None) -> str | None:
        return why_not_counting(trained(captioner="cached", captions=captions), origin)

    assert why(origin) is None
    assert why(replace(origin, model="other")) == "the model was trained on captions of another VLM"
    asked = "the model was trained on captions of another prompt"
    assert why(replace(origin, prompt="other")) == asked
    assert why(None) == "the model was trained on captions that state no VLM"
    scene = "the model was trained on the scene captioner's words"
    assert why_not_counting(manifest, origin) == scene


def test_the_usual_cap_where_there_is_room(vlm_weights: Path) -> None:
    reference = Vlm(vlm_weights, device="cpu")
    length = reference.prompt_ids.shape[1]
    assert cap(reference, None) == 512 - length
    assert cap(reference, 512 - length) == 512 - length
    with pytest.raises(ExportError, match="lower --max-tokens"):
        cap(reference, 513 - length)
    reference.model.config.text_config.max_position_embeddings = 32768
    assert cap(reference, None) == MAX_TOKENS
