"""A finished result to the folder that people open: tables, curve, heat map video, one HTML page.

Scoring is over when this begins; the source is read once more, a frame at a time, for the heat
map video and the key frames together. report.html stands alone: pictures are inside, nothing is
loaded, no script runs, and text that came from outside is shown as text.

Axes: T frames, gh x gw cells of the heat grid.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sfn_rt import __version__
from sfn_rt.events import Event
from sfn_rt.exceptions import VideoError
from sfn_rt.frames import open_source
from sfn_rt.heatmap import HeatArray, HeatMapVideo, Image, draw_box, overlay, usable_box
from sfn_rt.plots import DARK_CSS, Panel, Series, Span, format_time, line_chart
from sfn_rt.printable import escaped
from sfn_rt.report_captions import caption_html, lane_rows
from sfn_rt.scores import TERMS, VideoScores
from sfn_rt.sinks.files import captions_json, events_json, write_atomic, write_scores
from sfn_rt.threshold import Threshold

MAX_PICTURED = 20  # events with pictures: about 80 KB each
MAX_LISTED = 300
PICTURE_WIDTH = 640  # pixels
CROP_SIDE = 320
JPEG_QUALITY = 85


def write_report(
    out: Path,
    source: Path,
    result: VideoScores,
    events: Sequence[Event],
    heat: HeatArray,
    *,
    threshold: Threshold,
    meta: Mapping[str, str],
    warnings: Sequence[str],
    heat_scale: float = 1.0,
    fps: float | None = None,
    lane: Mapping[str, object] | None = None,
    video: bool = True,
    html: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write everything known about one video into the folder `out`; the paths of the files.

    `heat` is (T, gh, gw), NaN where there is none, and may be a memmap: it is read a frame at a
    time. `heat_scale` is what 99.9 % of normal cells stay below. `meta` is shown as it is; its
    "profile" and "sha" name the bundle in events.json. `fps` is what scoring was told, if
    anything. `lane` tells how captions were made, for events.json and the settings of the page;
    None: frames were not described. `progress` is called with 1 after each frame of the pass over
    the source.
    """
    if heat.ndim != 3 or len(heat) != result.n_frames:
        raise ValueError(f"heat must be ({result.n_frames}, gh, gw), got {heat.shape}")
    chart = score_chart(result, events, threshold.value)
    write_scores(out / "scores.csv", result)
    write_atomic(out / "captions.json", captions_json(result.captions))
    write_atomic(
        out / "events.json",
        events_json(result, events, threshold=threshold, bundle=meta, warnings=warnings, lane=lane),
    )
    write_atomic(out / "curve.svg", chart)
    written = [out / name for name in ("scores.csv", "captions.json", "events.json", "curve.svg")]

    numbered = list(enumerate(events, start=1))
    best = sorted(numbered, key=lambda item: -item[1].score)[:MAX_PICTURED] if html else []
    film = out / "heatmap.mp4" if video else None
    pictures = _read_again(
        source, fps, result, events, heat, best, film, threshold.value, heat_scale, progress
    )
    if film is not None:
        written.append(film)
    if html:
        page = _page(result, events, best, pictures, chart, threshold, meta, warnings, lane, video)
        write_atomic(out / "report.html", page)
        written.append(out / "report.html")
    return written


def score_chart(
    result: VideoScores, events: Sequence[Event], threshold: float, title: str = ""
) -> str:
    """An SVG of the causal score with its events, the paper's score and every term below it."""
    spans = [
        Span(
            event.start_s,
            event.end_s,
            f"event {number}: {format_time(event.start_s)} to {format_time(event.end_s)}, "
            f"score {event.score:.3g}",
            mark=str(number) if len(events) <= 40 else "",
        )
        for number, event in enumerate(events, start=1)
    ]
    below = {"Paper score (offline)": result.paper}
    below |= {f"Evidence: {term}": result.terms[term] for term in TERMS if term in result.terms}
    unmarked = [Span(span.start, span.end, span.title) for span in spans]
    panels = [
        Panel(
            title="Causal score (uses nothing from the future)",
            series=[Series("causal score", result.causal)],
            events=spans,
            threshold=threshold,
            height=200,
        ),
        *(
            Panel(title=name, series=[Series(name, y)], events=unmarked, height=72, legend=False)
            for name, y in below.items()
        ),
    ]
    return line_chart(result.time_s, panels, title=title)


@dataclass(frozen=True)
class _Pictures:
    """One event's key frame, as JPEG in base64."""

    whole: str  # with heat and box
    crop: str | None  # what is in the box, bare


