import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from sfn_rt.plots import (
    Panel,
    RocCurve,
    Series,
    Span,
    decimate,
    format_time,
    label_spans,
    line_chart,
    roc_chart,
)

SVG = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def having(root: ET.Element, css: str) -> list[ET.Element]:
    return [element for element in root.iter() if element.get("class") == css]


def points(path: ET.Element) -> np.ndarray:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"h0", "", path.get("d", "")))
    return np.array(numbers, dtype=float).reshape(-1, 2)


def chart(y: np.ndarray, **panel: object) -> ET.Element:
    time_s = np.arange(len(y)) / 10
    return parse(line_chart(time_s, [Panel(title="score", series=[Series("s", y)], **panel)]))


def test_a_curve_spans_the_axes_and_higher_values_are_higher_up():
    xy = points(having(chart(np.array([0.0, 1.0, 2.0])), "line0")[0])
    assert xy[:, 0].tolist() == [62.0, 502.0, 942.0]
    assert xy[0, 1] > xy[1, 1] > xy[2, 1]
    assert xy[0, 1] - xy[1, 1] == pytest.approx(xy[1, 1] - xy[2, 1], abs=0.11)


def test_nan_leaves_a_gap_and_a_lone_point_is_drawn():
    nan = np.nan
    path = having(chart(np.array([nan, 1.0, 2.0, nan, 3.0, nan])), "line0")[0]
    strokes = path.get("d", "").split("M")[1:]
    assert len(strokes) == 2
    assert strokes[1].endswith("h0")
    assert "nan" not in path.get("d", "")


@pytest.mark.parametrize(
    "y",
    [
        np.full(50, np.nan),
        np.zeros(50),
        np.full(50, -3.0),
        np.array([1.0]),
        np.zeros(0),
        np.array([1e-300, 2e-300]),
        np.array([0.0, 1e12]),
        np.array([0.0, np.inf, 1.0]),
    ],
    ids=["no score", "zero", "constant", "one frame", "empty", "tiny", "huge", "infinite"],
)
def test_awkward_data_draws(y: np.ndarray):
    root = chart(y, threshold=0.5)
    coordinates = [e.get(k, "0") for e in root.iter() for k in ("x", "y", "x1", "y1", "d")]
    assert not any(word in value for value in coordinates for word in ("nan", "inf"))


def test_long_series_stay_small_and_keep_their_peaks():
    y = np.random.default_rng(0).random(1_000_000)
    y[123_456] = 50.0
    time_s = np.arange(len(y)) / 25
    svg = line_chart(time_s, [Panel(title="score", series=[Series("s", y)])])
    assert len(svg) < 120_000
    xy = points(having(parse(svg), "line0")[0])
    top = xy[xy[:, 1].argmin()]
    assert top[0] == pytest.approx(62 + 123_456 / 999_999 * 880, abs=0.1)


def test_decimation_keeps_lowest_and_highest_of_every_column_in_order():
    x, y = np.arange(10_000.0), np.random.default_rng(1).normal(size=10_000)
    kept_x, kept_y = decimate(x, y, 100)
    assert len(kept_x) <= 200
    assert (np.diff(kept_x) > 0).all()
    assert (y[kept_x.astype(int)] == kept_y).all()
    column = np.minimum((x / x[-1] * 100).astype(int), 99)
    kept_column = np.minimum((kept_x / x[-1] * 100).astype(int), 99)
    for i in range(100):
        assert y[column == i].max() == kept_y[kept_column == i].max()
        assert y[column == i].min() == kept_y[kept_column == i].min()


