"""What a caption says that captions of normal footage do not: the words for an event.

The caption is compared, word by word, with the one of normal footage that means most nearly the
same. What is left over is cut into phrases at punctuation, rid of stop words at both ends, and
ranked: what no caption of normal footage says comes first, then what the fewest do. Phrases are
parts of the caption as people are shown it, in one line and without control characters.

Words are compared without regard to case. Scripts that put no spaces between words are compared
character by character where Unicode tells them (Chinese, Japanese), else by whole runs (Thai).
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sfn_rt.printable import JOINERS, one_line
from sfn_rt.semantics.usual import UsualCaptions

MOST_PHRASES = 5
LONGEST_PHRASE = 12  # words
COMPARED = 4000  # characters of a caption that are looked at; an endless one says no more
MOST_WORDS = 300  # comparing takes up to the third power of them: half a second for the worst
REMEMBERED = 512  # captions whose words are kept: all usual ones, and the latest others
STOP = """
a an the this that these those there here it its he she his her they their them who which is are
was were be been being has have had does do did can could may might will would and or but as at by
for from in into of on onto to with while also
"""
STOP_WORDS = frozenset(STOP.split())

Pair = tuple[int, int]  # from, to: words of a caption


@dataclass(frozen=True)
class Contrast:
    """A caption against those of normal footage."""

    nearest: str  # of normal footage, by meaning
    likeness: float  # cosine of the two embeddings
    new: tuple[str, ...]  # phrases of the caption that `nearest` does not say, most unusual first


@dataclass(frozen=True)
class _Words:
    """A caption taken apart."""

    text: str
    keys: tuple[str, ...]  # what is compared
    places: tuple[Pair, ...]  # from, to in the text
    clauses: tuple[int, ...]  # number of the clause that each word stands in
    joined: str  # all words between blanks; a word holds none

    def phrase(self, run: Pair) -> str:
        """The text of words run[0] .. run[1] - 1, as it was written."""
        return self.text[self.places[run[0]][0] : self.places[run[1] - 1][1]]

    def says(self, phrase: Sequence[str]) -> bool:
        """Whether these words stand here one after the other."""
        return f" {' '.join(phrase)} " in self.joined


def contrast(caption: str, embedding: NDArray[np.float32], usual: UsualCaptions) -> Contrast:
    """Compare a caption and its embedding (S,) with the captions of normal footage."""
    number, likeness = usual.nearest(embedding)
    new = _new_phrases(caption[:COMPARED], number, usual)
    return Contrast(usual.texts[number], likeness, new)


@lru_cache(REMEMBERED)
def _new_phrases(caption: str, number: int, usual: UsualCaptions) -> tuple[str, ...]:
    """The phrases of a caption that the usual one of that number does not say, ranked."""
    said, nearest = _words(caption), _words(usual.texts[number][:COMPARED])

    def unusual(run: Pair) -> tuple[float, float, Pair]:
        phrase = said.keys[slice(*run)]
        telling = [word for word in phrase if word not in STOP_WORDS]
        rarest = min(_share((word,), usual) for word in telling)
        return _share(phrase, usual), rarest, run

    runs = [run for run in _new_runs(said, nearest) if not nearest.says(said.keys[slice(*run)])]
    phrases = dict.fromkeys(said.phrase(run) for run in sorted(runs, key=unusual))
    return tuple(phrases)[:MOST_PHRASES]


def _share(phrase: tuple[str, ...], usual: UsualCaptions) -> float:
    """Of the clips of normal footage, those that are told with this phrase."""
    told = zip(usual.texts, usual.shares, strict=True)
    return sum(float(share) for text, share in told if _words(text[:COMPARED]).says(phrase))


def _new_runs(said: _Words, nearest: _Words) -> Iterator[Pair]:
    """What the other caption does not hold at that place, as phrases."""
    matcher = SequenceMatcher(None, nearest.keys, said.keys, autojunk=False)
    new = [True] * len(said.keys)
    for _, start, size in matcher.get_matching_blocks():
        new[start : start + size] = [False] * size
    for clause in _clauses(said):
        for start, stop in _runs(said.keys, new, *clause):
            yield _told_apart(said.keys, nearest, (start, stop), clause)


def _clauses(said: _Words) -> Iterator[Pair]:
    start = 0
    for stop in range(1, len(said.keys) + 1):
        if stop == len(said.keys) or said.clauses[stop] != said.clauses[start]:
            yield start, stop
            start = stop


def _runs(keys: Sequence[str], new: Sequence[bool], first: int, last: int) -> Iterator[Pair]:
    """Phrases of new words in a clause; stop words alone neither make one nor part one."""
    run: Pair | None = None
    for i in range(first, last):
        if keys[i] in STOP_WORDS:
            continue
        if run is not None and (not new[i] or i - run[0] >= LONGEST_PHRASE):
            yield run
            run = None
        if new[i]:
            run = (i if run is None else run[0], i + 1)
    if run is not None:
        yield run


def _told_apart(keys: Sequence[str], nearest: _Words, run: Pair, clause: Pair) -> Pair:
    """The run; a single word with as many others of its clause as the nearest does not say it with.

    Where things change places ("on the left, moving right" against "on the right, moving left"),
    both captions hold every word of the difference. Several words that both hold have only moved.
    """
    start, stop = run
    if any(key not in STOP_WORDS for key in keys[start + 1 : stop]):
        return run
    while nearest.says(keys[start:stop]):
        if earlier := [i for i in range(clause[0], start) if keys[i] not in STOP_WORDS]:
            start = earlier[-1]
        elif later := [i for i in range(stop, clause[1]) if keys[i] not in STOP_WORDS]:
            stop = later[0] + 1
        else:
            break
    return start, stop


@lru_cache(REMEMBERED)
def _words(caption: str) -> _Words:
    """The words of a caption, at most MOST_WORDS of them."""
    text = one_line(caption)
    # One letter a character for what it is, so that an ordinary expression finds the words.
    kinds = "".join(map(_kind, text))
    places: list[Pair] = []
    clauses: list[int] = []
    n_clauses = last = 0
    for match in re.finditer("c|w+(?:-w+)*", kinds):
        n_clauses += "." in kinds[last : match.start()]
        last = match.end()
        places.append(match.span())
        clauses.append(n_clauses)
        if len(places) == MOST_WORDS:
            break
    keys = tuple(text[slice(*place)].casefold() for place in places)
    return _Words(text, keys, tuple(places), tuple(clauses), f" {' '.join(keys)} ")


def _kind(char: str) -> str:
    """w: of a word; c: a word by itself; -: joins words; .: ends a clause; or a blank."""
    if char.isascii():
        return "w" if char.isalnum() else "-" if char in "'-" else "." if char in ".,;:!?" else " "
    category = unicodedata.category(char)
    if category[0] in "LMN" or category == "So" or char in JOINERS:
        return "c" if "\u2e80" <= char <= "\u9fff" or char >= "\U00020000" else "w"
    return "-" if char in "\u2019\u2011" else "." if category in {"Po", "Pd"} else " "
