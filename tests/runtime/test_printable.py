import pytest

from sfn_rt.printable import escaped, one_line, printable


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("two people walk left", "two people walk left"),
        ("été, 日本語, عربى, 👩‍🚒", "été, 日本語, عربى, 👩‍🚒"),
        ("\x1b[31mred\x1b[0m alert", "red alert"),
        ("\x9b2Jgone", "gone"),
        ("\x1b]8;;http://evil\x07link\x1b]8;;\x07", "link"),
        ("\x1b]0;title never closed", ""),
        ("a\x1bcb", "ab"),
        ("one\r\ntwo\x00\x08three\x7f", "one two three"),
        ("abc\u202edcba\u2066x", "abcdcbax"),
        ("half \ud800 pair, \uffff", "half \ufffd pair, \ufffd"),
        ("line\u2028break", "line break"),
    ],
)
def test_what_could_steer_the_display_is_taken_out(raw: str, shown: str):
    assert printable(raw) == shown


def test_long_text_is_cut():
    assert printable("x" * 5000, limit=10) == "x" * 9 + "…"
    assert printable("x" * 10, limit=10) == "x" * 10
    assert printable("x" + " " * 5000 + "y", limit=10) == "x…"  # what is not looked at is cut, too
    assert one_line("x" * 5000) == "x" * 5000


def test_escaped_text_closes_no_element_and_no_attribute():
    assert escaped("<b a=\"1\" c='2'>&") == "&lt;b a=&quot;1&quot; c=&#x27;2&#x27;&gt;&amp;"
