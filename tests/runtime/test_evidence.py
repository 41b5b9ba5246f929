"""Frames to evidence: the same whatever the blocks, exact after an interruption, bounded."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sfn_rt.attributes import AttributeModel
from sfn_rt.backends.base import PartSpec
from sfn_rt.backends.fake import RepeatLastFrame
from sfn_rt.evidence import EvidenceStream, FrameEvidence, Perception
from sfn_rt.frames import Frame
from sfn_rt.normal import SceneModel
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.preprocess import Preprocessing, preprocess
from sfn_rt.semantics.captioner import Clip
from sfn_rt.semantics.describe import SceneCaptioner
from sfn_rt.semantics.lane import LaneSettings, parse_policy
from sfn_rt.semantics.levels import NormalLevels
from sfn_rt.semantics.scene import (
    Scene,
    SceneAnalyser,
    SceneConfig,
    estimate_background,
    to_analysis,
)

HEIGHT, WIDTH, S = 48, 72, 6
TERMS = ("visual", "semantic", "attribute")
SCENE_CONFIG = SceneConfig(min_area=20)


class Echo:
    """A captioner that names its clip, and remembers it."""

    name = "echo"
    needs_scenes = True

    def __init__(self) -> None:
        self.clips: list[Clip] = []

    def caption(self, clip: Clip) -> str:
        self.clips.append(clip)
        return f"clip ending at {clip.end_frame} of {len(clip.scenes[-1].things)} things"


class Letters:
    """A sentence encoder that anyone can follow: a random direction a sentence."""

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        rows = [np.random.default_rng(list(text.encode())).standard_normal(S) for text in sentences]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


class Skewed(RepeatLastFrame):
    """Its meaning is not simply the caption again, so the semantic error is not always 0."""

    def _decode(self, feeds: Any) -> dict[str, np.ndarray]:
        answer = super()._decode(feeds)
        answer["semantic"] = feeds["text"] + feeds["motion"].mean(axis=(1, 2))[:, :1]
        return answer


def frames(n: int, start: int = 0) -> list[Frame]:
    """A bright square walks over a still ground, in noise."""
    ground = np.random.default_rng(0).integers(90, 110, (HEIGHT, WIDTH, 3))
    made = []
    for i in range(start, start + n):
        image = ground + np.random.default_rng([1, i]).integers(-3, 4, ground.shape)
        at = (2 * i) % 56
        image[16:32, at : at + 14] = np.random.default_rng(2).integers(150, 250, (16, 14, 3))
        made.append(Frame(i, i / 25, image.astype(np.uint8)))
    return made


def attributes() -> AttributeModel:
    analyser = SceneAnalyser(SCENE_CONFIG, None)
    return AttributeModel.fit([[analyser.step(frame.image) for frame in frames(40)]])


@pytest.fixture(scope="module")
def fitted() -> AttributeModel:
    return attributes()


@pytest.fixture
def perception(fitted: AttributeModel) -> Perception:
    thumbnails = np.zeros((1, 16, 24), np.float32)
    return Perception(
        backend=Skewed(text_width=S),
        observed=4,
        preprocessing=Preprocessing(height=16, width=24, resize="area"),
        visual=VisualConfig(box_height=4, box_width=4, grid_height=2, grid_width=3),
        scene_config=SCENE_CONFIG,
        scene=SceneModel(fitted, None, thumbnails),
        captioner=Echo(),
        text=Letters(),
        stride=4,
        terms=TERMS,
    )


def blocks(items: Sequence[Frame], sizes: Sequence[int]) -> Iterator[Sequence[Frame]]:
    start, turn = 0, 0
    while start < len(items):
        size = sizes[turn % len(sizes)]
        yield items[start : start + size]
        start, turn = start + size, turn + 1


def run(
    perception: Perception, items: Sequence[Frame], sizes: Sequence[int] = (8,)
) -> list[FrameEvidence]:
    stream = EvidenceStream(perception)
    return [row for b in blocks(items, sizes) for row in stream.predict(stream.look(b))]


def assert_same(a: Sequence[FrameEvidence], b: Sequence[FrameEvidence], exact: bool) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert (x.index, x.time_s, x.scene, x.caption) == (y.index, y.time_s, y.scene, y.caption)
        assert x.terms.keys() == y.terms.keys()
        tolerance = 0.0 if exact else 1e-6
        for term, value in x.terms.items():
            assert value == pytest.approx(y.terms[term], abs=tolerance), (x.index, term)
        if x.heat is not None:
            np.testing.assert_allclose(x.heat, y.heat, rtol=0, atol=0 if exact else 1e-3)


@pytest.mark.parametrize("sizes", [[1], [3], [5, 1, 7], [40]], ids=str)
def test_blocks_do_not_matter(perception: Perception, sizes: list[int]) -> None:
    assert_same(run(perception, frames(22)), run(perception, frames(22), sizes), exact=False)


def test_the_first_frames_have_no_evidence(perception: Perception) -> None:
    rows = run(perception, frames(10))
    assert [bool(row.terms) for row in rows] == [False] * 4 + [True] * 6
    for row in rows[:4]:
        assert (row.caption, row.box, row.heat) == (None, None, None)
    for row in rows[4:]:
        assert set(row.terms) == set(TERMS)
        assert np.isfinite(list(row.terms.values())).all()
        assert row.heat is not None
        assert row.heat.shape == (2, 3)


@pytest.mark.parametrize("n", [1, 3, 4])
def test_too_few_frames_are_no_error_here(perception: Perception, n: int) -> None:
    rows = run(perception, frames(n))
    assert [row.terms for row in rows] == [{}] * n


def test_every_frame_and_difference_is_encoded_once(perception: Perception) -> None:
    run(perception, frames(30))
    backend = perception.backend
    assert isinstance(backend, RepeatLastFrame)
    assert backend.images["appearance"] == 30
    assert backend.images["motion"] == 29
    assert backend.images["decoder"] == 26


def test_visual_evidence_is_of_the_right_frame(perception: Perception) -> None:
    """The fake expects the patches' colours to stay, which is easily worked out again."""
    items = frames(9)
    rows = run(replace(perception, visual=VisualConfig(measure="mean")), items)
    pictures = [preprocess(item.image, perception.preprocessing) for item in items]
    for t in range(4, 9):
        cells = pictures[t - 1].reshape(3, 2, 8, 3, 8).mean(axis=(2, 4))
        expected = cells.repeat(8, axis=1).repeat(8, axis=2)
        error = float(np.mean((expected - pictures[t]) ** 2))
        assert rows[t].terms["visual"] == pytest.approx(error, rel=1e-5)


