"""What the house promises: help for every target, and files that know no one's machine."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sfn_rt import __version__

WORKPLACE = re.compile(rb"(?<![\w.])/(work|root|home/\w+|Users/\w+)/", re.ASCII)


def tracked_files(repository: Path) -> list[Path]:
    if shutil.which("git") is None or not (repository / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the project is unknown")
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True, text=True
    )
    paths = (repository / name for name in done.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


@pytest.fixture(scope="module")
def makefile(repository: Path) -> str:
    return (repository / "Makefile").read_text()


def make(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("make is not on the path")
    return subprocess.run(["make", *arguments], cwd=repository, capture_output=True, text=True)


def test_help_is_the_default_and_lists_every_target(repository: Path, makefile: str) -> None:
    (line,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    done = make(repository)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^  ([\w-]+) ", done.stdout, re.MULTILINE)
    assert listed == line.split()


@pytest.mark.parametrize(
    ("target", "variable"),
    [
        ("train", "DATA"),
        ("export", "RUN"),
        ("calibrate", "DATA"),
        ("eval", "DATA"),
        ("bench", "VIDEO"),
    ],
)
def test_a_target_says_which_variable_it_lacks(
    repository: Path, target: str, variable: str
) -> None:
    # -o: the environment counts as made, so that nothing is installed here
    done = make(repository, "-o", ".venv/.stamp", target, f"{variable}=")
    assert done.returncode == 2
    assert f"error: say {variable}=" in done.stderr


def test_every_stage_the_makefile_calls_is_a_package_of_the_checkout(
    repository: Path, makefile: str
) -> None:
    for package in set(re.findall(r"-m (sfn_\w+)", makefile)):
        assert list(repository.glob(f"*/{package}/__main__.py")), f"{package} has no __main__.py"


def test_no_file_names_a_workplace_path(repository: Path) -> None:
    named = {
        str(path.relative_to(repository)): found.group().decode()
        for path in tracked_files(repository)
        if (found := WORKPLACE.search(path.read_bytes()))
    }
    assert not named


def test_the_change_log_knows_this_version(repository: Path) -> None:
    assert f"## [{__version__}]" in (repository / "CHANGELOG.md").read_text()
