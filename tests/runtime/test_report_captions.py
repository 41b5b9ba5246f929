"""Captions where people look: marked, told about, and never able to steer a page or a terminal."""

import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from sfn_rt.cli import app
from sfn_rt.events import Event
from sfn_rt.frames import count_frames
from sfn_rt.report import write_report
from sfn_rt.report_captions import caption_html, lane_rows, marked
from sfn_rt.scores import VideoScores
from sfn_rt.threshold import Threshold

CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
SECRET = "zebra"  # in every one of them, to see where captions go
EVIL = {
    "markup": f"</p></blockquote><script>alert('{SECRET}')</script><img src=http://x/y onerror=z>",
    "attribute": f'" onmouseover="alert(1)" x=\'{SECRET}\' &lt;b&gt; &#60;b&#62;',
    "terminal": f"\x1b[2J\x1b[31m{SECRET}\x1b[0m\x1b]0;title\x07\x1b]8;;http://x\x07link\x9b1A\r\b",
    "half a sequence": f"{SECRET} \x1b[31",
    "directions": f"\u202e{SECRET}\u2066 \u200f\u202c exe.txt",
    "lines": f"{SECRET}\r\n\x00\x85\u2028\tnext\x7f",
    "halves of pairs": f"{SECRET} \ud83d \uffff",
    "another script": f"一辆汽车 يركب دراجة {SECRET} 🚒",
    "endless": f"{SECRET} a man walks. " * 20_000,
    "one endless word": SECRET * 20_000,
    "nothing to see": f"\x1b]0;{SECRET}",
}
LANE = {
    "captioner": "vlm <b>InternVL</b>\x1b[31m",
    "policy": "change",
    "half_life": 25.0,
    "counts": {"asked": 20, "made": 18, "stopped": None},
    "live": False,
    "windows": [4, 8],
    "note": None,
}


def event(**said: Any) -> Event:
    where = {"start_frame": 6, "end_frame": 8, "peak_frame": 7, "box": (4.0, 4.0, 9.0, 9.0)}
    when = {"start_s": 0.6, "end_s": 0.8, "peak_s": 0.7, "score": 3.0}
    return Event(**{**where, **when, **said})  # type: ignore[arg-type]


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: set[str] = set()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")


# ------------------------------------------------------------------------------- one caption


def test_what_is_new_is_marked_and_nothing_else() -> None:
    text = "A car in a scarf, a CAR & a car<b>"
    assert marked(text, ("car",)) == (
        "A <mark>car</mark> in a scarf, a CAR &amp; a <mark>car</mark>&lt;b&gt;"
    )
    assert marked(text, ("a scarf", "scarf, a CAR")) == (
        "A car in <mark>a scarf, a CAR</mark> &amp; a car&lt;b&gt;"
    )
    assert marked("一辆汽车在人行道上", ("汽车",)) == "一辆<mark>汽车</mark>在人行道上"
    assert marked("a car", ("tank", "", "\x1b[31m")) == "a car"
    assert marked("", ("car",)) == ""


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
@pytest.mark.parametrize("role", ["caption", "nearest", "new"])
def test_a_caption_adds_no_markup_of_its_own(role: str, evil: str) -> None:
    said: dict[str, Any] = {"caption": f"A car {evil}", "nearest": "A man walks.", "new": ("car",)}
    said[role] = (evil,) if role == "new" else evil
    page = Page(caption_html(event(**said), 25.0))
    assert {tag.strip("/") for tag in page.tags} <= {"div", "blockquote", "mark", "p", "bdi"}
    assert page.names <= {"class", "dir"}
    assert not CONTROL.search(page.words)
    assert len(page.words) < 5000


def told(**said: Any) -> str:
    return Page(caption_html(event(**{"caption": "A car drives.", **said}), 10.0)).words


def test_the_nearest_normal_caption_stands_below_it() -> None:
    assert "nearest normal caption: A man walks." in told(nearest="A man walks.")
    assert "nearest" not in told()
    same = told(nearest="A car drives.")
    assert "Normal footage is told in the same words." in same
    assert "nearest" not in same


def test_age_is_told_where_the_pictures_show_another_moment() -> None:
    assert "this tells of what was there 12 frames (1.2 s) before" in told(caption_age=12).lower()
    for fresh in (None, 0, 5):
        assert "before the peak" not in told(caption_age=fresh)


def test_cut_and_foreign_captions_are_told_of() -> None:
    assert "A car drives. cut" in told(caption_cut=True)
    assert "had not ended at the most tokens allowed" in told(caption_cut=True)
    assert "not in Latin letters" in told(caption="一辆汽车")
    assert told() == "A car drives."


@pytest.mark.parametrize("caption", ["", " \n", "\x1b[31m\u202e"])
def test_no_caption_is_no_empty_quotation(caption: str) -> None:
    assert caption_html(event(caption=caption, nearest="A man walks."), 10.0) == ""


