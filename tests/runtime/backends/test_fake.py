"""The fake obeys the protocol, reacts to its inputs, and counts."""

import numpy as np
import pytest

from sfn_rt.backends.base import Backend
from sfn_rt.backends.fake import RepeatLastFrame
from sfn_rt.exceptions import InputError


def test_repeats_the_last_frame_as_mean_colours() -> None:
    backend: Backend = RepeatLastFrame(height=16, width=24, patch=8)
    frame = np.arange(6, dtype=np.float32).reshape(2, 3).repeat(8, 0).repeat(8, 1)  # (16, 24)
    frames = np.broadcast_to(frame, (5, 3, 16, 24)).copy()
    with backend:
        encoded = backend.infer("appearance", {"frame": frames})
        motion = backend.infer("motion", {"difference": frames[1:4] - frames[:3]})["tokens"]
        feeds = {
            "appearance": encoded["tokens"][None, :4],
            "motion": motion[None],
            "text": np.ones((1, 6), np.float32),
            "skip": encoded["skip"][3:4],
        }
        predicted = backend.infer("decoder", feeds, ["next_frame"])
    assert list(predicted) == ["next_frame"]
    np.testing.assert_array_equal(predicted["next_frame"][0], frames[4])


def test_sentences_differ_and_padding_does_not_matter() -> None:
    backend = RepeatLastFrame()
    ids = np.array([[101, 7, 102, 0], [101, 8, 102, 0]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 0]])
    rows = backend.infer("text", {"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
    short = {"input_ids": ids[:1, :3], "attention_mask": mask[:1, :3]}
    np.testing.assert_array_equal(backend.infer("text", short)["sentence_embedding"], rows[:1])
    assert not np.allclose(rows[0], rows[1])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    assert backend.images["text"] == 3


def test_batches_must_agree() -> None:
    mask = np.ones((2, 3), np.int64)
    feeds = {"input_ids": np.ones((1, 3), np.int64), "attention_mask": mask}
    message = r"input 'attention_mask' has batch 2, but 'input_ids' has batch 1"
    with pytest.raises(InputError, match=message):
        RepeatLastFrame().infer("text", feeds)
