"""Captions from a file: which one a clip gets, and what is refused."""

import json
from pathlib import Path

import pytest

from sfn_rt.exceptions import InputError
from sfn_rt.semantics.cached import CachedCaptioner
from sfn_rt.semantics.captioner import Clip


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "captions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_a_clip_takes_the_newest_caption_that_is_not_from_its_future(tmp_path: Path) -> None:
    captioner = CachedCaptioner(write(tmp_path, {"10": "later", "3": "first", "20": "last"}))
    said = {frame: captioner.caption(Clip(frame, (), ())) for frame in (3, 9, 10, 19, 20, 999)}
    assert said == {
        3: "first", 9: "first", 10: "later", 19: "later", 20: "last", 999: "last",
    }  # fmt: skip


def test_before_the_first_caption_the_first_holds(tmp_path: Path) -> None:
    captioner = CachedCaptioner(write(tmp_path, {"30": "ein Café", "40": "later"}))
    assert captioner.caption(Clip(3, (), ())) == "ein Café"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "captions must be JSON"),
        ("[]", "captions must be an object like"),
        ("{}", "captions must be an object like"),
        ({"x": "a"}, "entry 'x' must be a frame index with a caption"),
        ({"-3": "a"}, "entry '-3' must be a frame index"),
        ({"3": 7}, "entry '3' must be a frame index with a caption"),
        ({"3": "  "}, "entry '3' must be a frame index with a caption"),
    ],
)
def test_what_is_no_captions_file_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CachedCaptioner(write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json: cannot read captions: No such file"):
        CachedCaptioner(tmp_path / "nothing.json")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="captions must be JSON"):
        CachedCaptioner(path)
