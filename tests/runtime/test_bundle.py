"""The contract between export and runtime is read strictly."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfn_rt.backends.base import TensorSpec
from sfn_rt.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    Manifest,
    PartEntry,
    Precision,
    Provenance,
    ScoreSettings,
    Semantics,
    TextSettings,
    load_bundle,
    write_manifest,
)
from sfn_rt.exceptions import BundleError
from sfn_rt.preprocess import Preprocessing


def floats(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, "float32", ("batch", *shape))


def part(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> PartEntry:
    return PartEntry(
        files={"fp32": f"{name}.onnx"}, default="fp32", inputs=tuple(inputs), outputs=tuple(outputs)
    )


FRAME, TEXT = floats("frame", 3, 20, 30), floats("text", 3)
MADE = Manifest(
    schema_version=SCHEMA_VERSION,
    system="sfn-vad",
    profile="edge",
    sfn_version="0.1.0",
    observed=4,
    lag=0,
    preprocessing=Preprocessing(height=20, width=30),
    parts={
        "appearance": part("appearance", [FRAME], [floats("tokens", 7, 8)]),
        "decoder": part(
            "decoder", [floats("appearance", 4, 7, 8), TEXT], [floats("next_frame", 3)]
        ),
        "text": part("text", [floats("input_ids", 1)], [floats("sentence_embedding", 3)]),
    },
    semantics=Semantics(
        captioner="scene",
        stride=4,
        windows=(4,),
        captions=None,
        scene={"flow_height": 240, "flow_preset": "medium"},
        text=TextSettings(model="m", width=3, max_tokens=256, tokenizer="text/tokenizer.json"),
    ),
    vlm=None,
    visual={"measure": "largest_box", "box_height": 16},
    score=ScoreSettings(
        ema_alpha=0.2, threshold=3.5, rule="r", false_alarms_per_hour=1.0, terms=("visual",)
    ),
    normal="normal.npz",
    device={},
    precisions={},
    provenance=Provenance(
        data="walkway", n_videos=2, n_frames=99, seed=0, config_sha256="ab", licences={"text": "x"}
    ),
)
DUAL = replace(
    MADE,
    system="dual-memory",
    observed=16,
    lag=7,
    parts={
        "autoencoder": part(
            "autoencoder", [floats("clip", 16, 3, 20, 30)], [floats("error", 20, 30)]
        )
    },
    semantics=None,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole bundle whose graphs are only bytes."""
    path = tmp_path / "bundle"
    (path / "text").mkdir(parents=True)
    for name in MADE.parts:
        (path / f"{name}.onnx").write_bytes(name.encode())
    (path / "text" / "tokenizer.json").write_text("{}")
    np.savez(path / "normal.npz", tail=np.arange(3.0))
    write_manifest(path, MADE)
    return path


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    change(raw)
    (folder / MANIFEST).write_text(json.dumps(raw))


def test_what_is_written_is_read(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert replace(bundle.manifest, files={}) == MADE
    assert set(bundle.manifest.files) == {
        "appearance.onnx",
        "decoder.onnx",
        "normal.npz",
        "text.onnx",
        "text/tokenizer.json",
    }
    assert bundle.graph("decoder") == folder / "decoder.onnx"
    assert bundle.normal()["tail"].tolist() == [0, 1, 2]
    with pytest.raises(BundleError, match=r"decoder has no variant 'int8'; it has \['fp32'\]"):
        bundle.graph("decoder", "int8")


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest.json does not exist; is .* a bundle folder"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "{}"])
def test_manifest_that_is_no_manifest(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"manifest.json: (not JSON|schema_version is None)"):
        load_bundle(folder)


def test_manifest_that_is_no_text(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(BundleError, match=r"manifest.json: not JSON"):
        load_bundle(folder)


@pytest.mark.parametrize("version", [0, 3, 5, "4", True, None])
def test_unknown_schema_version(folder: Path, version: object) -> None:
    edit(folder, lambda raw: raw.update(schema_version=version, something_new=1))
    with pytest.raises(BundleError, match=r"this runtime reads 4; export the model again"):
        load_bundle(folder)


def test_a_bundle_of_the_first_schema_is_refused_with_the_way_out(
    tmp_path: Path, repository: Path
) -> None:
    old = repository / "tests" / "assets" / "manifest_v1.json"
    (tmp_path / MANIFEST).write_bytes(old.read_bytes())
    with pytest.raises(BundleError) as refusal:
        load_bundle(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path / MANIFEST}: schema_version is 1 (written by sfn 0.1.0), this runtime reads 4; "
        f"export the model again with a matching sfn_export"
    )


def test_the_second_system_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "autoencoder.onnx").write_bytes(b"autoencoder")
    np.savez(tmp_path / "normal.npz", tail=np.arange(3.0))
    write_manifest(tmp_path, DUAL)
    assert replace(load_bundle(tmp_path).manifest, files={}) == DUAL


