import dataclasses
import itertools
import json
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from sfn_rt.evaluation import Evaluation, evaluate
from sfn_rt.exceptions import DataError, InputError
from sfn_rt.metrics import BoxHits, localisation
from sfn_rt.scores import PUBLISHED, Tail, VideoScores, causal_scores, paper_scores
from sfn_rt.threshold import Threshold

FPS = 10.0
T = 200
NAMES = ("walk", "cart", "throughout")
TERMS = ("visual", "semantic", "attribute")


def labels() -> dict[str, np.ndarray]:
    truth = {name: np.zeros(T, np.uint8) for name in NAMES}
    truth["walk"][120:160] = 1
    truth["cart"][50:180] = 1
    truth["throughout"][:] = 1
    return truth


def evidence(truth: np.ndarray, seed: int, lift: float) -> np.ndarray:
    x = np.random.default_rng(seed).gamma(2, size=len(truth)) + lift * truth
    x[:4] = np.nan
    return x


def video(name: str, truth: np.ndarray, tails: dict[str, Tail], terms=TERMS) -> VideoScores:
    by_term = {term: evidence(truth, i + len(name), 1 + i) for i, term in enumerate(terms)}
    return VideoScores(
        name=name,
        fps=FPS,
        time_s=np.arange(len(truth)) / FPS,
        terms=by_term,
        paper=paper_scores(by_term, PUBLISHED["default"]),
        causal=causal_scores(by_term, tails),
        box=np.full((len(truth), 4), np.nan, np.float32),
        caption_id=np.full(len(truth), -1, np.int32),
        captions=(),
    )


def make(truth: dict[str, np.ndarray] | None = None, terms=TERMS, **changes: Any) -> Evaluation:
    truth = labels() if truth is None else truth
    rng = np.random.default_rng(99)
    tails = {term: Tail.fit(rng.gamma(2, size=3000)) for term in TERMS}
    settings: dict[str, Any] = {
        "videos": [video(name, y, tails, terms) for name, y in truth.items()],
        "labels": truth,
        "tails": tails,
        "constants": PUBLISHED["ped2"],
        "constants_name": "ped2",
        "threshold": Threshold(5.0, "1 false alarm an hour, made up", 1.0),
        "fps": FPS,
        "baselines": {
            "place in the video": {n: np.arange(len(y)) / len(y) for n, y in truth.items()},
            "mean frame difference": {
                n: np.r_[np.nan, evidence(y, 5, 0.2)[4:], np.ones(3)] for n, y in truth.items()
            },
        },
        "fingerprint": "0123456789abcdef",
        "labels_from": "frame_labels.npz",
    }
    settings |= changes
    return evaluate(settings.pop("videos"), settings.pop("labels"), **settings)


@pytest.fixture(scope="module")
def result() -> Evaluation:
    return make()


def schema_check(result: Evaluation) -> dict[str, Any]:
    text = resources.files("sfn_rt").joinpath("schemas/evaluation.schema.json").read_text("utf-8")
    schema = json.loads(text)
    Draft202012Validator.check_schema(schema)
    answer = json.loads(json.dumps(result.to_json(), allow_nan=False))
    Draft202012Validator(schema).validate(answer)
    return answer


def test_rows_are_baselines_terms_the_papers_two_and_all(result: Evaluation):
    assert [(row.kind, row.evidence) for row in result.rows] == [
        ("baseline", "place in the video"),
        ("baseline", "mean frame difference"),
        ("term", "visual"),
        ("term", "semantic"),
        ("term", "attribute"),
        ("combination", "visual + semantic (the paper's two)"),
        ("combination", "all terms"),
    ]
    assert result.all_terms.terms == TERMS
    assert result.row("visual").kind == "term"
    with pytest.raises(InputError, match="no evidence 'smell'"):
        result.row("smell")