def test_how_captions_were_made_is_told_in_words() -> None:
    assert lane_rows(LANE) == {
        "captioner": LANE["captioner"],
        "policy": "change",
        "half life": "25",
        "counts": "asked 20, made 18",
        "live": "no",
        "windows": "4, 8",
    }


# ---------------------------------------------------------------------------- a whole result


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "walk"
    folder.mkdir()
    for i in range(10):
        cv2.imwrite(str(folder / f"{i:03}.png"), np.full((40, 60, 3), 90, dtype=np.uint8))
    return folder


def scores(captions: tuple[str, ...]) -> VideoScores:
    causal = np.r_[np.full(4, np.nan), np.linspace(0, 3, 6)]
    return VideoScores(
        name="walk",
        fps=10.0,
        time_s=np.arange(10) / 10,
        terms={"semantic": causal},
        paper=causal,
        causal=causal,
        box=np.full((10, 4), np.nan, dtype=np.float32),
        caption_id=np.zeros(10, dtype=np.int32),
        captions=captions,
    )


def write(source: Path, caption: str) -> Path:
    """The folder of a result in which every caption is this one."""
    out = source.parent / "out"
    out.mkdir()
    said = event(
        caption=caption, nearest=caption + ".", new=(caption,), caption_age=3, caption_cut=True
    )
    write_report(
        out, source, scores((caption,)), [said], np.zeros((10, 4, 6), np.float16),
        threshold=Threshold(2.0, "rule", 1.0), meta={}, warnings=[], lane=LANE,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
def test_no_file_of_a_result_is_steered_by_a_caption(source: Path, evil: str) -> None:
    out = write(source, evil)
    report = (out / "report.html").read_text("utf-8")
    assert not CONTROL.search(report)
    page = Page(report)
    assert not {"script", "link", "iframe", "object"} & {*page.tags}
    assert not {"onerror", "onmouseover", "href"} & page.names
    assert page.tags.count("img") == page.tags.count("figure") == 2

    # For programs: the text as it is, and no byte in the file that a terminal would obey.
    events = json.loads((out / "events.json").read_text("utf-8"))
    jsonschema.validate(
        events, json.loads(files("sfn_rt").joinpath("schemas/events.schema.json").read_text())
    )
    (found,) = events["events"]
    assert (found["caption"], found["nearest"], found["new"]) == (evil, evil + ".", [evil])
    assert (found["caption_age"], found["caption_cut"]) == (3, True)
    assert events["captions"] == LANE
    assert json.loads((out / "captions.json").read_text("utf-8")) == {"0": evil}
    for name in ("events.json", "captions.json"):
        shown = (out / name).read_text("utf-8").replace("\u200b", "")  # nothing to see, no harm
        assert not CONTROL.search(shown)
    # In the others captions are numbers, or not at all.
    for name in ("scores.csv", "curve.svg", "heatmap.mp4"):
        assert SECRET.encode() not in (out / name).read_bytes()


def test_a_page_without_captions_says_nothing_of_them(source: Path) -> None:
    out = source.parent
    write_report(
        out, source, scores(()), [event()], np.zeros((10, 4, 6), np.float16),
        threshold=Threshold(2.0, "rule", 1.0), meta={}, warnings=[], video=False,
    )  # fmt: skip
    assert json.loads((out / "events.json").read_text())["captions"] is None
    _, _, body = (out / "report.html").read_text().partition("<body>")
    assert "aption" not in Page(body).words


# --------------------------------------------------------------------------- the whole way


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_captions_from_a_file_steer_nothing_on_their_way_through(
    walkway: Path, walkway_bundle: Path, tmp_path: Path, as_json: bool
) -> None:
    video = walkway / "testing" / "videos" / "01.mp4"
    evil = [text for text in EVIL.values() if "\ud83d" not in text]
    evil.append("half of a pair \ud83d")
    said = {str(i): evil[i % len(evil)] for i in range(count_frames(video) or 90)}
    (tmp_path / "captions.json").write_text(json.dumps(said))
    arguments = ["score", str(video), "--bundle", str(walkway_bundle), "--threads", "1"]
    arguments += ["--captions", str(tmp_path / "captions.json"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, *(["--json"] if as_json else [])])
    assert done.exit_code == 0, done.output
    assert not CONTROL.search(done.output)
    assert "<script" not in done.stdout or as_json
    report = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert not CONTROL.search(report)
    events = json.loads((tmp_path / "out" / "events.json").read_text())
    assert events["events"]
    for found in events["events"]:
        assert found["caption"] in [*evil[:-1], "half of a pair \ufffd"]
        assert found["nearest"]
        assert found["caption_age"] is not None
    assert any(found["new"] for found in events["events"])
    if as_json:
        assert json.loads(done.stdout)["events"]
    else:
        assert "    new in its caption: " in done.stdout
