"""What travels to a machine without network: pieces that join, and errors that say what to do."""

import importlib
import json
import lzma
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Module = Callable[[str], types.ModuleType]


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """Import a script as Python does when it is run: its folder comes first."""
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    names: list[str] = []

    def load(name: str) -> types.ModuleType:
        names.append(name)
        return importlib.import_module(name)

    yield load
    for name in (*names, "pieces", "wheels", "gpu_machine", "gpu_report"):
        sys.modules.pop(name, None)


@pytest.fixture
def packed(script: Module, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Three units in pieces of 300 bytes, with their manifest."""
    pieces = script("pieces")
    files = {}
    for i, size in enumerate((3000, 0, 513)):
        path = tmp_path / f"{i}.bin"
        path.write_bytes(bytes((7 * j * (i + 1)) % 251 for j in range(size)))
        files[f"folder/{i}.bin"] = path
    units = []
    for name, path in files.items():
        units.append(tmp_path / f"{path.stem}.unit")
        pieces.compress({name: path}, units[-1], 1)
    folder = tmp_path / "sent"
    folder.mkdir()
    manifest = {
        "format": pieces.FORMAT,
        "pieces": pieces.cut(units, folder, 300),
        "files": [pieces.describe(path, name) for name, path in files.items()],
    }
    pieces.write_atomic(folder / pieces.MANIFEST, json.dumps(manifest))
    return folder, manifest


def test_pieces_join_into_the_same_files(script: Module, packed, tmp_path: Path) -> None:
    pieces, (folder, manifest) = script("pieces"), packed
    assert len(manifest["pieces"]) > 1
    assert all(piece["size"] <= 300 for piece in manifest["pieces"])
    pieces.unpack(pieces.read_manifest(folder), folder, tmp_path / "there")
    for i in range(3):
        arrived = (tmp_path / "there" / "folder" / f"{i}.bin").read_bytes()
        assert arrived == (tmp_path / f"{i}.bin").read_bytes()


def test_the_archive_is_an_ordinary_one(packed, tmp_path: Path) -> None:
    folder, manifest = packed
    whole = tmp_path / "whole.tar.xz"
    whole.write_bytes(b"".join((folder / p["name"]).read_bytes() for p in manifest["pieces"]))
    with tarfile.open(whole) as archive:
        assert archive.getnames() == [entry["path"] for entry in manifest["files"]]
    lzma.decompress(whole.read_bytes())  # to its very end


def test_a_piece_that_is_lost_and_one_that_is_damaged_are_named(
    script: Module, packed, tmp_path: Path
) -> None:
    pieces, (folder, manifest) = script("pieces"), packed
    first, second = (folder / piece["name"] for piece in manifest["pieces"][:2])
    kept = first.read_bytes()
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1] + b"?")
    with pytest.raises(pieces.PackError) as error:
        pieces.unpack(manifest, folder, tmp_path / "there")
    assert f"have not arrived: {first.name}" in str(error.value)
    assert f"are damaged: {second.name}" in str(error.value)
    assert not (tmp_path / "there").exists()
    first.write_bytes(kept)
    with pytest.raises(pieces.PackError, match="damaged"):
        pieces.unpack(manifest, folder, tmp_path / "there")


def test_a_file_that_the_manifest_does_not_list_is_refused(
    script: Module, packed, tmp_path: Path
) -> None:
    pieces, (folder, manifest) = script("pieces"), packed
    manifest["files"] = manifest["files"][1:]
    with pytest.raises(pieces.PackError, match="does not list"):
        pieces.unpack(manifest, folder, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_second_unpacking_does_nothing(script: Module, packed, tmp_path: Path) -> None:
    pieces, (folder, manifest) = script("pieces"), packed
    pieces.unpack(manifest, folder, tmp_path / "there")
    for piece in manifest["pieces"]:
        (folder / piece["name"]).unlink()
    pieces.unpack(manifest, folder, tmp_path / "there")


def test_without_a_limit_there_is_one_file(script: Module, tmp_path: Path) -> None:
    pieces = script("pieces")
    path = tmp_path / "a"
    path.write_bytes(b"a" * 5000)
    pieces.compress({"a": path}, tmp_path / "unit", 1)
    (made,) = pieces.cut([tmp_path / "unit"], tmp_path, None)
    assert made["name"] == pieces.ARCHIVE


def test_the_same_files_make_the_same_bytes(script: Module, tmp_path: Path) -> None:
    pieces = script("pieces")
    made = []
    for folder in ("x", "y"):
        path = tmp_path / folder / "a"
        path.parent.mkdir()
        path.write_bytes(b"a" * 5000)
        pieces.compress({"a": path}, path.with_name("unit"), 6)
        made.append(path.with_name("unit").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("text", "size"), [("", None), ("60M", 60 << 20), ("1.5g", 3 << 29), ("2000000", 2_000_000)]
)
def test_sizes(script: Module, text: str, size: int | None) -> None:
    assert script("wheelhouse").split_bytes(text) == size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", "60X"], "SPLIT must be a size of at least 1M, as 60M or 1.5G, got '60X'"),
        (["--split", "10"], "SPLIT must be"),
        (["--extras", "gpu,warp"], "EXTRAS: no extra 'warp'; there are"),
        (["--extras", "gpu,cpu"], "cpu and gpu own one import name"),
        (["--python-version", "2.7"], "PYTHON_VERSION must be 3.11 or newer"),
        (["--architecture", "sparc"], "--architecture must be x86_64 or aarch64"),
        (["--bundle", "nowhere"], "BUNDLE=nowhere is no bundle"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    script: Module, monkeypatch, capsys, words: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["wheelhouse.py", *words])
    assert script("wheelhouse").main() == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_wheelhouse_is_left_alone(script: Module, tmp_path: Path) -> None:
    wheelhouse = script("wheelhouse")
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(script("pieces").PackError, match=r"thesis\.txt"):
        wheelhouse.refuse_foreign(tmp_path)


def test_a_full_disk_is_said(script: Module, monkeypatch, capsys) -> None:
    wheelhouse = script("wheelhouse")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "wheelhouse/x")

    monkeypatch.setattr(wheelhouse, "pack", full)
    monkeypatch.setattr(sys, "argv", ["wheelhouse.py"])
    assert wheelhouse.main() == 2
    assert "the disk is full" in capsys.readouterr().err


def test_what_no_index_has_is_built_where_it_can_be_and_named_where_not(
    script: Module, monkeypatch, tmp_path: Path
) -> None:
    wheels = script("wheels")
    loader = wheels.Downloader(tmp_path / "wheels", wheels.Target("3.12"))
    asked = []

    def pip(*words: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        if words[0] == "wheel":
            meta = words[-1] == "meta<2"
            if meta:
                folder = Path(words[2].partition("=")[2])
                folder.mkdir()
                (folder / "meta-1-py3-none-any.whl").touch()
            return subprocess.CompletedProcess(words, 0 if meta else 1, "", "")
        built = (tmp_path / "wheels_built" / "meta-1-py3-none-any.whl").exists()
        lacks = 'libs==1; extra == "x"' if built else 'meta<2; extra == "x"'
        said = f"ERROR: No matching distribution found for {lacks}\n"
        return subprocess.CompletedProcess(words, 1, "", said)

    monkeypatch.setattr(loader, "_pip", pip)
    assert loader.fetch("thing[x]") == "libs==1"
    assert [words[-1] for words in asked if words[0] == "wheel"] == ["meta<2", "libs==1"]
    assert "--python-version=3.12" in asked[0]
    assert "--platform=manylinux_2_28_x86_64" in asked[0]


def test_a_stored_wheel_holds_the_same(script: Module, tmp_path: Path) -> None:
    wheels = script("wheels")
    packed = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.py", "x = 1\n" * 1000)
    stored = wheels.store(packed, tmp_path / "stored.whl")
    with zipfile.ZipFile(stored) as file:
        assert file.read("a.py") == b"x = 1\n" * 1000
        assert file.infolist()[0].compress_type == zipfile.ZIP_STORED


# --- the check that reads it


def check(repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "scripts" / "gpu_check.py"), *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_without_a_gpu_one_line_says_what_runs_instead(script: Module, monkeypatch, capsys) -> None:
    machine = script("gpu_machine")

    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(machine.ctypes, "CDLL", no_library)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert script("gpu_check").main() == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "libcuda.so.1" in said
    assert "--without-gpu" in said


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"cuInit": 100}, "error 100"),
        ({"count": 0}, "no GPU that it offers"),
        ({"version": 12080}, "knows CUDA 12.8, and 13.0 is needed; install driver 580"),
    ],
)
def test_a_driver_without_use_is_told(
    script: Module, monkeypatch, answers: dict[str, int], said: str
) -> None:
    machine = script("gpu_machine")
    driver = types.SimpleNamespace(
        cuInit=lambda flags: answers.get("cuInit", 0),
        cuDeviceGetCount=lambda to: _put(to, answers.get("count", 1)),
        cuDriverGetVersion=lambda to: _put(to, answers.get("version", 13000)),
    )
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: driver)
    with pytest.raises(machine.NoGpu, match=said):
        machine.find_gpus()


def _put(to: Any, value: int) -> int:
    to._obj.value = value
    return 0


def test_pieces_that_arrive_one_by_one(repository: Path, packed, tmp_path: Path) -> None:
    folder, manifest = packed
    late = folder / manifest["pieces"][-1]["name"]
    late.rename(tmp_path / "late")
    done = check(repository, "--without-gpu", "--wheelhouse", str(folder))
    assert done.returncode == 2
    assert f"1 of {len(manifest['pieces'])} pieces have not arrived: {late.name}" in done.stderr


def test_a_folder_without_a_manifest(repository: Path, tmp_path: Path) -> None:
    done = check(repository, "--without-gpu", "--wheelhouse", str(tmp_path))
    assert done.returncode == 2
    assert "make wheelhouse" in done.stderr


def test_what_travels_needs_nothing_but_python(repository: Path, script: Module) -> None:
    import ast

    for name in script("wheelhouse").BESIDE:
        tree = ast.parse((repository / "scripts" / name).read_text(), feature_version=(3, 9))
        tops = {
            node.module.partition(".")[0] if isinstance(node, ast.ImportFrom) else alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
            if not isinstance(node, ast.ImportFrom) or node.module
        }
        own = {path.stem for path in (repository / "scripts").glob("*.py")}
        assert {top.partition(".")[0] for top in tops} <= sys.stdlib_module_names | own, name


def test_the_report_counts_tests_and_lists_what_was_not_run(script: Module, tmp_path: Path) -> None:
    report = script("gpu_report")
    record = tmp_path / "tests.xml"
    record.write_text(
        "<testsuites><testsuite><testcase name='good'/><testcase name='bad'><failure/></testcase>"
        "<testcase name='left'><skipped message='no TensorRT'/></testcase></testsuite></testsuites>"
    )
    tests = report.counted(record)
    assert tests == {"passed": 1, "failed": ["bad"], "skipped": {"left": "no TensorRT"}}
    gpu = {"name": "A GPU", "sm": 90, "memory_gb": 1, "driver": "580", "cuda": "13.0"}
    text = report.table(
        {
            "machine": {"gpus": [gpu], "system": "Linux"},
            "routes": {"tensorrt": {"works": False, "version": None, "why": "not installed"}},
            "tests": tests,
        }
    )
    assert "| tensorrt | no: not installed |" in text
    assert "1 passed, 1 failed, 1 skipped" in text
