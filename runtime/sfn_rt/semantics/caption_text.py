"""The words of a caption: what is kept of a VLM's answer, and whether the encoder can read it.

An answer is cleaned where it is made, in training and on the device alike, before anything is
done with it. So the embedding that a model is trained on, a caption cache, captions.json and the
report all hold one and the same text, and none of them can hold an escape sequence. To a BERT
tokenizer, which takes every white space for a blank, a well-formed answer reads as before.
What people write into a caption file stays as it came, and is made safe where it is shown.
"""

import unicodedata

from sfn_rt.printable import one_line

NOTHING_SAID = "No description."  # where a model ends at once: a caption is never empty


def clean_caption(text: str) -> str:
    """A model's answer as one line without control, escape and direction characters; may be ''."""
    return one_line(text)


def mostly_foreign(text: str) -> bool:
    """Whether most letters are not Latin ones; the English sentence encoder cannot read those.

    Of a language written in Latin letters this says nothing. Emoji and other pictures count as
    letters, digits and punctuation do not.
    """
    latin = foreign = 0
    for char in text:
        if char.isascii():
            latin += char.isalpha()
        elif unicodedata.category(char) in {"Lu", "Ll", "Lt", "Lm", "Lo", "So"}:
            if "LATIN" in unicodedata.name(char, ""):
                latin += 1
            else:
                foreign += 1
    return foreign > latin
