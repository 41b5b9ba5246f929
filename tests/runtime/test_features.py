"""The stream's memory: everything is encoded once, and predictions are those of whole clips."""

from collections.abc import Sequence

import numpy as np
import pytest

from sfn_rt.backends.base import Array, Arrays, PartSpec
from sfn_rt.backends.fake import RepeatLastFrame
from sfn_rt.features import Prediction, Predictor

HEIGHT, WIDTH, S = 16, 24, 6
T = 4


class WholeClip(RepeatLastFrame):
    """Its prediction depends on every input, on the order in a clip too; records what it saw."""

    def __init__(self, *, last_frame: bool = False, without: Sequence[str] = ()) -> None:
        super().__init__(HEIGHT, WIDTH, text_width=S)
        self.seen: dict[str, list[Array]] = {}
        decoder = self.parts["decoder"]
        inputs = list(decoder.inputs)
        if last_frame:
            inputs.append(type(inputs[0])("last_frame", "float32", ("batch", 3, HEIGHT, WIDTH)))
        gone = {*without, *({"skip"} if "appearance" in without else ())}
        outputs = [o for o in decoder.outputs if not (o.name == "semantic" and "text" in without)]
        kept = tuple(spec for spec in inputs if spec.name not in gone)
        parts = {name: spec for name, spec in self.parts.items() if name not in without}
        self.parts = parts | {"decoder": PartSpec(kept, tuple(outputs))}

    def infer(
        self, part: str, feeds: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        for name, array in feeds.items():
            self.seen.setdefault(f"{part}/{name}", []).append(array.copy())
        return super().infer(part, feeds, outputs)

    def _decode(self, feeds: Arrays) -> dict[str, Array]:
        n = len(next(iter(feeds.values())))
        frame = np.zeros((n, 3, HEIGHT, WIDTH), np.float32)
        for name in sorted(feeds):
            flat = feeds[name].reshape(n, -1)
            weight = np.sin(np.arange(1, flat.shape[1] + 1) * len(name)).astype(np.float32)
            frame += (flat * weight).sum(axis=1, dtype=np.float32)[:, None, None, None]
        return {"next_frame": frame, "semantic": frame[:, 0, 0, :S].copy()}


def step(predictor: Predictor, frames: Array, text: Array | None) -> Prediction | None:
    return predictor.decode(predictor.encode(frames), text)


def video(n: int, seed: int = 0) -> tuple[Array, Array]:
    """n frames, and the caption embedding of the clip before each (the first T have none)."""
    rng = np.random.default_rng(seed)
    frames = rng.standard_normal((n, 3, HEIGHT, WIDTH)).astype(np.float32)
    return frames, rng.standard_normal((n, S)).astype(np.float32)


def naive(backend: WholeClip, frames: Array, text: Array) -> Array:
    """A sliding window that encodes every clip from its pictures: n - T predictions."""
    wanted = {spec.name for spec in backend.parts["decoder"].inputs}
    found = []
    for t in range(T, len(frames)):
        clip = frames[t - T : t]
        feeds = {"text": text[t : t + 1], "last_frame": clip[-1:].copy()}
        if "appearance" in backend.parts:
            encoded = backend.infer("appearance", {"frame": clip})
            feeds["appearance"], feeds["skip"] = encoded["tokens"][None], encoded["skip"][-1:]
        if "motion" in backend.parts:
            pairs = backend.infer("motion", {"difference": clip[1:] - clip[:-1]})
            feeds["motion"] = pairs["tokens"][None]
        kept = {name: array for name, array in feeds.items() if name in wanted}
        found.append(backend.infer("decoder", kept, ["next_frame"])["next_frame"])
    return np.concatenate(found)


def stream(backend: WholeClip, frames: Array, text: Array, sizes: Sequence[int]) -> Array:
    """The same frames through a Predictor, in blocks of the given sizes over and over."""
    predictor = Predictor(backend, T)
    found, start, turn = [], 0, 0
    while start < len(frames):
        block = frames[start : start + sizes[turn % len(sizes)]]
        encoded = predictor.encode(block)
        stop = start + len(block)
        prediction = predictor.decode(encoded, text[stop - encoded.n_predicted : stop])
        assert (prediction is None) == (encoded.n_predicted == 0)
        if prediction is not None:
            found.append(prediction.next_frame)
        start, turn = stop, turn + 1
    return np.concatenate(found)


SIZES = {"1": [1], "2": [2], "3": [3], "8": [8], "everything": [19], "uneven": [1, 5, 2, 7]}
MODELS = {
    "everything": {},
    "change": {"last_frame": True},
    "no appearance": {"without": ("appearance",)},
    "no motion": {"without": ("motion",)},
    "no text": {"without": ("text",)},
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("model", MODELS)
def test_a_stream_equals_a_window_that_encodes_each_clip(model: str, sizes: str) -> None:
    frames, text = video(19)
    expected = naive(WholeClip(**MODELS[model]), frames, text)
    actual = stream(WholeClip(**MODELS[model]), frames, text, SIZES[sizes])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)  # sums of 1000 numbers


@pytest.mark.parametrize("sizes", SIZES)
def test_each_frame_and_each_difference_is_encoded_exactly_once(sizes: str) -> None:
    frames, text = video(19)
    backend = WholeClip()
    stream(backend, frames, text, SIZES[sizes])
    assert backend.images["appearance"] == 19
    assert backend.images["motion"] == 18
    assert backend.images["decoder"] == 15
    encoded = np.concatenate(backend.seen["appearance/frame"])
    np.testing.assert_array_equal(encoded, frames)
    differences = np.concatenate(backend.seen["motion/difference"])
    np.testing.assert_array_equal(differences, np.diff(frames, axis=0))


def test_fewer_frames_than_a_clip_predict_nothing() -> None:
    frames, _ = video(T)
    backend = WholeClip()
    assert step(Predictor(backend, T), frames, None) is None
    assert backend.images["decoder"] == 0


def test_semantic_prediction_comes_along() -> None:
    frames, text = video(6)
    prediction = step(Predictor(WholeClip(), T), frames, text[T:])
    assert isinstance(prediction, Prediction)
    assert prediction.semantic is not None
    assert prediction.semantic.shape == (2, S)
    blind = step(Predictor(WholeClip(without=("text",)), T), frames, None)
    assert blind is not None
    assert blind.semantic is None


def test_a_model_of_captions_alone_predicts_their_meaning() -> None:
    frames, text = video(9)
    backend = WholeClip(without=("appearance", "motion"))
    backend.parts["decoder"] = PartSpec(
        backend.parts["decoder"].inputs,
        tuple(o for o in backend.parts["decoder"].outputs if o.name == "semantic"),
    )
    predictor = Predictor(backend, T)
    assert step(predictor, frames[:3], None) is None
    prediction = step(predictor, frames[3:], text[T:])
    assert prediction is not None
    assert prediction.next_frame is None
    assert prediction.semantic is not None
    assert prediction.semantic.shape == (5, S)
    assert backend.images == {"decoder": 5}


def test_too_few_captions_are_a_bug_that_shows() -> None:
    frames, text = video(8)
    with pytest.raises(ValueError, match="4 clips need as many embeddings"):
        step(Predictor(WholeClip(), T), frames, text[:1])


@pytest.mark.parametrize("at", [1, 3, 4, 8, 11])
def test_state_continues_to_the_same_bits(at: int) -> None:
    frames, text = video(16)
    whole = Predictor(WholeClip(last_frame=True), T)
    step(whole, frames[:at], text[at - max(0, at - T) : at])
    again = Predictor(WholeClip(last_frame=True), T)
    again.restore(whole.state())
    a, b = (step(p, frames[at:], text[max(at, T) :]) for p in (whole, again))
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(a.next_frame, b.next_frame)


def test_memory_does_not_grow_with_the_video() -> None:
    def kept(n: int) -> int:
        frames, text = video(n)
        predictor = Predictor(WholeClip(), T)
        for start in range(0, n, 8):
            stop = min(start + 8, n)
            step(predictor, frames[start:stop], text[max(start, T) : stop])
        # Arrays that are views keep what they look into alive.
        assert all(array.base is None for array in predictor.state().values())
        return sum(array.nbytes for array in predictor.state().values())

    assert kept(16) == kept(96)
    lengths = Predictor(WholeClip(), T)
    frames, text = video(20)
    step(lengths, frames, text[T:])
    assert {k: len(v) for k, v in lengths.state().items()} == {
        "frame": T,
        "tokens": T,
        "skip": T,
        "motion": T - 1,
    }
