import json

import numpy as np
import pytest
from scipy import ndimage

from sfn_rt.exceptions import InputError
from sfn_rt.scores import (
    PUBLISHED,
    CausalScore,
    PaperConstants,
    Tail,
    VideoScores,
    causal_scores,
    minmax,
    moving_average,
    paper_constants,
    paper_scores,
    scored_span,
    smooth_gaussian,
)

NAN = float("nan")


def warm_up(values: np.ndarray) -> np.ndarray:
    return np.r_[np.full(4, NAN), values]


@pytest.mark.parametrize("sigma", [0, 0.1, 1, 4, 5, 13])
@pytest.mark.parametrize("n_frames", [1, 2, 7, 50, 200])
def test_smoothing_is_scipys(sigma: float, n_frames: int):
    x = np.random.default_rng(n_frames).standard_normal(n_frames)
    expected = ndimage.gaussian_filter1d(x, sigma, mode="reflect") if sigma else x
    np.testing.assert_allclose(smooth_gaussian(x, sigma), expected, rtol=0, atol=1e-13)


def test_minmax_spans_zero_to_one_and_survives_a_constant():
    np.testing.assert_allclose(minmax(np.array([3.0, 5.0, 4.0])), [0, 1, 0.5])
    np.testing.assert_array_equal(minmax(np.full(9, 0.1)), np.zeros(9))
    assert minmax(np.array([])).size == 0


def test_paper_scores_are_equation_13_and_14():
    rng = np.random.default_rng(0)
    visual, semantic = rng.random(60), rng.random(60)
    constants = PUBLISHED["ped2"]

    def term(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter1d((x - x.min()) / np.ptp(x), 5)

    scores = paper_scores({"semantic": warm_up(semantic), "visual": warm_up(visual)}, constants)

    assert np.isnan(scores[:4]).all()
    expected = 0.8 * term(visual) + 0.2 * term(semantic)
    np.testing.assert_allclose(scores[4:], expected, atol=1e-13)


def test_paper_scores_leave_out_absent_terms_and_skip_minmax_where_told():
    visual = np.random.default_rng(0).random(30)
    scores = paper_scores({"visual": warm_up(visual)}, PUBLISHED["avenue"])
    np.testing.assert_allclose(scores[4:], 0.9 * ndimage.gaussian_filter1d(visual, 4))


def test_paper_scores_of_a_grey_video_are_zero_not_nan():
    scores = paper_scores({"visual": warm_up(np.zeros(20))}, PUBLISHED["default"])
    np.testing.assert_array_equal(scores[4:], np.zeros(20))


def test_frames_at_both_ends_may_be_unscored():
    rng = np.random.default_rng(0)
    visual = np.r_[[NAN] * 8, rng.random(30), [NAN] * 7]
    assert scored_span({"visual": visual}) == slice(8, 38)
    assert scored_span({"visual": np.full(5, NAN)}) == slice(5, 5)
    scores = paper_scores({"visual": visual}, PUBLISHED["dual-memory"])
    np.testing.assert_array_equal(scores[8:38], minmax(visual[8:38]))
    assert np.isnan(scores[:8]).all()
    assert np.isnan(scores[38:]).all()
    tails = {"visual": Tail.fit(rng.random(500))}
    np.testing.assert_array_equal(
        np.isfinite(causal_scores({"visual": visual}, tails)), np.isfinite(visual)
    )


def test_terms_together_are_scored_where_all_have_a_value():
    rng = np.random.default_rng(0)
    visual, semantic = rng.random((2, 20))
    visual[:3] = semantic[-2:] = NAN
    assert scored_span({"visual": visual, "semantic": semantic}) == slice(3, 18)


def test_a_system_of_its_own_has_its_own_constants_whatever_the_data():
    assert paper_constants("dual-memory", "ped2") == ("dual-memory", PUBLISHED["dual-memory"])
    assert paper_constants("sfn-vad", "ped2") == ("ped2", PUBLISHED["ped2"])
    assert paper_constants("sfn-vad") == ("default", PUBLISHED["default"])
    assert PUBLISHED["avenue"].text() == (
        "visual 0.9, semantic 0.1, attribute 0.144765, sigma 4, no min-max"
    )


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "at least one term"),
        ({"visual": np.zeros(3), "semantic": np.zeros(4)}, "same frames"),
        ({"visual": np.array([1.0, NAN, 1.0])}, "visual: frame 1 must be finite"),
        ({"smell": np.zeros(3)}, "unknown term 'smell'"),
    ],
)
def test_paper_scores_name_what_is_wrong(terms: dict[str, np.ndarray], message: str):
    with pytest.raises(InputError, match=message):
        paper_scores(terms, PUBLISHED["default"])


def test_constants_refuse_nonsense():
    with pytest.raises(ValueError, match="sigma must be"):
        PaperConstants(visual=1, semantic=1, sigma=-1, minmax=True)


def test_tail_follows_the_true_survival_function():
    rng = np.random.default_rng(0)
    tail = Tail.fit(rng.exponential(size=200_000))
    assert tail.normal.size == 4096
    x = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0])
    # For a unit exponential -log P(normal >= x) is x itself, beyond the data too.
    np.testing.assert_allclose(tail.surprise(x), x, rtol=0.03, atol=0.01)


