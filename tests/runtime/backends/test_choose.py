"""What is asked for runs, or the error says what is missing; nothing falls back."""

import json
import shutil
from pathlib import Path

import pytest

from sfn_rt.backends.choose import open_backend
from sfn_rt.bundle import MANIFEST, load_bundle
from sfn_rt.exceptions import BackendError, BundleError
from sfn_rt.options import BackendOptions


@pytest.fixture
def lowered(tmp_path: Path, tiny_bundle: Path) -> Path:
    """The tiny bundle with precisions that are the fp32 graphs under other names."""
    folder = tmp_path / "lowered"
    shutil.copytree(tiny_bundle, folder)
    raw = json.loads((folder / MANIFEST).read_text())
    for name in ("int8", "bf16"):
        for file in (f"{name}.json", f"{name}.png"):
            (folder / file).write_bytes(b"{}")
            raw["files"][file] = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        raw["precisions"][name] = {
            "parts": dict.fromkeys(raw["parts"], "fp32"),
            "recipe": name, "gate": {}, "report": f"{name}.json", "picture": f"{name}.png",
        }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(raw))
    return folder


def test_a_precision_of_the_bundle_runs_on_the_processor(lowered: Path) -> None:
    with open_backend(load_bundle(lowered), BackendOptions(precision="int8"), threads=1) as backend:
        assert backend.name == "ort"


def test_a_precision_that_the_bundle_lacks(lowered: Path) -> None:
    with pytest.raises(BundleError, match=r"no precision 'fp8'; it has fp32, int8, bf16; .make"):
        open_backend(load_bundle(lowered), BackendOptions(precision="fp8"))


def test_a_precision_that_the_processor_lacks(lowered: Path) -> None:
    with pytest.raises(BackendError, match=r"bf16 runs on GPUs only; take --backend tensorrt"):
        open_backend(load_bundle(lowered), BackendOptions(precision="bf16"))


@pytest.mark.parametrize(("name", "extra"), [("cuda", "sfn-rt[gpu]"), ("tensorrt", "sfn-rt[trt]")])
def test_a_backend_that_is_not_installed(lowered: Path, name: str, extra: str) -> None:
    with pytest.raises(BackendError) as raised:
        open_backend(load_bundle(lowered), BackendOptions(name=name))  # type: ignore[arg-type]
    assert extra in str(raised.value)
