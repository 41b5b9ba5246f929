"""Memory that behaves as a device's, and backends whose arrays stay there."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pytest

from sfn_rt.backends.base import PartSpec, TensorSpec
from sfn_rt.backends.device import ALIGNMENT, Buffer, DeviceBackend, HostMemory, output_shapes
from sfn_rt.backends.fake_device import RecordingMemory
from sfn_rt.exceptions import BackendError


class Doubler(DeviceBackend):
    """y = 2 x + a constant row, at most three rows at once."""

    name = "doubler"
    max_batch = 3
    parts: Mapping[str, PartSpec] = {
        "part": PartSpec(
            (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("row", "float32", (2,))),
            (TensorSpec("y", "float32", ("batch", 2)), TensorSpec("n", "float32", ("batch",))),
        )
    }

    def __init__(self) -> None:
        super().__init__(HostMemory())
        self.batches: list[int] = []

    def run(self, part: str, feeds: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        memory = self.memory
        assert isinstance(memory, HostMemory)
        x, row = memory.array(feeds["x"]), memory.array(feeds["row"])
        self.batches.append(len(x))
        if "y" in outputs:
            memory.array(outputs["y"])[:] = 2 * x + row
        if "n" in outputs:
            memory.array(outputs["n"])[:] = len(x)


def test_a_buffer_knows_its_parts() -> None:
    buffer = Buffer(1000, (4, 3, 2), "float16")
    assert (buffer.nbytes, buffer.row_bytes) == (48, 12)
    assert buffer.rows(1, 3) == Buffer(1012, (2, 3, 2), "float16")
    assert buffer.view(2, 12) == Buffer(1000, (2, 12), "float16")
    for wrong in (lambda: buffer.rows(3, 5), lambda: buffer.view(5, 5)):
        with pytest.raises(AssertionError):
            wrong()


def test_up_and_down_and_counted() -> None:
    memory = HostMemory()
    buffer = memory.empty((3, 2), "float32")
    assert buffer.pointer % ALIGNMENT == 0
    np.testing.assert_array_equal(memory.download(buffer), np.zeros((3, 2), np.float32))
    host = np.arange(6, dtype=np.float32).reshape(3, 2)
    memory.upload(host, buffer)
    host[:] = 9  # the device has its own
    down = memory.download(buffer)
    np.testing.assert_array_equal(down, np.arange(6).reshape(3, 2))
    memory.zero(buffer.rows(1, 2))
    assert memory.download(buffer).sum() == 0 + 1 + 4 + 5
    assert down.sum() == 15  # what came down belongs to the caller
    assert (memory.counts.uploads, memory.counts.downloads) == (1, 3)
    with pytest.raises(AssertionError):
        memory.upload(host[:, :1], buffer.rows(0, 1))  # not contiguous


def test_copies_rows_that_lie_apart() -> None:
    memory = HostMemory()
    source, to = memory.empty((4, 4), "uint8"), memory.empty((4, 2), "uint8")
    memory.upload(np.arange(16, dtype=np.uint8).reshape(4, 4), source)
    memory.copy(source.pointer + 1, to.pointer, width=2, rows=4, source_pitch=4)
    np.testing.assert_array_equal(
        memory.download(to), np.arange(16).reshape(4, 4)[:, 1:3].astype(np.uint8)
    )
    memory.copy(to.pointer, source.pointer, width=1, rows=3, source_pitch=2, to_pitch=4)
    np.testing.assert_array_equal(memory.download(source)[:, 0], [1, 5, 9, 12])


@pytest.mark.parametrize("rows", [5, 400])
def test_a_copy_past_the_end_is_found(rows: int) -> None:
    memory = HostMemory()
    source, to = memory.empty((4, 4), "uint8"), memory.empty((500, 4), "uint8")
    with pytest.raises(AssertionError, match="bytes from 0 of 16"):
        memory.copy(source.pointer, to.pointer, width=4, rows=rows)
    memory.free(source)
    with pytest.raises(AssertionError):
        memory.zero(source)
    memory.close()
    memory.free(to)  # late, by a finalizer: nothing is there any more


def test_every_device_backend_is_a_plain_one() -> None:
    x = np.arange(14, dtype=np.float32).reshape(7, 2)
    row = np.array([1, -1], np.float32)
    with Doubler() as backend:
        for _ in range(2):
            results = backend.infer("part", {"x": x[:, ::-1], "row": row}, ["y"])
            np.testing.assert_array_equal(results["y"], 2 * x[:, ::-1] + row)
        assert backend.batches == [3, 3, 1] * 2
        both = backend.infer("part", {"x": x[:2], "row": row})
        assert both["n"].tolist() == [2, 2]


def test_infer_keeps_its_memory() -> None:
    """A new array of the device is taken only where the last one is too small."""
    taken: list[tuple[int, ...]] = []

    class Counting(HostMemory):
        def empty(self, shape: tuple[int, ...], dtype: str) -> Buffer:
            taken.append(shape)
            return super().empty(shape, dtype)

    backend = Doubler()
    backend.memory = Counting()
    row = np.zeros(2, np.float32)
    for n in (2, 1, 2, 3, 1):
        backend.infer("part", {"x": np.ones((n, 2), np.float32), "row": row}, ["y"])
    assert taken == [(2, 2), (2,), (2, 2), (3, 2), (3, 2)]


def test_an_output_of_unknown_size_is_refused() -> None:
    spec = PartSpec.of({"x": ("batch", 2)}, {"y": ("batch", "found")})
    with pytest.raises(BackendError, match="no input tells how large 'found' is; run this part"):
        output_shapes("gpu", "part", spec, {"x": np.zeros((1, 2), np.float32)})


def test_recorded_work_is_done_again_where_it_was() -> None:
    memory = RecordingMemory()
    a, b, c = (memory.empty((1,), "float32") for _ in range(3))
    targets: Sequence[Buffer] = (b, b, b)

    def add_up(to: Buffer) -> None:
        memory.copy(a.pointer, to.pointer, width=4)

    host = np.zeros(1, np.float32)
    memory.upload(host, a)
    host[0] = 7
    assert memory.download(a)[0] == 7  # it was read late
    for value, to in zip((1, 2, 3), targets, strict=True):
        memory.upload(np.array([value], np.float32), a)
        memory.replay("key", lambda to=to: add_up(to))
        assert memory.download(b)[0] == value
    assert (memory.counts.captures, memory.counts.replays) == (1, 2)
    memory.replay("key", lambda: add_up(c))  # what is recorded does not look at this any more
    assert memory.download(c)[0] == 0
    memory.forget()
    memory.replay("key", lambda: add_up(c))
    assert memory.download(c)[0] == 3


def test_what_cannot_be_recorded_is_found() -> None:
    for wrong in (
        lambda memory: memory.empty((1,), "uint8"),
        lambda memory: memory.download(memory.first),
        lambda memory: memory.upload(np.zeros(1, np.float32), memory.first),
    ):
        memory = RecordingMemory()
        memory.first = memory.empty((1,), "float32")  # type: ignore[attr-defined]
        memory.replay("key", lambda: None)
        with pytest.raises(AssertionError, match="recorded"):
            memory.replay("key", partial(wrong, memory))
