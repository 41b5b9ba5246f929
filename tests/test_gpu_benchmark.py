"""The GPU benchmark's arithmetic, and all of its rows on this processor."""

import importlib
import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Module = Callable[[str], types.ModuleType]
H200 = {  # as its driver tells
    "sm": 90,
    "multiprocessors": 132,
    "clock_khz": 1_980_000,
    "memory_clock_khz": 3_201_000,
    "bus_bits": 6144,
}
SIZE = {"tokens": 1026, "dim": 256, "rank": 8, "filters": 63, "active": 7, "shared": 1}


@pytest.fixture
def module(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    names: list[str] = []

    def load(name: str) -> types.ModuleType:
        names.append(name)
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


def test_rates_are_the_devices_own(module: Module) -> None:
    rates = module("gpu_floor").Rates.of(H200)
    assert rates.bandwidth == pytest.approx(4.9e12, rel=0.02)  # 4.8 TB/s on its data sheet
    assert rates.operations["bf16"] == pytest.approx(1.07e15, rel=0.01)  # 989 at a lower clock
    assert rates.operations["fp8"] == 2 * rates.operations["bf16"]
    assert module("gpu_floor").Rates.of({**H200, "sm": 61}) is None


def test_ampere_computes_fp8_as_it_does_halves(module: Module) -> None:
    rates = module("gpu_floor").Rates.of({**H200, "sm": 86})
    assert rates.operations["fp8"] == rates.operations["fp16"]


def test_the_floor_is_the_larger_of_two(module: Module) -> None:
    floor = module("gpu_floor")
    rates = floor.Rates(bandwidth=1e9, operations={"fp32": 1e9, "fp16": 2e9})
    assert rates.floor_ms(floor.Cost(flops=5e6, weights=0, activations=1e6), "fp32") == 5
    assert rates.floor_ms(floor.Cost(flops=5e6, weights=4e6, activations=1e6), "fp16") == 3
    cost = floor.Cost(flops=5e6, weights=0, activations=1e6)
    assert rates.floor_ms(cost, "fp32-dispatch") == rates.floor_ms(cost, "fp32")
    part = floor.part_cost({"flops": 10, "weights": 7, "inputs": 2, "outputs": 3}, batch=4)
    assert part == floor.Cost(40, 7, 20)


def test_an_sffm_costs_what_its_chosen_filters_cost(module: Module) -> None:
    cost = module("gpu_floor").sffm_cost(SIZE, batch=2)
    # 2052 tokens x (8 filters x 2 products of 256 x 8, and the router's 256 x 63), 2 a product
    assert cost.flops == 2 * 2052 * (8 * 2 * 256 * 8 + 256 * 63)
    assert cost.activations == 2 * 4 * 2052 * 256


@pytest.mark.parametrize(
    ("value", "said"), [(12.0, "aim"), (6.0, "must"), (2.0, "NOT"), (None, "")]
)
def test_goals(module: Module, value: float | None, said: str) -> None:
    assert module("gpu_rows").Goal("ratio", must=5, aim=10).reached(value) == said


def test_goals_where_less_is_more(module: Module) -> None:
    goal = module("gpu_rows").Goal("over_floor", must=4, aim=1.5, less=True)
    assert [goal.reached(value) for value in (1.2, 3, 9)] == ["aim", "must", "NOT"]


def routes(**why: str | None) -> dict[str, dict[str, object]]:
    return {
        name.replace("_", "-"): {"works": reason is None, "version": "1", "why": reason}
        for name, reason in why.items()
    }


def test_every_row_of_the_table_is_there(module: Module) -> None:
    rows = module("gpu_rows").select(
        {"paper": ["fp32", "fp16", "fp8"], "edge": ["fp32"]},
        ["paper"],
        routes(tensorrt=None, cuda=None),
        None,
        {"edge": ["fp32"]},
    )
    kinds = {(row.profile, row.kind, row.mode, row.streams) for row in rows}
    assert {
        ("paper", "parts", "", 0),
        ("paper", "torch", "eager", 0),
        ("paper", "torch", "compiled", 0),
        ("paper", "sffm", "dense", 0),
        ("paper", "sffm", "dispatch", 0),
        ("paper", "stream", "", 1),
        ("paper", "stream", "", 16),
        ("edge", "stream", "", 16),
        ("edge", "step", "in parts", 16),
        ("edge", "step", "fused", 16),
    } <= kinds
    assert ("paper", "step", "fused", 16) not in kinds
    (edge,) = {
        row.goals for row in rows if (row.profile, row.kind, row.streams) == ("edge", "stream", 16)
    }
    assert {goal.figure: goal.must for goal in edge} == {
        "uploads": 1,
        "downloads": 1,
        "frames_per_second": 1655,
    }


def test_what_is_not_run_says_why(module: Module) -> None:
    rows = module("gpu_rows")
    found = rows.select(
        {"edge": ["fp32", "fp8"]},
        [],
        routes(tensorrt_rtx="knows no SM90", cuda=None),
        "torch is not installed",
    )
    why = {(row.route, row.precision): row.not_run for row in found}
    assert why["tensorrt-rtx", "fp32"] == "knows no SM90"
    assert why["PyTorch", "fp32"] == "torch is not installed"
    assert why["cuda", "fp32"] is None
    assert "fp8" in why["cuda", "fp8"]
    text = rows.table(found)
    assert "knows no SM90" in text
    assert "torch is not installed" in text


def test_rows_are_worth_what_they_are_beside_others(module: Module) -> None:
    rows = module("gpu_rows")

    def row(**how: object) -> object:
        ms = {"best": how["p50"], "p50": how.pop("p50"), "p99": 1.0}
        base = {"what": "motion encoder and decoder", "profile": "paper", "batch": 1, "ms": ms}
        return rows.Row(**{**base, **how})

    found = rows.compare(
        [
            row(kind="parts", route="tensorrt", precision="fp16", p50=1.0),
            row(kind="parts", route="tensorrt", precision="int8", p50=0.5),
            row(kind="torch", route="PyTorch", precision="fp16", mode="eager", p50=6.0),
            row(kind="torch", route="PyTorch", precision="fp16", mode="compiled", p50=1.2),
        ]
    )
    assert found[0].figures == {"against_eager": 6.0, "against_compiled": 1.2}
    assert found[0].reached == "against eager: must, against compiled: NOT"
    assert found[1].figures == {"against_fp16": 2.0}


def test_the_tiny_bundle_goes_all_the_way(
    repository: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Counts, parts, streams and the table, by the code that runs on a GPU."""
    out = tmp_path / "measured.json"
    script = repository / "benchmarks" / "gpu.py"
    command = [sys.executable, str(script), "--route", "cpu", "--quick", "--frame", "90x60"]
    done = subprocess.run(
        [*command, "--bundle", str(tiny_bundle), "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == report
    measured = [row for row in report["rows"] if row["ms"] is not None]
    assert {row["kind"] for row in measured} == {"parts", "stream"}
    for row in measured:
        assert 0 < row["ms"]["best"] <= row["ms"]["p50"] <= row["ms"]["p99"]
        if row["kind"] == "stream":
            assert row["figures"]["uploads"] == row["figures"]["downloads"] == 1
    assert all(row["not_run"] for row in report["rows"] if row["ms"] is None)


def test_a_graph_costs_what_its_products_cost(module: Module, tiny_bundle: Path) -> None:
    counted = module("gpu_costs").bundle_costs(tiny_bundle)
    assert counted["decoder"]["flops"] > 0
    assert not counted["decoder"]["uncounted"]
    frame = 3 * 20 * 30
    # patches of 5 x 5 x 3 to 8 channels, 24 of them, are the first of the motion encoder's products
    assert counted["motion"]["flops"] > 2 * frame * 8
    assert counted["motion"]["inputs"] == 4 * frame
