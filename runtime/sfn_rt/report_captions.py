"""What report.html says of captions: of each event's, and of how all of them were made.

A caption is text from outside: every piece of it is escaped by itself, and the marks around what
is new in it are the only markup.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from sfn_rt.events import Event
from sfn_rt.printable import escaped, printable
from sfn_rt.semantics.caption_text import mostly_foreign

FRESH_S = 0.5  # a caption that is older tells of another moment than the pictures do


def caption_html(event: Event, fps: float) -> str:
    """What was said of an event's peak, what is new in it, and what limits its worth."""
    if not printable(event.caption):
        return ""
    cut = ' <span class="cut">cut</span>' if event.caption_cut else ""
    lines = [f'<blockquote dir="auto">{marked(event.caption, event.new)}{cut}</blockquote>']
    if event.nearest and event.nearest != event.caption:
        nearest = f'<bdi class="nearest">{escaped(event.nearest)}</bdi>'
        lines.append(f'<p class="small soft">nearest normal caption: {nearest}</p>')
    if notes := "; ".join(_notes(event, fps)):
        lines.append(f'<p class="small soft">{notes[0].upper()}{notes[1:]}.</p>')
    return f'<div class="caption">{"".join(lines)}</div>'


def marked(caption: str, phrases: Sequence[str]) -> str:
    """A caption as HTML, with the phrases in it marked wherever they stand."""
    text = printable(caption)
    new = [False] * len(text)
    for phrase in filter(None, map(printable, phrases)):
        whole = rf"(?<!\w){re.escape(phrase)}(?!\w)"  # "car" is not in "scarf"
        found = list(re.finditer(whole, text)) or re.finditer(re.escape(phrase), text)
        for match in found:
            new[match.start() : match.end()] = [True] * len(match[0])
    edges = [0, *(i for i in range(1, len(text)) if new[i] != new[i - 1]), len(text)]
    parts = [(new[a], escape(text[a:b])) for a, b in pairwise(edges) if a < b]
    return "".join(f"<mark>{part}</mark>" if mark else part for mark, part in parts)


def lane_rows(lane: Mapping[str, object]) -> dict[str, str]:
    """How captions were made, as rows of the settings; null is nothing to tell."""
    return {k.replace("_", " "): _told(value) for k, value in lane.items() if value is not None}


def _notes(event: Event, fps: float) -> list[str]:
    notes = []
    if event.nearest == event.caption:
        notes.append("normal footage is told in the same words")
    seconds = (event.caption_age or 0) / fps if fps > 0 else 0.0
    if seconds > FRESH_S:
        notes.append(
            f"this tells of what was there {event.caption_age} frames ({seconds:.1f} s) before "
            f"the peak"
        )
    if event.caption_cut:
        notes.append("cut: the caption had not ended at the most tokens allowed")
    if mostly_foreign(event.caption):
        notes.append("most of it is not in Latin letters, which the sentence encoder cannot read")
    return notes


def _told(value: object) -> str:
    """A JSON value in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {told}" for key, told in lane_rows(value).items()) or "none"
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(map(_told, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
