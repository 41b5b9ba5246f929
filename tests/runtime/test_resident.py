"""A stream kept on a device finds what the host finds, and little crosses."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sfn_rt.backends.base import Array, Arrays, CheckedBackend, PartSpec
from sfn_rt.backends.device import Buffer, HostMemory
from sfn_rt.backends.fake_device import OnHost
from sfn_rt.backends.ort import OrtBackend, OrtDevice
from sfn_rt.bundle import load_bundle
from sfn_rt.device_networks import DeviceNetworks
from sfn_rt.evidence import EvidenceStream, FrameEvidence
from sfn_rt.exceptions import BackendError
from sfn_rt.frames import Frame, open_source
from sfn_rt.model import open_model
from sfn_rt.networks import Errors, HostNetworks, NetworkSettings
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.preprocess import Preprocessing
from sfn_rt.resident import Measured, Resident

T, N, H, W, S = 4, 6, 16, 24, 5  # observed frames, patches, model's size, text width
SETTINGS = NetworkSettings(
    observed=T,
    preprocessing=Preprocessing(height=H, width=W),
    visual=VisualConfig(box_height=4, box_width=5, pixel_error=0.3, grid_height=3, grid_width=4),
    n_windows=1,
)
WIDTHS = {"appearance": 8, "motion": 5, "vision": 9}  # of tokens; 5 floats begin anywhere


class Mixing(CheckedBackend):
    """Every number it gives depends on every number it is fed, and on where that stands."""

    name = "mixing"

    def __init__(
        self, *, without: Sequence[str] = (), last_frame: bool = False, vision: bool = False
    ) -> None:
        image = ("batch", 3, H, W)
        d, m, v = (WIDTHS[name] for name in ("appearance", "motion", "vision"))
        decoder: dict[str, tuple[int | str, ...]] = {
            "appearance": ("batch", T, 1 + N, d),
            "motion": ("batch", T - 1, 1 + N, m),
            "text": ("batch", S),
            "skip": ("batch", N, d),
            "last_frame": image,
        }
        gone = {*without, *(("skip",) if "appearance" in without else ())}
        gone |= set() if last_frame else {"last_frame"}
        kept = {name: shape for name, shape in decoder.items() if name not in gone}
        given = {"next_frame": image, "semantic": ("batch", S), "distilled": ("batch",)}
        seen = {"frame": image}
        self.parts: dict[str, PartSpec] = {}
        if vision:
            seen = dict.fromkeys(("hidden", "embedded"), ("batch", 1 + N, v))
            self.parts["vision"] = PartSpec.of({"frame": image}, seen)
        self.parts |= {
            "appearance": PartSpec.of(
                seen, {"tokens": ("batch", 1 + N, d), "skip": ("batch", N, d)}
            ),
            "motion": PartSpec.of({"difference": image}, {"tokens": ("batch", 1 + N, m)}),
            "decoder": PartSpec.of(kept, {k: s for k, s in given.items() if k not in gone}),
        }
        self.parts = {name: spec for name, spec in self.parts.items() if name not in without}

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        outputs = {}
        for name in names:
            shape = [int(axis) for axis in self.parts[part].output(name).shape[1:]]
            total = np.zeros((len(next(iter(feeds.values()))), int(np.prod(shape))))
            for fed, array in feeds.items():
                flat = array.reshape(len(array), -1).astype(np.float64)
                rng = np.random.default_rng([len(part), len(name), len(fed)])
                total += (
                    flat
                    @ rng.standard_normal((flat.shape[1], 1))
                    * rng.standard_normal((1, total.shape[1]))
                )
            mixed = np.tanh(total / 30)
            outputs[name] = mixed.reshape(-1, *shape).astype(np.float32)
        return outputs


def cameras(
    n: int, streams: int = 1, sizes: Sequence[tuple[int, int]] = ((32, 48),)
) -> list[Array]:
    """(n, H, W, 3) of each stream."""
    rng = np.random.default_rng(1)
    made = []
    for stream in range(streams):
        coarse = rng.integers(0, 256, (n, 4, 6, 3), dtype=np.uint8)
        height, width = sizes[stream % len(sizes)]
        made.append(coarse.repeat(height // 4, axis=1).repeat(width // 6, axis=2))
    return made


def captions(n: int, streams: int, width: int = S) -> Array:
    return np.random.default_rng(2).standard_normal((streams, n, width)).astype(np.float32)


def blocks(n: int, b: int) -> Iterator[tuple[int, int]]:
    yield from pairwise([*range(0, n, b), n])


def host_errors(
    networks: HostNetworks, images: Array, text: Array, b: int
) -> list[tuple[Errors | None, int]]:
    """Of each block, and its p."""
    found = []
    for start, stop in blocks(len(images), b):
        frames = [Frame(i, i / 25, images[i]) for i in range(start, stop)]
        pictures = networks.look(frames)
        seen = networks.encode(pictures, change=True, hidden=True)
        n = seen.n_predicted
        found.append((networks.decode(seen, pictures, text[stop - n : stop] if n else None), n))
    return found


def assert_same(measured: Measured, stream: int, expected: Errors | None, n: int) -> None:
    assert measured.n_predicted[stream] == n
    if expected is None:
        return
    visual = measured.visual(stream)
    assert len(visual) == len(expected.visual)
    for actual, wanted in zip(visual, expected.visual, strict=True):
        assert actual.evidence == pytest.approx(wanted.evidence, abs=1e-5)
        assert actual.box == pytest.approx(wanted.box)
        np.testing.assert_allclose(actual.heat, wanted.heat, atol=2e-3)  # float16
    for name in ("semantic", "distilled"):
        wanted = getattr(expected, name)
        actual = measured.column(name, stream)
        assert (actual is None) == (wanted is None)
        if wanted is not None and actual is not None:
            np.testing.assert_allclose(actual, wanted, atol=1e-5)


MODELS = {
    "all": {},
    "no motion": {"without": ("motion",)},
    "no appearance": {"without": ("appearance",)},
    "no picture": {"without": ("next_frame",)},
    "no text": {"without": ("text", "semantic")},
    "no student": {"without": ("distilled",)},
    "picture alone": {"without": ("text", "semantic", "distilled", "motion")},
    "last frame": {"last_frame": True},
    "vision": {"vision": True, "last_frame": True},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("streams", "b"), [(1, 1), (1, 8), (3, 1), (3, 3), (2, 8)])
def test_equals_the_host(model: str, streams: int, b: int) -> None:
    n = 21  # the last block is shorter
    images, text = cameras(n, streams), captions(n, streams)
    with OnHost(Mixing(**MODELS[model]), SETTINGS, max_batch=5) as backend:
        resident = Resident(backend, SETTINGS, streams=streams, block=b)
        measured = [
            resident.step([image[start:stop] for image in images], text[:, start:stop])
            for start, stop in blocks(n, b)
        ]
    assert {name for m in measured for name in m.layout} == set(measured[0].layout)
    for stream in range(streams):
        host = HostNetworks(Mixing(**MODELS[model]), SETTINGS)
        expected = host_errors(host, images[stream], text[stream], b)
        for found, (errors, p) in zip(measured, expected, strict=True):
            assert_same(found, stream, errors, p)


@pytest.mark.parametrize("b", [1, 2, 5])
def test_in_two_halves_and_what_is_shown(b: int) -> None:
    """One stream behind the seam of the evidence: shown, or not shown, the errors are the same."""
    n = 23
    (images,), (text,) = cameras(n), captions(n, 1)
    host = HostNetworks(Mixing(vision=True), SETTINGS)
    with OnHost(Mixing(vision=True), SETTINGS) as backend:
        device = DeviceNetworks(backend, SETTINGS, b)
        for turn, (start, stop) in enumerate(blocks(n, b)):
            frames = [Frame(i, i / 25, images[i]) for i in range(start, stop)]
            change, hidden = turn % 2 == 0, turn % 3 == 0
            pictures, raw = host.look(frames), device.look(frames)
            expected = host.encode(pictures, change=change, hidden=hidden)
            seen = device.encode(raw, change=change, hidden=hidden)
            p = expected.n_predicted
            assert seen.n_predicted == p
            assert (seen.hidden is not None) == hidden
            if hidden:
                np.testing.assert_allclose(seen.hidden, expected.hidden, atol=1e-5)
            if p and change:
                np.testing.assert_allclose(seen.tokens, expected.tokens, atol=1e-5)
                np.testing.assert_allclose(seen.difference, expected.difference, atol=1e-5)
            if turn == 6:  # nobody decodes it; the next blocks go on from there all the same
                continue
            given = text[stop - p : stop] if p else None
            errors, wanted = device.decode(seen, raw, given), host.decode(expected, pictures, given)
            assert (errors is None) == (wanted is None)
            if errors is not None and wanted is not None:
                np.testing.assert_allclose(errors.semantic, wanted.semantic, atol=1e-5)
                assert [e.evidence for e in errors.visual] == pytest.approx(
                    [e.evidence for e in wanted.visual], abs=1e-5
                )
        states = host.state(), device.state()
        assert states[0].keys() == states[1].keys()
        for name, array in states[0].items():
            np.testing.assert_allclose(states[1][name], array, atol=1e-5)


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 11])
def test_continues_where_the_host_stopped_and_the_other_way_round(cut: int) -> None:
    (images,), text = cameras(20), captions(20, 1)
    straight = host_errors(HostNetworks(Mixing(), SETTINGS), images, text[0], 1)
    first = HostNetworks(Mixing(), SETTINGS)
    host_errors(first, images[:cut], text[0], 3)
    with OnHost(Mixing(), SETTINGS) as backend:
        resident = Resident(backend, SETTINGS, streams=2, block=4)
        resident.step([images[8:12], images[3:7]], captions(4, 2))  # of another video
        resident.restore(first.state(), 1)
        for i in range(cut, 15):
            shown = [images[:1], images[i : i + 1]]
            found = resident.step(shown, text[:, i : i + 1].repeat(2, axis=0))
            assert_same(found, 1, *straight[i])
        assert resident.state(0)["frame"].shape == (T, 3, H, W)
        last = HostNetworks(Mixing(), SETTINGS)
        last.restore(resident.state(1))
    rest = host_errors(last, images[15:], text[0, 15:], 1)
    for (errors, _), (wanted, _) in zip(rest, straight[15:], strict=True):
        assert errors is not None
        assert wanted is not None
        np.testing.assert_allclose(errors.semantic, wanted.semantic, atol=1e-5)


@pytest.mark.parametrize("decoded", [True, False])
@pytest.mark.parametrize("b", [1, 3])
def test_the_state_after_every_block_is_the_hosts(b: int, decoded: bool) -> None:
    (images,), (text,) = cameras(10), captions(10, 1)
    host = HostNetworks(Mixing(), SETTINGS)
    with OnHost(Mixing(), SETTINGS) as backend:
        resident = Resident(backend, SETTINGS, block=b)
        for start, stop in blocks(10, b):
            host_errors(host, images[start:stop], text[start:stop], b)
            resident.encode([images[start:stop]])
            if decoded:
                resident.decode(text[None, start:stop])
            state, expected = resident.state(), host.state()
            assert state.keys() == expected.keys()
            for name, array in expected.items():
                assert state[name].shape == array.shape
                np.testing.assert_allclose(state[name], array, atol=1e-5)


def test_putting_one_stream_back_leaves_the_others_where_they_are() -> None:
    images, text = cameras(12, 2), captions(12, 2)
    with OnHost(Mixing(), SETTINGS) as backend:
        resident = Resident(backend, SETTINGS, streams=2, block=3)
        resident.step([image[:3] for image in images], text[:, :3])
        resident.encode([image[3:6] for image in images])  # nobody decodes these
        resident.restore({}, 1)
        found = [
            resident.step([image[i : i + 3] for image in images], text[:, i : i + 3])
            for i in (6, 9)
        ]
    for stream, begins in enumerate((0, 6)):
        host = HostNetworks(Mixing(), SETTINGS)
        expected = host_errors(host, images[stream][begins:], text[stream][begins:], 3)[-2:]
        for measured, (errors, p) in zip(found, expected, strict=True):
            assert_same(measured, stream, errors, p)


def test_a_state_of_another_model_is_refused() -> None:
    with OnHost(Mixing(), SETTINGS) as backend:
        resident = Resident(backend, SETTINGS)
        with pytest.raises(ValueError, match=r"frame must be up to 4 of \(3, 16, 24\), got \(5,"):
            resident.restore({"frame": np.zeros((5, 3, H, W), np.float32)})
        resident.restore({})
        assert resident.state() == {}


def test_one_upload_and_one_download_a_step() -> None:
    n, streams = 40, 3
    images, text = cameras(n, streams), captions(n, streams)
    with OnHost(Mixing(), SETTINGS) as backend:
        resident = Resident(backend, SETTINGS, streams=streams, block=2)
        counts = backend.memory.counts
        crossed = []
        for start in range(0, n, 2):
            before = counts.uploads, counts.downloads
            step = slice(start, start + 2)
            resident.step([image[step] for image in images], text[:, step])
            crossed.append((counts.uploads - before[0], counts.downloads - before[1]))
    assert crossed[0] == (1 + 2, 1)  # and the two matrices of the cameras' size
    assert set(crossed[1:]) == {(1, 1)}
    assert counts.captures == 1
    assert counts.replays == n // 2 - 1


def test_captions_that_did_not_change_are_not_sent_again() -> None:
    (images,), text = cameras(8), captions(1, 1)
    with OnHost(Mixing(), SETTINGS) as backend:
        resident = Resident(backend, SETTINGS, block=1)
        counts = backend.memory.counts
        uploads, semantic = [], []
        for i in range(8):
            seen = resident.encode([images[i : i + 1]], change=True)
            before = counts.uploads
            column = resident.decode(text if i < 6 else -text).column("semantic")
            uploads.append(counts.uploads - before)
            semantic.append(column)
        assert seen.tokens is not None
    # The first four frames show nothing, so all of their block crosses with their captions.
    assert uploads[4:] == [0, 0, 1, 0]
    (whole,) = captions(1, 1).repeat(8, axis=1)
    whole[6:] *= -1
    for i, (errors, _) in enumerate(
        host_errors(HostNetworks(Mixing(), SETTINGS), images, whole, 1)
    ):
        if errors is not None:
            np.testing.assert_allclose(semantic[i], errors.semantic, atol=1e-5)


def test_the_next_block_is_written_while_the_device_works() -> None:
    n = 12
    images, text = cameras(n, 2), captions(n, 2)
    with OnHost(Mixing(), SETTINGS) as backend:
        plain = Resident(backend, SETTINGS, streams=2, block=3)
        ahead = Resident(backend, SETTINGS, streams=2, block=3)
        steps = [([i[a:z] for i in images], text[:, a:z]) for a, z in blocks(n, 3)]
        expected = [plain.step(*step).rows for step in steps]
        found = []
        ahead.stage(*steps[0])
        for following in [*steps[1:], None]:
            ahead.launch()
            if following is not None:
                ahead.stage(*following)
            found.append(ahead.collect().rows)
    np.testing.assert_array_equal(np.concatenate(found, 1), np.concatenate(expected, 1))


def test_cameras_of_several_sizes_and_such_that_change() -> None:
    """Two of four are alike; then all are larger, so everything moves; then as before."""
    n, phase = 24, 8
    small = cameras(n, 4, ((32, 48), (16, 24), (32, 48), (20, 36)))
    large = cameras(n, 4, ((64, 96), (32, 48), (64, 96), (16, 24)))
    text = captions(1, 4).repeat(n, axis=1)  # uploaded once, and again when its place moves
    shown = [small, large, small]
    with OnHost(Mixing(), SETTINGS) as backend:
        resident = Resident(backend, SETTINGS, streams=4, block=2)
        measured = []
        for start, stop in blocks(n, 2):
            images = [image[start:stop] for image in shown[start // phase]]
            measured.append(resident.step(images, text[:, start:stop]))
    for stream in range(4):
        host, expected = HostNetworks(Mixing(), SETTINGS), []
        for i, cameras_then in enumerate(shown):
            then = slice(i * phase, (i + 1) * phase)
            expected += host_errors(host, cameras_then[stream][then], text[stream][then], 2)
        for found, (errors, p) in zip(measured, expected, strict=True):
            assert_same(found, stream, errors, p)


def test_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[int, int] = {}
    left = []
    real_empty, real_free = HostMemory.empty, HostMemory.free

    def empty(self: HostMemory, shape: tuple[int, ...], dtype: str) -> Buffer:
        buffer = real_empty(self, shape, dtype)
        held[buffer.pointer] = buffer.nbytes
        return buffer

    def free(self: HostMemory, buffer: Buffer) -> None:
        held.pop(buffer.pointer, None)
        real_free(self, buffer)

    monkeypatch.setattr(HostMemory, "empty", empty)
    monkeypatch.setattr(HostMemory, "free", free)
    sizes = [(96 - 4 * k, 144 - 6 * k) for k in range(1, 13)]
    with OnHost(Mixing(), SETTINGS) as backend:
        for _ in range(3):  # videos, one after the other
            resident = Resident(backend, SETTINGS, streams=2, block=4)
            arrays = []
            for size in sizes * 2:  # more sizes than matrices are kept of
                resident.step(cameras(4, 2, (size,)), captions(4, 2))
                arrays.append(len(held))
            assert set(arrays[8:]) == {arrays[8]}
            del resident
            gc.collect()
            left.append(len(held))
    assert left == [0, 0, 0]


def test_wrong_pictures_and_captions() -> None:
    images, text = cameras(3, 2), captions(3, 2)
    with OnHost(Mixing(), SETTINGS) as backend:
        resident = Resident(backend, SETTINGS, streams=2, block=2)
        with pytest.raises(ValueError, match="2 streams expected, got 1"):
            resident.step(images[:1], text)
        with pytest.raises(ValueError, match="a block has 1 to 2 frames, got 3"):
            resident.step(images, text)
        two = [image[:2] for image in images]
        with pytest.raises(ValueError, match=r"uint8\[2, height, width, 3\], got float32\[2, 32"):
            resident.step([two[0], two[1].astype(np.float32)], text[:, :2])
        with pytest.raises(ValueError, match="the model takes captions"):
            resident.step(two)


def test_without_the_device_graphs() -> None:
    backend = OnHost(Mixing(), SETTINGS)
    backend.parts = {name: s for name, s in backend.parts.items() if name != "measure"}
    with pytest.raises(BackendError, match="no graph 'measure', which keeps a stream on the"):
        Resident(backend, SETTINGS)


# --- the real graphs, on ONNX Runtime


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> tuple[Path, NetworkSettings]:
    manifest = load_bundle(tiny_bundle).manifest
    assert manifest.semantics is not None
    settings = NetworkSettings(
        observed=manifest.observed,
        preprocessing=manifest.preprocessing,
        visual=VisualConfig(**manifest.visual),  # type: ignore[arg-type]
        n_windows=len(manifest.semantics.windows),
    )
    return tiny_bundle, settings


@pytest.mark.parametrize(("streams", "b"), [(1, 1), (1, 8), (3, 1), (3, 8), (3, 5)])
def test_onnx_graphs_on_the_device_equal_the_host(
    tiny: tuple[Path, NetworkSettings], streams: int, b: int
) -> None:
    path, settings = tiny
    bundle, n = load_bundle(path), 21
    semantics = bundle.manifest.semantics
    assert semantics is not None
    images = cameras(n, streams, ((40, 60), (32, 48)))
    text = captions(n, streams, semantics.embedded_width)
    with (
        OrtBackend.from_bundle(bundle, threads=1) as plain,
        OrtDevice.from_bundle(bundle, provider="cpu", threads=1) as device,
    ):
        resident = Resident(device, settings, streams=streams, block=b)
        measured = [
            resident.step([image[start:stop] for image in images], text[:, start:stop])
            for start, stop in blocks(n, b)
        ]
        steps = len(measured)
        sizes = min(streams, 2)
        assert device.memory.counts.uploads == steps + 2 * sizes
        assert device.memory.counts.downloads == steps
        for stream in range(streams):
            host = HostNetworks(plain, settings)
            expected = host_errors(host, images[stream], text[stream], b)
            for found, (errors, p) in zip(measured, expected, strict=True):
                assert_same(found, stream, errors, p)


def test_the_evidence_of_a_video_is_the_same(tiny_bundle: Path, tiny_data: Path) -> None:
    """The whole stream, captions and all, and one that goes on where the other stopped."""
    video = tiny_data / "testing" / "frames" / "01"
    with open_source(video) as source:
        frames = list(source)
    with (
        open_model(tiny_bundle, threads=1) as model,
        OrtDevice.from_bundle(model.bundle, provider="cpu", threads=1) as backend,
    ):
        device = replace(model.perception, backend=backend)
        host, other = EvidenceStream(model.perception), EvidenceStream(device)
        resumed = None
        for start, stop in blocks(len(frames), 8):
            looked = [stream.look(frames[start:stop]) for stream in (host, other)]
            expected = host.predict(looked[0])
            assert_rows(other.predict(looked[1]), expected)
            if resumed is not None:
                assert_rows(resumed.predict(resumed.look(frames[start:stop])), expected)
            else:
                resumed = EvidenceStream(device)
                resumed.restore(*host.state(looked[0]))
        assert expected[-1].terms.keys() == {"visual", "semantic"}


def assert_rows(actual: Sequence[FrameEvidence], expected: Sequence[FrameEvidence]) -> None:
    for row, wanted in zip(actual, expected, strict=True):
        assert row.terms.keys() == wanted.terms.keys()
        assert dict(row.terms) == pytest.approx(dict(wanted.terms), abs=1e-5)
        assert (row.index, row.caption, row.box) == (wanted.index, wanted.caption, wanted.box)
