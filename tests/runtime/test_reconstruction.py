"""The stream of dual-memory: rows in order, some late, the ends unscored, exact after a stop."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from sfn_rt.backends.fake import MeanOfClip
from sfn_rt.evidence import FrameEvidence, Perception
from sfn_rt.frames import Frame
from sfn_rt.normal import SceneModel
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.preprocess import Preprocessing, preprocess
from sfn_rt.reconstruction import ReconstructionStream

HEIGHT, WIDTH = 48, 72


def frames(n: int, start: int = 0) -> list[Frame]:
    """A bright square walks over noise."""
    made = []
    for i in range(start, start + n):
        image = np.random.default_rng(i).integers(90, 110, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        at = (3 * i) % 56
        image[16:32, at : at + 14] = 220
        made.append(Frame(i, i / 25, image))
    return made


@pytest.fixture
def perception() -> Perception:
    return Perception(
        backend=MeanOfClip(16, 24),
        system="dual-memory",
        observed=16,
        lag=7,
        preprocessing=Preprocessing(height=16, width=24, mean=(0.0, 0, 0), std=(1.0, 1, 1)),
        visual=VisualConfig(
            measure="psnr", box_height=4, box_width=4, pixel_error=0.1, grid_height=4, grid_width=6
        ),
        scene=SceneModel(None, None, np.zeros((1, 16, 24), np.float32)),
        terms=("visual",),
    )


def blocks(items: Sequence[Frame], size: int) -> Iterator[Sequence[Frame]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def run(perception: Perception, items: Sequence[Frame], size: int = 8) -> list[FrameEvidence]:
    stream = ReconstructionStream(perception)
    rows = [row for block in blocks(items, size) for row in stream.predict(stream.look(block))]
    return rows + stream.finish()


def assert_same(a: Sequence[FrameEvidence], b: Sequence[FrameEvidence]) -> None:
    for x, y in zip(a, b, strict=True):
        assert (x.index, x.time_s, x.scene, x.terms, x.box) == (
            y.index, y.time_s, y.scene, y.terms, y.box,
        )  # fmt: skip
        if x.heat is None or y.heat is None:
            assert x.heat is y.heat
        else:
            np.testing.assert_array_equal(x.heat, y.heat)


def test_every_frame_has_its_row_in_order_and_the_ends_are_unscored(perception: Perception) -> None:
    rows = run(perception, frames(40))
    assert [row.index for row in rows] == list(range(40))
    assert [bool(row.terms) for row in rows] == [False] * 8 + [True] * 25 + [False] * 7
    for row in rows:
        assert row.caption is None
        assert row.scene.things == ()
        assert (row.scene.width, row.scene.height) == (WIDTH, HEIGHT)
        assert (row.box is None) == (row.heat is None) == (not row.terms)
    assert perception.backend.images == {"autoencoder": 25}  # type: ignore[attr-defined]


def test_a_row_comes_out_seven_frames_late(perception: Perception) -> None:
    stream = ReconstructionStream(perception)
    for i, frame in enumerate(frames(30)):
        rows = stream.predict(stream.look([frame]))
        assert [row.index for row in rows] == ([i - 7] if i >= 7 else [])
        assert stream.pending == min(i + 1, 7)
    assert [row.index for row in stream.finish()] == list(range(23, 30))
    assert stream.pending == 0
    assert stream.finish() == []


def test_evidence_is_minus_the_psnr_of_the_clips_frame_8(perception: Perception) -> None:
    items = frames(24)
    rows = run(perception, items)
    pictures = np.stack([preprocess(item.image, perception.preprocessing) for item in items])
    assert 0 <= pictures.min() <= pictures.max() <= 1
    for t in range(8, 17):
        clip = pictures[t - 8 : t + 8]
        mean_error = float(np.mean((clip[8] - clip.mean(axis=0)) ** 2))
        assert rows[t].terms["visual"] == pytest.approx(10 * np.log10(mean_error), abs=1e-4)


def test_the_box_is_where_the_clip_is_reconstructed_worst(perception: Perception) -> None:
    row = run(perception, frames(40))[20]
    assert row.box is not None
    x, y, w, h = row.box
    square = (3 * 20) % 56
    assert square - 6 <= (x + w / 2) * WIDTH <= square + 20
    assert 12 <= (y + h / 2) * HEIGHT <= 36


@pytest.mark.parametrize("size", [1, 3, 40])
def test_blocks_do_not_change_a_bit(perception: Perception, size: int) -> None:
    assert_same(run(perception, frames(40)), run(perception, frames(40), size))


@pytest.mark.parametrize("done", [3, 8, 15, 16, 24])
def test_state_continues_to_the_same_bits(perception: Perception, done: int) -> None:
    items = frames(40)
    stream = ReconstructionStream(perception)
    block = stream.look(items[:done])
    first = stream.predict(block)
    arrays, plain = stream.state(block)
    again = ReconstructionStream(replace(perception, backend=MeanOfClip(16, 24)))
    again.restore({k: v.copy() for k, v in arrays.items()}, json.loads(json.dumps(plain)))
    assert again.pending == min(done, 7)
    rest = [row for b in blocks(items[done:], 8) for row in again.predict(again.look(b))]
    assert_same(first + rest + again.finish(), run(perception, items))


@pytest.mark.parametrize("n", [1, 7, 15])
def test_too_few_frames_are_no_error_here(perception: Perception, n: int) -> None:
    rows = run(perception, frames(n))
    assert [row.index for row in rows] == list(range(n))
    assert not any(row.terms for row in rows)


def test_a_stretch_of_a_video_is_a_video_of_its_own(perception: Perception) -> None:
    rows = run(perception, frames(20, start=100))
    assert [row.index for row in rows] == list(range(100, 120))
    assert [row.index for row in rows if row.terms] == list(range(108, 113))


def test_memory_does_not_grow_with_the_video(perception: Perception) -> None:
    def kept(n: int) -> int:
        stream = ReconstructionStream(perception)
        for items in blocks(frames(n), 8):
            block = stream.look(items)
            stream.predict(block)
        arrays, plain = stream.state(block)
        assert len(plain["late"]) == 7
        assert arrays["clip"].base is None  # a view keeps what it looks into alive
        return arrays["clip"].nbytes

    assert kept(24) == kept(96) == 15 * 3 * 16 * 24 * 4


def test_a_perfect_copy_is_a_finite_number(perception: Perception) -> None:
    flat = [Frame(i, i / 25, np.zeros((HEIGHT, WIDTH, 3), np.uint8)) for i in range(16)]
    (row,) = [row for row in run(perception, flat) if row.terms]
    assert row.terms["visual"] == -100.0
