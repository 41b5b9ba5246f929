"""The runtime imports without the workshop, and stages import towards the runtime only."""

import os
import subprocess
import sys
from pathlib import Path

from importlinter.cli import lint_imports

WORKSHOP = (
    "torch lightning transformers sentence_transformers onnx onnxscript polygraphy sklearn scipy "
    "matplotlib PIL yaml sfn_train sfn_export"
)
EVERY_RUNTIME_MODULE = f"""
import importlib, pkgutil, sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in set({WORKSHOP!r}.split()):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import sfn_rt
names = [module.name for module in pkgutil.walk_packages(sfn_rt.__path__, "sfn_rt.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
HEAVY = {"numpy", "cv2", "av", "onnxruntime", "tokenizers", "rich"}
COMMAND_LINE_ONLY = (
    "import sys, sfn_rt.cli; print(*{name.partition('.')[0] for name in sys.modules})"
)


def python(code: str, repository: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository / "runtime")},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_runtime_module_imports_without_the_workshop(repository: Path) -> None:
    n_modules = int(python(EVERY_RUNTIME_MODULE, repository))
    sources = (repository / "runtime" / "sfn_rt").rglob("*.py")
    # All are imported but sfn_rt/__init__.py itself, which walk_packages does not list.
    assert n_modules == len(list(sources)) - 1


def test_the_command_line_loads_nothing_heavy_before_a_command_runs(repository: Path) -> None:
    loaded = set(python(COMMAND_LINE_ONLY, repository).split())
    assert not loaded & HEAVY


def test_import_contracts_hold(repository: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(repository)
    status = lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert status == 0, capsys.readouterr().out
