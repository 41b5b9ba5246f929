"""What normal footage looks like to a trained model: fitted from held-out evidence alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sfn_rt.datasets import open_dataset
from sfn_rt.evidence import FrameEvidence, Looked
from sfn_rt.frames import open_source
from sfn_rt.normal import SIGNALS, NormalFootage, SceneModel
from sfn_rt.preprocess import preprocess
from sfn_rt.scores import EMA_ALPHA, TERMS, causal_scores
from sfn_rt.semantics.scene import Scene, Thing
from sfn_train.checkpoint import Run
from sfn_train.config import Config, parse_config
from sfn_train.data.prepare import Footage, Prepared, prepare
from sfn_train.data.split import Span
from sfn_train.model import SFN
from sfn_train.statistics import fit_normal, fit_statistics, learned_terms, visual_config
from sfn_train.systems import build_network


@pytest.fixture(scope="module")
def settings(tiny_yaml: str) -> Config:
    raw = yaml.safe_load(tiny_yaml)
    raw["model"]["use_text"] = False  # no sentence is embedded for these tests
    return parse_config(yaml.safe_dump(raw), "tiny")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, footage: Path, settings: Config) -> Prepared:
    cache = tmp_path_factory.mktemp("cache")
    return prepare(open_dataset(footage), settings, cache, say=lambda text: None, progress=False)


def evidence(n: int, seed: int, heat: float = 1.0) -> list[FrameEvidence]:
    rng = np.random.default_rng(seed)
    scene = Scene(96, 64, ())
    rows = [FrameEvidence(i, i / 25, scene, {}, None, None, None) for i in range(min(n, 4))]
    for i in range(4, n):
        terms = {term: float(rng.gamma(2)) for term in TERMS}
        cells = np.full((2, 3), heat * rng.random(), np.float16)
        rows.append(FrameEvidence(i, i / 25, scene, terms, "x", (0, 0, 1, 1), cells))
    return rows


def nothing_known() -> SceneModel:
    return SceneModel(None, None, np.zeros((1, 16, 24), np.float32))


def test_tails_are_those_of_all_scored_frames() -> None:
    footage = [evidence(200, 0), evidence(300, 1)]
    normal = fit_normal(nothing_known(), TERMS, footage, 25.0)
    for term in TERMS:
        values = sorted(row.terms[term] for rows in footage for row in rows if row.terms)
        np.testing.assert_array_equal(normal.tails[term].normal, values)


def test_each_choice_of_terms_is_calibrated_on_its_own_scores() -> None:
    footage = [evidence(400, 0), evidence(400, 1)]
    normal = fit_normal(nothing_known(), TERMS, footage, 25.0)
    assert len(normal.thresholds) == 7
    for chosen, threshold in normal.thresholds.items():
        scores = []
        for rows in footage:
            columns = {t: np.array([r.terms[t] for r in rows if r.terms]) for t in chosen}
            scores.append(causal_scores(columns, normal.tails, EMA_ALPHA))
        # 32 s of footage against one alarm an hour: beyond everything seen.
        assert threshold.value > max(score.max() for score in scores)
        assert threshold.false_alarms_per_hour == 1.0
    assert normal.thresholds[TERMS].value > normal.thresholds[("visual",)].value


def test_heat_scale_is_a_high_quantile_of_the_cells() -> None:
    normal = fit_normal(nothing_known(), TERMS, [evidence(800, 0, heat=5.0)], 25.0)
    assert 4.5 < normal.heat_scale <= 5.0


def test_no_error_anywhere_does_not_divide_by_zero_later() -> None:
    assert fit_normal(nothing_known(), TERMS, [evidence(50, 0, heat=0.0)], 25.0).heat_scale > 0


def test_footage_too_short_to_score_is_left_out() -> None:
    alone = fit_normal(nothing_known(), TERMS, [evidence(100, 0)], 25.0)
    beside = fit_normal(nothing_known(), TERMS, [evidence(100, 0), evidence(3, 1)], 25.0)
    assert beside.thresholds == alone.thresholds


def test_what_is_fitted_can_be_stored() -> None:
    normal = fit_normal(nothing_known(), TERMS, [evidence(200, 0)], 25.0)
    again = NormalFootage.from_arrays(normal.to_arrays())
    assert again.thresholds == normal.thresholds
    assert again.heat_scale == normal.heat_scale


def signalled(rows: list[FrameEvidence], *names: str) -> list[FrameEvidence]:
    """The same rows with signals that tell each frame of each from any other."""
    return [
        replace(row, signals={name: i + row.index / 1000 for i, name in enumerate(names)})
        if row.terms
        else row
        for row in rows
    ]


def test_signals_have_tails_of_their_own() -> None:
    footage = [signalled(evidence(n, seed), *SIGNALS) for seed, n in enumerate((60, 90))]
    normal = fit_normal(nothing_known(), TERMS, footage, 25.0)
    assert tuple(normal.signals) == SIGNALS
    for i, name in enumerate(SIGNALS):
        values = sorted(i + row.index / 1000 for rows in footage for row in rows if row.terms)
        np.testing.assert_array_equal(normal.signals[name].normal, values)
    again = NormalFootage.from_arrays(normal.to_arrays())
    assert again.signals["motion"].quantile(0.99) == normal.signals["motion"].quantile(0.99)


def test_only_signals_that_every_frame_has_are_kept() -> None:
    rows = signalled(evidence(60, 0), "appearance", "motion")
    rows[30] = replace(rows[30], signals={"motion": 1.0})
    assert set(fit_normal(nothing_known(), TERMS, [rows], 25.0).signals) == {"motion"}
    assert not fit_normal(nothing_known(), TERMS, [evidence(60, 0)], 25.0).signals


def test_a_student_of_errors_that_no_loss_taught_is_not_listened_to() -> None:
    rows = signalled(evidence(60, 0), *SIGNALS)
    normal = fit_normal(nothing_known(), ("visual", "attribute"), [rows], 25.0)
    assert set(normal.signals) == {"appearance", "motion"}


def with_things(prepared: Prepared, *things: Thing) -> Prepared:
    scenes = tuple(Scene(96, 64, things) for _ in prepared.videos[0].scenes)
    videos = tuple(replace(video, scenes=scenes) for video in prepared.videos)
    return replace(prepared, videos=videos)


def thing(w: float, h: float) -> Thing:
    return Thing(0.0, 0.0, w, h, w * h, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("things", "side"),
    [
        ((thing(32, 32),), 8),  # an eighth of 96 x 64 either way: 8 of 24 x 16 pixels
        ((thing(24, 40), thing(24, 40), thing(96, 64)), 8),  # the median, not the largest
        ((thing(2, 2),), 8),  # never below a patch
        ((thing(96, 64),), 8),  # never above half the frame
        ((), 8),
    ],
    ids=["one size", "median", "small", "large", "nothing moves"],
)
def test_the_box_is_as_large_as_what_moves(
    prepared: Prepared, settings: Config, things: tuple[Thing, ...], side: int
) -> None:
    config = replace(settings, model=replace(settings.model))
    found = visual_config(config, with_things(prepared, *things))
    assert (found.box_height, found.box_width) == (side, side)
    assert (found.grid_height, found.grid_width) == config.model.grid


def test_the_box_follows_the_frame_size(prepared: Prepared, settings: Config) -> None:
    large = replace(settings.model, frame_height=64, frame_width=96)
    config = replace(settings, model=large)
    assert visual_config(config, with_things(prepared, thing(12, 27))).box_height == 18
    assert visual_config(config, with_things(prepared, thing(1, 1))).box_height == large.patch
    assert visual_config(config, with_things(prepared, thing(96, 64))).box_height == 32
    assert visual_config(config, with_things(prepared)).box_height == 8


def test_footage_that_was_looked_at_before_need_not_be_read_again(
    prepared: Prepared, settings: Config
) -> None:
    torch.manual_seed(0)
    run = Run(Path("unused"), settings, SFN(settings.model), {}, {"seed": 0})
    asked = []

    def blocks(video: Footage, span: Span) -> Iterator[Looked]:
        asked.append((video.name, span))
        with open_source(video.path) as source:
            frames = [frame for frame in source if span.start <= frame.index < span.stop]
        for start in range(0, len(frames), 3):
            some = frames[start : start + 3]
            pictures = np.stack([preprocess(frame.image, settings.preprocessing) for frame in some])
            scenes = [video.scenes[frame.index] for frame in some]
            yield Looked(some, pictures, scenes, {})

    read = fit_statistics(run, prepared, progress=False)
    given = fit_statistics(run, prepared, blocks=blocks, progress=False)
    assert set(asked) == {(v.name, span) for v, span in prepared.held_out()}
    assert given.info == read.info
    for name, array in read.normal.items():
        if name.startswith("tails/visual"):
            np.testing.assert_allclose(given.normal[name], array, atol=1e-5)
    assert given.normal.keys() == read.normal.keys()


DUAL = """
system: dual-memory
model: {frame_height: 16, frame_width: 16, channels: 1, widths: [2, 4], skips: [none], slots: 4}
data: {run_length: 16, held_out: 0.5}
visual: {measure: psnr}
train: {steps: 1}
"""


def test_the_second_system_is_fitted_by_the_same_function(footage: Path, tmp_path: Path) -> None:
    config = parse_config(DUAL, "dual")
    prepared = prepare(open_dataset(footage), config, tmp_path, say=lambda text: None)
    torch.manual_seed(0)
    run = Run(Path("unused"), config, build_network(config), {}, {})
    fitted = fit_statistics(run, prepared, progress=False)
    normal = NormalFootage.from_arrays(fitted.normal)
    assert normal.scene.attributes is None
    assert list(normal.tails) == ["visual"]
    assert set(normal.thresholds) == {("visual",)}
    scored = sum(len(span) - 15 for _, span in prepared.held_out())
    assert len(normal.tails["visual"].normal) == scored
    assert (normal.tails["visual"].normal < 20).all()  # decibels, of standardised frames
    assert fitted.info["visual"]["measure"] == "psnr"
    assert fitted.info["visual"]["box_height"] == 2  # an eighth of the frame: nothing is looked for


@pytest.mark.parametrize(
    ("losses", "terms"),
    [
        ({}, ("visual", "semantic", "attribute")),
        ({"text": 0.0}, ("visual", "attribute")),
        ({"frame": 0.0}, ("visual", "semantic", "attribute")),
        ({"frame": 0.0, "motion": 0.0}, ("semantic", "attribute")),
    ],
    ids=["all", "no text", "motion alone", "no picture"],
)
def test_what_no_loss_has_taught_is_no_term(
    settings: Config, losses: dict[str, float], terms: tuple[str, ...]
) -> None:
    loss = replace(settings.train.loss, **losses)
    config = replace(settings, train=replace(settings.train, loss=loss))
    assert learned_terms(config, TERMS) == terms


def test_a_model_without_a_picture_branch_has_no_visual_tail(
    footage: Path, tiny_yaml: str, tmp_path: Path
) -> None:
    branches = ["model.use_appearance=false", "model.use_motion=false", "model.windows=[4, 8]"]
    config = parse_config(tiny_yaml, "tiny", branches)
    prepared = prepare(open_dataset(footage), config, tmp_path, say=lambda text: None)
    torch.manual_seed(0)
    run = Run(Path("unused"), config, build_network(config), {}, {})
    fitted = fit_statistics(run, prepared, progress=False)
    normal = NormalFootage.from_arrays(fitted.normal)
    assert list(normal.tails) == ["semantic", "attribute"]
    assert normal.heat_scale == 1.0
