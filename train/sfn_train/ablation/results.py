"""Trials on disk: one file each, whole or not there, in a folder that belongs to one setting.

    settings.json          base configuration, steps, data, code: what makes trials comparable
    trials/<sha256>.json   by the fingerprint of the trial's configuration, seed and steps included
    baselines.json         what no model scores on the same frames
    wall.json              seconds that the command ran, interruptions not counted

A folder made with other settings is refused by name of what differs; nothing of it is mixed in.
"""

import ast
import hashlib
import importlib
import importlib.util
import json
import os
import pkgutil
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sfn_rt.sinks.files import hold_lock, output_errors, to_json, write_atomic
from sfn_train.ablation.trial import Figures, Trial
from sfn_train.exceptions import RunError

SETTINGS, TRIALS, BASELINES, WALL = "settings.json", "trials", "baselines.json", "wall.json"
LOCK = ".lock"
SCHEMA_VERSION = 1

# Whose code decides a trial's figures. Wording does not count: see `digest`.
PACKAGES = ("sfn_train.model",)
MODULES = (
    "sfn_train.losses",
    "sfn_train.data.clips",
    "sfn_train.data.prepare",
    "sfn_train.data.split",
    "sfn_train.statistics",
    "sfn_train.ablation.footage",
    "sfn_train.ablation.trial",
    "sfn_rt.attributes",
    "sfn_rt.evidence",
    "sfn_rt.features",
    "sfn_rt.metrics",
    "sfn_rt.prediction_error",
    "sfn_rt.preprocess",
    "sfn_rt.scores",
    "sfn_rt.semantics.describe",
    "sfn_rt.semantics.scene",
)


class Results:
    """The trials of one setting in one folder."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def settings(self) -> dict[str, Any]:
        """What the folder's trials were made with."""
        if not (self.out / SETTINGS).exists():
            raise RunError(
                f"{self.out} holds no results of ablations ({SETTINGS} is not there); give the "
                f"--out of an earlier command, or leave out --report"
            )
        return self._read(self.out / SETTINGS)

    @contextmanager
    def claimed(self, settings: Mapping[str, Any], *, force: bool) -> Iterator[None]:
        """The folder for this process alone, its trials made with these settings."""
        with output_errors(self.out):
            (self.out / TRIALS).mkdir(parents=True, exist_ok=True)
            lock = hold_lock(self.out / LOCK, self.out)
        try:
            if (self.out / SETTINGS).exists() and self.settings() != settings:
                if not force:
                    differ = "; ".join(differences(self.settings(), settings))
                    raise RunError(
                        f"{self.out} holds results of other settings ({differ}); choose another "
                        f"--out, or replace them with --force"
                    )
                self._clear()
            elif force:
                self._clear()
            write_atomic(self.out / SETTINGS, to_json(settings))
            yield
        finally:
            os.close(lock)

    def get(self, config_sha256: str) -> Trial | None:
        """A finished trial, if there is one."""
        path = self._path(config_sha256)
        if not path.exists():
            return None
        raw = self._read(path)
        known = {field.name for field in fields(Trial)}
        if raw.keys() != known or raw["config_sha256"] != config_sha256:
            raise RunError(f"{path} is no trial of this configuration; delete it to run it again")
        return Trial(**{**raw, "terms": tuple(raw["terms"])})

    def put(self, trial: Trial) -> None:
        """Keep a finished trial."""
        write_atomic(self._path(trial.config_sha256), to_json(asdict(trial)))

    def baselines(self) -> dict[str, Figures] | None:
        """What no model scores, if that is known."""
        path = self.out / BASELINES
        return self._read(path) if path.exists() else None

    def put_baselines(self, figures: Mapping[str, Figures]) -> None:
        """Keep what no model scores."""
        write_atomic(self.out / BASELINES, to_json(figures))

    def wall_s(self) -> float:
        """Seconds that all commands on this folder took together."""
        path = self.out / WALL
        return float(self._read(path)["wall_s"]) if path.exists() else 0.0

    def add_wall(self, seconds: float) -> None:
        """Count more of them."""
        write_atomic(self.out / WALL, to_json({"wall_s": self.wall_s() + seconds}))

    def _path(self, config_sha256: str) -> Path:
        return self.out / TRIALS / f"{config_sha256[:24]}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path}: cannot be read ({error}); delete it to make it again"
            ) from None
        if not isinstance(raw, dict):
            raise RunError(f"{path}: expected a JSON object; delete it to make it again")
        return raw

    def _clear(self) -> None:
        with output_errors(self.out):
            shutil.rmtree(self.out / TRIALS)
            (self.out / TRIALS).mkdir()
            for name in (SETTINGS, BASELINES, WALL):
                (self.out / name).unlink(missing_ok=True)


def make_settings(
    config_yaml: str, steps: int, data: Mapping[str, object], code: Mapping[str, str]
) -> dict[str, Any]:
    """What two trials must share to stand in one table; the seed and a row's changes aside."""
    config = yaml.safe_load(config_yaml)
    del config["train"]["seed"]
    settings = {
        "schema_version": SCHEMA_VERSION,
        "steps": steps,
        "config": config,
        "data": dict(data),
        "code": dict(code),
    }
    plain: dict[str, Any] = json.loads(to_json(settings))  # as it will be read back
    return plain


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Each setting that differs: `config.model.dim 64 there, 96 asked for`."""
    before, after = dict(_flat(old)), dict(_flat(new))
    if code := [
        n for n in sorted(before | after) if n.startswith("code.") and _differs(before, after, n)
    ]:
        yield f"code of {', '.join(name.removeprefix('code.') for name in code)}"
    for name in sorted(before | after):
        if not name.startswith("code.") and _differs(before, after, name):
            yield f"{name} {before.get(name)!r} there, {after.get(name)!r} asked for"


def _differs(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> bool:
    return name not in before or name not in after or before[name] != after[name]


def _flat(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and where != "code.":
            yield from _flat(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


@cache
def code_identity() -> dict[str, str]:
    """A digest of each module that decides figures, as it was when this process first asked."""
    names = list(MODULES)
    for package in PACKAGES:
        found = importlib.import_module(package)
        names += [f"{package}.{module.name}" for module in pkgutil.iter_modules(found.__path__)]
    return {name: digest(name) for name in sorted(names)}


def digest(module: str) -> str:
    """Of a module's code; comments, docstrings and layout left out."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""  # a docstring
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]
