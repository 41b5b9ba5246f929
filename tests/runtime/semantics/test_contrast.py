"""What a caption says that those of normal footage do not."""

import time

import numpy as np
import pytest

from sfn_rt.printable import one_line
from sfn_rt.semantics.contrast import LONGEST_PHRASE, MOST_PHRASES, STOP_WORDS, contrast
from sfn_rt.semantics.usual import UsualCaptions

FIRST = np.eye(8, dtype=np.float32)[0]  # the embedding of the first usual caption
WALK = "Two people walk along the path."


def usual(*texts: str, shares: tuple[float, ...] = ()) -> UsualCaptions:
    """Captions that have nothing in common but their words; all said as often, if not told."""
    often = shares or (1 / len(texts),) * len(texts)
    return UsualCaptions(texts, np.eye(len(texts), 8, dtype=np.float32), np.float32(often))


def new(caption: str, *texts: str) -> tuple[str, ...]:
    return contrast(caption, FIRST, usual(*texts)).new


def test_the_nearest_caption_is_nearest_in_meaning_not_in_words() -> None:
    embedding = np.array([0.6, 0.8, 0, 0, 0, 0, 0, 0], np.float32)
    found = contrast(WALK, embedding, usual(WALK, "Nothing moves.", "A car."))
    assert found.nearest == "Nothing moves."
    assert found.likeness == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        (WALK, ()),
        (WALK.upper(), ()),
        ("Two people walk along a path", ()),  # stop words tell nothing
        ("Two people ride bicycles along the path.", ("ride bicycles",)),
        ("Two people walk along the path, and a car is parked there.", ("car is parked",)),
        ("Along the path two people walk.", ()),  # the same, in another order
        ("", ()),
        (" \n!?… ", ()),
        ("the", ()),
        ("Car", ("Car",)),
    ],
)
def test_phrases_are_what_the_nearest_does_not_say(caption: str, phrases: tuple[str, ...]) -> None:
    assert new(caption, WALK) == phrases


def test_where_two_things_change_places_their_words_tell_it() -> None:
    a, b = "A thing on the left, moving right.", "A thing on the right, moving left."
    assert new(a, b) == ("thing on the left", "moving right")


def test_a_phrase_ends_with_its_clause_and_is_not_endless() -> None:
    assert new("A car stops. Men run; one falls", WALK) == ("car stops", "Men run", "one falls")
    (first, *_) = new("very " * 3 * LONGEST_PHRASE + "fast", WALK)
    assert len(first.split()) == LONGEST_PHRASE


def test_phrases_stand_in_the_caption_as_they_are_written() -> None:
    assert new("A man (in RED) skate-boards.", WALK) == ("man (in RED) skate-boards",)
    assert new("It’s a man’s bike", WALK) == ("It’s a man’s bike",)
    assert new("Two people\r\n\x1b[31mride\tbikes\x1b[0m", WALK) == ("ride bikes",)


def test_what_normal_footage_never_says_comes_first() -> None:
    captions = usual(
        WALK, "A dog barks.", "A dog sleeps.", "A cart passes.", shares=(0.5, 0.2, 0.2, 0.1)
    )
    caption = "A dog, a cart, a tank, two people walk along the path"
    assert contrast(caption, FIRST, captions).new == ("tank", "cart", "dog")
    # No phrase is known: what has an unknown word is more unusual than known words put together.
    caption = "A dog and a cart, a huge cart, two people walk along the path"
    assert contrast(caption, FIRST, captions).new == ("huge cart", "dog and a cart")


def test_there_are_a_handful_of_phrases_and_none_twice() -> None:
    caption = ", ".join(f"a thing{i % 9}" for i in range(30))
    phrases = new(caption, WALK)
    assert phrases == tuple(f"thing{i}" for i in range(MOST_PHRASES))


@pytest.mark.parametrize(
    ("caption", "nearest", "phrases"),
    [
        ("两个人走路。一辆汽车", "两个人走路。", ("一辆汽车",)),
        ("दो लोग चलते हैं, एक कार", "दो लोग चलते हैं", ("एक कार",)),
        ("رجل يمشي، سيارة حمراء", "رجل يمشي", ("سيارة حمراء",)),
        ("Двое ИДУТ, едет машина", "двое идут", ("едет машина",)),
        ("a 👩‍🚒 walks", "a man walks", ("👩‍🚒",)),
        ("two men", "两个人", ("two men",)),
    ],
)
def test_other_scripts_are_compared_by_their_own_words(
    caption: str, nearest: str, phrases: tuple[str, ...]
) -> None:
    assert new(caption, nearest) == phrases


def test_words_that_are_said_often_are_compared_like_all_others() -> None:
    often = "A man walks his dog. " * 49
    caption = f"Today {often}A man walks his car."
    assert new(caption, f"{often}A man walks his dog.") == ("Today", "car")


def random_caption(random: np.random.Generator, n_words: int) -> str:
    words = [
        "a",
        "the",
        "on",
        "man",
        "car",
        "left",
        "right",
        "runs",
        "一",
        "’",
        ",",
        ".",
        "\x1b[2J",
    ]
    return " ".join(random.choice(words, n_words))


@pytest.mark.parametrize("seed", range(60))
def test_phrases_are_parts_of_the_caption_that_the_nearest_does_not_hold(seed: int) -> None:
    random = np.random.default_rng(seed)
    caption, *texts = (random_caption(random, int(n)) for n in random.integers(0, 60, 5))
    found = contrast(caption, FIRST, usual(*texts))
    assert found == contrast(caption, FIRST, usual(*texts))
    assert len(found.new) <= MOST_PHRASES
    for phrase in found.new:
        assert phrase in one_line(caption)
        assert f" {phrase} " not in f" {texts[0]} "
        words = phrase.split()
        assert not {words[0], words[-1]} & STOP_WORDS


@pytest.mark.parametrize(
    ("caption", "nearest"),
    [
        ("the man " * 100_000, WALK),
        ("a b " * 1000, "a " * 1000),
        ("x" * 1_000_000, "x" * 999_999 + "y"),
        (". " * 100_000, ", " * 100_000),
    ],
    ids=["repeats itself", "repeats the other", "one endless word", "no word"],
)
def test_an_endless_caption_takes_no_endless_time(caption: str, nearest: str) -> None:
    start = time.process_time()
    assert len(new(caption, nearest)) <= MOST_PHRASES
    assert time.process_time() - start < 5


def test_an_embedding_that_is_no_number_finds_some_caption() -> None:
    found = contrast("A car", np.full(8, np.nan, np.float32), usual(WALK, "Nothing moves."))
    assert found.nearest in {WALK, "Nothing moves."}
