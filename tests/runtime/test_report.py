import base64
import csv
import json
import re
import tracemalloc
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import av
import cv2
import jsonschema
import numpy as np
import pytest

from sfn_rt import heatmap, report
from sfn_rt.events import Event
from sfn_rt.exceptions import OutputError, VideoError
from sfn_rt.heatmap import draw_box, overlay, usable_box
from sfn_rt.plots import format_time
from sfn_rt.report import score_chart, write_report
from sfn_rt.scores import VideoScores
from sfn_rt.threshold import Threshold

T, H, W = 30, 61, 83  # odd on purpose
THRESHOLD = Threshold(2.0, "1 false alarm an hour on 400 s of normal footage", 1.0)
META = {"profile": "edge", "sha": "ab" * 32, "backend": "ort"}
EVIL = "</p><script>alert(1)</script><img src=http://x/y>\x1b[31m\x00\u202e\ud800"


def event(number: int, peak: int, score: float = 3.0, **changes: object) -> Event:
    values: dict[str, object] = {
        "start_frame": peak - 1, "end_frame": peak + 1, "peak_frame": peak,
        "start_s": (peak - 1) / 10, "end_s": (peak + 1) / 10, "peak_s": peak / 10,
        "score": score, "caption": f"caption {number}", "explanation": f"reason {number}",
        "box": (20.0, 10.0, 30.0, 25.0),
    }  # fmt: skip
    return Event(**{**values, **changes})  # type: ignore[arg-type]


def result(n_frames: int = T, fps: float = 10.0) -> VideoScores:
    causal = np.linspace(0, 3, n_frames)
    causal[:4] = np.nan
    box = np.tile(np.array([20, 10, 30, 25], dtype=np.float32), (n_frames, 1))
    box[:4] = np.nan
    return VideoScores(
        name="walk",
        fps=fps,
        time_s=np.arange(n_frames) / fps,
        terms={"visual": causal, "attribute": causal * 2},
        paper=causal / 3,
        causal=causal,
        box=box,
        caption_id=np.full(n_frames, -1, dtype=np.int32),
        captions=("one", EVIL),
    )


