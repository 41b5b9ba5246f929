"""The semantic term with captions now and then: what counts, what stands in, what is shown."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sfn_rt.backends.base import PartSpec, TensorSpec
from sfn_rt.backends.fake import RepeatLastFrame
from sfn_rt.evidence import EvidenceStream, FrameEvidence, Perception
from sfn_rt.frames import Frame
from sfn_rt.normal import SceneModel
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.preprocess import Preprocessing
from sfn_rt.scores import Tail
from sfn_rt.semantics.captioner import Clip
from sfn_rt.semantics.lane import Clock, LaneSettings, parse_policy
from sfn_rt.semantics.levels import Expectation, NormalLevels

S, STRIDE, T = 6, 2, 4
SEMANTIC = Tail.fit(np.linspace(0.0, 0.4, 500))
DISTILLED = Tail.fit(np.linspace(0.0, 4.0, 500))  # ten times the semantic error
USUAL = np.eye(1, S, dtype=np.float32)[0]


class Numbers:
    """A captioner that says which frame its clip ends with."""

    name = "numbers"
    needs_scenes = False

    def caption(self, clip: Clip) -> str:
        return f"{clip.end_frame}"


class Directions:
    """Caption n is embedded along axis n, but for the usual one's."""

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        return np.stack([np.eye(S, dtype=np.float32)[1 + int(s) % (S - 1)] for s in sentences])


class WithStudent(RepeatLastFrame):
    """Its semantic error is 0.25 of every caption; its student sees how bright a clip is."""

    def __init__(self, *, student: bool = True) -> None:
        super().__init__(16, 24, text_width=S)
        self.texts: list[np.ndarray] = []
        decoder = self.parts["decoder"]
        more = (TensorSpec("distilled", "float32", ("batch",)),) if student else ()
        self.parts = {**self.parts, "decoder": PartSpec(decoder.inputs, (*decoder.outputs, *more))}

    def _decode(self, feeds: Any) -> dict[str, np.ndarray]:
        answer = super()._decode(feeds)
        self.texts.append(feeds["text"])
        told = np.roll(feeds["text"], 1, axis=1)  # at a right angle
        answer["semantic"] = 0.75 * feeds["text"] + np.sqrt(1 - 0.75**2) * told
        answer["distilled"] = np.abs(feeds["appearance"]).mean(axis=(1, 2, 3))
        return answer


def perception(
    policy: str | None, *, student: bool = True, counts: bool = True, **settings: Any
) -> Perception:
    lane = None
    if policy is not None:
        lane = LaneSettings(policy=parse_policy(policy), observed=T, stride=STRIDE, **settings)
    return Perception(
        backend=WithStudent(student=student),
        observed=T,
        preprocessing=Preprocessing(height=16, width=24, resize="area"),
        visual=VisualConfig(box_height=4, box_width=4, grid_height=2, grid_width=3),
        scene=SceneModel(None, None, np.zeros((1, 16, 24), np.float32)),
        captioner=Numbers(),
        text=Directions(),
        stride=STRIDE,
        terms=("visual", "semantic"),
        lane=lane,
        counts=counts,
        levels=NormalLevels(
            changed={"motion": 0.5},
            suspicious=1.0,
            usual=USUAL,
            expected=Expectation(SEMANTIC, DISTILLED if student else None),
        ),
    )


def frames(n: int) -> list[Frame]:
    """Noise that brightens, and flashes at frame 13."""
    made = []
    for i in range(n):
        image = np.random.default_rng(i).integers(90, 100, (48, 72, 3)) + i
        made.append(Frame(i, i / 25, (image + 90 * (i == 13)).astype(np.uint8)))
    return made


def run(p: Perception, n: int = 30, size: int = 8) -> list[FrameEvidence]:
    stream, items = EvidenceStream(p), frames(n)
    found = []
    for start in range(0, n, size):
        found += stream.predict(stream.look(items[start : start + size]))
    return found


def test_a_caption_every_stride_is_the_whole_semantic_term() -> None:
    by_default, asked = run(perception(None)), run(perception("every:2"))
    assert [row.terms for row in by_default] == [row.terms for row in asked]
    scored = asked[T:]
    assert [row.caption for row in scored[:4]] == ["3", "3", "5", "5"]
    assert [row.caption_age for row in scored[:4]] == [0, 1, 0, 1]
    assert {row.caption_weight for row in scored} == {1.0}
    assert [row.terms["semantic"] for row in scored] == pytest.approx([0.25] * len(scored))
    assert asked[0].caption_age is None


def test_an_old_caption_corrects_the_student_less_and_less() -> None:
    rows = run(perception("every:20", half_life=4.0))[T:]
    alone = [row.terms["semantic"] for row in run(perception("off"))[T:]]  # the student's
    correction = 0.25 - alone[STRIDE - 1]  # at the last frame at which the caption is new
    for age, (row, expected) in enumerate(zip(rows[:20], alone[:20], strict=True)):
        weight = 1.0 if age < STRIDE else 0.5 ** ((age - STRIDE + 1) / 4)
        assert row.caption_age == age
        assert row.caption_weight == pytest.approx(weight)
        evidence = 0.25 if age < STRIDE else max(0.0, expected + weight * correction)
        assert row.terms["semantic"] == pytest.approx(evidence)
    assert rows[20].caption_age == 0
    assert rows[20].terms["semantic"] == pytest.approx(0.25)
    assert max(alone) > min(alone) > 0  # it is the student's, not a constant


