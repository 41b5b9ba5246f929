"""Engines on disk: found where they fit, else a reason; whole or not there."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sfn_rt.engines.build import Built, EngineOptions
from sfn_rt.engines.cache import EngineCache, Record, Wanted
from sfn_rt.engines.onnx_file import OnnxNode
from sfn_rt.engines.report import EngineReport
from sfn_rt.exceptions import BackendError, OutputError

WANTED = Wanted(
    part="decoder",
    precision="int8",
    graph="a" * 64,
    flavour="tensorrt",
    version="11.4.0",
    architectures=("sm_89",),
    gpu="RTX 4090",
)
OPTIONS = EngineOptions(max_batch=8)


def built(plan: bytes = b"a plan") -> Built:
    return Built(plan, EngineReport((), (OnnxNode("a/MatMul_1", "MatMul"),)), 2, 1.5)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def found(cache: EngineCache, wanted: Wanted = WANTED) -> Record:
    record = cache.find(wanted)
    assert isinstance(record, Record), record
    return record


def test_what_was_put_is_found_again(cache: EngineCache) -> None:
    assert cache.find(WANTED) == "none was built for it"
    put = cache.put(WANTED, OPTIONS, built())
    record = found(cache)
    assert record == put
    assert record.read_plan() == b"a plan"
    assert record.max_batch == 8
    assert record.engine_report().nodes[0].name == "a/MatMul_1"
    assert record.path.parent == cache.folder


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ("sm_86",), "gpu": "A10"}, "built for sm_89, this is sm_86"),
        ({"gpu": "L4"}, "built on RTX 4090, this is L4"),
        ({"version": "11.5.0"}, "built by tensorrt 11.4.0, here is 11.5.0"),
        ({"version": "10.3.0"}, "built by tensorrt 11.4.0, here is 10.3.0"),
        ({"flavour": "tensorrt-rtx"}, "built by tensorrt, tensorrt-rtx is asked for"),
        ({"graph": "b" * 64}, "built from another graph than this bundle's"),
        ({"precision": "fp32"}, "built at int8, fp32 is asked for"),
        ({"max_batch": 9}, "built for up to 8 frames at once, not more"),
        ({"architectures": ("sm_89", "sm_120")}, "built for sm_89, this is sm_120"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    cache: EngineCache, change: dict[str, object], reason: str
) -> None:
    put = cache.put(WANTED, OPTIONS, built())
    answer = cache.find(replace(WANTED, **change))  # type: ignore[arg-type]
    assert answer == f"{put.plan} is {reason}"


def test_the_nearest_reason_is_given(cache: EngineCache) -> None:
    cache.put(replace(WANTED, graph="b" * 64), OPTIONS, built(b"another bundle's"))
    near = cache.put(replace(WANTED, architectures=("sm_86",)), OPTIONS, built(b"another GPU's"))
    assert cache.find(WANTED) == f"{near.plan} is built for sm_86, this is sm_89"


def test_a_version_compatible_engine_runs_on_newer_ones(cache: EngineCache) -> None:
    options = replace(OPTIONS, version_compatible=True)
    compatible = cache.put(replace(WANTED, version="10.3.0"), options, built())
    assert found(cache) == compatible
    assert isinstance(cache.find(replace(WANTED, version="10.2.0")), str)
    exact = cache.put(WANTED, OPTIONS, built(b"of this very version"))
    assert found(cache) == exact


def test_the_smallest_that_is_large_enough(cache: EngineCache) -> None:
    for size in (32, 16, 8):
        options = EngineOptions(max_batch=size)
        cache.put(WANTED, options, built(f"for {size}".encode()))
    assert found(cache, replace(WANTED, max_batch=9)).max_batch == 16
    assert found(cache).max_batch == 8


def test_rtx_engines_are_for_architectures_and_not_for_a_model_of_gpu(cache: EngineCache) -> None:
    targets = replace(WANTED, architectures=("sm_86", "sm_89"), gpu=None)
    cache.put(targets, OPTIONS, built())
    assert found(cache, replace(targets, architectures=("sm_86",)))


def test_built_again_it_replaces_the_one_before(cache: EngineCache) -> None:
    cache.put(WANTED, OPTIONS, built(b"first"))
    other = cache.put(replace(WANTED, part="motion"), OPTIONS, built(b"motion"))
    cache.put(WANTED, OPTIONS, built(b"second"))
    assert found(cache).read_plan() == b"second"
    assert len(list(cache.folder.glob("decoder-*"))) == 2  # a plan and its record
    assert other.path.is_file()


def test_an_altered_plan_is_refused(cache: EngineCache) -> None:
    record = cache.put(WANTED, OPTIONS, built())
    record.path.write_bytes(b"a plan?")
    with pytest.raises(BackendError, match=r"decoder-.*\.plan was altered: its sha256 is not"):
        found(cache).read_plan()


def test_half_of_an_engine_is_none(cache: EngineCache) -> None:
    """What an interruption may leave: a plan without record, files that are not whole yet."""
    record = cache.put(WANTED, OPTIONS, built())
    record.path.with_suffix(".json").unlink()
    assert cache.find(WANTED) == "none was built for it"
    record = cache.put(WANTED, OPTIONS, built())
    record.path.unlink()
    assert cache.find(WANTED) == "none was built for it"
    record = cache.put(WANTED, OPTIONS, built())
    (cache.folder / "broken.json").write_text('{"part": ')
    (cache.folder / "foreign.json").write_text('{"part": "decoder"}')
    (cache.folder / f".{record.plan}.123.partial").write_bytes(b"a pl")
    newer = json.loads(record.path.with_suffix(".json").read_text()) | {"record_version": 2}
    (cache.folder / "newer.json").write_text(json.dumps(newer))
    assert [each.plan for each in cache.records()] == [record.plan]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file")
    with pytest.raises(OutputError, match="engines"):
        EngineCache(tmp_path / "engines").put(WANTED, OPTIONS, built())


def test_where_engines_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert EngineCache.at(tmp_path).folder == tmp_path
    monkeypatch.setenv("SFN_ENGINES", str(tmp_path / "named"))
    assert EngineCache.at(None).folder == tmp_path / "named"
    monkeypatch.delenv("SFN_ENGINES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert EngineCache.at(None).folder == tmp_path / "cache" / "sfn-rt" / "engines"