def test_captions_are_made_every_stride_for_the_clip_before_the_frame(
    perception: Perception,
) -> None:
    rows = run(replace(perception, stride=3), frames(13), sizes=[5])
    echo = perception.captioner
    assert isinstance(echo, Echo)
    assert [clip.end_frame for clip in echo.clips] == [3, 6, 9]
    for clip in echo.clips:
        assert [f.index for f in clip.frames] == list(range(clip.end_frame - 3, clip.end_frame + 1))
        assert len(clip.scenes) == 4
    ends = [int(row.caption.split()[3]) for row in rows if row.caption is not None]
    assert ends == [3, 3, 3, 6, 6, 6, 9, 9, 9]


def test_a_stretch_of_a_video_keeps_to_the_videos_strides(perception: Perception) -> None:
    """Held-out footage begins somewhere: its captions change where the whole video's would."""
    rows = run(perception, frames(14, start=21))
    ends = [int(row.caption.split()[3]) for row in rows if row.caption is not None]
    assert ends == [24, 24, 24, 27, 27, 27, 27, 31, 31, 31]
    assert all((end + 1 - 4) % 4 == 0 for end in ends if end != 24)  # 24 is the first there is


def test_the_caption_reaches_the_semantic_term(perception: Perception) -> None:
    class Other(Echo):
        def caption(self, clip: Clip) -> str:
            return super().caption(clip) + (" and a truck" if clip.end_frame == 7 else "")

    a = run(perception, frames(16))
    b = run(replace(perception, captioner=Other()), frames(16))
    changed = [x.index for x, y in zip(a, b, strict=True) if x.terms != y.terms]
    assert changed == [8, 9, 10, 11]


@pytest.mark.parametrize(
    "terms", [("visual",), ("semantic",), ("attribute",), ("visual", "attribute"), TERMS], ids=str
)
def test_only_the_terms_that_are_on(perception: Perception, terms: tuple[str, ...]) -> None:
    everything = run(perception, frames(12))
    rows = run(replace(perception, terms=terms), frames(12))
    for row, whole in zip(rows[4:], everything[4:], strict=True):
        assert row.terms == {term: whole.terms[term] for term in terms}