def _read_again(
    source: Path,
    fps: float | None,
    result: VideoScores,
    events: Sequence[Event],
    heat: HeatArray,
    best: Sequence[tuple[int, Event]],
    film: Path | None,
    threshold: float,
    heat_scale: float,
    progress: Callable[[int], None] | None,
) -> dict[int, _Pictures]:
    """One pass over the source: the heat map video, and the pictures of the `best` events."""
    wanted: dict[int, list[tuple[int, Event]]] = {}
    for number, event in best:
        wanted.setdefault(event.peak_frame, []).append((number, event))
    n_needed = result.n_frames if film is not None else max(wanted, default=-1) + 1
    pictures: dict[int, _Pictures] = {}
    if not n_needed:
        return pictures
    n_read = 0
    with ExitStack() as stack:
        frames = stack.enter_context(open_source(source, fps=fps))
        size = (frames.height, frames.width)
        writer = None
        if film is not None:
            writer = stack.enter_context(
                HeatMapVideo(film, size, result, events, threshold=threshold, heat_scale=heat_scale)
            )
        for frame in frames:
            cells = np.asarray(heat[n_read])  # (gh, gw)
            if writer is not None:
                writer.write(n_read, frame.image, cells)
            for number, event in wanted.get(n_read, []):
                pictures[number] = _key_frame(frame.image, cells, event, heat_scale)
            n_read += 1
            if progress is not None:
                progress(1)
            if n_read == n_needed:
                break
    if n_read < n_needed:
        raise VideoError(
            f"{source}: {result.n_frames} frames were scored, and {n_read} can be read now; "
            f"was the file changed meanwhile? Score it again"
        )
    return pictures


def _key_frame(image: Image, cells: HeatArray, event: Event, heat_scale: float) -> _Pictures:
    height, width = image.shape[:2]
    scale = min(PICTURE_WIDTH / width, PICTURE_WIDTH / height)
    whole = _resized(image, max(1, round(width * scale)), max(1, round(height * scale)))
    whole = np.ascontiguousarray(overlay(whole, cells, heat_scale))
    box = usable_box(event.box)
    if box is None:
        return _Pictures(_jpeg(whole), None)
    draw_box(whole, box, scale=scale)
    return _Pictures(_jpeg(whole), _jpeg(_crop(image, box)))


def _crop(image: Image, box: tuple[float, float, float, float]) -> Image:
    """A square around `box` with some surroundings, as far as the frame reaches."""
    height, width = image.shape[:2]
    x, y, w, h = box
    side = int(min(max(1.5 * max(w, h), min(height, width) / 6, 8), height, width))
    left = int(np.clip(x + w / 2 - side / 2, 0, width - side))
    top = int(np.clip(y + h / 2 - side / 2, 0, height - side))
    return _resized(image[top : top + side, left : left + side], CROP_SIDE, CROP_SIDE)


def _resized(image: Image, width: int, height: int) -> Image:
    shrinks = width < image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), dtype=np.uint8)


def _jpeg(image: Image) -> str:
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    assert done
    return base64.b64encode(data.tobytes()).decode()


# --- the page --------------------------------------------------------------------------------

