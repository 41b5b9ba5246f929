"""Captions from a file: which one a clip gets, and what is refused."""

import json
from pathlib import Path

import pytest

from sfn_rt.exceptions import InputError
from sfn_rt.semantics.cached import (
    CachedCaptioner,
    CaptionFile,
    CaptionSource,
    EmbeddingsFile,
    find_captions,
    video_sha256,
)
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


def test_halves_of_a_pair_are_no_text_for_the_encoder(tmp_path: Path) -> None:
    captioner = CachedCaptioner(write(tmp_path, r'{"3": "a \ud83d\ude92 and a \ud83d"}'))
    assert captioner.caption(Clip(3, (), ())) == "a \U0001f692 and a \ufffd"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json: cannot read captions: No such file"):
        CachedCaptioner(tmp_path / "nothing.json")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="captions must be JSON"):
        CachedCaptioner(path)


# ------------------------------------------------------------- captions that state their origin


@pytest.fixture
def video(tmp_path: Path) -> Path:
    folder = tmp_path / "video"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(bytes([i]))
    return folder


@pytest.fixture
def stated(tmp_path: Path, video: Path) -> Path:
    """What `python -m sfn_train captions` writes."""
    source = CaptionSource(
        video=video_sha256(video), model="m" * 64, prompt="<image> What?", frames=4, stride=2,
        max_tokens=9, tile={"height": 8},
    )  # fmt: skip
    embeddings = EmbeddingsFile(
        file="01.safetensors", sha256="e", width=3, encoder="f", name="mini"
    )
    captions = {3: "two walk", 5: "they stop"}
    file = CaptionFile(tmp_path / "01.json", captions, source, (5,), 8, 2, embeddings)
    return write(tmp_path, file.to_json())


def test_a_file_that_states_its_origin_is_read_back_whole(stated: Path, video: Path) -> None:
    file = CaptionFile.read(stated)
    assert file.captions == {3: "two walk", 5: "they stop"}
    assert (file.cut, file.n_frames, file.n_made) == ((5,), 8, 2)
    assert file.source is not None
    assert (file.source.video, file.source.stride) == (video_sha256(video), 2)
    assert file.to_json() == json.loads(stated.read_text())
    assert CachedCaptioner(stated).caption(Clip(6, (), ())) == "they stop"


def test_captions_serve_their_own_video_and_multiples_of_their_stride(
    stated: Path, video: Path
) -> None:
    file = CaptionFile.read(stated)
    file.check(video, frames=4, stride=2)
    file.check(video, frames=4, stride=6)
    with pytest.raises(InputError, match=r"a caption every 2 frames, one every 3 is asked for"):
        file.check(video, frames=4, stride=3)
    with pytest.raises(InputError, match=r"of clips of 4 frames, 8 are asked for"):
        file.check(video, frames=8, stride=2)
    (video / "1.png").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"captions\.json: captions of another video than .*video"):
        file.check(video, frames=4, stride=2)


def test_captions_written_by_hand_state_nothing_and_are_taken(tmp_path: Path, video: Path) -> None:
    CaptionFile.read(write(tmp_path, {"3": "a"})).check(video, frames=7, stride=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, r"schema_version is 3, this version reads 2; make the captions"),
        ({"source": {"video": "x"}}, r"not as `python -m sfn_train captions` writes it"),
        ({"captions": ["a"]}, r"not as `python -m sfn_train captions` writes it"),
        ({"captions": {"3": ""}}, r"entry '3' must be a frame index with a caption"),
    ],
)
def test_a_stated_file_that_is_not_whole_is_refused(
    tmp_path: Path, stated: Path, change: dict[str, object], message: str
) -> None:
    raw = json.loads(stated.read_text())
    with pytest.raises(InputError, match=message):
        CaptionFile.read(write(tmp_path, raw | change))


def test_a_video_too_short_for_a_caption_has_none(tmp_path: Path, stated: Path) -> None:
    raw = json.loads(stated.read_text()) | {"captions": {}}
    captioner = CachedCaptioner(write(tmp_path, raw))
    with pytest.raises(InputError, match=r"holds no captions, its video was too short"):
        captioner.caption(Clip(3, (), ()))


def test_a_video_is_named_by_what_its_frames_hold(video: Path, tmp_path: Path) -> None:
    before = video_sha256(video)
    video.rename(tmp_path / "moved")
    assert video_sha256(tmp_path / "moved") == before
    (tmp_path / "moved" / "2.png").rename(tmp_path / "moved" / "3.png")
    assert video_sha256(tmp_path / "moved") != before


def test_a_folder_of_captions_is_searched_for_the_video(tmp_path: Path) -> None:
    for place in ("train/01", "test/01", "test/02", "03"):
        path = tmp_path / f"{place}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    assert find_captions(tmp_path, "01", "train") == tmp_path / "train" / "01.json"
    assert find_captions(tmp_path, "01", "test") == tmp_path / "test" / "01.json"
    assert find_captions(tmp_path, "02") == tmp_path / "test" / "02.json"
    assert find_captions(tmp_path, "03", "test") == tmp_path / "03.json"
    assert find_captions(tmp_path / "train", "01") == tmp_path / "train" / "01.json"
    assert find_captions(tmp_path, "04") == tmp_path / "04.json"  # to be missed by its reader
    assert find_captions(tmp_path / "03.json", "01") == tmp_path / "03.json"
    with pytest.raises(InputError, match=r"both .*test/01\.json and .*train/01\.json are captions"):
        find_captions(tmp_path, "01")