def test_the_attribute_term_alone_runs_no_network(perception: Perception) -> None:
    rows = run(replace(perception, terms=("attribute",)), frames(12))
    backend = perception.backend
    assert isinstance(backend, RepeatLastFrame)
    assert not backend.images
    assert rows[-1].heat is None


def test_available_terms_are_those_the_model_can_give(perception: Perception) -> None:
    assert perception.available_terms == TERMS
    blind = replace(perception, text=None)
    assert blind.available_terms == ("visual", "attribute")
    still = replace(perception, scene=replace(perception.scene, attributes=None))
    assert still.available_terms == ("visual", "semantic")


class SecondUpsideDown(RepeatLastFrame):
    """For two windows: the first caption comes back as it is, the second as its contrary."""

    def __init__(self) -> None:
        super().__init__(text_width=2 * S)

    def _decode(self, feeds: Any) -> dict[str, np.ndarray]:
        answer = super()._decode(feeds)
        answer["semantic"][:, S:] *= -1
        return answer


def test_several_windows_are_told_embedded_and_measured_together(perception: Perception) -> None:
    wide = replace(perception, backend=SecondUpsideDown(), windows=(4, 9), stride=3)
    rows = run(wide, frames(20), sizes=[6])
    for row in rows[4:]:
        assert row.terms["semantic"] == pytest.approx((0 + 2) / 2, abs=1e-6)
    ends = [int(row.caption.split()[3]) for row in rows if row.caption is not None]
    assert ends == [3 + 3 * (i // 3) for i in range(16)]  # the shortest window's is shown
    echo = wide.captioner
    assert isinstance(echo, Echo)
    longer = [clip for clip in echo.clips if clip.longer]
    assert [len(clip.scenes) for clip in longer] == [4, 7, 9, 9, 9, 9]


@pytest.mark.parametrize("done", [2, 5, 8, 13])
def test_state_of_several_windows_continues_to_the_same_bits(
    perception: Perception, done: int
) -> None:
    def wide() -> Perception:
        return replace(
            perception,
            backend=SecondUpsideDown(),
            windows=(4, 9),
            captioner=SceneCaptioner(perception.scene.attributes),
        )

    items = frames(30)
    first = EvidenceStream(wide())
    block = first.look(items[:done])
    rows = first.predict(block)
    arrays, plain = first.state(block)
    again = EvidenceStream(wide())
    again.restore({k: v.copy() for k, v in arrays.items()}, json.loads(json.dumps(plain)))
    rows += [r for b in blocks(items[done:], (8,)) for r in again.predict(again.look(b))]
    assert_same(rows, run(wide(), items, sizes=[done, *[8] * 4]), exact=True)


def meaning_alone() -> RepeatLastFrame:
    """A model without a picture branch."""
    backend = RepeatLastFrame(text_width=S)
    decoder = backend.parts["decoder"]
    given = [tensor for tensor in decoder.inputs if tensor.name == "text"]
    predicted = [tensor for tensor in decoder.outputs if tensor.name == "semantic"]
    backend.parts = {"decoder": PartSpec(tuple(given), tuple(predicted))}
    backend._decode = lambda feeds: {"semantic": -feeds["text"]}  # type: ignore[method-assign]
    return backend


def test_a_model_without_a_picture_branch(perception: Perception) -> None:
    blind = replace(perception, backend=meaning_alone())
    assert blind.available_terms == ("semantic", "attribute")
    rows = run(replace(blind, terms=blind.available_terms), frames(12))
    for row in rows[4:]:
        assert set(row.terms) == {"semantic", "attribute"}
        assert row.terms["semantic"] == pytest.approx(2.0)
        assert (row.box, row.heat) == (None, None)
    assert [row.terms for row in rows[:4]] == [{}] * 4


class FromFile(Echo):
    """Tells clips without looking."""

    needs_scenes = False

    def caption(self, clip: Clip) -> str:
        return f"clip ending at {clip.end_frame}"


def test_what_moves_is_looked_for_only_where_someone_asks(
    perception: Perception, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = replace(perception, captioner=FromFile(), terms=("visual", "semantic"))
    expected = run(told, frames(12))
    monkeypatch.setattr(SceneAnalyser, "step", None)
    assert_same(run(told, frames(12)), expected, exact=True)
    assert {row.scene for row in expected} == {Scene(WIDTH, HEIGHT, ())}
    for asks in (replace(told, captioner=Echo()), replace(told, terms=TERMS)):
        assert asks.needs_scenes
        with pytest.raises(TypeError):
            run(asks, frames(12))


@pytest.mark.parametrize("done", [8, 16, 2, 5])
def test_state_continues_to_the_same_bits(perception: Perception, done: int) -> None:
    items = frames(30)
    first = EvidenceStream(perception)
    block = first.look(items[:done])
    first.predict(block)
    arrays, plain = first.state(block)
    kept = {name: array.copy() for name, array in arrays.items()}
    expected = [r for b in blocks(items[done:], (8,)) for r in first.predict(first.look(b))]

    again = EvidenceStream(replace(perception, backend=Skewed(text_width=S), captioner=Echo()))
    again.restore(kept, json.loads(json.dumps(plain)))
    actual = [r for b in blocks(items[done:], (8,)) for r in again.predict(again.look(b))]
    assert_same(actual, expected, exact=True)


def test_looking_may_run_ahead_of_the_state_that_is_saved(perception: Perception) -> None:
    """The first stage is in another thread: the state must be that of the block, not of now."""
    items = frames(32)
    stream = EvidenceStream(perception)
    looked = [stream.look(items[i : i + 8]) for i in range(0, 32, 8)]  # all ahead
    stream.predict(looked[0])
    arrays, plain = stream.state(looked[0])
    again = EvidenceStream(replace(perception, captioner=Echo()))
    again.restore(arrays, plain)
    expected = [row for block in looked[1:] for row in stream.predict(block)]
    actual = [r for b in blocks(items[8:], (8,)) for r in again.predict(again.look(b))]
    assert_same(actual, expected, exact=True)


def test_memory_does_not_grow_with_the_video(perception: Perception) -> None:
    def kept(n: int) -> int:
        stream = EvidenceStream(perception)
        for b in blocks(frames(n), (8,)):
            block = stream.look(b)
            stream.predict(block)
        arrays, plain = stream.state(block)
        assert len(plain["recent"]["recent"]) == 4
        return sum(array.nbytes for array in arrays.values())

    assert kept(16) == kept(80)


@pytest.mark.parametrize("level", [0, 127, 255])
def test_one_grey_colour_throughout_is_no_nan(perception: Perception, level: int) -> None:
    flat = [Frame(i, i / 25, np.full((HEIGHT, WIDTH, 3), level, np.uint8)) for i in range(12)]
    for row in run(perception, flat)[4:]:
        assert np.isfinite(list(row.terms.values())).all()
        assert row.terms["attribute"] == 0.0
        assert np.isfinite(row.heat).all()


@pytest.mark.parametrize("policy", ["every:5", "change"])
def test_what_moves_is_looked_for_only_where_a_caption_is_asked_for(
    perception: Perception, policy: str
) -> None:
    background = estimate_background(to_analysis(SCENE_CONFIG, f.image) for f in frames(30))
    lane = LaneSettings(policy=parse_policy(policy), observed=4, stride=4)
    levels = NormalLevels(changed={"motion": 0.3}, suspicious=None, usual=None, expected=None)
    scene = replace(perception.scene, background=background)
    p = replace(perception, scene=scene, lane=lane, levels=levels)
    everywhere, seldom = (replace(p, terms=terms) for terms in (TERMS, ("visual", "semantic")))
    assert everywhere.needs_scenes
    assert not seldom.needs_scenes
    assert seldom.looks_when_asked
    expected, actual = run(everywhere, frames(40)), run(seldom, frames(40), (3,))
    assert [row.caption for row in actual] == [row.caption for row in expected]
    assert len({row.caption for row in actual}) > 2
    assert not any(row.scene.things for row in actual)
    other = replace(seldom, scene=replace(scene, background=background[:-1]))  # another camera's
    assert any(row.scene.things for row in run(other, frames(40)))
    windows = replace(seldom, windows=(4, 8))
    assert windows.needs_scenes
    assert not windows.looks_when_asked
