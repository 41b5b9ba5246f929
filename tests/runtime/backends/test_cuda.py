"""A GPU's memory: order, copies, recordings, and what is said where there is no GPU to use."""

import re
from inspect import isfunction

import numpy as np
import pytest

from fake_gpu import ALIGNMENT, Error, FakeCuda
from sfn_rt.backends import cuda
from sfn_rt.backends.cuda import CudaMemory, find_gpu
from sfn_rt.exceptions import BackendError

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "_runtime", lambda: fake)
    return fake


@pytest.fixture
def memory(gpu: FakeCuda) -> CudaMemory:
    return CudaMemory()


# --- what is found, and what is not


def test_a_gpu_says_what_it_is(memory: CudaMemory) -> None:
    assert memory.gpu.architecture == "sm_89"
    assert (memory.name, memory.device) == ("Fake RTX", ("cuda", 0))
    assert memory.stream != 0  # not the default stream, which waits for all others


@pytest.mark.parametrize(
    ("found", "driver", "message"),
    [
        (
            Error.cudaErrorInsufficientDriver,
            0,
            r"no NVIDIA driver is on this machine; CUDA 13.4 needs driver 580.65.06 or newer; "
            r"without an NVIDIA GPU use --backend cpu",
        ),
        (
            Error.cudaErrorInsufficientDriver,
            12020,
            r"driver is too old: it runs CUDA 12.2, CUDA 13.4 needs driver 580.65.06 or newer; "
            r"update it \(on a Jetson: JetPack\)",
        ),
        (Error.cudaErrorNoDevice, 13040, r"the driver sees none; .*docker run --gpus all"),
        (
            Error.cudaErrorSystemDriverMismatch,
            13040,
            r"cudaErrorSystemDriverMismatch \(803\), the text of 803; .* `nvidia-smi` must work",
        ),
    ],
)
def test_no_gpu_to_use(gpu: FakeCuda, found: Error, driver: int, message: str) -> None:
    gpu.found, gpu.driver = found, driver
    with pytest.raises(BackendError, match=message):
        find_gpu()


def test_a_gpu_that_is_not_there(gpu: FakeCuda) -> None:
    with pytest.raises(BackendError, match="no GPU 3: this machine has 1, numbered from 0"):
        find_gpu(3)


def test_this_machine_gives_memory_or_says_why() -> None:
    """The real cuda-python: on a machine without a GPU its answer becomes a sentence."""
    try:
        CudaMemory().close()
    except BackendError as error:
        assert re.search("driver|no GPU|cuda-python", str(error))  # noqa: PT017


def test_cuda_python_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"cuda-python cannot be imported .*'sfn-rt\[trt\]'"):
        find_gpu()


