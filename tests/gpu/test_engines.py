"""Engines on the GPU that they were built for: found again, and refused where they do not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sfn_rt.bundle import FULL, Bundle
from sfn_rt.exceptions import BackendError

pytestmark = pytest.mark.gpu


@pytest.fixture
def built(
    open_backend: Callable, builder: Callable, bundle: Bundle, engine_route: str, engines: Path
) -> Path:
    """The folder of engines, with those of the bundle."""
    with open_backend(engine_route):
        pass
    return engines


def test_what_is_built_is_found_again(
    built: Path, builder: Callable, bundle: Bundle, engine_route: str
) -> None:
    again = builder(bundle, engine_route, FULL, built)
    assert all(engine.found for engine in again.engines)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("architectures", ["sm_1"], "built for sm_1, this is sm_"),
        ("version", "1.2.3", "1.2.3"),
        ("graph", "0" * 64, "built from another graph"),
    ],
    ids=["another GPU", "another version", "another graph"],
)
def test_a_stale_engine_is_refused_with_its_reason(
    built: Path,
    opener: Callable,
    bundle: Bundle,
    engine_route: str,
    tmp_path: Path,
    key: str,
    value: object,
    reason: str,
) -> None:
    for path in built.glob("*.json"):
        record = json.loads(path.read_text())
        record[key] = value
        (tmp_path / path.name).write_text(json.dumps(record))
        (tmp_path / record["plan"]).symlink_to((built / record["plan"]).resolve())
    with pytest.raises(BackendError, match="sfn-rt build") as refused:
        opener(bundle, engine_route, FULL, tmp_path)
    assert reason in str(refused.value)


def test_an_altered_engine_is_not_loaded(
    built: Path, opener: Callable, bundle: Bundle, engine_route: str, tmp_path: Path
) -> None:
    for path in built.iterdir():
        if path.suffix in (".json", ".plan"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    for plan in tmp_path.glob("*.plan"):
        plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    with pytest.raises(BackendError, match="was altered"):
        opener(bundle, engine_route, FULL, tmp_path)


def test_its_layers_are_told(
    built: Path, builder: Callable, bundle: Bundle, engine_route: str
) -> None:
    done = builder(bundle, engine_route, FULL, built)
    (decoder,) = (e for e in done.engines if e.record.part == "decoder")
    report = decoder.record.engine_report()
    assert report.layers
    assert report.products