def test_figures_are_scikit_learns_on_frames_4_to_the_end(result: Evaluation):
    truth = labels()
    y = np.concatenate([truth[name][4:] for name in NAMES])
    rng = np.random.default_rng(99)
    tails = {term: Tail.fit(rng.gamma(2, size=3000)) for term in TERMS}
    videos = [video(name, truth[name], tails) for name in NAMES]

    paper = [paper_scores(v.terms, PUBLISHED["ped2"])[4:] for v in videos]
    causal = [v.causal[4:] for v in videos]
    for figures, scores in ((result.all_terms.paper, paper), (result.all_terms.causal, causal)):
        everything = np.concatenate(scores)
        assert figures.micro_auc == pytest.approx(roc_auc_score(y, everything), abs=1e-12)
        assert figures.average_precision == pytest.approx(
            average_precision_score(y, everything), abs=1e-12
        )
        macro = np.mean(
            [roc_auc_score(truth[n][4:], s) for n, s in zip(NAMES[:2], scores, strict=False)]
        )
        assert figures.macro_auc == pytest.approx(macro, abs=1e-12)
        assert np.trapezoid(figures.roc.tpr, figures.roc.fpr) == pytest.approx(figures.micro_auc)
    assert [v.causal_auc for v in result.videos[:2]] == [
        pytest.approx(roc_auc_score(truth[n][4:], s))
        for n, s in zip(NAMES[:2], causal, strict=False)
    ]


def test_a_baseline_goes_through_the_same_two_protocols(result: Evaluation):
    y = np.concatenate([v[4:] for v in labels().values()])
    ramp = np.linspace(0, 1, T - 4)
    paper = np.tile(ndimage.gaussian_filter1d(ramp, 5), 3)
    row = result.row("place in the video")
    assert row.paper.micro_auc == pytest.approx(roc_auc_score(y, paper), abs=1e-12)
    average = [4 / T]
    for t in range(5, T):
        average.append(0.8 * average[-1] + 0.2 * t / T)
    assert row.causal.micro_auc == pytest.approx(roc_auc_score(y, np.tile(average, 3)), abs=1e-12)


def test_a_baseline_with_a_tail_is_scored_by_its_surprise():
    rng = np.random.default_rng(99)
    tails = {term: Tail.fit(rng.gamma(2, size=3000)) for term in TERMS}
    bare = make().row("mean frame difference")
    mapped = make(tails={**tails, "mean frame difference": Tail.fit(rng.gamma(2, size=500))})
    row = mapped.row("mean frame difference")
    assert row.paper.micro_auc == bare.paper.micro_auc
    assert row.causal.micro_auc != bare.causal.micro_auc


def test_the_first_frames_do_not_count():
    truth = labels()
    flipped = {name: y.copy() for name, y in truth.items()}
    for y in flipped.values():
        y[:4] ^= 1
    before, after = make(truth), make(truth, labels=flipped)
    assert before.to_json() == after.to_json()


def test_json_follows_its_schema(result: Evaluation):
    answer = schema_check(result)
    assert answer["labels"]["scored_frames"] == 3 * (T - 4)
    assert answer["labels"]["fingerprint"] == "0123456789abcdef"
    assert answer["labels"]["source"] == "frame_labels.npz"
    assert "Labels 0123456789abcdef from frame_labels.npz." in " ".join(make().table().split())
    assert answer["protocols"]["paper"]["constants"] == "ped2"
    assert answer["protocols"]["paper"]["published"] is True
    assert answer["videos"][2]["causal_auc"] is None
    assert answer["deployed"]["events"] == 3


def test_table_fits_and_says_what_matters(result: Evaluation):
    found = localisation(BoxHits(hits=3, frames=4, marked=0.2))
    table = make(localisation=found, notes=["frames a second not stated, 25 assumed"]).table()
    assert max(map(len, table.splitlines())) <= 100
    assert all(line == line.rstrip() for line in table.splitlines())
    for expected in (
        "frames 0-3 of each video are left out",
        "0123456789abcdef",
        "published for ped2",
        "uses each test video's future",
        "all terms",
        "points of micro AUC",
        "false alarms an hour",
        "a random place: 5.0 %",
        "n/a: one class throughout",
        "25 assumed",
    ):
        assert expected in " ".join(table.split()), expected


