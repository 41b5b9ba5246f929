"""A precision goes into a bundle beside what is there, and out again without a trace."""

import shutil
from pathlib import Path

import pytest

from sfn_calib.variant import add_precision, copy_without, taken, without
from sfn_rt.bundle import Bundle, load_bundle
from sfn_rt.exceptions import BundleError


def add(bundle: Bundle, work: Path, name: str = "int8") -> Bundle:
    """A precision whose decoder is a copy of the full one; the rest stays fp32."""
    work.mkdir()
    manifest = copy_without(bundle, work, name)
    for part in ("decoder", "motion"):
        shutil.copyfile(bundle.graph(part), work / f"{part}.{name}.onnx")
    (work / f"{name}.json").write_text("{}")
    (work / f"{name}.png").write_bytes(b"png")
    variants = dict.fromkeys(manifest.parts, "fp32") | {"decoder": name}
    add_precision(work, manifest, name, variants, {"auc_loss": 0.1})
    return load_bundle(work)


def test_a_bundle_has_both(tiny_bundle: Path, tmp_path: Path) -> None:
    done = add(load_bundle(tiny_bundle), tmp_path / "new")
    assert done.variants("int8")["decoder"] == "int8"
    assert done.variants("int8")["motion"] == "fp32"
    assert done.graphs("int8")["decoder"].name == "decoder.int8.onnx"
    assert done.graphs()["decoder"].name == "decoder.onnx"
    assert not (tmp_path / "new" / "motion.int8.onnx").exists()  # nothing in it was converted
    assert done.manifest.precisions["int8"].gate == {"auc_loss": 0.1}
    with pytest.raises(BundleError, match="fp32, int8"):
        done.graphs("fp8")


def test_a_second_time_replaces_and_others_stay(tiny_bundle: Path, tmp_path: Path) -> None:
    before = load_bundle(tiny_bundle)
    both = add(add(before, tmp_path / "one"), tmp_path / "two", "fp16")
    again = add(both, tmp_path / "three", "int8")
    assert set(again.manifest.precisions) == {"int8", "fp16"}
    assert again.manifest.named_files == both.manifest.named_files
    gone = without(without(again.manifest, "int8"), "fp16")
    assert gone.parts == before.manifest.parts
    assert gone.precisions == {}


def test_a_name_that_another_file_has_is_found(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert taken(bundle, "int8") is None
    assert taken(bundle, "parity") == "parity.json"
