"""The tables of ablations: every row trains and is measured, and is what it says it is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import nn
from typer.testing import CliRunner, Result

from sfn_rt.exceptions import DataError
from sfn_train.ablation import runner
from sfn_train.ablation.footage import Material, cached_blocks
from sfn_train.ablation.report import Line, Report, against_memory, markdown, text, verdict
from sfn_train.ablation.results import Results, code_identity, digest
from sfn_train.ablation.rows import Base, read_tables, says, scored_terms, seeds_of
from sfn_train.ablation.trial import TOGETHER, Trial, measure, run_trial, train
from sfn_train.cli import app
from sfn_train.config import Config
from sfn_train.exceptions import ConfigError
from sfn_train.model import SFN
from sfn_train.model.memory import Memories
from sfn_train.model.sffm import SFFM, Filter

D = 16
TINY = {
    "model": {
        "frame_height": 20,
        "frame_width": 30,
        "patch": 5,
        "dim": D,
        "appearance_dim": 16,
        "motion_dim": 8,
        "decoder_depth": 2,
        "head_channels": 4,
    },
    "data": {"run_length": 6},
    "train": {
        "batch": 2,
        "learning_rate": 0.003,
        "precision": "32-true",
        "accelerator": "cpu",
    },
}
ALL_LOSSES = {"frame", "motion", "text", "balance"}
BOTH = ("visual", "semantic")


@dataclass(frozen=True)
class Expected:
    """What REFERENCE.md section 7 says that a row is, written out."""

    off: frozenset[str] = frozenset()  # branches
    losses: frozenset[str] = frozenset(ALL_LOSSES)
    terms: tuple[str, ...] = BOTH
    filter: tuple[int, ...] = (7, 63, 1, 1)  # active, routed, shared, width; (width,): one filter
    memory: tuple[str, int] | None = None
    windows: int = 1


def row(losses: str = "frame motion text balance", **rest: Any) -> Expected:
    return Expected(losses=frozenset(losses.split()), **rest)


NO_FILTER: dict[str, Any] = {"losses": "frame motion text", "filter": ()}
EXPECTED: dict[str, dict[str, Expected]] = {
    "branches": {
        "vision": row("frame balance", off=frozenset({"motion", "text"}), terms=("visual",)),
        "semantics": row(
            "text balance", off=frozenset({"appearance", "motion"}), terms=("semantic",)
        ),
        "vision + semantics": row("frame text balance", off=frozenset({"motion"})),
        "vision + motion": row("frame motion balance", off=frozenset({"text"}), terms=("visual",)),
        "all": row(),
    },
    "filters": {
        "none": row(**NO_FILTER),
        "standard MLP (x4)": row("frame motion text", filter=(4 * D,)),
        "bottleneck MLP (1/2)": row("frame motion text", filter=(D // 2,)),
        "MoFE 2/16+0 (1/4)": row(filter=(2, 16, 0, D // 4)),
        "MoFE 1/15+1 (1/4)": row(filter=(1, 15, 1, D // 4)),
        "MoFE 3/31+1 (1/8)": row(filter=(3, 31, 1, D // 8)),
        "MoFE 7/63+1 (1/16)": row(),
    },
    "memory": {
        "128 slots": row(**NO_FILTER, memory=("input", 128)),
        "256 slots": row(**NO_FILTER, memory=("input", 256)),
        "512 slots": row(**NO_FILTER, memory=("input", 512)),
        "1024 slots": row(**NO_FILTER, memory=("input", 1024)),
        "256 in every layer": row(**NO_FILTER, memory=("every_layer", 256)),
        "SFFM": row(),
    },
    "losses": {
        "frame": row("frame balance", terms=("visual",)),
        "frame + motion": row("frame motion balance", terms=("visual",)),
        "frame + text": row("frame text balance"),
        "all": row(),
    },
    "windows": {"4 frames": row(), "4, 8, 16 and 32 frames": row(windows=4)},
}
# Figures of REFERENCE.md section 7, copied by hand.
PUBLISHED = {
    "branches": [71.0, 78.6, 80.7, 72.0, 83.0],
    "filters": [79.5, 79.7, 81.5, 81.3, 81.6, 81.9, 83.0],
    "memory": [80.4, 80.7, 80.6, 80.0, 70.4, 83.0],
    "losses": [72.2, 72.3, 81.5, 83.0],
    "windows": [None, None],
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


@pytest.fixture(scope="module")
def base(settings: Path) -> Base:
    return Base(config=str(settings), changes=(), steps=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def material(tiny_data: Path, cache: Path) -> Material:
    return Material(tiny_data, cache, fps=None, say=lambda text: None, progress=False)


# ------------------------------------------------------------------------------------ rows


def test_the_tables_are_those_of_the_paper() -> None:
    tables = read_tables()
    assert {table.name: [row.published for row in table.rows] for table in tables} == PUBLISHED
    assert {t.name: [r.row for r in t.rows] for t in tables} == {
        name: list(rows) for name, rows in EXPECTED.items()
    }
    assert all(table.full_row.changes in ((), table.rows[-1].changes) for table in tables)


def test_an_unknown_table_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no table 'branch'.*branches, filters, memory, losses"):
        read_tables("branch")


def test_the_full_model_is_the_same_trial_in_every_table() -> None:
    base = Base(config="edge", changes=(), steps=5)
    full = {base.row(table.full_row, 0).fingerprint() for table in read_tables()}
    assert len(full) == 1
    names = runner.trial_names(read_tables(), base, (0, 1, 2))
    assert len(names) == 3 * (5 + 7 + 6 + 4 + 2 - 4)


@pytest.mark.parametrize(
    ("table", "name"), [(table, name) for table, rows in EXPECTED.items() for name in rows]
)
def test_a_row_trains_two_steps_and_is_what_it_says(
    table: str, name: str, base: Base, material: Material
) -> None:
    expected = EXPECTED[table][name]
    (found,) = (r for r in read_tables(table)[0].rows if r.row == name)
    config = base.row(found, 0)
    view = material.view(config)
    network, losses, _ = train(view, config)
    assert isinstance(network, SFN)

    assert set(losses) == expected.losses | {"total"}
    weighted = sum(getattr(config.train.loss, loss) * losses[loss] for loss in expected.losses)
    assert losses["total"] == pytest.approx(weighted, rel=1e-5)
    check_branches(network, expected)
    check_filters(network, expected)

    figures = measure(network, config, view, material)
    assert list(figures) == [*expected.terms, TOGETHER]
    for protocols in figures.values():
        assert set(protocols) == {"paper", "causal"}
        assert all(0 <= f["micro_auc"] <= 1 for f in protocols.values())
    assert scored_terms(config) == expected.terms
    check_words(says(config, base.row(read_tables("branches")[0].full_row, 0)), expected)


def check_branches(network: SFN, expected: Expected) -> None:
    decoder = network.decoder
    there = {
        "appearance": network.appearance is not None,
        "motion": network.motion is not None,
        "text": decoder.mjad.text_head is not None,
    }
    assert {name for name, on in there.items() if not on} == expected.off
    has_picture = not {"appearance", "motion"} <= expected.off
    assert (decoder.mjad.frame_head is not None) == has_picture
    for name in expected.off:  # no weight of a branch that is off is left in the fusion
        assert not hasattr(decoder.fusion, name)
    if decoder.mjad.text_head is not None:
        last = decoder.mjad.text_head[-1]
        assert isinstance(last, nn.Linear)
        assert last.out_features == 384 * expected.windows
        assert decoder.fusion.text.in_features == 384 * expected.windows


def check_filters(network: SFN, expected: Expected) -> None:
    mjad = network.decoder.mjad
    kinds = {type(keep) for keep in mjad.filters}
    if expected.memory is not None:
        place, slots = expected.memory
        found = [module for module in network.modules() if isinstance(module, Memories)]
        assert len(found) == (1 if place == "input" else len(mjad.blocks))
        assert isinstance(mjad.memories, Memories) == (place == "input")
        for memories in found:
            assert memories.visual is not None
            assert memories.semantic is not None
            assert memories.visual.slots.shape == memories.semantic.slots.shape == (slots, D)
        assert not any(isinstance(module, SFFM | Filter) for module in network.modules())
        return
    assert not any(isinstance(module, Memories) for module in network.modules())
    if not expected.filter:
        assert kinds == {nn.Identity}
    elif len(expected.filter) == 1:
        assert kinds == {Filter}
        widths = {m.out_features for f in mjad.filters for m in f if isinstance(m, nn.Linear)}
        assert widths == {*expected.filter, D}
    else:
        active, routed, shared, width = expected.filter
        assert (active + shared) * width == D // 2  # equal active width in all of the splits
        assert kinds == {SFFM}
        for sffm in mjad.filters:
            assert isinstance(sffm, SFFM)
            assert sffm.router.out_features == routed
            assert sffm.n_active == active
            assert sffm.down.shape == (routed + shared, D, width)


def check_words(note: str, expected: Expected) -> None:
    """The row says what it leaves out."""
    assert ("no text token, no text head, no text loss" in note) == ("text" in expected.off)
    alone = len(expected.terms) == 1
    assert note.endswith(f"scored by {expected.terms[0]} alone") == alone
    assert ("no router and no balance loss" in note) == ("balance" not in expected.losses)
    assert ("no motion loss" in note) == (
        "motion" not in expected.losses and "frame" in expected.losses
    )
    assert ("no frame head" in note) == ("frame" not in expected.losses)


def test_a_row_that_could_not_be_scored_is_refused(base: Base) -> None:
    (branches,) = read_tables("branches")
    semantics = branches.rows[1]
    with pytest.raises(ConfigError, match="row 'semantics': neither the frame nor the text"):
        replace(base, changes=("train.loss.text=0",)).row(semantics, 0)


@pytest.mark.parametrize("seeds", ["", "a", "1,1", "-1", "0;1"])
def test_seeds_must_be_different_numbers(seeds: str) -> None:
    with pytest.raises(ConfigError, match="as in 0,1,2"):
        seeds_of(seeds)


# --------------------------------------------------------------------------------- footage


def test_cached_blocks_are_what_the_device_would_have_looked_at(
    material: Material, base: Base
) -> None:
    from sfn_rt.frames import open_source
    from sfn_rt.preprocess import preprocess
    from sfn_train.data.split import Span

    config = base.plain()
    (video,) = material.view(config).test
    with open_source(video.path) as source:
        pictures = np.stack([preprocess(f.image, config.preprocessing) for f in source])
    blocks = list(cached_blocks(video, Span(0, 3, 30)))
    assert [f.index for block in blocks for f in block.frames] == list(range(3, 30))
    given = np.concatenate([block.pictures for block in blocks])
    grey = 1 / 255 / 0.229  # one grey level in normalised pixels
    assert np.abs(given - pictures[3:]).max() < 0.03 * grey
    assert [len(block.scenes) for block in blocks] == [len(block.frames) for block in blocks]


def test_what_was_said_before_is_not_embedded_again(material: Material, base: Base) -> None:
    view = material.view(base.plain())
    assert view.text is not None
    first = view.text.encode(["a man walks", "a man runs", "a man walks"])
    assert first.shape == (3, 384)
    view.text._loaded = None  # it could not embed anything now without loading 90 MB again
    np.testing.assert_array_equal(view.text.encode(["a man runs"]), first[1:2])
    assert view.text._loaded is None


def test_data_that_cannot_be_measured_on_is_refused(tmp_path: Path, tiny_data: Path) -> None:
    def copy(name: str, labels: Sequence[int] | None) -> Path:
        root = tmp_path / name
        root.mkdir()
        for part in ("training", "testing"):
            (root / part).symlink_to(tiny_data / part)
        if labels is not None:
            np.savez(root / "frame_labels.npz", **{"01": np.array(labels, np.uint8)})
        return root

    for name, labels, message in (
        ("none", None, "no labels for its 1 test videos.*frame_labels.npz"),
        ("normal", [0] * 30, "every labelled frame is normal"),
        ("abnormal", [1] * 30, "every labelled frame is abnormal"),
    ):
        with pytest.raises(DataError, match=message):
            Material(copy(name, labels), tmp_path / "cache", fps=None, say=print)


# --------------------------------------------------------------------------------- verdict


@pytest.mark.parametrize(
    ("row", "full", "expected"),
    [
        ([80.0, 81.0, 82.0], [82.5, 82.6, 82.7], "none"),  # 1.6 apart, spread 2.0
        ([80.0, 80.1, 80.2], [82.5, 82.6, 82.7], "lower"),
        ([84.0, 84.1, 84.2], [82.5, 82.6, 82.7], "higher"),
        ([80.0, 80.1, 80.2], [82.1, 84.6, 81.1], "none"),  # the full row's own spread counts, too
        ([82.0, 82.0], [82.0, 82.0], "none"),
        ([80.0], [82.0, 82.1], "one seed"),
        ([], [82.0, 82.1], "-"),
    ],
)
def test_a_difference_smaller_than_the_spread_is_none(
    row: list[float], full: list[float], expected: str
) -> None:
    assert verdict(row, full) == expected


def trial(auc: float, seed: int = 0, terms: tuple[str, ...] = BOTH) -> Trial:
    figures = {
        name: {
            protocol: {
                "micro_auc": value,
                "macro_auc": value,
                "average_precision": value,
                "equal_error_rate": 1 - value,
            }
            for protocol, value in (("paper", auc / 100), ("causal", auc / 100 - 0.1))
        }
        for name in (*terms, TOGETHER)
    }
    return Trial(
        config_sha256=f"{seed}", seed=seed, steps=2, terms=terms, parameters=1234, losses={},
        figures=figures, train_s=61.0, measure_s=30.0, precision="32-true", threads=1,
    )  # fmt: skip


def report(values: Mapping[str, Sequence[float]], base: Base, missing: int = 0) -> Report:
    (memory,) = read_tables("memory")
    lines = tuple(
        Line(row, "note", tuple(trial(v, seed) for seed, v in enumerate(values.get(row.row, []))))
        for row in memory.rows
    )
    baselines = {"fastest blob": trial(93.0).figures[TOGETHER]}
    return Report(
        tables=((memory, lines),), baselines=baselines, base=base, seeds=(0, 1), data="ped2",
        constants="ped2", missing=missing, wall_s=3600.0, machine="2 cores", remarks=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sffm", "words"),
    [
        (
            [95.0, 95.2],
            r"95.1 \(0.2\) against 93.1 \(0.2\), a difference of \+2.0 .* SFFM is better",
        ),
        ([92.0, 92.2], r"a difference of -1.0 points, .* the memory is better here"),
        ([93.0, 93.4], r"a difference of \+0.1 points, no larger than the spread .* none"),
        ([95.0], "of one seed, so nothing follows"),
    ],
)
def test_the_sffm_is_held_against_the_best_memory_whichever_way_it_falls(
    base: Base, sffm: list[float], words: str
) -> None:
    import re

    rows = {"128 slots": [92.0, 91.0], "512 slots": [93.0, 93.2], "SFFM": sffm}
    sentence = against_memory(report(rows, base))
    assert sentence is not None
    assert sentence.startswith("SFFM against the best memory row (512 slots), `paper` protocol")
    assert re.search(words, sentence)


def test_nothing_is_said_of_a_memory_that_was_not_run(base: Base) -> None:
    assert against_memory(report({"SFFM": [95.0, 95.1]}, base)) is None


def test_tables_say_figures_spread_verdict_time_and_what_is_missing(base: Base) -> None:
    found = report({"128 slots": [92.0, 91.0], "SFFM": [95.0, 95.2]}, base, missing=8)
    told = text(found).splitlines()
    (line,) = (t for t in told if t.startswith("128 slots"))
    assert line.split() == [
        "128", "slots", "80.4",
        "91.5", "1.0", "lower", "91.5", "91.5",
        "81.5", "1.0", "lower", "81.5", "81.5",
        "61.0", "30.0",
    ]  # fmt: skip
    assert any(t.split() == ["fastest", "blob", "93.0", "83.0"] for t in told)
    assert "unfinished: 8 trials to go; the same command runs them" in told
    assert "2 steps a trial, seeds 0, 1; 60 min altogether on 2 cores" in told
    page = markdown(found, "python -m sfn_train ablate ped2")
    assert "```text\npython -m sfn_train ablate ped2\n```" in page
    assert (
        "| 128 slots | 80.4 | 91.5 (1.0) | lower | 91.5 | 91.5 | 81.5 (1.0) | lower | 81.5 | 81.5 "
        "| 1,234 | 61.0 | 30.0 | note |"
    ) in page
    assert "| **SFFM** | 83.0 | 95.1 (0.2) |  |" in page
    assert "SFFM against the best memory row (128 slots)" in page
    assert "Unfinished: 8 trials have not been run." in page
    assert "| fastest blob | 93.0 | 83.0 |" in page


# --------------------------------------------------------------------------------- command


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ablate", *(str(argument) for argument in arguments)])


def assert_mistake(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.fixture
def arguments(tiny_data: Path, settings: Path, cache: Path, tmp_path: Path) -> list[object]:
    out = tmp_path / "ablation"
    return [
        tiny_data, "--table", "losses", "--config", settings, "--steps", 2, "--seeds", "0,1",
        "--out", out, "--cache", cache,
    ]  # fmt: skip


def test_an_interrupted_table_goes_on_with_the_trials_that_are_missing(
    arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def counted(material: Material, config: Config) -> Trial:
        asked.append(config.fingerprint())
        if len(asked) == 4:
            raise KeyboardInterrupt
        return run_trial(material, config)

    monkeypatch.setattr(runner, "run_trial", counted)
    broken = invoke(*arguments)
    assert broken.exit_code == 130
    assert "finished trials are kept: repeat the command to go on" in broken.stderr
    files = sorted((tmp_path / "ablation" / "trials").iterdir())
    assert len(files) == 3
    before = {file: file.read_bytes() for file in files}

    first, asked[:] = asked[:3], []
    monkeypatch.setattr(
        runner, "run_trial", lambda m, c: asked.append(c.fingerprint()) or run_trial(m, c)
    )
    done = invoke(*arguments, "--docs", tmp_path / "page.md")
    assert done.exit_code == 0, done.output
    assert "8 trials, 3 of them done before" in done.stdout
    assert len(asked) == 5
    assert not set(asked) & set(first)
    assert {file: file.read_bytes() for file in files} == before
    assert "unfinished" not in done.stdout
    assert "| **all** | 83.0 |" in (tmp_path / "page.md").read_text()

    asked.clear()
    again = invoke(*arguments)
    assert again.exit_code == 0
    assert asked == []
    assert again.stdout.splitlines()[-8:-1] == done.stdout.splitlines()[-8:-1]


def test_results_of_other_settings_are_not_mixed_in(
    arguments: list[object], tmp_path: Path
) -> None:
    arguments = [*arguments, "--seeds", "0"]
    assert invoke(*arguments).exit_code == 0
    steps = invoke(*arguments, "--steps", "3")
    assert_mistake(steps, "holds results of other settings (")
    assert "steps 2 there, 3 asked for" in steps.stderr
    assert "choose another --out, or replace them with --force" in steps.stderr
    rate = invoke(*arguments, "--set", "train.learning_rate=0.01")
    assert_mistake(rate, "config.train.learning_rate 0.003 there, 0.01 asked for")
    settings = tmp_path / "ablation" / "settings.json"
    stored = json.loads(settings.read_text())
    stored["code"]["sfn_train.losses"] = "0" * 12
    stored["data"]["labels"] = "of others"
    settings.write_text(json.dumps(stored))
    assert_mistake(invoke(*arguments), "code of sfn_train.losses; data.labels 'of others' there")

    told = invoke(*arguments, "--report")
    assert told.exit_code == 0
    assert (
        "this checkout would make these results with other code of sfn_train.losses" in told.stdout
    )
    forced = invoke(*arguments, "--force", "--steps", "1")
    assert forced.exit_code == 0
    assert "4 trials, 0 of them done before" in forced.stdout


def test_a_damaged_result_is_named(arguments: list[object], tmp_path: Path) -> None:
    arguments = [*arguments, "--seeds", "0"]
    assert invoke(*arguments).exit_code == 0
    file = next((tmp_path / "ablation" / "trials").iterdir())
    whole = file.read_text()
    for content in (whole[:-30], json.dumps({**json.loads(whole), "config_sha256": "0"}), "[]"):
        file.write_text(content)
        assert_mistake(invoke(*arguments), file.name)


def test_mistakes_are_one_line(arguments: list[object], tmp_path: Path) -> None:
    assert_mistake(invoke(*arguments, "--table", "branch"), "choose one of branches, filters")
    assert_mistake(invoke(*arguments, "--seeds", "x"), "as in 0,1,2")
    assert_mistake(invoke(tmp_path / "nowhere"), "does not exist")
    assert_mistake(invoke(*arguments, "--report"), "settings.json")


def test_two_commands_do_not_share_a_folder(tmp_path: Path) -> None:
    results = Results(tmp_path / "out")
    with (
        results.claimed({"steps": 1}, force=False),
        pytest.raises(Exception, match="another run is writing"),
        Results(tmp_path / "out").claimed({"steps": 1}, force=False),
    ):
        pass


@pytest.mark.slow
def test_jobs_find_what_one_process_finds(
    arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (branches,) = read_tables("branches")
    without_text = tuple(row for row in branches.rows if "use_text=false" in str(row.changes))
    few = replace(branches, rows=without_text, full="vision + motion")
    monkeypatch.setattr(runner, "read_tables", lambda asked: (few,))
    arguments = [*arguments, "--seeds", "0"]
    alone = invoke(*arguments)
    assert alone.exit_code == 0, alone.output
    shared = invoke(*arguments, "--out", tmp_path / "shared", "--jobs", "2")
    assert shared.exit_code == 0, shared.output
    files = sorted((tmp_path / "ablation" / "trials").iterdir())
    assert len(files) == 2
    for file in files:
        one = json.loads(file.read_text())
        two = json.loads((tmp_path / "shared" / "trials" / file.name).read_text())
        assert one["losses"] == pytest.approx(two["losses"], rel=1e-4)
        assert one["parameters"] == two["parameters"]


def test_wording_is_no_change_of_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digested(source: str) -> str:
        (tmp_path / "worded.py").write_text(source)
        return digest("worded")

    monkeypatch.syspath_prepend(tmp_path)
    first = digested('"""One."""\nx = 1  # one\n')
    assert digested('"""Two."""\n\nx = (1)\n') == first
    assert digested("x = 2\n") != first
    assert "sfn_train.model.sffm" in code_identity()
