"""The setup script: what it asks pip for, and how it repairs an interruption."""

import importlib.util
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest


@pytest.fixture
def bootstrap(repository: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", repository / "scripts/bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cpu_wheels_come_from_an_extra_index(bootstrap) -> None:
    command = bootstrap.install_command(cpu_wheels=True)
    assert command[command.index("--extra-index-url") + 1] == bootstrap.CPU_INDEX
    assert "--index-url" not in command
    assert "--extra-index-url" not in bootstrap.install_command(cpu_wheels=False)


@pytest.mark.parametrize(
    ("system", "machine", "rtx"),
    [("linux", "x86_64", True), ("linux", "aarch64", False), ("darwin", "x86_64", False)],
)
def test_tensorrt_rtx_only_where_it_exists(
    bootstrap, monkeypatch, system: str, machine: str, rtx: bool
) -> None:
    monkeypatch.setattr(bootstrap.sys, "platform", system)
    monkeypatch.setattr(bootstrap.platform, "machine", lambda: machine)
    assert ("rtx" in bootstrap.install_command(cpu_wheels=False)[-1]) == rtx


def test_a_silent_index_costs_no_more_than_its_time(bootstrap, monkeypatch) -> None:
    asked = threading.Event()

    def never(*args, **kwargs):
        asked.wait(5)
        raise OSError("nobody there")

    monkeypatch.setattr(bootstrap, "ANSWER_S", 0.05)
    monkeypatch.setattr("urllib.request.urlopen", never)
    assert bootstrap.index_answers() is False
    asked.set()


def test_half_installed_packages_are_forgotten(bootstrap, monkeypatch, tmp_path, capsys) -> None:
    for name in ("whole-1.0", "half-2.0"):
        (tmp_path / f"{name}.dist-info").mkdir()
        (tmp_path / f"{name}.dist-info" / "METADATA").touch()
    (tmp_path / "whole-1.0.dist-info" / "INSTALLER").write_text("pip\n")
    (tmp_path / "~alf").mkdir()
    monkeypatch.setattr(subprocess, "check_output", lambda *args, **kwargs: f"{tmp_path}\n")
    bootstrap.drop_half_installed()
    assert [path.name for path in tmp_path.iterdir()] == ["whole-1.0.dist-info"]
    assert "half-2.0 was left half installed" in capsys.readouterr().err


def test_an_old_python_gets_a_message(bootstrap, monkeypatch, capsys) -> None:
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None)
    assert bootstrap.main() == 2
    assert "error: Python 3.11 or newer is needed" in capsys.readouterr().err


def test_a_failed_install_says_what_to_check(bootstrap, monkeypatch, capsys) -> None:
    monkeypatch.setattr(bootstrap, "succeeds", lambda *command: True)
    monkeypatch.setattr(bootstrap, "drop_half_installed", lambda: None)
    monkeypatch.setattr(subprocess, "call", lambda *args, **kwargs: 1)
    assert bootstrap.main() == 2
    assert "run the same command again" in capsys.readouterr().err


def test_the_script_is_syntax_that_python_3_8_reads(repository: Path) -> None:
    import ast

    ast.parse((repository / "scripts/bootstrap.py").read_text(), feature_version=(3, 8))
    assert sys.version_info >= (3, 11)
