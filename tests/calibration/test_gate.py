"""The gate's figures: a loss counts, a gain does not, and every budget can be missed."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import spearmanr

from sfn_calib.gate import GateFigures, Pair, Scored, Scoring, compare, rerouted, spearman
from sfn_calib.recipe import Budget
from sfn_calib.watch import Track
from sfn_rt.metrics import roc_auc
from sfn_rt.scores import PaperConstants, Tail, causal_scores

RNG = np.random.default_rng(0)
N, LAYERS, TOKENS, K = 60, 2, 5, 3
SCORING = Scoring(
    {"visual": Tail.fit(np.abs(RNG.standard_normal(500)))},
    0.2,
    PaperConstants(visual=1.0, semantic=0.0, sigma=2, minmax=True),
)
BUDGET = Budget(auc_points=0.3, spearman=0.95, rerouted=0.1)


def track(evidence: Sequence[float] | np.ndarray, routing: np.ndarray | None = None) -> Track:
    values = np.asarray(evidence, np.float64)
    if routing is None:
        routing = np.zeros((len(values), LAYERS, TOKENS, K), np.int16)
    return Track({"visual": values}, routing, 4)


def make_pairs(seed: int = 0, n_videos: int = 4, shift: float = 0.8) -> list[Pair]:
    rng = np.random.default_rng(seed)
    shown = np.arange(N) >= 10
    return [
        Pair(
            f"{v}", "foreign", track(np.abs(rng.standard_normal(N))),
            track(np.abs(rng.standard_normal(N)) + shift), shown,
        )
        for v in range(n_videos)
    ]  # fmt: skip


def changed(pairs: Sequence[Pair], noise: float) -> list[Pair]:
    rng = np.random.default_rng(9)

    def noisy(old: Track) -> Track:
        return track(old.terms["visual"] + noise * rng.standard_normal(N), old.routing)

    return [Pair(p.video, p.kind, noisy(p.usual), noisy(p.altered), p.abnormal) for p in pairs]


def test_the_same_model_loses_nothing() -> None:
    pairs = make_pairs()
    figures = compare(pairs, pairs, SCORING)
    assert figures.auc_loss == 0
    assert figures.spearman == 1
    assert figures.rerouted == 0
    assert not figures.misses(BUDGET)
    for protocol in figures.protocols.values():
        assert protocol.loss_interval == (0, 0)
        assert 50 < protocol.auc_fp32 < 100
    assert (figures.normal_frames, figures.abnormal_frames, figures.videos) == (240, 200, 4)


def test_auc_is_of_shown_frames_against_unaltered_ones() -> None:
    pairs = make_pairs(n_videos=1)
    (pair,) = pairs
    usual, altered = (
        causal_scores(t.terms, SCORING.tails, 0.2) for t in (pair.usual, pair.altered)
    )
    scores = np.concatenate([usual, altered[10:]])
    expected = 100 * roc_auc(scores, np.arange(len(scores)) >= N)
    assert Scored.of(pairs, SCORING, "causal").auc == expected


def test_noise_is_a_loss_and_its_removal_is_none() -> None:
    clean = make_pairs(shift=1.2)
    noisy = changed(clean, 1.5)
    lost, gained = compare(clean, noisy, SCORING), compare(noisy, clean, SCORING)
    assert lost.auc_loss > 0.3
    assert any("AUC falls" in miss for miss in lost.misses(BUDGET))
    assert any("correlate" in miss for miss in lost.misses(BUDGET))
    assert gained.auc_loss == 0
    assert not any("AUC falls" in miss for miss in gained.misses(BUDGET))
    for name, protocol in lost.protocols.items():
        low, high = protocol.loss_interval
        assert low <= protocol.loss <= high, name


def test_rerouted_is_a_share_of_tokens_by_layer() -> None:
    reference, variant = make_pairs(n_videos=1), make_pairs(n_videos=1)
    routing = np.zeros((N, LAYERS, TOKENS, K), np.int16)
    routing[:, 1, 0, 2] = 7  # one of five tokens of one of two layers, in one of two tracks
    old = variant[0]
    variant[0] = Pair("0", "foreign", old.usual, track(old.altered.terms["visual"], routing),
                      old.abnormal)  # fmt: skip
    assert rerouted(reference, variant) == (0, pytest.approx(0.1))
    figures = compare(reference, variant, SCORING)
    assert figures.rerouted == pytest.approx(0.05)
    tight = Budget(auc_points=0.3, spearman=0.95, rerouted=0.04)
    assert any("routed otherwise" in miss for miss in figures.misses(tight))
    assert not figures.misses(BUDGET)


def test_evidence_that_is_no_number_fails_the_gate() -> None:
    pairs = make_pairs()
    values = pairs[0].usual.terms["visual"].copy()
    values[3] = np.nan
    broken = [Pair("0", "foreign", track(values), pairs[0].altered, pairs[0].abnormal), *pairs[1:]]
    figures = compare(pairs, broken, SCORING)
    assert figures.broken == 1
    assert "no number" in figures.misses(BUDGET)[0]


@pytest.mark.parametrize("levels", [3, 1000])
def test_rank_correlation_is_scipys(levels: int) -> None:
    rng = np.random.default_rng(levels)
    a = rng.integers(0, levels, 200).astype(float)
    b = a + rng.integers(0, levels, 200)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)


def test_the_manifest_takes_plain_numbers() -> None:
    figures: GateFigures = compare(make_pairs(), changed(make_pairs(), 0.1), SCORING)
    numbers = figures.numbers()
    assert {"auc_loss", "spearman", "rerouted", "auc_fp32_paper", "auc_causal"} <= numbers.keys()
    assert all(type(value) is float for value in numbers.values())
