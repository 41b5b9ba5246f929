"""Wheels for another machine: downloaded for its Python and platform, whatever runs here.

Some of NVIDIA's packages are source packages that hold nothing but their requirements, and pip
downloads none of these for another machine. A wheel of such a one fits every machine, so it is
built here and found beside the index.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pieces import PackError

ARCHITECTURES = ("x86_64", "aarch64")
OLDEST_GLIBC, NEWEST_GLIBC = 5, 39  # manylinux_2_N that a wheel may ask for; pip matches N exactly
NO_MATCH = re.compile(r"No matching distribution found for (.+)$", re.MULTILINE)
SAVED = re.compile(r"(?:Saved|File was already downloaded) (\S+\.whl)")
BUILD_S = 300
NVIDIA_INDEX = "https://pypi.nvidia.com"


@dataclass(frozen=True)
class Target:
    """The machine that the wheels are for."""

    python: str  # "3.12"
    architecture: str = "x86_64"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d+", self.python) or int(self.python[2:]) < 11:
            raise PackError(
                f"PYTHON_VERSION must be 3.11 or newer, as 3.12, got {self.python!r}; it is the "
                f"device's (`python3 --version` there)"
            )
        if self.architecture not in ARCHITECTURES:
            raise PackError(
                f"--architecture must be {' or '.join(ARCHITECTURES)}, got {self.architecture!r}"
            )

    def options(self) -> list[str]:
        """How pip is told."""
        names = [f"manylinux_2_{n}" for n in range(OLDEST_GLIBC, NEWEST_GLIBC + 1)]
        names += ["manylinux1", "manylinux2010", "manylinux2014", "linux"]
        platforms = [f"--platform={name}_{self.architecture}" for name in names]
        return ["--only-binary=:all:", f"--python-version={self.python}", *platforms]


@dataclass(frozen=True)
class Missing:
    """What could not be packed."""

    extra: str
    requirement: str
    reason: str


class Downloader:
    """Fills a folder of wheels; what is there already is not fetched again."""

    def __init__(self, folder: Path, target: Target, indexes: tuple[str, ...] = ()) -> None:
        self.folder, self._target = folder, target
        self._built = folder.with_name(f"{folder.name}_built")
        for path in (self.folder, self._built):
            path.mkdir(parents=True, exist_ok=True)
        self._indexes = [f"--extra-index-url={url}" for url in indexes]
        self._tried: set[str] = set()
        self.saved: set[Path] = set()  # what was asked for, and what that needs

    def fetch(self, requirement: str) -> str | None:
        """Download a requirement with all that it needs; returns what is on no index, or None."""
        while True:
            done = self._pip(
                "download", *self._target.options(), f"--dest={self.folder}",
                f"--find-links={self._built}", requirement,
            )  # fmt: skip
            said = done.stdout + done.stderr
            if done.returncode == 0:
                names = {Path(name).name for name in SAVED.findall(said)}
                self.saved |= {self.folder / name for name in names}
                return None
            found = NO_MATCH.search(said)
            if found is None:
                raise PackError(f"pip cannot download {requirement}: {last_line(said)}")
            absent = found[1].partition(";")[0].strip()  # without: extra == "rtx"
            if absent in self._tried or not self._build(absent):
                return absent
            self._tried.add(absent)

    def _build(self, requirement: str) -> bool:
        """Whether a wheel that fits any machine could be made of a source package."""
        work = self._built.with_name("building")
        shutil.rmtree(work, ignore_errors=True)
        try:
            done = self._pip(
                "wheel", "--no-deps", f"--wheel-dir={work}", requirement, timeout=BUILD_S
            )
        except subprocess.TimeoutExpired:
            return False
        wheels = list(work.glob("*-none-any.whl"))
        for wheel in wheels:
            wheel.replace(self._built / wheel.name)
        shutil.rmtree(work, ignore_errors=True)
        return done.returncode == 0 and bool(wheels)

    def _pip(self, *words: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip", words[0], "--disable-pip-version-check"]
        command += [*self._indexes, *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        if "No space left on device" in done.stdout + done.stderr:
            raise PackError(f"{self.folder}: the disk is full; make room, or choose another OUT")
        return done


def build_wheel(root: Path, out: Path) -> Path:
    """The wheel of this checkout, the same bytes for the same files."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "315532800"}  # 1980: the first that zip knows
    done = subprocess.run([*command, str(root)], capture_output=True, text=True, env=environment)
    wheels = list(out.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = last_line(done.stdout + done.stderr)
        raise PackError(
            f"{root}: its wheel cannot be built: {said}; `make test` sets up what it needs"
        )
    return wheels[0]


def store(wheel: Path, out: Path) -> Path:
    """The same wheel, not compressed: what xz makes of that is half as large."""
    partial = out.with_name(f".{out.name}.partial")
    with zipfile.ZipFile(wheel) as packed, zipfile.ZipFile(partial, "w") as stored:
        for entry in packed.infolist():
            info = zipfile.ZipInfo(entry.filename, entry.date_time)
            info.external_attr, info.create_system = entry.external_attr, entry.create_system
            with packed.open(entry) as source, stored.open(info, "w") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    partial.replace(out)
    return out


def last_line(said: str) -> str:
    """The last thing said that is no advice about pip itself."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["it says no reason"])[-1]