@pytest.mark.parametrize(
    "normal",
    [
        np.random.default_rng(1).standard_normal(3000),
        np.random.default_rng(1).standard_normal(50_000) * 1e-6,
        np.zeros(100),
        np.r_[np.zeros(960), np.arange(1, 41)],  # 96 % ties below the 95th percentile
        np.r_[np.arange(80), np.full(20, 100.0)],  # ties at the top
        np.array([2.0]),
        np.array([1.0, 2.0, 3.0]),
        np.full(10, 1e30),
    ],
    ids=["gauss", "tiny", "zeros", "ties-below", "ties-above", "one", "three", "huge"],
)
def test_surprise_is_monotone_continuous_finite_and_not_negative(normal: np.ndarray):
    tail = Tail.fit(normal)
    spread = max(np.ptp(normal), abs(normal).max(), 1e-3)
    x = np.linspace(normal.min() - spread, normal.max() + spread, 20_001)
    surprise = tail.surprise(x)
    assert np.isfinite(surprise).all()
    assert surprise[0] == 0
    assert (surprise >= 0).all()
    assert (np.diff(surprise) >= 0).all()
    assert np.isfinite(tail.surprise(1e300))
    anchor = float(tail.surprise(tail._value[-1]))
    above = float(tail.surprise(tail._value[-1] + 1e-6 * tail.scale))
    assert above == pytest.approx(anchor, abs=2e-6)


def test_surprise_beyond_the_95th_percentile_grows_by_one_per_mean_excess():
    tail = Tail.fit(np.arange(1000.0))
    assert float(tail.surprise(950)) == pytest.approx(-np.log(0.05))
    assert tail.scale == pytest.approx(24.5)
    assert float(tail.surprise(950 + 24.5)) == pytest.approx(1 - np.log(0.05))


def test_tail_leaves_out_unscored_frames_and_refuses_emptiness():
    np.testing.assert_array_equal(Tail.fit([NAN, 2, 1]).normal, [1, 2])
    with pytest.raises(InputError, match="no normal evidence"):
        Tail.fit([NAN])


def test_tail_survives_npz(tmp_path):
    tail = Tail.fit(np.random.default_rng(3).gamma(2, size=10_000))
    np.savez(tmp_path / "normal.npz", **tail.to_arrays())
    with np.load(tmp_path / "normal.npz", allow_pickle=False) as arrays:
        again = Tail.from_arrays(arrays)
    x = np.linspace(-1, 30, 500)
    np.testing.assert_array_equal(again.surprise(x), tail.surprise(x))
    with pytest.raises(InputError, match="lacks \\['scale'\\]"):
        Tail.from_arrays({"normal": tail.normal})


@pytest.fixture(scope="module")
def tails() -> dict[str, Tail]:
    rng = np.random.default_rng(0)
    return {
        "visual": Tail.fit(rng.gamma(2, size=2000)),
        "semantic": Tail.fit(rng.random(2000)),
    }


def test_causal_scores_are_an_ema_of_summed_surprises(tails):
    rng = np.random.default_rng(1)
    visual, semantic = rng.gamma(2, size=40), rng.random(40)
    scores = causal_scores(
        {"semantic": warm_up(semantic), "visual": warm_up(visual)}, tails, alpha=0.3
    )
    summed = tails["visual"].surprise(visual) + tails["semantic"].surprise(semantic)
    mean = summed[0]
    for t, value in enumerate(summed):
        mean = 0.7 * mean + 0.3 * value
        assert scores[4 + t] == pytest.approx(mean, rel=1e-12)
    assert np.isnan(scores[:4]).all()
    np.testing.assert_allclose(moving_average(warm_up(summed), 0.3), scores, rtol=1e-12)


def test_causal_scores_use_nothing_from_the_future(tails):
    visual = warm_up(np.random.default_rng(2).gamma(2, size=50))
    whole = causal_scores({"visual": visual}, tails)
    np.testing.assert_array_equal(causal_scores({"visual": visual[:30]}, tails), whole[:30])


def test_causal_score_goes_on_exactly_from_a_saved_state(tails):
    rng = np.random.default_rng(4)
    rows = [{"visual": rng.gamma(2), "semantic": rng.random()} for _ in range(50)]
    one = CausalScore(tails)
    assert one.state() == {"mean": None}
    whole = [one.update(row) for row in rows]

    first = CausalScore(tails)
    for row in rows[:20]:
        first.update(row)
    second = CausalScore(tails)
    second.restore(json.loads(json.dumps(first.state())))
    assert [second.update(row) for row in rows[20:]] == whole[20:]


def test_causal_score_names_missing_terms(tails):
    with pytest.raises(InputError, match="expected the terms"):
        CausalScore(tails).update({"visual": 1.0})
    with pytest.raises(InputError, match="no normal footage was measured for"):
        causal_scores({"attribute": np.zeros(5)}, tails)
    with pytest.raises(InputError, match="alpha"):
        CausalScore(tails, alpha=0.0)


def test_video_scores_refuse_columns_of_unequal_length():
    with pytest.raises(InputError, match="walk: paper must have one value for each of the 5"):
        VideoScores(
            name="walk",
            fps=10.0,
            time_s=np.arange(5) / 10,
            terms={"visual": np.zeros(5)},
            paper=np.zeros(4),
            causal=np.zeros(5),
            box=np.zeros((5, 4), np.float32),
            caption_id=np.zeros(5, np.int32),
            captions=("nothing moves",),
        )


def test_ties_that_differ_by_rounding_do_not_make_a_steep_tail():
    """A caption holds for some frames: the largest values of short footage are nearly equal."""
    rng = np.random.default_rng(0)
    values = np.r_[rng.uniform(0.03, 0.1, 44), 0.177 + 1e-7 * rng.standard_normal(4)]
    tail = Tail.fit(values)
    assert tail.scale > 0.01
    assert float(tail.surprise(0.18)) < 5
