"""`make wheelhouse`: everything a CUDA machine needs to check this project, packed to travel.

    python scripts/wheelhouse.py [--out wheelhouse] [--split 60M] [--python-version 3.12]
        [--extras gpu,cuda,rtx,trt] [--bundle FOLDER ...]

The wheel of this checkout, wheels of the extras for the device's Python and platform, the GPU
tests, benchmarks and scripts, and bundles: those named, or one of `edge` and one of the paper's
size with random weights, so that the device needs no export. What lies in OUT/.work is used again
by a later run and does not travel. An extra that no index has is said, listed in the manifest, and
leaves the others as they are.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pieces
from pieces import PackError
from wheels import NVIDIA_INDEX, Downloader, Missing, Target, build_wheel, store

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("gpu", "cuda", "rtx", "trt")
SAMPLES = ("edge", "paper")
LEAST_SPLIT = 1 << 20
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
PROJECT = (  # what of the checkout travels: the wheel has the rest
    "pyproject.toml", "LICENSE", "docs/gpu.md", "tests/conftest.py", "tests/gpu/**/*.py",
    "benchmarks/*.py", "scripts/*.py", "train/sfn_train/**/*.py", "train/sfn_train/**/*.yaml",
)  # fmt: skip
BESIDE = (
    "gpu_check.py",
    "gpu_machine.py",
    "gpu_report.py",
    "pieces.py",
)  # not in the archive: they open it
SOURCES = ("train/sfn_train", "export/sfn_export", "runtime/sfn_rt", "calibration/sfn_calib")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What is packed, and how."""

    out: Path
    split: int | None
    target: Target
    extras: tuple[str, ...]
    bundles: tuple[Path, ...]
    indexes: tuple[str, ...]
    preset: int


def main() -> int:
    try:
        options = parse(sys.argv[1:])
        pack(options, lambda text: print(text, flush=True))
    except PackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        full = "the disk is full; make room, or choose another OUT: what is whole is kept"
        print(
            f"error: {error.filename or 'wheelhouse'}: "
            f"{full if error.errno == errno.ENOSPC else error.strerror}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues where this one stopped", file=sys.stderr)
        return 130
    return 0


def parse(words: list[str]) -> Options:
    """The command line, refused where it cannot be meant."""
    parser = argparse.ArgumentParser(prog="make wheelhouse", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("wheelhouse"))
    parser.add_argument("--split", default="", help="largest piece, as 60M; default one file")
    parser.add_argument("--python-version", default="3.12", help="of the device")
    parser.add_argument("--architecture", default="x86_64", help="of the device; or aarch64")
    parser.add_argument("--extras", default=",".join(EXTRAS), help="of sfn-rt, comma separated")
    parser.add_argument("--bundle", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--index", action="append", default=[], help=f"one more, {NVIDIA_INDEX}")
    parser.add_argument("--preset", type=int, default=6, choices=range(10), help="of xz")
    asked = parser.parse_args(words)
    for bundle in asked.bundle:
        inner = bundle / "bundle"  # as scripts/sample_bundles.py leaves it
        if not any((folder / "manifest.json").is_file() for folder in (bundle, inner)):
            raise PackError(f"BUNDLE={bundle} is no bundle: it has no manifest.json")
    return Options(
        asked.out, split_bytes(asked.split), Target(asked.python_version, asked.architecture),
        chosen_extras(asked.extras), tuple(asked.bundle), tuple(asked.index), asked.preset,
    )  # fmt: skip


def split_bytes(text: str) -> int | None:
    """60M as bytes; None where nothing is asked for."""
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)B?", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * UNITS[found[2].upper()]) if found else 0
    if size < LEAST_SPLIT:
        raise PackError(f"SPLIT must be a size of at least 1M, as 60M or 1.5G, got {text!r}")
    return size


