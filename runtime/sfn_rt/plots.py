"""Charts as SVG text: scores over time, and ROC curves. Needs numpy and nothing else.

A device has no plotting library and a report must stand alone, so the charts are written out
by hand. Colours are presentation attributes, which every viewer understands; every element
also carries a class, so that a page can recolour an inlined chart (`DARK_CSS`).

Axes: T frames. Time is in seconds; drawing is in SVG user units, one to a CSS pixel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sfn_rt.printable import escaped

FloatArray = NDArray[np.floating]

# Each at least 4.5:1 on white, and apart for the common colour blindnesses; dashes help in print.
COLOURS = ("#0069b4", "#c2410c", "#00785a", "#9b3f86", "#7a5900", "#4b5563")
DARK_COLOURS = ("#5cb3f0", "#ff9a57", "#3fcf9f", "#e096d2", "#dcb53f", "#aab6c4")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4")
INK, MUTED, GRID, PAPER = "#1f2933", "#5b6672", "#e3e7ec", "#ffffff"
ALARM, LABEL = "#c81e2b", "#7a3e9d"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

LEFT, RIGHT = 62, 18  # margins beside the plotting area
HOVER_STRIPS = 120  # tooltips a panel: without scripts each is an element of its own

DARK_CSS = "".join(
    (
        ".sfn-plot .paper{fill:none}.sfn-plot .ink{fill:#e6eaf0}.sfn-plot .muted{fill:#9aa7b5}",
        ".sfn-plot .grid{stroke:#2f3945}.sfn-plot .axis{stroke:#66727f}",
        ".sfn-plot .event{fill:#ff6b73;fill-opacity:.2}.sfn-plot .eventtext{fill:#ff8f95}",
        ".sfn-plot .threshold{stroke:#ff8f95}.sfn-plot .thresholdtext{fill:#ff8f95}",
        ".sfn-plot .label{fill:#c79be0}",
        *(f".sfn-plot .line{i}{{stroke:{c}}}" for i, c in enumerate(DARK_COLOURS)),
    )
)


@dataclass(frozen=True)
class Series:
    """One line of a panel."""

    name: str
    y: FloatArray  # (T,); NaN leaves a gap


@dataclass(frozen=True)
class Span:
    """A stretch of time to mark."""

    start: float  # seconds
    end: float
    title: str  # tooltip
    mark: str = ""  # a word or number at its upper edge


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plotting area; the panels of a chart share the time axis."""

    title: str
    series: Sequence[Series]
    events: Sequence[Span] = ()  # what was detected: shaded over the full height
    labels: Sequence[Span] = ()  # what is known to be abnormal: a bar along the lower edge
    threshold: float | None = None
    height: int = 150
    y_range: tuple[float, float] | None = None  # None: from the data, zero included
    legend: bool = True  # False where a panel above explains the same marks


@dataclass(frozen=True)
class RocCurve:
    """Points of one ROC, from (0, 0) to (1, 1), and the area under it."""

    name: str
    false_positive: FloatArray  # (P,)
    true_positive: FloatArray  # (P,)
    auc: float  # 0..1


def label_spans(time_s: FloatArray, labels: NDArray[np.generic], title: str) -> list[Span]:
    """The stretches of time in which `labels` (T,) is not zero."""
    return [
        Span(float(time_s[start]), float(time_s[min(end, len(time_s) - 1)]), title)
        for start, end in _runs(np.asarray(labels) != 0)
    ]


def line_chart(
    time_s: FloatArray, panels: Sequence[Panel], *, title: str = "", width: int = 960
) -> str:
    """An SVG of `panels` one under the other over the common `time_s` (T,)."""
    if not panels:
        raise ValueError("a chart needs at least one panel, got none")
    for panel in panels:
        for series in panel.series:
            if series.y.shape != time_s.shape:
                raise ValueError(
                    f"series {series.name!r} has shape {series.y.shape}, "
                    f"the time axis has {time_s.shape}"
                )
    time_s = np.asarray(time_s, dtype=np.float64)
    start = float(time_s[0]) if len(time_s) else 0.0
    end = float(time_s[-1]) if len(time_s) else 0.0
    axis = _Axis(start, end if end > start else start + 1.0, LEFT, width - RIGHT)

    body: list[str] = []
    y = 12.0
    if title:
        body.append(_text(LEFT, y + 12, title, size=16, weight=600))
        y += 32
    first_top = y + 20
    for panel in panels:
        body.append(_heading(panel, y + 11, width))
        top, bottom = y + 20, y + 20 + panel.height
        body += _panel(panel, time_s, axis, top, bottom)
        y = bottom + 20
    y -= 20
    body += _time_labels(axis, y)
    body += _hover(panels, time_s, axis, first_top, y)
    return _svg(width, y + 46, body, title or panels[0].title)