def test_default_constants_are_called_that():
    table = make(constants=PUBLISHED["default"], constants_name="default")
    assert "constants default" in table.table()
    assert table.published is False
    altered = dataclasses.replace(PUBLISHED["ped2"], sigma=9)
    assert make(constants=altered, constants_name="ped2").published is False


@pytest.mark.parametrize("label", [0, 1], ids=["all-normal", "all-abnormal"])
def test_one_class_only_is_not_available_with_a_reason(label: int):
    result = make({"walk": np.full(50, label, np.uint8)})
    answer = schema_check(result)
    assert all(
        value is None
        for row in answer["rows"]
        for protocol in ("paper", "causal")
        for value in row[protocol].values()
    )
    table = result.table()
    assert "n/a" in table
    assert f"every scored frame is {('normal', 'abnormal')[label]}" in table
    assert result.best_baseline("paper") is None


def test_a_bundle_with_one_term_and_no_baselines():
    result = make(terms=("visual",), baselines=None, fingerprint=None)
    assert [row.evidence for row in result.rows] == ["visual", "all terms"]
    assert result.rows[0].causal.micro_auc == result.rows[1].causal.micro_auc
    schema_check(result)
    assert "without a fingerprint" in result.table()


def test_localisation_without_masks_or_heat_is_null():
    answer = schema_check(make(localisation=localisation(BoxHits())))
    assert answer["localisation"] == {
        "box_hit_share": None,
        "box_hit_chance": None,
        "frames": 0,
        "pixel_auroc": None,
    }