def test_events_labels_and_threshold_are_drawn_and_explained():
    root = chart(
        np.linspace(0, 4, 100),
        events=[Span(2.0, 4.0, "event 1", mark="1")],
        labels=[Span(3.0, 5.0, "cart")],
        threshold=3.0,
    )
    shade = having(root, "event")[-1]
    assert shade.findtext(f"{SVG}title") == "event 1"
    assert float(shade.get("x", 0)) == pytest.approx(62 + 2.0 / 9.9 * 880, abs=0.1)
    assert float(shade.get("width", 0)) == pytest.approx(2.0 / 9.9 * 880, abs=0.2)
    assert having(root, "label")[-1].findtext(f"{SVG}title") == "cart"
    assert len(having(root, "threshold")) == 2  # the line and its sample in the legend
    words = "".join(root.itertext())
    assert "labelled abnormal" in words
    assert "threshold 3" in words


def test_pointing_at_the_chart_reads_out_time_and_value():
    root = chart(np.linspace(0, 4, 50), events=[Span(2.0, 4.0, "event 1")])
    tips = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert any(tip.startswith("3 s, frame 30\ns 2.45\nevent 1") for tip in tips)


def test_hostile_names_stay_text():
    evil = "</text><script>alert(1)</script>\x1b[31m\x00\ud800"
    svg = line_chart(
        np.arange(9.0),
        [Panel(title=evil, series=[Series(evil, np.arange(9.0))], events=[Span(1, 2, evil, evil)])],
        title=evil,
    ) + roc_chart([RocCurve(evil, np.array([0, 1]), np.array([0, 1]), 0.5)], title=evil)
    assert "<script" not in svg
    assert "\x1b" not in svg
    svg.encode()


def test_panels_share_the_time_axis_and_a_wrong_length_is_named():
    time_s = np.arange(20.0)
    panels = [Panel(title=t, series=[Series(t, time_s)], height=60) for t in "abc"]
    root = parse(line_chart(time_s, panels))
    assert len({tuple(points(p)[:, 0]) for p in having(root, "line0")}) == 1
    with pytest.raises(ValueError, match=r"'short' has shape \(3,\), the time axis has \(20,\)"):
        line_chart(time_s, [Panel(title="x", series=[Series("short", np.zeros(3))])])


def test_labels_become_spans():
    spans = label_spans(np.arange(6) / 2, np.array([1, 0, 1, 1, 0, 1]), "abnormal")
    assert [(s.start, s.end) for s in spans] == [(0.0, 0.5), (1.0, 2.0), (2.5, 2.5)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.583, "0.58 s"),
        (2.5, "2.5 s"),
        (12.0, "12 s"),
        (59.96, "1:00"),
        (205, "3:25"),
        (3765, "1:02:45"),
    ],
)
def test_times_are_short(seconds: float, text: str):
    assert format_time(seconds) == text


def test_time_is_labelled_in_round_steps():
    time_s = np.linspace(0, 3600, 500)
    root = parse(line_chart(time_s, [Panel(title="s", series=[Series("s", time_s)])]))
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"10:00", "20:00", "50:00", "1:00:00"} <= set(words)


def test_roc_runs_from_corner_to_corner_with_area_in_percent():
    fp = np.array([0.0, 0.0, 0.5, 1.0])
    tp = np.array([0.0, 0.5, 1.0, 1.0])
    root = parse(roc_chart([RocCurve("visual", fp, tp, 0.875), RocCurve("chance", fp, fp, 0.5)]))
    first, second = (having(root, f"line{i}")[0] for i in range(2))
    assert points(first).tolist() == [[62, 466], [62, 256], [272, 46], [482, 46]]
    assert second.get("stroke-dasharray")
    assert "visual: 87.5" in "".join(root.itertext())


def test_thirty_roc_curves_look_different():
    curves = [RocCurve(str(i), np.array([0, 1]), np.array([0, 1]), 0.5) for i in range(30)]
    root = parse(roc_chart(curves))
    looks = [(p.get("stroke"), p.get("stroke-dasharray")) for p in root.iter(f"{SVG}path")]
    assert len(set(looks)) == 30


def test_a_chart_without_panels_or_curves():
    with pytest.raises(ValueError, match="at least one panel"):
        line_chart(np.zeros(0), [])
    parse(roc_chart([]))