def roc_chart(curves: Sequence[RocCurve], *, title: str = "ROC", size: int = 420) -> str:
    """An SVG of ROC curves in a square, with their areas in percent in the legend."""
    top, left = 46.0, float(LEFT)
    x = _Axis(0.0, 1.0, left, left + size)
    y = _Axis(0.0, 1.0, top + size, top)
    body = [_text(left, 26, title, size=16, weight=600)]
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        body.append(_line(x(tick), top, x(tick), top + size, "grid", GRID))
        body.append(_line(left, y(tick), left + size, y(tick), "grid", GRID))
        body.append(_text(x(tick), top + size + 18, f"{tick:.1f}", anchor="middle", muted=True))
        body.append(_text(left - 8, y(tick) + 4, f"{tick:.1f}", anchor="end", muted=True))
    body.append(_line(left, top + size, left + size, top, "axis", MUTED, dash="3 4"))
    middle = top + size / 2
    body.append(
        f'<g transform="rotate(-90 18 {middle:.1f})">'
        + _text(18, middle, "true positive rate", anchor="middle", muted=True)
        + "</g>"
    )
    body.append(
        _text(left + size / 2, top + size + 38, "false positive rate", anchor="middle", muted=True)
    )
    longest = 0
    for i, curve in enumerate(curves):
        legend = f"{curve.name}: {100 * curve.auc:.1f}"
        longest = max(longest, len(legend))
        body.append(_roc_path(curve, x, y, i, legend))
        row = top + 34 + 22 * i
        body.append(_sample(left + size + 24, row, i))
        body.append(_text(left + size + 60, row + 4, legend))
    if curves:
        body.append(_text(left + size + 24, top + 10, "AUC in %", muted=True))
    width = left + size + 60 + max(120, 7.2 * longest) + RIGHT
    height = max(top + size + 54, top + 34 + 22 * len(curves) + 12)
    return _svg(width, height, body, title)


@dataclass(frozen=True)
class _Axis:
    """Maps values lo..hi to drawing positions first..last."""

    lo: float
    hi: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        return self.first + (value - self.lo) / (self.hi - self.lo) * (self.last - self.first)

    def clip(self, value: float) -> float:
        return self(min(max(value, self.lo), self.hi))