def test_awkward_names_neither_break_the_table_nor_its_width():
    name = "walk\x1b[31m\n" + "x" * 200
    table = make({name: labels()["walk"]}).table()
    assert "\x1b" not in table
    assert max(map(len, table.splitlines())) <= 100


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"videos": []}, DataError, "no test video has labels"),
        ({"labels": {"walk": np.zeros(T, np.uint8)}}, DataError, "cart: no labels"),
        (
            {"labels": {**labels(), "cart": np.zeros(9, np.uint8)}},
            DataError,
            "cart: 9 labels for 200 frames",
        ),
        (
            {"labels": {**labels(), "cart": np.full(T, 255, np.uint8)}},
            DataError,
            "cart: labels must be 0 .normal. or 1 .abnormal., got values up to 255",
        ),
        (
            {"baselines": {"speed": {"walk": np.zeros(3)}}},
            DataError,
            "walk: baseline 'speed' has 3 values for 200 frames",
        ),
        ({"localisation": {"hits": 1}}, InputError, "localisation must have the keys"),
        ({"tails": {}}, InputError, "no normal footage was measured for"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make(**changes)


def test_videos_scored_unlike_one_another_are_refused():
    truth = labels()
    tails = {term: Tail.fit(np.arange(100.0)) for term in TERMS}
    videos = [video("walk", truth["walk"], tails), video("cart", truth["cart"], tails, ("visual",))]
    with pytest.raises(InputError, match="cart: scored with"):
        make(videos=videos)
    with pytest.raises(DataError, match=r"occur twice: \['walk'\]"):
        make(videos=[videos[0], videos[0]])
    with pytest.raises(DataError, match="walk: none of its 4 frames has a score"):
        make({"walk": np.zeros(4, np.uint8)})


def unscored(video: VideoScores, first: int, last: int) -> VideoScores:
    """As a system scores it that needs frames on both sides."""
    terms = {name: values.copy() for name, values in video.terms.items()}
    for values in terms.values():
        values[:first] = values[len(values) - last :] = np.nan
    tails = {term: Tail.fit(np.random.default_rng(99).gamma(2, size=3000)) for term in terms}
    return dataclasses.replace(
        video,
        terms=terms,
        paper=paper_scores(terms, PUBLISHED["dual-memory"]),
        causal=causal_scores(terms, tails),
    )


def test_frames_at_the_end_may_have_no_score_and_count_for_nothing():
    truth = labels()
    tails = {"visual": Tail.fit(np.random.default_rng(99).gamma(2, size=3000))}
    videos = [unscored(video(n, truth[n], tails, ("visual",)), 8, 7) for n in NAMES]
    changes = {"constants": PUBLISHED["dual-memory"], "constants_name": "dual-memory"}
    result = make(videos=videos, **changes)
    flipped = {name: y.copy() for name, y in truth.items()}
    for y in flipped.values():
        y[:8] ^= 1
        y[-7:] ^= 1
    assert make(videos=videos, labels=flipped, **changes).to_json() == result.to_json()
    y = np.concatenate([truth[name][8:-7] for name in NAMES])
    for figures, scores in (
        (result.row("visual").paper, [v.paper for v in videos]),
        (result.row("visual").causal, [v.causal for v in videos]),
    ):
        scored = np.concatenate([s[8:-7] for s in scores])
        assert figures.micro_auc == pytest.approx(roc_auc_score(y, scored), abs=1e-12)
    place = np.tile(np.arange(T - 15) / (T - 16), 3)  # scaled over the scored frames
    assert result.row("place in the video").paper.micro_auc == pytest.approx(
        roc_auc_score(y, place), abs=1e-12
    )
    answer = schema_check(result)
    assert answer["labels"]["unscored_first_frames"] == 8
    assert answer["labels"]["unscored_last_frames"] == 7
    assert answer["labels"]["scored_frames"] == 3 * (T - 15)
    table = " ".join(result.table().split())
    assert "the first 8 and the last 7 frames of each video are left out" in table
    assert "constants published for dual-memory (visual 1, semantic 0, attribute" in table
    assert answer["protocols"]["paper"]["published"] is True


def test_videos_and_terms_are_scored_on_the_same_frames():
    truth = labels()
    tails = {term: Tail.fit(np.arange(100.0)) for term in TERMS}
    first, second = (video(name, truth[name], tails) for name in ("walk", "cart"))
    with pytest.raises(InputError, match="cart: 8 frames at its beginning and 7 at its end"):
        make(videos=[first, unscored(second, 8, 7)])
    longer = {**second.terms, "visual": np.r_[np.zeros(4), second.terms["visual"][4:]]}
    with pytest.raises(InputError, match="cart: visual must be a number on frames 4 to 199 and"):
        make(videos=[first, dataclasses.replace(second, terms=longer)])


def test_known_baselines_of_ped2_come_out_as_published(ped2: Path):
    """Mean squared frame difference: 93.1 under `paper`, 78.6 under `causal`; t/T: 74.7."""
    with np.load(ped2 / "frame_labels.npz", allow_pickle=False) as arrays:
        truth = {name: arrays[name] for name in arrays.files}
    difference = {}
    for name in truth:
        files = sorted((ped2 / "testing" / "frames" / name).glob("*.jpg"))
        frames = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE).astype(np.float32) for file in files]
        pairs = itertools.pairwise(frames)
        difference[name] = np.r_[0, [np.mean((b - a) ** 2) for a, b in pairs]]
    result = make(
        truth,
        baselines={
            "place in the video": {name: np.arange(len(y)) / len(y) for name, y in truth.items()},
            "mean frame difference": difference,
        },
    )
    row = result.row("mean frame difference")
    assert 100 * row.paper.micro_auc == pytest.approx(93.1, abs=0.1)
    assert 100 * row.causal.micro_auc == pytest.approx(78.6, abs=0.1)
    place = result.row("place in the video")
    assert 100 * place.paper.micro_auc == pytest.approx(74.7, abs=0.1)
    assert [video.name for video in result.videos if np.isnan(video.paper_auc)] == [
        "08",
        "09",
        "10",
        "11",
    ]
