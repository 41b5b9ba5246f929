"""`make gpu-check`: build every engine, run the GPU tests and measure, on any CUDA machine.

    python3 gpu_check.py [--wheelhouse FOLDER] [--only STEP ...] [--without-gpu]

Works on a machine without network from what `make wheelhouse` packed: the pieces may arrive over
several days, and this says which are missing. It installs into a folder of its own and leaves the
machine's Python alone. In a checkout without a wheelhouse it takes the environment `.venv`.

Steps: environment, engines, tests, measure; each remembers that it is done. Results: a JSON named
after the GPU, and a table beside it. Exit code 2: something to repair; 1: a test failed.

Only the standard library: this file travels beside the pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pieces
from gpu_machine import NoGpu, ask_python, describe_machine, find_gpus, find_python
from gpu_report import counted, table
from pieces import PackError

HERE = Path(__file__).resolve().parent
STEPS = ("environment", "engines", "tests", "measure")
INSTEAD = (
    "what runs here without one: --without-gpu builds every engine ahead of time with "
    "TensorRT-RTX and runs the int8 graphs on the CPU"
)


def main() -> int:
    try:
        return Check(parse(sys.argv[1:])).run()
    except PackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'gpu-check'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues where this one stopped", file=sys.stderr)
        return 130


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__.splitlines()[0])
    parser.add_argument("--wheelhouse", type=Path, help="folder of pieces; default: beside this")
    parser.add_argument("--work", type=Path, help="folder for the environment and the engines")
    parser.add_argument("--results", type=Path, help="folder for the results")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="instead of those")
    parser.add_argument("--borrow", metavar="PYTHON", help="whose torch and CUDA libraries to use")
    parser.add_argument("--only", action="append", choices=STEPS, help="these steps, done or not")
    parser.add_argument("--quick", action="store_true", help="few repeats: does all of it run?")
    parser.add_argument("--without-gpu", action="store_true", help="what a machine without can do")
    return parser.parse_args(words)


class Check:
    """One machine, from the pieces to the table."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        packed = asked.wheelhouse or (HERE if (HERE / pieces.MANIFEST).is_file() else None)
        self.pieces: Path | None = packed
        base = packed or HERE.parent / ".sfn"
        self.work: Path = (asked.work or base / "check").resolve()
        self.project = self.work / "files" / "project" if packed else HERE.parent
        own = base / "results" if packed else HERE.parent / "benchmarks" / "results"
        self.results: Path = asked.results or own
        self.python = self.work / "env" / "bin" / "python" if packed else _checkout_python()
        self.libraries: list[str] = []

    def run(self) -> int:
        """All steps, or those asked for."""
        gpus = [] if self.asked.without_gpu else self._gpus()
        self.work.mkdir(parents=True, exist_ok=True)
        machine = {**describe_machine(), "gpus": gpus}
        say(f"{machine['processor']}, {machine['system']}")
        for gpu in gpus:
            say(f"{gpu['name']}: sm_{gpu['sm']}, {gpu['memory_gb']} GB, driver {gpu['driver']}")
        if self._wanted("environment"):
            self._environment()
        self.libraries = self._borrow()
        if self.asked.without_gpu:
            return self._without_gpu(machine)
        routes = self._routes()
        name = re.sub(r"[^a-z0-9]+", "_", gpus[0]["name"].lower()).strip("_")
        path = self.results / f"{name}.json"
        report = pieces.read_json(self.work / "report.json") or {}
        report.update({"benchmark": "gpu", "machine": machine, "routes": routes})
        for step, work in (
            ("engines", self._engines), ("tests", self._tests), ("measure", self._measure)
        ):  # fmt: skip
            if self._wanted(step):
                report[step] = work(routes)
                self._keep(report, path)
        self._keep(report, path)
        say(f"{path} and {path.with_suffix('.md')}")
        return 1 if report.get("tests", {}).get("failed") else 0

    def _gpus(self) -> list[dict[str, Any]]:
        try:
            return find_gpus()
        except NoGpu as error:
            raise NoGpu(f"{error}; {INSTEAD}") from None

    def _wanted(self, step: str) -> bool:
        return not self.asked.only or step in self.asked.only

    # --- steps --------------------------------------------------------------------------------

    def _environment(self) -> None:
        """Unpack and install, from the pieces alone; a second time there is nothing to do."""
        if self.pieces is None:
            return
        manifest = pieces.read_manifest(self.pieces)
        say(f"checking {len(manifest['pieces'])} piece(s)")
        pieces.unpack(manifest, self.pieces, self.work / "files")
        for lack in manifest["missing"]:
            say(f"was not packed: {lack['extra']}: {lack['reason']}")
        stamp = self.work / "env" / ".installed"
        sent = pieces.fingerprint(manifest)
        if stamp.is_file() and stamp.read_text() == sent:
            return
        python = find_python(manifest["python"])
        say(f"making {self.work / 'env'} with {python}")
        shutil.rmtree(self.work / "env", ignore_errors=True)
        self._must([python, "-m", "venv", str(self.work / "env")], "make an environment")
        extras = ",".join(manifest["extras"])
        own = next((self.work / "files" / "wheels").glob("sfn_rt-*.whl"))
        self._must(
            [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-index",
             "--no-cache-dir", "--find-links", str(self.work / "files" / "wheels"),
             f"{own}[{extras}]" if extras else str(own), "pytest"],
            "install the wheels",
        )  # fmt: skip
        stamp.write_text(sent)

    def _borrow(self) -> list[str]:
        """Let the environment see another Python's packages behind its own; its CUDA libraries."""
        if self.asked.borrow is None:
            return []
        theirs, ours = ask_python(self.asked.borrow), ask_python(str(self.python))
        if theirs is None or ours is None or theirs[0] != ours[0]:
            raise PackError(
                f"--borrow {self.asked.borrow}: it must be a Python {ours[0] if ours else ''} that "
                f"runs here, found {theirs[0] if theirs else 'none'}"
            )
        (Path(ours[1]) / "borrowed.pth").write_text(f"{theirs[1]}\n")
        return [str(path) for path in sorted(Path(theirs[1]).glob("nvidia/*/lib"))]

    def _routes(self) -> dict[str, Any]:
        """Which ways to the GPU work here, and why the others do not."""
        script = [str(self.project / "benchmarks" / "gpu_routes.py"), *map(str, self.bundles()[:1])]
        done = self._call([str(self.python), *script], capture_output=True, text=True)
        try:
            routes: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise PackError(f"{self.python} cannot say what runs here: {last}") from None
        for name, route in routes.items():
            say(f"{name}: {'version ' + route['version'] if route['works'] else route['why']}")
        if not any(route["works"] for route in routes.values()):
            raise PackError("nothing here can use the GPU; each reason is above")
        return routes

    def _engines(self, routes: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Build every part of every bundle in every precision it has."""
        built = []
        for flavour in ("tensorrt", "tensorrt-rtx"):
            for bundle in self.bundles() if routes[flavour]["works"] else ():
                for precision in precisions(bundle):
                    built.append(self._build(flavour, bundle, precision))
        return built

    def _build(self, flavour: str, bundle: Path, precision: str) -> dict[str, Any]:
        say(f"building {label(bundle)} at {precision} with {flavour}")
        began = time.monotonic()
        command = [
            str(self.python.with_name("sfn-rt")), "build", "--bundle", str(bundle),
            "--backend", flavour, "--precision", precision, "--engines", str(self.work / "engines"),
        ]  # fmt: skip
        done = self._call(command, capture_output=True, text=True)
        row: dict[str, Any] = {"bundle": label(bundle), "precision": precision, "flavour": flavour}
        row.update(seconds=round(time.monotonic() - began, 1), built=done.returncode == 0)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            row["why"] = last[7:] if last.startswith("error: ") else last
            say(f"NOT built: {row['why']}")
        return row

    def _tests(self, routes: Mapping[str, Any]) -> dict[str, Any]:
        """pytest -m gpu, counted."""
        record = self.work / "tests.xml"
        command = [
            str(self.python),
            "-m",
            "pytest",
            "tests/gpu",
            "-m",
            "gpu",
            f"--junitxml={record}",
        ]
        done = self._call(command, cwd=self.project)
        if done.returncode not in (0, 1):
            raise PackError(f"pytest stopped with exit code {done.returncode}; its words are above")
        return counted(record)

    def _measure(self, routes: Mapping[str, Any]) -> dict[str, Any]:
        """benchmarks/gpu.py over all bundles and routes."""
        out = self.work / "measured.json"
        command = [str(self.python), str(self.project / "benchmarks" / "gpu.py"), "--out", str(out)]
        command += [
            "--engines",
            str(self.work / "engines"),
            *(["--quick"] if self.asked.quick else []),
        ]
        command += [word for bundle in self.bundles() for word in ("--bundle", str(bundle))]
        if self._call(command).returncode:
            raise PackError("the measurement failed; what it said is above")
        measured: dict[str, Any] = pieces.read_json(out)
        return measured

    def _without_gpu(self, machine: Mapping[str, Any]) -> int:
        """Engines ahead of time and the int8 graphs on the CPU."""
        out = self.results / "engines_cpu.json"
        self.results.mkdir(parents=True, exist_ok=True)
        command = [str(self.python), str(self.project / "benchmarks" / "engines_cpu.py")]
        command += ["--out", str(out), *map(str, self.bundles())]
        code = self._call(command).returncode
        if code == 0:
            say(f"{out} and {out.with_suffix('.md')}; nothing ran on a GPU")
        return code

    # --- helpers ------------------------------------------------------------------------------

    def bundles(self) -> list[Path]:
        """Those named, else those that were packed."""
        if self.asked.bundle:
            return [path.resolve() for path in self.asked.bundle]
        packed = self.work / "files" / "bundles"
        found = sorted([*packed.glob("*/manifest.json"), *packed.glob("*/bundle/manifest.json")])
        if self.pieces is None and (HERE.parent / "bundle" / "manifest.json").is_file():
            found = [HERE.parent / "bundle" / "manifest.json"]
        if not found:
            raise PackError("no bundle: name one with --bundle FOLDER (ARGS='--bundle FOLDER')")
        return [path.parent for path in found]

    def _keep(self, report: Mapping[str, Any], path: Path) -> None:
        text = json.dumps(report, indent=1) + "\n"
        pieces.write_atomic(self.work / "report.json", text)
        path.parent.mkdir(parents=True, exist_ok=True)
        pieces.write_atomic(path, text)
        pieces.write_atomic(path.with_suffix(".md"), table(report))

    def _must(self, command: list[str], what: str) -> None:
        done = self._call(command, capture_output=True, text=True)
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines() or ["it says nothing"]
            errors = [line for line in said if line.lower().startswith("error")]
            raise PackError(f"cannot {what}: {(errors or said)[-1]}")

    def _call(self, command: list[str], **how: Any) -> subprocess.CompletedProcess[Any]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
        environment["SFN_ENGINES"] = str(self.work / "engines")
        if command[0] == str(self.python) and "pytest" in command:
            environment["SFN_GPU_BUNDLES"] = os.pathsep.join(map(str, self.bundles()))
        if self.pieces is None:
            folders = ("runtime", "train", "export", "calibration")
            environment["PYTHONPATH"] = os.pathsep.join(str(HERE.parent / f) for f in folders)
        if self.libraries:
            old = environment.get("LD_LIBRARY_PATH", "")
            environment["LD_LIBRARY_PATH"] = os.pathsep.join([*self.libraries, old])
        return subprocess.run(command, env=environment, **how)


def _checkout_python() -> Path:
    """The checkout's environment, else the Python that runs this."""
    own = HERE.parent / ".venv" / "bin" / "python"
    return own if own.is_file() else Path(sys.executable)


def label(bundle: Path) -> str:
    """A bundle's name in tables: samples lie in a folder `bundle` of their own."""
    return bundle.parent.name if (bundle.parent / "model.json").is_file() else bundle.name


def precisions(bundle: Path) -> list[str]:
    """fp32, other forms of it such as "fp32-dispatch", and what the bundle was calibrated for."""
    manifest = pieces.read_json(bundle / "manifest.json") or {}
    variants = {v for part in manifest.get("parts", {}).values() for v in part["files"]}
    forms = sorted(variant for variant in variants if variant.startswith("fp32-"))
    return ["fp32", *forms, *manifest.get("precisions", {})]


def say(text: str) -> None:
    print(f"gpu-check: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