STYLE = """
:root{color-scheme:light dark;--ink:#1f2933;--soft:#5b6672;--line:#dde2e8;--page:#f5f7f9;
--card:#fff;--alarm:#b8121f;--alarm-back:#fdecee;--calm:#00664c;--calm-back:#e7f5f0;
--warn:#6f4d00;--warn-back:#fff5d9;--new:#ffe7a3}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1040px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:26px;line-height:1.25;margin:2px 0 14px;overflow-wrap:anywhere}
h2{font-size:18px;margin:34px 0 10px}
p{margin:0 0 8px}
.soft{color:var(--soft)}
.small{font-size:13px}
.verdict{font-size:17px;padding:12px 16px;border-radius:8px;margin:0 0 12px}
.alarm{background:var(--alarm-back);color:var(--alarm)}
.calm{background:var(--calm-back);color:var(--calm)}
.warnings{background:var(--warn-back);color:var(--warn);border-radius:8px;padding:10px 16px;
margin:0 0 12px;overflow-wrap:anywhere}
.warnings ul{margin:4px 0 0;padding-left:20px}
.facts{display:flex;flex-wrap:wrap;gap:6px 32px;margin:0 0 4px}
.facts dt{font-size:12px;color:var(--soft)}
.facts dd{margin:0;font-weight:600;overflow-wrap:anywhere}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px;
margin:0 0 14px;break-inside:avoid}
.chart{overflow-x:auto}
.chart svg{width:100%;min-width:720px;height:auto;display:block}
.event header{display:flex;flex-wrap:wrap;gap:2px 18px;align-items:baseline;margin:0 0 8px}
.event h3{font-size:16px;margin:0;color:var(--alarm)}
.scroll h3{font-size:15px;margin:18px 0 4px}
.pictures{display:flex;gap:10px;align-items:flex-start;margin:0 0 10px}
.pictures img{display:block;border-radius:6px;max-width:100%;max-height:430px;min-width:0}
.pictures .whole{flex:0 1 auto}
.pictures figure{margin:0;min-width:0}
.pictures figure.crop{flex:0 0 30%;max-width:320px}
.pictures figure.crop img{width:100%}
figcaption{font-size:12px;color:var(--soft);margin-top:4px}
.why{font-weight:600;overflow-wrap:anywhere}
.caption{overflow-wrap:anywhere;margin:0 0 4px}
.caption p{margin:4px 0 0}
blockquote{margin:0;padding:2px 12px;border-inline-start:3px solid var(--line)}
mark{background:var(--new);color:inherit;border-radius:3px;padding:0 2px;font-weight:600}
.nearest{color:var(--ink)}
.cut{font-size:12px;color:var(--warn);background:var(--warn-back);border-radius:3px;padding:1px 6px}
.key{display:inline-block;width:120px;height:10px;border-radius:3px;vertical-align:-1px;
margin:0 6px;
background:linear-gradient(90deg,rgba(255,221,87,.25),rgb(255,140,26) 45%,rgb(226,24,54))}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:6px 14px 6px 0;border-top:1px solid var(--line);
overflow-wrap:anywhere}
tr:first-child>*{border-top:0}
th{font-weight:400;color:var(--soft)}
td.number{white-space:nowrap;font-variant-numeric:tabular-nums}
table.settings th{width:230px}
footer{margin-top:34px;color:var(--soft);font-size:13px}
@media (max-width:640px){.pictures{flex-direction:column}.pictures figure.crop{max-width:60%}}
@media screen and (prefers-color-scheme:dark){
:root{--ink:#e6eaf0;--soft:#9aa7b5;--line:#2f3945;--page:#12161c;--card:#1a2028;--alarm:#ff8f95;
--alarm-back:#3a1b20;--calm:#6ad9b2;--calm-back:#12312a;--warn:#f0cf7a;--warn-back:#332a12;
--new:#6a4d00}
DARK_PLOT}
@media print{body{background:#fff;font-size:12px}main{max-width:none;padding:0}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}.pictures img{max-height:260px}}
""".replace("DARK_PLOT", DARK_CSS)

# Nothing may be fetched and nothing may run, even if a caption should get past the escaping.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def _page(
    result: VideoScores,
    events: Sequence[Event],
    best: Sequence[tuple[int, Event]],
    pictures: Mapping[int, _Pictures],
    chart: str,
    threshold: Threshold,
    meta: Mapping[str, str],
    warnings: Sequence[str],
    lane: Mapping[str, object] | None,
    video: bool,
) -> str:
    name = escaped(result.name, limit=200)
    sections = [
        f'<p class="soft small">Video anomaly report</p><h1>{name}</h1>',
        _verdict(result, events, threshold.value),
        _warnings(warnings),
        _facts(result, threshold, meta),
        '<h2>Score over time</h2><div class="card chart">' + chart + "</div>",
        _events(events, best, pictures, result.fps),
        _list(events, len(best)),
        _settings(threshold, meta, lane),
        _reading(video, any(event.nearest for event in events)),
        f"<footer>Made by SFN-VAD {__version__}. Scores of every frame: scores.csv; "
        f"events for programs: events.json.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name} - video anomaly report</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(s for s in sections if s) + "\n</main>\n</body>\n</html>\n"
    )


def _verdict(result: VideoScores, events: Sequence[Event], threshold: float) -> str:
    scored = np.isfinite(result.causal)
    if not scored.any():
        return '<p class="verdict calm">No frame of this video could be scored.</p>'
    peak = int(np.nanargmax(result.causal))
    highest = (
        f"highest score {result.causal[peak]:.2f} at {format_time(float(result.time_s[peak]))}, "
        f"threshold {threshold:.2f}"
    )
    if not events:
        return (
            f'<p class="verdict calm"><strong>Nothing abnormal found.</strong> '
            f"The score stays below its threshold ({highest}).</p>"
        )
    n_frames = sum(event.end_frame - event.start_frame + 1 for event in events)
    share = 100 * n_frames / result.n_frames
    count = "1 abnormal event" if len(events) == 1 else f"{len(events)} abnormal events"
    return (
        f'<p class="verdict alarm"><strong>{count}</strong> in {share:.3g} % of the video '
        f"({highest}).</p>"
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escaped(text)}</li>" for text in warnings)
    return f'<div class="warnings"><strong>Before you rely on this</strong><ul>{items}</ul></div>'