def chosen_extras(text: str) -> tuple[str, ...]:
    """Extras of pyproject.toml, in the order given."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    known = project()["optional-dependencies"]
    if unknown := [name for name in names if name not in known]:
        raise PackError(f"EXTRAS: no extra {unknown[0]!r}; there are {', '.join(sorted(known))}")
    if "cpu" in names and "gpu" in names:
        raise PackError("EXTRAS: cpu and gpu own one import name; choose one of the two")
    return names


def project() -> Any:
    """The table `project` of pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def pack(options: Options, say: Say) -> None:
    """Fill OUT: pieces first, the manifest last."""
    out, work = options.out, options.out / ".work"
    refuse_foreign(out)
    work.mkdir(parents=True, exist_ok=True)
    wheels, packed, missing = collect_wheels(options, work, say)
    groups = {f"wheels/{path.name}": {f"wheels/{path.name}": path} for path in wheels}
    groups["project"] = project_files()
    names = []
    for name, folder in bundle_folders(options, work, say).items():
        names.append(name)
        groups[name] = files_below(folder, name)
        groups[name] |= costs(name, folder, work)
    files = {name: path for group in groups.values() for name, path in group.items()}
    listed = [pieces.describe(files[name], name) for name in sorted(files)]
    hashes = {entry["path"]: entry["sha256"] for entry in listed}
    units = compress_all(groups, hashes, work / "units", options.preset, say)
    (out / pieces.MANIFEST).unlink(missing_ok=True)
    for old in out.glob(f"*{pieces.ARCHIVE}*"):
        old.unlink()
    parts = pieces.cut(units, out, options.split)
    for name in BESIDE:
        shutil.copyfile(ROOT / "scripts" / name, out / name)
    manifest = {
        "format": pieces.FORMAT, "sfn_version": version(wheels), "python": options.target.python,
        "architecture": options.target.architecture, "extras": packed, "bundles": names,
        "missing": [asdict(lack) for lack in missing], "pieces": parts, "files": listed,
    }  # fmt: skip
    pieces.write_atomic(out / pieces.MANIFEST, json.dumps(manifest, indent=1) + "\n")
    tell(manifest, options, say)


def refuse_foreign(out: Path) -> None:
    """Only a folder that is empty, or a wheelhouse already, is written to."""
    if out.exists() and not out.is_dir():
        raise PackError(f"{out} is a file; OUT names a folder")
    known = {".work", pieces.MANIFEST, *BESIDE, "results"}
    foreign = [
        path.name
        for path in (out.iterdir() if out.is_dir() else ())
        if path.name not in known and pieces.ARCHIVE not in path.name
    ]
    if foreign:
        raise PackError(f"{out} holds {sorted(foreign)[0]!r}, which is no wheelhouse's; choose OUT")


def collect_wheels(
    options: Options, work: Path, say: Say
) -> tuple[list[Path], list[str], list[Missing]]:
    """The wheels to pack, the extras that they make up, and what is on no index."""
    own = build_wheel(ROOT, work / "own")
    target = options.target
    folder = work / f"wheels_{target.python}_{target.architecture}"
    for old in folder.glob("sfn_rt-*.whl"):
        old.unlink()  # pip takes a file of the same name for the same wheel
    loader = Downloader(folder, target, options.indexes)
    tests = next(r for r in project()["optional-dependencies"]["dev"] if r.startswith("pytest"))
    for requirement in (str(own), tests):
        say(f"downloading {Path(requirement).name} and what it needs")
        if absent := loader.fetch(requirement):
            raise PackError(f"no index has {absent} for Python {target.python}; choose another")
    packed, missing = [], []
    for extra in options.extras:
        say(f"downloading the extra {extra}")
        if absent := loader.fetch(f"{own}[{extra}]"):
            missing.append(Missing(extra, absent, why_missing(extra, absent, target)))
            say(f"NOT packed: {extra}: {missing[-1].reason}")
        else:
            packed.append(extra)
    stored = work / "stored"
    stored.mkdir(exist_ok=True)
    return [keep(path, stored) for path in sorted(loader.saved)], packed, missing


def why_missing(extra: str, requirement: str, target: Target) -> str:
    """What the index lacks, and where it might be had."""
    reason = f"no index has {requirement} for Python {target.python} on {target.architecture}"
    if extra in ("trt", "rtx"):
        reason += f"; NVIDIA's own may: ARGS='--index {NVIDIA_INDEX}'"
    return reason


def keep(wheel: Path, folder: Path) -> Path:
    """The wheel as it is packed: not compressed inside."""
    out = folder / wheel.name
    if not out.exists() or out.stat().st_mtime <= wheel.stat().st_mtime:
        store(wheel, out)
    return out