def _panel(
    panel: Panel, time_s: FloatArray, axis: _Axis, top: float, bottom: float
) -> Iterator[str]:
    y_lo, y_hi = panel.y_range or _y_range(panel)
    y_axis = _Axis(y_lo, y_hi, bottom, top)
    ticks = _ticks(y_lo, y_hi, max(3, panel.height // 36))
    for tick in ticks:
        yield _line(axis.first, y_axis(tick), axis.last, y_axis(tick), "grid", GRID)
        yield _text(
            axis.first - 8, y_axis(tick) + 4, _number(tick, ticks), anchor="end", muted=True
        )
    for tick in _time_ticks(axis.lo, axis.hi):
        yield _line(axis(tick), top, axis(tick), bottom, "grid", GRID)
    for span in panel.events:
        yield from _event(span, axis, top, bottom)
    for i, series in enumerate(panel.series):
        yield _series_path(series, i, time_s, axis, y_axis)
    for span in panel.labels:
        x0, x1 = axis.clip(span.start), axis.clip(span.end)
        yield (
            f'<rect class="label" x="{x0:.1f}" y="{bottom - 5:.1f}" '
            f'width="{max(x1 - x0, 1.5):.1f}" height="5" fill="{LABEL}">'
            f"<title>{escaped(span.title)}</title></rect>"
        )
    yield _line(axis.first, bottom, axis.last, bottom, "axis", MUTED)
    if panel.threshold is not None and y_lo <= panel.threshold <= y_hi:
        level = y_axis(panel.threshold)
        yield _line(axis.first, level, axis.last, level, "threshold", ALARM, dash="6 4")


def _event(span: Span, axis: _Axis, top: float, bottom: float) -> Iterator[str]:
    x0, x1 = axis.clip(span.start), axis.clip(span.end)
    x1 = max(x1, x0 + 1.5)
    yield (
        f'<rect class="event" x="{x0:.1f}" y="{top:.1f}" width="{x1 - x0:.1f}" '
        f'height="{bottom - top:.1f}" fill="{ALARM}" fill-opacity="0.13">'
        f"<title>{escaped(span.title)}</title></rect>"
    )
    if span.mark:
        yield (
            f'<text class="eventtext" x="{(x0 + x1) / 2:.1f}" y="{top + 13:.1f}" '
            f'text-anchor="middle" font-size="11" font-weight="600" fill="{ALARM}">'
            f"{escaped(span.mark)}</text>"
        )


def _series_path(series: Series, i: int, time_s: FloatArray, x_axis: _Axis, y_axis: _Axis) -> str:
    columns = int(abs(x_axis.last - x_axis.first))
    parts: list[str] = []
    for start, end in _runs(np.isfinite(series.y)):
        x, y = decimate(time_s[start:end], series.y[start:end], columns)
        points = [
            f"{x_axis(float(a)):.1f} {y_axis.clip(float(b)):.1f}" for a, b in zip(x, y, strict=True)
        ]
        # A point alone has no length: a stroke of none still draws its round caps.
        parts.append(f"M{points[0]}" + ("h0" if len(points) == 1 else "L" + " ".join(points[1:])))
    return _path("".join(parts), i, series.name)


def decimate(x: FloatArray, y: FloatArray, columns: int) -> tuple[FloatArray, FloatArray]:
    """At most 2 * columns points of (x, y) that draw alike: the lowest and highest a column.

    Every peak survives, which taking each n-th point would not promise.
    """
    if len(x) <= 2 * columns:
        return x, y
    span = float(x[-1] - x[0]) or 1.0
    column = np.minimum(((x - x[0]) / span * columns).astype(np.int64), columns - 1)
    by_height = np.lexsort((y, column))
    first = np.flatnonzero(np.diff(column[by_height], prepend=-1))  # (at most columns,)
    last = np.append(first[1:], len(x)) - 1
    keep = np.unique(np.concatenate((by_height[first], by_height[last])))  # in order of time
    return x[keep], y[keep]


def _hover(
    panels: Sequence[Panel], time_s: FloatArray, axis: _Axis, top: float, bottom: float
) -> Iterator[str]:
    """Invisible strips over all panels, whose tooltips read out the curves under the pointer."""
    n_strips = min(HOVER_STRIPS, len(time_s))
    edges = np.linspace(0, len(time_s), n_strips + 1).astype(int)
    spans = {s.title: s for panel in panels for s in (*panel.events, *panel.labels)}.values()
    for start, end in pairwise(edges):
        first, last = float(time_s[start]), float(time_s[min(end, len(time_s) - 1)])
        if not last > first:
            continue
        lines = [f"{format_time(first)}, frame {start}"]
        for series in (series for panel in panels for series in panel.series):
            part = series.y[start:end]
            part = part[np.isfinite(part)]
            lines += [f"{series.name} {part.max():.3g}"] if len(part) else []
        lines += [span.title for span in spans if span.start < last and first <= span.end]
        yield (
            f'<rect x="{axis(first):.1f}" y="{top:.1f}" width="{axis(last) - axis(first):.1f}" '
            f'height="{bottom - top:.1f}" fill-opacity="0">'
            f"<title>{'&#10;'.join(escaped(line) for line in lines)}</title></rect>"
        )


def _heading(panel: Panel, y: float, width: float) -> str:
    """The panel's title on the left, the key to its marks on the right."""
    out = [_text(LEFT, y, panel.title, weight=600)]
    x = width - RIGHT
    keys: list[tuple[str, str]] = []
    if panel.labels and panel.legend:
        keys.append(
            (
                "labelled abnormal",
                f'<rect class="label" y="-2" width="18" height="5" fill="{LABEL}"/>',
            )
        )
    if panel.events and panel.legend:
        keys.append(
            (
                "event",
                f'<rect class="event" y="-6" width="18" height="12" fill="{ALARM}" '
                f'fill-opacity="0.13"/>',
            )
        )
    if panel.threshold is not None and panel.legend:
        keys.append(
            (
                f"threshold {panel.threshold:.3g}",
                _line(0, 0, 18, 0, "threshold", ALARM, dash="6 4"),
            )
        )
    if len(panel.series) > 1:
        keys += [(s.name, _sample(0, 0, i, 18)) for i, s in enumerate(panel.series)][::-1]
    for name, mark in keys:
        x -= 6.6 * len(name) + 4
        out.append(_text(x, y, name, muted=True))
        x -= 24
        out.append(f'<g transform="translate({x:.1f} {y - 4:.1f})">{mark}</g>')
        x -= 14
    return "".join(out)


def _time_labels(axis: _Axis, y: float) -> Iterator[str]:
    for tick in _time_ticks(axis.lo, axis.hi):
        yield _line(axis(tick), y, axis(tick), y + 5, "axis", MUTED)
        yield _text(axis(tick), y + 19, format_time(tick), anchor="middle", muted=True)
    yield _text((axis.first + axis.last) / 2, y + 37, "time", anchor="middle", muted=True)


def format_time(seconds: float) -> str:
    """12.4 s, 3:25 or 1:02:45, whichever is short."""
    if seconds < 59.95:  # beyond it rounds to a minute
        decimals = 1 if seconds >= 10 else 2 if seconds >= 0.1 else 4
        return f"{seconds:.{decimals}f}".rstrip("0").rstrip(".") + " s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _time_ticks(lo: float, hi: float) -> list[float]:
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
    span = hi - lo
    if span < 8:
        return _ticks(lo, hi, 8)
    step = next((s for s in steps if span / s <= 10), 86400 * max(1, round(span / 864000)))
    return [float(v) for v in np.arange(np.ceil(lo / step) * step, hi + 1e-9, step)]


def _ticks(lo: float, hi: float, n: int) -> list[float]:
    """Round values, about `n` of them, within lo..hi."""
    raw = (hi - lo) / n
    power = 10.0 ** np.floor(np.log10(raw))
    step = float(min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw)))
    first, last = np.ceil(lo / step - 1e-9), np.floor(hi / step + 1e-9)
    return [float(k) * step + 0.0 for k in np.arange(first, last + 1)]  # + 0.0: never "-0"