def _facts(result: VideoScores, threshold: Threshold, meta: Mapping[str, str]) -> str:
    seconds = result.n_frames / result.fps if result.fps > 0 else 0.0
    n_scored = int(np.isfinite(result.causal).sum())
    facts = {
        "Length": format_time(seconds),
        "Frames": f"{result.n_frames}, {n_scored} scored",
        "Frames a second": f"{result.fps:.4g}",
        "Threshold": f"{threshold.value:.3g}",
        "Terms": ", ".join(term for term in TERMS if term in result.terms) or "none",
    }
    if "profile" in meta:
        facts["Profile"] = meta["profile"]
    rows = "".join(f"<div><dt>{k}</dt><dd>{escaped(v)}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _events(
    events: Sequence[Event],
    best: Sequence[tuple[int, Event]],
    pictures: Mapping[int, _Pictures],
    fps: float,
) -> str:
    if not events:
        return ""
    which = (
        f"The {len(best)} with the highest scores of {len(events)}, best first."
        if len(best) < len(events)
        else "Highest score first."
        if len(events) > 1
        else ""
    )
    cards = "".join(_card(number, event, pictures.get(number), fps) for number, event in best)
    note = f'<p class="soft">{which}</p>' if which else ""
    return f"<h2>Events</h2>{note}{cards}"


def _card(number: int, event: Event, pictures: _Pictures | None, fps: float) -> str:
    shown = ""
    if pictures is not None:
        shown = (
            f'<figure class="whole"><img alt="frame {event.peak_frame} with the error drawn over '
            f'it" src="data:image/jpeg;base64,{pictures.whole}"><figcaption>frame '
            f"{event.peak_frame} at {format_time(event.peak_s)}, the peak</figcaption></figure>"
        )
        if pictures.crop is not None:
            shown += (
                f'<figure class="crop"><img alt="the marked place, enlarged" '
                f'src="data:image/jpeg;base64,{pictures.crop}">'
                f"<figcaption>the marked place, enlarged</figcaption></figure>"
            )
        shown = f'<div class="pictures">{shown}</div>'
    seconds = event.end_s - event.start_s
    return (
        f'<article class="card event"><header><h3>Event {number}</h3>'
        f"<span>{format_time(event.start_s)} to {format_time(event.end_s)}</span>"
        f'<span class="soft">{format_time(seconds)} long, frames {event.start_frame} to '
        f"{event.end_frame}</span><span>score {event.score:.2f}</span></header>{shown}"
        + (f'<p class="why">{escaped(event.explanation)}</p>' if event.explanation else "")
        + f"{caption_html(event, fps)}</article>"
    )


def _list(events: Sequence[Event], n_pictured: int) -> str:
    """All events in order of time, where the cards above do not already show them all."""
    if len(events) <= n_pictured:
        return ""
    rows = "".join(
        f'<tr><td class="number">{number}</td><td class="number">{format_time(event.start_s)} to '
        f'{format_time(event.end_s)}</td><td class="number">{event.score:.2f}</td>'
        f"<td>{escaped(event.explanation or event.caption, limit=300)}</td></tr>"
        for number, event in list(enumerate(events, start=1))[:MAX_LISTED]
    )
    more = len(events) - MAX_LISTED
    note = f'<p class="soft">{more} more are in events.json.</p>' if more > 0 else ""
    return (
        '<h2>All events</h2><div class="card scroll"><table><tr><th>Event</th><th>Time</th>'
        f"<th>Score</th><th>What</th></tr>{rows}</table>{note}</div>"
    )


def _settings(
    threshold: Threshold, meta: Mapping[str, str], lane: Mapping[str, object] | None
) -> str:
    rows = {
        "threshold": f"{threshold.value:.6g}",
        "how the threshold was set": threshold.rule,
        "false alarms allowed": f"{threshold.false_alarms_per_hour:g} an hour",
        **meta,
    }
    captions = ""
    if lane is not None:
        captions = f"<h3>How captions were made</h3>{_table(lane_rows(lane))}"
    return f'<h2>Settings</h2><div class="card scroll">{_table(rows)}{captions}</div>'


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><th>{escaped(k)}</th><td>{escaped(v)}</td></tr>" for k, v in rows.items())
    return f'<table class="settings">{cells}</table>'


def _reading(video: bool, compared: bool) -> str:
    new = (
        "<p>A caption says what happens at the peak. <mark>Marked</mark> is what the nearest "
        "normal caption, the one of normal footage that means most nearly the same, does not "
        "say.</p>"
        if compared
        else ""
    )
    film = " The same in motion: heatmap.mp4." if video else ""
    return (
        '<h2>How to read this</h2><div class="card">'
        "<p>The model has seen normal footage only and predicts what comes next. Where the "
        "prediction is wrong, something happens that normal footage does not hold. The causal "
        "score says how rare that is: it is built from frames up to the one it rates, and an "
        "event begins where it reaches the threshold.</p>"
        '<p>Heat:<span class="key"></span>from half of what normal footage reaches at most, '
        f"to twice of it. Frames below that stay as they were filmed.{film}</p>{new}"
        '<p class="soft">Unusual is not the same as dangerous: look at the pictures before you '
        "act on a score.</p></div>"
    )
