"""The wheel is the device: it holds sfn_rt and nothing else."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, repository],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_runtime_and_nothing_else(
    repository: Path, wheel: zipfile.ZipFile
) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    (info,) = tops - {"sfn_rt"}
    assert info.startswith("sfn_rt-")
    assert info.endswith(".dist-info")

    runtime = repository / "runtime"
    packed = {name for name in wheel.namelist() if name.startswith("sfn_rt/")}
    sources = {path.relative_to(runtime).as_posix() for path in runtime.glob("sfn_rt/**/*.py")}
    schemas = {
        path.relative_to(runtime).as_posix() for path in runtime.glob("sfn_rt/schemas/*.json")
    }
    assert schemas, "the file formats are documented by JSON schemas"
    assert sources | schemas | {"sfn_rt/py.typed"} <= packed


def test_the_wheel_asks_for_no_torch_and_no_backend(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    required = metadata.get_all("Requires-Dist") or []
    always = [line for line in required if "extra ==" not in line]
    base = {re.split("[<>=]", line)[0] for line in always}
    assert base == {"av", "numpy", "opencv-python-headless", "tokenizers", "typer"}


def test_torch_has_one_range_in_all_extras(repository: Path) -> None:
    with (repository / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    torch = {line for lines in extras.values() for line in lines if line.startswith("torch>")}
    assert len(torch) == 1, torch


def test_the_wheel_installs_one_command(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert wheel.read(name).decode().split() == [
        "[console_scripts]",
        "sfn-rt",
        "=",
        "sfn_rt.cli:app",
    ]