def test_every_call_of_the_fake_is_one_of_cuda_python() -> None:
    """With as many arguments: the fake does not take what the real one would refuse."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    functions = [name for name, each in vars(FakeCuda).items() if isfunction(each)]
    functions = [name for name in functions if name.startswith("cuda")]
    assert len(functions) > 20
    for name in functions:
        signature = getattr(runtime, name).__doc__.splitlines()[0]
        inside = signature[signature.index("(") + 1 : signature.rindex(")")]
        expected = len([each for each in inside.split(",") if each.strip()])
        code = getattr(FakeCuda, name).__code__
        assert code.co_argcount - 1 == expected, (signature, code.co_varnames)
    for error in Error:
        assert int(getattr(runtime.cudaError_t, error.name)) == int(error)


# --- memory


def test_a_new_array_is_zeros_and_aligned(memory: CudaMemory) -> None:
    buffer = memory.empty((3, 5), "float32")
    assert buffer.pointer % ALIGNMENT == 0
    np.testing.assert_array_equal(memory.download(buffer), np.zeros((3, 5), np.float32))


def test_up_and_down(memory: CudaMemory) -> None:
    buffer = memory.empty((2, 3), "float32")
    memory.upload(X, buffer)
    np.testing.assert_array_equal(memory.download(buffer), X)
    np.testing.assert_array_equal(memory.download(buffer.rows(1, 2)), X[1:])
    assert (memory.counts.uploads, memory.counts.downloads) == (1, 2)


def test_an_upload_reads_the_host_when_its_turn_comes(memory: CudaMemory) -> None:
    staging = memory.pinned(X.nbytes).view(np.float32).reshape(2, 3)
    staging[:] = X
    buffer = memory.empty((2, 3), "float32")
    memory.upload(staging, buffer)
    staging[:] = 7  # too early: nobody has waited
    np.testing.assert_array_equal(memory.download(buffer), np.full_like(X, 7))


def test_an_array_under_way_is_kept_alive(memory: CudaMemory) -> None:
    buffer = memory.empty((100, 100), "float32")
    memory.upload(np.ones((100, 100), np.float32), buffer)  # held by nobody here
    np.ones((100, 100), np.float32) * 3
    assert memory.download(buffer).mean() == 1


def test_rows_are_copied_on_the_device(memory: CudaMemory) -> None:
    buffer, to = memory.empty((2, 3), "float32"), memory.empty((2, 2), "float32")
    memory.upload(X, buffer)
    memory.copy(buffer.pointer + 4, to.pointer, width=8, rows=2, source_pitch=12, to_pitch=8)
    np.testing.assert_array_equal(memory.download(to), X[:, 1:])


def test_memory_that_is_full_says_so(gpu: FakeCuda, memory: CudaMemory) -> None:
    gpu.total = 10_000_000
    memory.empty((1_000_000,), "float32")
    message = (
        r"Fake RTX: no room for 8 MB \[2000000\]: 6 of 10 MB are free; take fewer streams or a "
        r"smaller block"
    )
    with pytest.raises(BackendError, match=message):
        memory.empty((2_000_000,), "float32")
    memory.empty((1_000_000,), "float32")  # what fits still does


def test_everything_is_given_back(gpu: FakeCuda, memory: CudaMemory) -> None:
    kept = memory.empty((4,), "float32")
    memory.free(memory.empty((4,), "float32"))
    memory.pinned(16)
    assert len(gpu.memory) == 1
    memory.close()
    assert not gpu.memory
    assert not gpu.pinned
    assert not gpu.streams
    memory.free(kept)  # went with everything else
    memory.close()


# --- recordings


class Doubling:
    """b <- a, c <- b: counts how often the work is put together."""

    def __init__(self, memory: CudaMemory) -> None:
        self.memory, self.calls = memory, 0
        self.a, self.b, self.c = (memory.empty((2, 3), "float32") for _ in range(3))

    def __call__(self) -> None:
        self.calls += 1
        self.memory.copy(self.a.pointer, self.b.pointer, width=24)
        self.memory.copy(self.b.pointer, self.c.pointer, width=24)


def test_work_is_done_once_a_call_and_recorded_the_second_time(memory: CudaMemory) -> None:
    work = Doubling(memory)
    for turn in range(4):
        memory.upload(X + turn, work.a)
        memory.zero(work.c)
        memory.replay("key", work)
        np.testing.assert_array_equal(memory.download(work.c), X + turn)
    assert work.calls == 2
    assert (memory.counts.captures, memory.counts.replays) == (1, 3)


def test_a_recording_keeps_its_addresses(memory: CudaMemory) -> None:
    work = Doubling(memory)
    memory.upload(X, work.a)
    memory.replay("key", work)
    memory.replay("key", work)
    recorded, work.c = work.c, memory.empty((2, 3), "float32")
    memory.zero(recorded)
    memory.replay("key", work)  # the same key promised the same addresses
    np.testing.assert_array_equal(memory.download(recorded), X)
    assert not memory.download(work.c).any()


def test_freed_memory_takes_the_recordings_with_it(memory: CudaMemory) -> None:
    work = Doubling(memory)
    memory.upload(X, work.a)
    for _ in range(2):
        memory.replay("key", work)
    memory.free(work.c)
    work.c = memory.empty((2, 3), "float32")
    for _ in range(3):
        memory.zero(work.c)
        memory.replay("key", work)
        np.testing.assert_array_equal(memory.download(work.c), X)
    assert memory.counts.captures == 2


def test_work_that_fails_while_it_is_recorded_leaves_the_stream_usable(memory: CudaMemory) -> None:
    work = Doubling(memory)
    memory.replay("key", work)

    def broken() -> None:
        work()
        raise BackendError("the engine refuses")

    with pytest.raises(BackendError, match="the engine refuses"):
        memory.replay("key", broken)
    memory.upload(X, work.a)
    memory.replay("key", work)
    np.testing.assert_array_equal(memory.download(work.c), X)


def test_waiting_inside_a_recording_is_refused(memory: CudaMemory) -> None:
    buffer = memory.empty((2, 3), "float32")
    memory.replay("key", lambda: None)
    with pytest.raises(BackendError, match="cudaErrorStreamCaptureUnsupported"):
        memory.replay("key", lambda: memory.download(buffer) and None)


def test_a_lost_gpu_is_one_sentence(gpu: FakeCuda, memory: CudaMemory) -> None:
    buffer = memory.empty((2, 3), "float32")
    gpu.memory.clear()  # behind its back
    with pytest.raises(BackendError) as caught:
        memory.download(buffer)
    assert str(caught.value) == (
        "the GPU failed in cudaStreamSynchronize: cudaErrorIllegalAddress (700), the text of 700; "
        "start again, and look at `nvidia-smi` and the system's log if it stays"
    )
    memory.close()  # says nothing more
