"""The order of clips: a function of seed and epoch, complete, and resumable at any step."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from sfn_rt.datasets import open_dataset
from sfn_rt.frames import open_source
from sfn_rt.preprocess import preprocess
from sfn_train.config import Config, parse_config
from sfn_train.data.clips import Place, Runs, StepSampler, spread_runs, usable_spans
from sfn_train.data.prepare import Prepared, prepare
from sfn_train.data.split import Span

SPANS = (Span(0, 0, 30), Span(2, 5, 40))
LENGTH, CLIPS = 8, 4


def make(first_step: int = 0, rank: int = 0, world: int = 1, seed: int = 0) -> StepSampler:
    return StepSampler(
        SPANS,
        run_length=LENGTH,
        clips=CLIPS,
        batch=3,
        seed=seed,
        begin=lambda: (first_step, rank),
        world=world,
    )


def take(sampler: StepSampler, n: int) -> list[list[Place]]:
    return list(islice(sampler, n))


@pytest.mark.parametrize("step", [1, 3, 4, 5, 11])
def test_the_order_goes_on_where_it_was_interrupted(step: int) -> None:
    assert take(make(step), 6) == take(make(), step + 6)[step:]


def test_seed_and_epoch_change_the_order() -> None:
    assert make().epoch(0) != make().epoch(1)
    assert make().epoch(0) != make(seed=1).epoch(0)
    assert make().epoch(7) == make().epoch(7)


def test_an_epoch_predicts_every_frame_of_a_span_once_up_to_its_shift() -> None:
    for epoch in range(5):
        targets = [
            (video, start + 4 + i) for video, start in make().epoch(epoch) for i in range(CLIPS)
        ]
        assert len(targets) == len(set(targets)) == 4 * make().n_runs
        for video, t in targets:
            (span,) = [s for s in SPANS if s.video == video]
            assert span.start + 4 <= t < span.stop
        for span in SPANS:
            n = sum(video == span.video for video, _ in targets)
            assert len(span) - 4 - n < CLIPS


def test_devices_share_a_step_without_overlap() -> None:
    both = [take(make(rank=rank, world=2), 2) for rank in range(2)]
    seen = [place for batches in both for batch in batches for place in batch]
    assert len(seen) == len(set(seen)) == 12


def test_fewer_runs_than_a_batch_are_repeated_to_fill_it() -> None:
    sampler = StepSampler(
        [Span(0, 0, 9)], run_length=8, clips=4, batch=3, seed=0, begin=lambda: (0, 0)
    )
    assert [len(batch) for batch in take(sampler, 3)] == [3, 3, 3]


def test_spread_runs_cover_the_spans_from_end_to_end() -> None:
    runs = spread_runs(SPANS, LENGTH, CLIPS, most=5)
    assert len(runs) == 5
    assert (runs[0], runs[-1]) == ((0, 0), (2, 29))
    assert len(spread_runs(SPANS, LENGTH, CLIPS, most=100)) == 13


@pytest.fixture(scope="module")
def config(tiny_yaml: str) -> Config:
    return parse_config(tiny_yaml, "tiny")


@pytest.fixture(scope="module")
def prepared(footage: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    cache = tmp_path_factory.mktemp("cache")
    return prepare(open_dataset(footage), config, cache, say=lambda text: None)


def test_a_run_holds_the_pixels_that_the_device_computes(
    prepared: Prepared, config: Config
) -> None:
    frames = Runs(prepared, config)[(1, 7)]["frames"]
    with open_source(prepared.videos[1].path) as source:
        images = [frame.image for frame in source][7:15]
    expected = np.stack([preprocess(image, config.preprocessing) for image in images])
    assert frames.dtype == torch.float32
    np.testing.assert_allclose(frames, expected, atol=1.1e-3)  # float16 at up to 2.6


def test_a_clips_text_is_the_caption_made_before_its_target(
    prepared: Prepared, config: Config
) -> None:
    video, text = prepared.videos[0], Runs(prepared, config)[(0, 6)]["text"]
    assert text.shape == (4, config.model.text_dim)
    for i, t in enumerate(range(10, 14)):
        made_at = t - (t - 4) % config.semantics.stride
        assert video.caption_ids[t] == video.caption_ids[made_at]
        np.testing.assert_array_equal(text[i], prepared.embeddings[video.caption_ids[t, 0]])


def test_the_captions_of_all_windows_lie_side_by_side(
    footage: Path, tiny_yaml: str, tmp_path: Path
) -> None:
    config = parse_config(tiny_yaml, "tiny", ["model.windows=[2, 4, 12]"])
    prepared = prepare(open_dataset(footage), config, tmp_path, say=lambda text: None)
    video, width = prepared.videos[0], config.sfn.text_dim
    text = Runs(prepared, config)[(0, 20)]["text"]
    assert text.shape == (4, config.sfn.text_width)
    for i, t in enumerate(range(24, 28)):
        for k, number in enumerate(video.caption_ids[t]):
            found = text[i, k * width : (k + 1) * width]
            np.testing.assert_array_equal(found, prepared.embeddings[number])


def test_training_tells_of_other_things_in_the_short_windows_alone(
    prepared: Prepared, config: Config
) -> None:
    windows = (2, 4, 12)
    wide = replace(config, model=replace(config.sfn, windows=windows))
    ids = np.tile(np.arange(3, dtype=np.int32), (40, 1))
    others = tuple(np.array([3], np.int32) for _ in range(40))
    videos = [replace(prepared.videos[0], caption_ids=ids, other_ids=others)] * 2
    embeddings = np.arange(4, dtype=np.float32)[:, None].repeat(wide.sfn.text_dim, axis=1)
    told = replace(prepared, videos=tuple(videos), embeddings=embeddings)
    runs = Runs(told, wide, vary=True)
    text = torch.cat([runs[(0, start)]["text"] for start in range(30)])  # (P, K S)
    said = text.reshape(len(text), 3, -1)[..., 0]  # (P, K) number of the sentence
    varied = said[:, 0] == 3
    assert 0.3 < varied.float().mean() < 0.7
    assert (said[varied] == torch.tensor([3.0, 3.0, 2.0])).all()
    assert (said[~varied] == torch.tensor([0.0, 1.0, 2.0])).all()
    plain = Runs(told, wide)[(0, 0)]["text"].reshape(4, 3, -1)[..., 0]
    assert (plain == torch.tensor([0.0, 1.0, 2.0])).all()


def test_spans_are_cut_to_the_frames_that_are_kept(prepared: Prepared) -> None:
    thinned = replace(prepared.videos[0], stretches=((0, 6), (10, 20)))
    part = replace(prepared, videos=(thinned, prepared.videos[1]))
    assert usable_spans(part, [Span(0, 0, 18), Span(1, 3, 40)], 8) == [
        Span(0, 10, 18),
        Span(1, 3, 40),
    ]