def test_the_student_alone_has_no_caption() -> None:
    rows = run(perception("off"))[T:]
    assert {(row.caption, row.caption_age, row.caption_weight) for row in rows} == {
        (None, None, 0.0)
    }


def test_a_caption_that_is_late_corrects_from_when_it_is_there() -> None:
    rows = run(perception("every:20", latency=6, half_life=4.0))[T:]
    alone = [row.terms["semantic"] for row in run(perception("off"))[T:]]
    assert [row.terms["semantic"] for row in rows[:6]] == pytest.approx(alone[:6])
    correction = 0.25 - alone[6]
    for age in (6, 9, 15):
        weight = 0.5 ** ((age - STRIDE + 1) / 4)
        evidence = max(0.0, alone[age] + weight * correction)
        assert rows[age].terms["semantic"] == pytest.approx(evidence)


def test_without_a_student_an_old_caption_fades_to_the_usual() -> None:
    rows = run(perception("every:20", student=False, half_life=1.0))[T:]
    assert rows[0].terms["semantic"] == pytest.approx(0.25)
    assert rows[18].terms["semantic"] == pytest.approx(SEMANTIC.quantile(0.5), abs=1e-4)


def test_where_none_is_there_yet_the_usual_caption_stands_in() -> None:
    p = perception("every:8", latency=3)
    rows = run(p)[T:]
    assert [row.caption for row in rows[:5]] == [None, None, None, "3", "3"]
    assert [row.caption_weight for row in rows[:3]] == [0.0, 0.0, 0.0]
    assert rows[3].caption_age == 3
    assert isinstance(p.backend, WithStudent)
    texts = np.concatenate(p.backend.texts)
    np.testing.assert_array_equal(texts[:3], np.tile(USUAL, (3, 1)))
    assert not np.array_equal(texts[3], USUAL)


def test_captions_of_another_kind_explain_and_do_not_count() -> None:
    p = perception("every:2", counts=False)
    rows, alone = run(p)[T:], run(perception("off"))[T:]
    assert rows[0].caption == "3"
    assert {row.caption_weight for row in rows} == {0.0}
    assert [row.terms for row in rows] == [row.terms for row in alone]
    assert isinstance(p.backend, WithStudent)
    assert (np.concatenate(p.backend.texts) == USUAL).all()


def test_a_change_is_captioned_when_it_is_over_the_normal_level() -> None:
    stream = EvidenceStream(perception("change"))
    for start in range(0, 30, 8):
        stream.predict(stream.look(frames(30)[start : start + 8]))
    # The first frame there is, the one after the flash has been seen (14 follows 13), and when it
    # is gone: 14 differs from 13, 15 no longer from 14.
    assert stream.counts.asked == 3
    rows = run(perception("change"))[T:]
    assert [row.index for row in rows if row.caption_age == 0] == [4, 14, 16]
    assert [row.caption for row in rows if row.caption_age == 0] == ["3", "13", "15"]


def test_a_rising_visual_score_is_captioned() -> None:
    p = perception("suspicion")
    visual = [row.terms["visual"] for row in run(p)[T:]]
    level = sorted(visual)[-3]
    levels = replace(p.levels, suspicious=level)  # type: ignore[type-var]
    rows = run(replace(p, levels=levels), size=1)[T:]
    asked = [row.index for row in rows if row.caption_age == 0]
    over = [row.index + 1 for row in rows if row.terms["visual"] > level]
    assert asked[0] == T
    assert set(asked[1:]) <= set(over)
    assert len(asked) > 1


@pytest.mark.parametrize("policy", ["every:3", "every:7", "change", "off"])
def test_results_do_not_depend_on_blocks(policy: str) -> None:
    whole = run(perception(policy, latency=2))
    for size in (1, 3, 30):
        for one, other in zip(run(perception(policy, latency=2), size=size), whole, strict=True):
            assert one.caption == other.caption
            assert one.caption_age == other.caption_age
            assert one.terms == pytest.approx(other.terms, abs=1e-6)


@pytest.mark.parametrize("policy", ["every:5", "change", "suspicion", "off"])
@pytest.mark.parametrize("at", [8, 16, 24])
def test_an_interruption_changes_nothing(policy: str, at: int) -> None:
    p = perception(policy, latency=3)
    items = frames(40)
    whole = EvidenceStream(p)
    for start in range(0, at, 8):
        block = whole.look(items[start : start + 8])
        whole.predict(block)
    again = EvidenceStream(p)
    again.restore(*whole.state(block))
    for start in range(at, 40, 8):
        one = whole.predict(whole.look(items[start : start + 8]))
        other = again.predict(again.look(items[start : start + 8]))
        assert [(r.terms, r.caption, r.caption_age) for r in one] == [
            (r.terms, r.caption, r.caption_age) for r in other
        ]
    assert whole.counts == again.counts


@pytest.mark.parametrize("clock", ["frames", "seconds"])
def test_a_live_source_is_told_by_the_same_lane(clock: Clock) -> None:
    rows = run(perception("every:8", clock=clock), size=1)[T:]
    assert [row.index for row in rows if row.caption_age == 0] == [4, 12, 20, 28]


def test_signals_come_along_while_normal_footage_is_measured() -> None:
    rows = run(replace(perception(None), levels=None))
    assert rows[T].signals.keys() == {"motion", "appearance", "distilled"}
    assert rows[0].signals == {}
    assert run(perception(None))[T].signals == {}
