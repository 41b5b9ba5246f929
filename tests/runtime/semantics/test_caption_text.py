"""A VLM's answer is cleaned once, to a text that the sentence encoder reads as before."""

import pytest
from tokenizers import Tokenizer

from sfn_rt.semantics.caption_text import clean_caption, mostly_foreign
from sfn_train.text import default_folder


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("Two people walk along a path.", "Two people walk along a path."),
        ("1. A man\n2. A bicycle\n\n", "1. A man 2. A bicycle"),
        ("  \r\n\t ", ""),
        ("", ""),
        ("\x1b[2J\x1b]0;title\x07A \x1b[31mred\x1b[0m car", "A red car"),
        ("\x1b\x1b[31mA car\x9b1m", "A car"),
        ("A \u202ecar\u2066 goes\u200b by", "A car goes by"),
        ("<b>bold</b> & \"quoted\" 'text'", "<b>bold</b> & \"quoted\" 'text'"),
        ("一辆车 été 👩‍🚒", "一辆车 été 👩‍🚒"),
        ("half \ud800 of a pair", "half \ufffd of a pair"),
    ],
)
def test_what_could_steer_a_display_is_never_part_of_a_caption(answer: str, caption: str) -> None:
    assert clean_caption(answer) == caption
    assert clean_caption(caption) == caption


def test_a_long_answer_stays_whole() -> None:
    answer = "a man walks. " * 5000
    assert clean_caption(answer) == answer.strip()


@pytest.mark.parametrize(
    "answer",
    [
        "The scene shows a path.\n\n- **Objects**: a bench\n- **People**: one walks\tleft.\n",
        "Frame1: a man\r\nFrame2: the same man,\u00a0nearer",
        "été\u3000日本語 on a sign",
    ],
)
def test_an_ordinary_answer_reads_the_same_to_the_sentence_encoder(answer: str) -> None:
    tokenizer = Tokenizer.from_file(str(default_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    assert clean_caption(answer) != answer
    assert tokenizer.encode(clean_caption(answer)).ids == tokenizer.encode(answer).ids


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("Two people walk.", False),
        ("Zwei Männer laufen über die Straße", False),
        ("ＦＵＬＬ ＷＩＤＴＨ", False),
        ("一辆汽车在人行道上行驶", True),
        ("Два человека идут", True),
        ("رجلان يمشيان", True),
        ("दो लोग चलते हैं", True),
        ("🚒🚒🚒", True),
        ("a man 人", False),
        ("a 人 行 道", True),
        ("12:30, 4 !?", False),
        ("", False),
    ],
)
def test_a_caption_in_another_script_is_told_apart(text: str, foreign: bool) -> None:
    assert mostly_foreign(text) is foreign