def _number(value: float, ticks: Sequence[float]) -> str:
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else abs(value) or 1.0
    if step >= 1e5 or step < 1e-6:
        return f"{value:.2g}"
    return f"{value:.{max(0, -int(np.floor(np.log10(step) + 1e-9)))}f}"


def _y_range(panel: Panel) -> tuple[float, float]:
    found = [s.y[np.isfinite(s.y)] for s in panel.series]
    values = np.concatenate([*found, np.zeros(1)]).astype(np.float64)
    lo, hi = float(values.min()), float(values.max())
    if panel.threshold is not None and np.isfinite(panel.threshold):
        hi = max(hi, panel.threshold)
    room = (hi - lo) * 0.08 or 1.0
    return (lo - room if lo < 0 else lo), hi + room


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[start, end) of every stretch of True."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _roc_path(curve: RocCurve, x: _Axis, y: _Axis, i: int, legend: str) -> str:
    points = [
        f"{x(float(a)):.1f} {y(float(b)):.1f}"
        for a, b in zip(curve.false_positive, curve.true_positive, strict=True)
    ]
    distinct = [p for p, before in zip(points, ["", *points], strict=False) if p != before]
    return _path("M" + "L".join(distinct) if distinct else "", i, legend, _dash(i))


def _dash(i: int) -> str:
    """Shifted by one each time the colours start again, so that no two lines look the same."""
    return DASHES[(i + i // len(COLOURS)) % len(DASHES)]


def _path(d: str, i: int, title: str, dash: str = "") -> str:
    i %= len(COLOURS)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<path class="line{i}" d="{d}" fill="none" stroke="{COLOURS[i]}" stroke-width="1.6" '
        f'stroke-linejoin="round" stroke-linecap="round"{dashes}>'
        f"<title>{escaped(title)}</title></path>"
    )


def _sample(x: float, y: float, i: int, length: float = 28) -> str:
    dash = _dash(i) if length > 20 else ""
    i %= len(COLOURS)
    return _line(x, y, x + length, y, f"line{i}", COLOURS[i], dash=dash, width=2)


def _line(
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    css: str,
    colour: str,
    dash: str = "",
    width: float = 1,
) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line class="{css}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" '
        f'stroke="{colour}" stroke-width="{width:g}"{dashes}/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: int = 400,
    muted: bool = False,
) -> str:
    css, colour = ("muted", MUTED) if muted else ("ink", INK)
    return (
        f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{colour}">{escaped(text)}</text>'
    )


def _svg(width: float, height: float, body: Sequence[str], name: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sfn-plot" role="img" '
        f'aria-label="{escaped(name)}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}">\n'
        f'<rect class="paper" width="100%" height="100%" fill="{PAPER}"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )
