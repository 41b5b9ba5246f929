"""Text from outside (captions, file names) made safe to show in a page, a picture or a terminal.

A caption is written by a model or read from a file, so it may hold anything: escape sequences
that repaint a terminal, control characters that XML forbids, marks that turn the reading
direction around. Files for programs keep the text as it came; what people look at goes
through here first.
"""

import html
import re
import unicodedata

ESCAPE_SEQUENCES = re.compile(
    r"(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # system commands: titles, links
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # control sequences: colours, cursor, erase
    r"|\x1b[ -/]*[0-~]?"  # the short ones
)
# Joiners are format characters (Cf) too, and scripts and emoji need them.
JOINERS = "\u200c\u200d"


def one_line(text: str) -> str:
    """All of `text` in one line, without escape sequences, control and direction characters."""
    text = ESCAPE_SEQUENCES.sub("", text)
    return " ".join("".join(_shown(char) for char in text).split())


def printable(text: str, *, limit: int = 2000) -> str:
    """`one_line` of text, cut at `limit` characters."""
    looked_at = text[: 8 * limit]  # of an endless text, most will not be seen
    shown = one_line(looked_at)
    if len(shown) <= limit and len(looked_at) == len(text):
        return shown
    return shown[: limit - 1] + "…"


def escaped(text: str, *, limit: int = 2000) -> str:
    """`printable` text, ready for the inside of an HTML or SVG element or attribute."""
    return html.escape(printable(text, limit=limit), quote=True)


def _shown(char: str) -> str:
    category = unicodedata.category(char)
    if category in {"Cc", "Zl", "Zp"}:
        return " "
    if category == "Cf":
        return char if char in JOINERS else ""
    if category == "Cs" or ord(char) & 0xFFFE == 0xFFFE:  # half a pair, or no character at all
        return "\ufffd"
    return char