def project_files() -> dict[str, Path]:
    """Of the checkout: name in the archive -> file."""
    found = {
        path.relative_to(ROOT).as_posix(): path
        for pattern in PROJECT
        for path in ROOT.glob(pattern)
        if path.is_file()
    }
    return {f"project/{name}": found[name] for name in sorted(found)}


def bundle_folders(options: Options, work: Path, say: Say) -> dict[str, Path]:
    """Name in the archive -> folder: the bundles named, or the two samples."""
    if options.bundles:
        named = {f"bundles/{path.resolve().name}": path for path in options.bundles}
        if len(named) < len(options.bundles):
            raise PackError("two bundles have one folder name; rename one of them")
        return named
    key = sources_key()
    return {f"bundles/{name}": sample(name, work / f"{name}_{key}", say) for name in SAMPLES}


def sample(profile: str, folder: Path, say: Say) -> Path:
    """A sample bundle with its SFFM, made once for these sources."""
    if folder.is_dir():
        return folder
    say(f"exporting a bundle of the size of {profile}, with random weights")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, str(ROOT / "scripts" / "sample_bundles.py"), profile, str(partial)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says no reason"])[-1]
        raise PackError(f"the sample bundle {profile} cannot be made: {said}")
    for old in folder.parent.glob(f"{profile}_*"):
        shutil.rmtree(old)
    partial.rename(folder)
    return folder


def sources_key() -> str:
    """Changes whenever a source does that a sample bundle is made by."""
    digest = hashlib.sha256((ROOT / "scripts" / "sample_bundles.py").read_bytes())
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def costs(name: str, folder: Path, work: Path) -> dict[str, Path]:
    """What a bundle must compute and move at least, counted here: the device has no onnx."""
    inner = folder / "bundle" if (folder / "bundle").is_dir() else folder
    script = ROOT / "benchmarks" / "gpu_costs.py"
    done = subprocess.run([sys.executable, str(script), str(inner)], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says no reason"])[-1]
        raise PackError(f"{inner}: cannot count its floors: {said}")
    path = work / f"costs_{Path(name).name}.json"
    path.write_text(done.stdout)
    return {f"costs/{Path(name).name}.json": path}


def files_below(folder: Path, name: str) -> dict[str, Path]:
    """Every file of a folder under its name in the archive."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def compress_all(
    groups: Mapping[str, Mapping[str, Path]],
    hashes: Mapping[str, str],
    folder: Path,
    preset: int,
    say: Say,
) -> list[Path]:
    """One unit a group, in order; a unit that is there for the same files is used again."""
    folder.mkdir(exist_ok=True)
    units = {}
    for name, files in sorted(groups.items()):
        inside = "".join(f"{path} {hashes[path]}\n" for path in sorted(files))
        key = hashlib.sha256(f"{preset}\n{inside}".encode()).hexdigest()[:24]
        units[name] = folder / f"{key}.tar.xz"
    for old in set(folder.iterdir()) - set(units.values()):
        old.unlink()

    def make(name: str) -> None:
        if not units[name].exists():
            say(f"compressing {name}")
            pieces.compress(groups[name], units[name], preset)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # compressing releases the interpreter lock
        list(pool.map(make, units))
    return list(units.values())


def version(wheels: list[Path]) -> str:
    """Of sfn-rt, as its wheel is named."""
    return next(path.name.split("-")[1] for path in wheels if path.name.startswith("sfn_rt-"))


def tell(manifest: Mapping[str, Any], options: Options, say: Say) -> None:
    """What was packed, and what to do with it."""
    size = sum(piece["size"] for piece in manifest["pieces"])
    whole = sum(entry["size"] for entry in manifest["files"])
    say(
        f"{options.out}: {len(manifest['files'])} files, {whole / 1e6:.0f} MB, in "
        f"{len(manifest['pieces'])} piece(s) of {size / 1e6:.0f} MB in all, for Python "
        f"{manifest['python']} on {manifest['architecture']}; extras "
        f"{', '.join(manifest['extras']) or 'none'}"
    )
    for lack in manifest["missing"]:
        say(f"not packed: {lack['extra']}: {lack['reason']}")
    say(f"copy all of it but .work to the device, then there: python3 {BESIDE[0]}")


if __name__ == "__main__":
    sys.exit(main())