def changed(manifest: Manifest, part: str, **tensors: Sequence[TensorSpec]) -> Manifest:
    """With other inputs or outputs of a part."""
    plain = {key: tuple(value) for key, value in tensors.items()}
    entry = replace(manifest.parts[part], **plain)  # type: ignore[arg-type]
    return replace(manifest, parts={**manifest.parts, part: entry})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(MADE, semantics=None), "semantics must be given for sfn-vad, got None"),
        (lambda: replace(DUAL, semantics=MADE.semantics), "semantics must be null for dual-memory"),
        (lambda: replace(DUAL, parts=MADE.parts), "parts of dual-memory are .* got 'appearance'"),
        (lambda: replace(MADE, parts=DUAL.parts), "parts of sfn-vad are .* got 'autoencoder' too"),
        (lambda: replace(DUAL, parts={}), "parts must have 'autoencoder'"),
        (lambda: replace(DUAL, observed=8), "must turn 'clip' .batch, 8, 3, 20, 30. into"),
        (lambda: changed(DUAL, "autoencoder", outputs=[floats("x", 20, 30)]), "into 'error'"),
        (lambda: replace(DUAL, lag=16), "lag must be at least 0 and below observed 16, got 16"),
        (lambda: replace(MADE, lag=-1), "lag must be at least 0"),
        (lambda: replace(MADE, lag=2), "lag must be 0 for sfn-vad"),
        (lambda: changed(MADE, "decoder", outputs=[TEXT]), "must give 'next_frame' or 'semantic'"),
        (lambda: changed(MADE, "decoder", inputs=[FRAME]), "input 'text' must .* 3, got none"),
        (lambda: changed(MADE, "decoder", inputs=[floats("text", 6)]), "captions, 3, got 6"),
    ],
)  # fmt: skip
def test_parts_that_do_not_make_a_system(make: Callable[[], Manifest], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_captions_of_several_windows_lie_side_by_side() -> None:
    assert MADE.semantics is not None
    semantics = replace(MADE.semantics, windows=(4, 8, 16))
    assert semantics.embedded_width == 9
    wide = replace(MADE.parts["decoder"], inputs=(FRAME, floats("text", 9)))
    assert replace(MADE, semantics=semantics, parts={**MADE.parts, "decoder": wide})
    with pytest.raises(ValueError, match="embedded captions, 9, got 3"):
        replace(MADE, semantics=semantics)


def test_a_model_of_captions_alone_has_no_picture_branch() -> None:
    parts = {
        "decoder": part("decoder", [TEXT], [floats("semantic", 3)]),
        "text": MADE.parts["text"],
    }
    assert replace(MADE, parts=parts)


@pytest.mark.parametrize("place", [[], ["score"], ["parts", "decoder"], ["semantics", "text"]])
def test_unknown_and_missing_keys(folder: Path, place: list[str]) -> None:
    def at(raw: dict[str, Any]) -> dict[str, Any]:
        for key in place:
            raw = raw[key]
        return raw

    edit(folder, lambda raw: at(raw).update(novelty=1))
    name = r"manifest.json: " + r"\.".join(place)
    with pytest.raises(BundleError, match=rf"{name}.*unknown keys \['novelty'\]; known keys are"):
        load_bundle(folder)
    edit(folder, lambda raw: at(raw).pop("novelty"))
    key = {"": "observed", "score": "rule", "decoder": "inputs", "text": "width"}
    edit(folder, lambda raw: at(raw).pop(key["".join(place[-1:])]))
    with pytest.raises(BundleError, match=rf"{name}.*missing keys \['\w+'\]"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(observed="4"), r"observed must be int, got '4'"),
        (lambda r: r.update(observed=True), r"observed must be int, got True"),
        (lambda r: r.update(system="other"), r"system must be .*sfn-vad.*, got 'other'"),
        (lambda r: r.update(parts=[]), r"parts must be dict"),
        (lambda r: r["score"].update(threshold=None), r"score.threshold must be float, got None"),
        (lambda r: r["score"].update(ema_alpha=0), r"score: ema_alpha must be above 0"),
        (lambda r: r["score"].update(terms=["sound"]), r"score: terms must be some of"),
        (lambda r: r["semantics"].update(stride=0), r"semantics: stride must be at least 1"),
        (lambda r: r["semantics"].update(windows=[]), r"semantics: windows must rise from 1"),
        (lambda r: r["semantics"].update(windows=[8, 4]), r"semantics: windows must rise from 1"),
        (lambda r: r["semantics"].update(windows=4), r"semantics.windows must be tuple"),
        (lambda r: r["visual"].update(measure=[1]), r"visual.measure must be"),
        (lambda r: r["preprocessing"].update(mean=[0.5]), r"preprocessing.mean must be tuple"),
        (lambda r: r["preprocessing"].update(height=0), r"preprocessing: height must be"),
        (lambda r: r["parts"]["decoder"].update(default="int8"), r"parts.decoder: default 'int8'"),
        (lambda r: r["parts"].pop("decoder"), r"parts must have 'decoder'"),
        (lambda r: r["parts"].pop("text"), r"parts must have 'text'"),
        (lambda r: r["parts"].pop("appearance"), r"parts must have 'appearance' or 'motion'"),
        (
            lambda r: r["parts"]["decoder"]["inputs"][0].update(shape=["batch", 1.5]),
            r"parts.decoder.inputs\[0\].shape\[1\] must be",
        ),
    ],
)
def test_values_that_make_no_sense(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_missing_file(folder: Path) -> None:
    (folder / "decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"decoder.onnx is missing, the manifest lists it"):
        load_bundle(folder, verify=False)


def test_altered_file(folder: Path) -> None:
    (folder / "decoder.onnx").write_bytes(b"decodeR")
    with pytest.raises(BundleError, match=r"decoder.onnx was altered: its sha256 is \w{12}"):
        load_bundle(folder)
    assert load_bundle(folder, verify=False)


@pytest.mark.parametrize("name", ["notes.txt", "text/vocab.txt"])
def test_file_that_is_not_listed(folder: Path, name: str) -> None:
    (folder / name).write_text("hello")
    with pytest.raises(BundleError, match=rf"{name} is not listed in the manifest"):
        load_bundle(folder)


def test_linked_folder_that_is_not_listed(folder: Path, tmp_path: Path) -> None:
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(BundleError, match=r"linked is not listed"):
        load_bundle(folder)


def test_file_without_a_checksum(folder: Path) -> None:
    edit(folder, lambda raw: raw["files"].pop("decoder.onnx"))
    with pytest.raises(BundleError, match=r"'decoder.onnx' has no sha256 in 'files'"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", "text/../../x", "c:\\x.onnx"])
def test_path_that_leaves_the_folder(folder: Path, name: str) -> None:
    edit(folder, lambda raw: raw["parts"]["decoder"]["files"].update(fp32=name))
    with pytest.raises(BundleError, match=r"leads outside the bundle folder"):
        load_bundle(folder)
    edit(folder, lambda raw: raw["parts"]["decoder"]["files"].update(fp32="decoder.onnx"))
    edit(folder, lambda raw: raw["files"].update({name: "ab"}))
    with pytest.raises(BundleError, match=r"leads outside the bundle folder"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["", ".", "./decoder.onnx", "text//tokenizer.json", MANIFEST])
def test_names_with_two_spellings(folder: Path, name: str) -> None:
    edit(folder, lambda raw: raw["files"].update({name: "ab"}))
    with pytest.raises(BundleError, match=r"is not a file name inside the bundle"):
        load_bundle(folder)


def test_symlink_that_leaves_the_folder(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    outside.write_bytes(b"decoder")
    (folder / "decoder.onnx").unlink()
    (folder / "decoder.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match=r"'decoder.onnx' leads outside the bundle folder"):
        load_bundle(folder)


def test_linked_bundle_is_fine(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(folder, target_is_directory=True)
    assert load_bundle(tmp_path / "latest").manifest.parts.keys() == MADE.parts.keys()


def test_statistics_that_are_a_pickle(folder: Path) -> None:
    np.savez(folder / "normal.npz", tail=np.array([{}], dtype=object), allow_pickle=True)
    write_manifest(folder, MADE)
    with pytest.raises(BundleError, match=r"normal.npz: not a file of plain arrays"):
        load_bundle(folder).normal()


def test_statistics_that_are_cut_off(folder: Path) -> None:
    whole = (folder / "normal.npz").read_bytes()
    (folder / "normal.npz").write_bytes(whole[: len(whole) // 2])
    write_manifest(folder, MADE)
    with pytest.raises(BundleError, match=r"normal.npz: not a file of plain arrays"):
        load_bundle(folder).normal()


def test_statistics_that_are_one_array(folder: Path) -> None:
    with (folder / "normal.npz").open("wb") as file:
        np.save(file, np.arange(3))
    write_manifest(folder, MADE)
    with pytest.raises(BundleError, match=r"normal.npz: not a file of plain arrays"):
        load_bundle(folder).normal()


def test_manifest_is_not_written_over_missing_files(folder: Path) -> None:
    (folder / "normal.npz").unlink()
    with pytest.raises(BundleError, match=r"the manifest names 'normal.npz', which is not there"):
        write_manifest(folder, MADE)


def test_checksums_are_quick(folder: Path) -> None:
    (folder / "text.onnx").write_bytes(bytes(90_000_000))  # a sentence encoder's size
    write_manifest(folder, MADE)
    best = min(timed(lambda: load_bundle(folder)) for _ in range(3))
    assert best < 1.0


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


LOWER = Precision(
    parts={"appearance": "fp32", "decoder": "int8", "text": "fp32"},
    recipe="int8", gate={"auc_loss": 0.1}, report="int8.json", picture="int8.png",
)  # fmt: skip


def lowered(precision: Precision = LOWER, name: str = "int8") -> Manifest:
    decoder = MADE.parts["decoder"]
    files = {**decoder.files, "int8": "decoder.int8.onnx"}
    parts = {**MADE.parts, "decoder": replace(decoder, files=files)}
    return replace(MADE, parts=parts, precisions={name: precision})


def test_a_precision_is_a_variant_of_every_part(tmp_path: Path) -> None:
    manifest = lowered()
    for name in manifest.named_files:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    write_manifest(tmp_path, manifest)
    bundle = load_bundle(tmp_path)
    assert bundle.graphs("int8")["decoder"] == tmp_path / "decoder.int8.onnx"
    assert bundle.graphs("int8")["text"] == bundle.graphs()["text"]
    with pytest.raises(BundleError, match=r"no precision 'fp8'; it has fp32, int8; .make calib"):
        bundle.graphs("fp8")
    (tmp_path / "int8.png").unlink()
    with pytest.raises(BundleError, match=r"int8\.png is missing"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("precision", "name", "said"),
    [
        (LOWER, "fp32", "it is every part's default"),
        (replace(LOWER, parts={"decoder": "int8"}), "int8", "must name a variant of"),
        (replace(LOWER, parts={**LOWER.parts, "text": "fp8"}), "int8", "'fp8' of text, which has"),
    ],
)
def test_precisions_must_fit_the_parts(precision: Precision, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        lowered(precision, name)