def heat(n_frames: int = T, value: float = 0.0) -> np.ndarray:
    cells = np.full((n_frames, 6, 8), value, dtype=np.float16)
    cells[:4] = np.nan
    return cells


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of frames, each of one grey that tells its index."""
    folder = tmp_path / "walk"
    folder.mkdir()
    for i in range(T):
        cv2.imwrite(str(folder / f"{i:03}.png"), np.full((H, W, 3), 40 + 5 * i, dtype=np.uint8))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def write(out: Path, source: Path, events: list[Event], **changes: object) -> list[Path]:
    arguments: dict[str, object] = {"threshold": THRESHOLD, "meta": META, "warnings": []}
    return write_report(out, source, result(), events, heat(), **{**arguments, **changes})  # type: ignore[arg-type]


def test_everything_is_written_and_named(out: Path, source: Path):
    counted: list[int] = []
    paths = write(out, source, [event(1, 12)], progress=counted.append)
    names = ["scores.csv", "captions.json", "events.json", "curve.svg", "heatmap.mp4"]
    assert paths == [out / name for name in [*names, "report.html"]]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "report.html"])
    assert sum(counted) == T


def test_video_and_page_can_be_left_out(out: Path, source: Path):
    counted: list[int] = []
    paths = write(out, source, [event(1, 12)], video=False, html=False, progress=counted.append)
    assert {p.name for p in paths} == {"scores.csv", "captions.json", "events.json", "curve.svg"}
    assert counted == []  # the source is not read again for nothing
    write(out, source, [event(1, 12)], video=False, progress=counted.append)
    assert sum(counted) == 13  # only as far as the last key frame


def test_events_follow_their_schema(out: Path, source: Path):
    events = [event(1, 6, caption=EVIL), event(2, 20, box=None, explanation="")]
    write(out, source, events, video=False, warnings=["scene differs"])
    schema = json.loads(files("sfn_rt").joinpath("schemas/events.schema.json").read_text())
    written = json.loads((out / "events.json").read_text())
    jsonschema.validate(written, schema)
    assert written["events"][0]["caption"] == EVIL  # for programs, as it came
    assert written["events"][1]["box"] is None
    assert written["threshold"] == {"value": 2.0, "rule": THRESHOLD.rule}
    assert written["bundle"] == {"profile": "edge", "sha": "ab" * 32}
    assert json.loads((out / "captions.json").read_text()) == {"0": "one", "1": EVIL}
    written["events"][0]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, schema)


def test_scores_follow_their_schema(out: Path, source: Path):
    write(out, source, [], video=False, html=False)
    schema = json.loads(files("sfn_rt").joinpath("schemas/scores.schema.json").read_text())
    with (out / "scores.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [{k: json.loads(v) if v else None for k, v in row.items()} for row in reader]
    assert list(rows[0]) == schema["items"]["required"]
    jsonschema.validate(rows, schema)


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def page(out: Path) -> Page:
    return Page((out / "report.html").read_text())


def test_the_page_stands_alone_and_runs_nothing(out: Path, source: Path):
    events = [event(1, 12, caption=EVIL, explanation=EVIL)]
    write(out, source, events, warnings=[EVIL], meta={**META, EVIL: EVIL})
    seen = page(out)
    assert not {"script", "link", "iframe", "object", "video", "base"} & {t for t, _ in seen.tags}
    for _, attributes in seen.tags:
        assert not any(name.startswith("on") or name == "href" for name in attributes)
        assert (attributes.get("src") or "data:image/jpeg;base64,").startswith("data:image/jpeg")
    text = (out / "report.html").read_text()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "url(" not in text
    assert "Content-Security-Policy" in text
    assert "<script>alert(1)</script>" in seen.words  # shown, not run


def test_the_page_tells_what_was_found(out: Path, source: Path):
    write(out, source, [event(1, 12)], warnings=["the scene differs from the bundle's"])
    words = page(out).words
    for told in ("1 abnormal event", "reason 1", "caption 1", "the scene differs", THRESHOLD.rule):
        assert told in words
    write(out, source, [])
    assert "Nothing abnormal found" in page(out).words


def test_the_best_twenty_events_have_pictures_and_all_are_listed(out: Path, source: Path):
    events = [event(i, 4 + i % 24, score=float(i)) for i in range(1, 31)]
    write(out, source, events, video=False)
    seen = page(out)
    headings = re.findall(r"<h3>Event (\d+)</h3>", (out / "report.html").read_text())
    assert [int(h) for h in headings] == list(range(30, 10, -1))
    assert sum(tag == "img" for tag, _ in seen.tags) == 40  # whole frame and crop
    assert "reason 1" in seen.words
    assert "20 with the highest scores of 30" in seen.words


def decoded(img: dict[str, str | None]) -> np.ndarray:
    data = base64.b64decode((img["src"] or "").partition("base64,")[2])
    return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)


def test_key_frames_show_the_peak_frame_with_box_and_heat(out: Path, source: Path):
    cells = heat()
    cells[12, :, :2] = 5.0  # at the left, outside the box
    write_report(
        out, source, result(), [event(1, 12)], cells,
        threshold=THRESHOLD, meta=META, warnings=[], video=False,
    )  # fmt: skip
    whole, crop = (decoded(attrs) for tag, attrs in page(out).tags if tag == "img")
    grey = 40 + 5 * 12
    assert abs(int(crop.mean()) - grey) <= 1  # bare
    scale = whole.shape[1] / W
    right = whole[5:60, -60:]
    assert abs(int(right.mean()) - grey) <= 2
    left = whole[20, 20].astype(int)
    assert left[0] > left[2] + 60  # red
    edge = whole[round(10 * scale), round(35 * scale)].astype(int)
    assert edge[0] > 150
    assert edge[0] > edge[1] + 80


def test_equal_heat_looks_equal_in_every_frame():
    grey = np.full((40, 60, 3), 100, dtype=np.uint8)
    calm = np.random.default_rng(0).random((4, 6)) * 0.49
    assert (overlay(grey, calm, 1.0) == grey).all()  # half the scale: as filmed
    assert (overlay(grey, np.full((4, 6), np.nan), 1.0) == grey).all()
    lone = calm.copy()
    lone[1, 1] = 3.0
    many = np.full((4, 6), 3.0)
    full = overlay(grey, many, 1.0)
    assert np.abs(overlay(grey, lone, 1.0)[15, 15].astype(int) - full[15, 15]).max() <= 2
    assert (overlay(grey, many * 7, 7.0) == full).all()  # in units of the scale
    assert (overlay(grey, np.full((4, 6), np.inf), 1.0) == full).all()
    changes = [
        int(np.abs(overlay(grey, np.full((4, 6), h), 1.0).astype(int) - 100).sum())
        for h in (0.4, 0.6, 1.0, 1.5)
    ]
    assert changes[0] == 0
    assert changes == sorted(changes)


@pytest.mark.parametrize("box", [(-50, -50, 500, 500), (82, 60, 9, 9), (0, 0, 0.1, 0.1)])
def test_boxes_beyond_the_frame_are_drawn_as_far_as_it_goes(box: tuple[float, ...]):
    image = np.zeros((H, W, 3), dtype=np.uint8)
    draw_box(image, box, strong=True)  # type: ignore[arg-type]
    draw_box(image, box, strong=False)  # type: ignore[arg-type]
    assert image.any()
    assert report._crop(image, box).shape == (320, 320, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [None, (np.nan,) * 4, (1, 2, 0, 3), (1, 2, np.inf, 3)])
def test_a_box_that_is_none_is_not_drawn(row: tuple[float, ...] | None):
    assert usable_box(row) is None


def film(path: Path) -> tuple[list[np.ndarray], list[float], str]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        name = container.streams.video[0].codec_context.name
    return (
        [f.to_ndarray(format="rgb24") for f in frames],
        [float(f.time or 0) for f in frames],
        name,
    )


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_the_film_has_every_frame_at_its_time(
    out: Path, source: Path, monkeypatch: pytest.MonkeyPatch, codec: str
):
    if codec == "mpeg4":
        monkeypatch.setattr(heatmap.av, "codecs_available", {"mpeg4"})
    write(out, source, [event(1, 20)], html=False)
    frames, times, name = film(out / "heatmap.mp4")
    assert name == codec
    assert len(frames) == T
    assert times == pytest.approx([i / 10 for i in range(T)], abs=1e-3)
    height, width = frames[0].shape[:2]
    assert width % 2 == height % 2 == 0
    for i in (0, 15, 29):
        assert abs(float(frames[i][20:60, -80:-20].mean()) - (40 + 5 * i)) < 6
    red = frames[20].astype(int)
    assert ((red[..., 0] > 150) & (red[..., 1] < 110)).sum() > 500  # the box of the event


def test_the_film_keeps_uneven_times(out: Path, source: Path):
    uneven = result()
    uneven = VideoScores(
        **{**vars(uneven), "time_s": np.cumsum(np.r_[3.0, np.tile([0.02, 0.2], 15)])[:T]}
    )
    write_report(
        out, source, uneven, [], heat(), threshold=THRESHOLD, meta=META, warnings=[], html=False
    )
    _, times, _ = film(out / "heatmap.mp4")
    assert times == pytest.approx((uneven.time_s - uneven.time_s[0]).tolist(), abs=1e-3)


@pytest.mark.parametrize("size", [(16, 16), (400, 30), (31, 900), (1080, 1920)])
def test_films_of_every_shape_can_be_watched(tmp_path: Path, size: tuple[int, int]):
    short = result(5)
    path = tmp_path / "film.mp4"
    with heatmap.HeatMapVideo(path, size, short, [], threshold=2.0, heat_scale=1.0) as writer:
        for i in range(5):
            writer.write(i, np.full((*size, 3), 128, dtype=np.uint8), heat(5)[i])
    frames, _, _ = film(path)
    height, width = frames[0].shape[:2]
    assert len(frames) == 5
    assert 480 <= width <= 1280
    assert height <= 1280 + 92


def test_a_source_that_has_shrunk_since_is_reported(out: Path, source: Path):
    (source / "029.png").unlink()
    with pytest.raises(VideoError, match="30 frames were scored, and 29 can be read now"):
        write(out, source, [])


def test_heat_of_another_length_is_a_mistake(out: Path, source: Path):
    with pytest.raises(ValueError, match=r"heat must be \(30, gh, gw\), got \(29, 6, 8\)"):
        write_report(
            out, source, result(), [], heat(29), threshold=THRESHOLD, meta=META, warnings=[]
        )


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path, source: Path):
    with pytest.raises(OutputError, match="choose another --out"):
        write(tmp_path / "missing", source, [])


def test_memory_does_not_grow_with_the_length(tmp_path: Path):
    frame = np.zeros((48, 64, 3), dtype=np.uint8)
    peaks = []
    for n_frames in (40, 240):
        long = result(n_frames)
        cells = heat(n_frames)
        path = tmp_path / f"{n_frames}.mp4"
        tracemalloc.start()
        with heatmap.HeatMapVideo(path, (48, 64), long, [], threshold=2.0, heat_scale=1.0) as film_:
            for i in range(n_frames):
                film_.write(i, frame, cells[i])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_no_score_at_all_still_makes_a_report(out: Path, source: Path):
    empty = result()
    nothing = np.full(T, np.nan)
    unscored = VideoScores(**{**vars(empty), "terms": {}, "paper": nothing, "causal": nothing})
    write_report(
        out, source, unscored, [], heat(), threshold=THRESHOLD, meta={}, warnings=[], video=True
    )
    assert "No frame of this video could be scored" in page(out).words


def test_the_chart_has_a_panel_for_every_score_there_is():
    words = score_chart(result(), [event(1, 12)], 2.0)
    for title in ("Causal score", "Paper score", "Evidence: visual", "Evidence: attribute"):
        assert title in words
    assert "semantic" not in words
    assert f"event 1: {format_time(1.1)} to {format_time(1.3)}" in words
