"""Workers: the same answers from another process, whatever happens to it on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sfn_rt.exceptions import BackendError, BundleError, InputError
from sfn_rt.frames import Frame
from sfn_rt.semantics.caption_text import NOTHING_SAID
from sfn_rt.semantics.captioner import Moment
from sfn_rt.semantics.lane import Held, Lane, LaneSettings, parse_policy
from sfn_rt.semantics.scene import Scene, Thing
from sfn_rt.semantics.worker import Answer, InlineWorker, Worker
from sfn_rt.semantics.worker_process import ProcessWorker

HERE = Path(__file__).parent
T = 4
PATIENCE_S = 20.0  # of a busy machine
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and /proc")


@pytest.fixture(autouse=True)
def _importable_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("captions")]


def frame(i: int, side: int = 3) -> Frame:
    return Frame(i, i / 25, np.full((side, side, 3), i, np.uint8))


def moment(t: int, side: int = 3, hidden: bool = False) -> Moment:
    frames = [frame(i, side) for i in range(t - T, t)]
    scenes = [Scene(9, 9, (Thing(1.0, 2.0, 3.0, 4.0, 12.0, 0.1, 0.0, 0.0),))]
    deep = np.full((T, 2, 3), t, np.float32) if hidden else None
    return Moment(t, t / 25, frames, scenes, deep)


def batch(*moments: Moment) -> list[tuple[int, Moment]]:
    return [(there.t, there) for there in moments]


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline, "not within the time that a busy machine may need"
        time.sleep(0.005)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# ---------------------------------------------------------------------------------- answers


def test_answers_from_the_other_process_are_those_of_the_describer() -> None:
    import lane_describers

    there = [moment(t, hidden=t == 9) for t in range(4, 12)]
    expected = [
        Answer((said.text,), said.cut) if said.text.strip() else Answer((NOTHING_SAID,), empty=True)
        for said in lane_describers.Plain().describe(there)
    ]
    with ProcessWorker(lane_describers.Plain) as worker:
        worker.submit(batch(*there))
        assert [worker.take(t, wait=True) for t in range(4, 12)] == expected
        assert worker.take(4, wait=True) is None, "an answer is given once"
        assert worker.take(99, wait=True) is None, "nobody asked"
        worker.submit(batch(there[0]))
        assert worker.take(4, wait=True) == Answer(("0..3 light 162 of 1",))
        assert (worker.restarts, worker.stopped) == (0, None)


def test_what_says_that_it_said_nothing_counts_as_empty() -> None:
    from lane_describers import Silent

    with ProcessWorker(Silent) as worker:
        worker.submit(batch(moment(5)))
        assert worker.take(5, wait=True) == Answer((NOTHING_SAID,), empty=True)


def test_asking_and_looking_never_wait_for_a_busy_process(tmp_path: Path) -> None:
    from lane_describers import Waiting

    with ProcessWorker(partial(Waiting, tmp_path)) as worker:
        worker.submit(batch(moment(4)))
        until(lambda: any(tmp_path.iterdir()))
        large = [moment(t, side=600) for t in range(10, 15)]  # 4 MB each; a pipe holds 64 KB
        start = time.perf_counter()
        for there in large:
            worker.submit(batch(there))
            assert worker.take(4, wait=False) is None
        assert time.perf_counter() - start < PATIENCE_S / 2  # it waits for longer than that
        worker.forget(range(11, 15))
        (tmp_path / "go").touch()
        assert worker.take(10, wait=True) is not None
        assert worker.take(11, wait=True) is None
        worker.submit(batch(moment(40)))
        assert worker.take(40, wait=True) is not None
        described = {file.name for file in tmp_path.glob("described-*")}
        assert described == {"described-4", "described-10", "described-40"}


def test_closing_does_not_wait_for_a_busy_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lane_describers import Waiting

    worker = ProcessWorker(partial(Waiting, tmp_path))
    worker.submit(batch(moment(4)))
    until(lambda: any(tmp_path.iterdir()))
    started: list[int] = []
    monkeypatch.setattr("sfn_rt.semantics.worker_process._Child", started.append)
    worker.close()
    assert gone(worker.pid)
    assert not started, "a process that was ended on purpose is not started again"
    assert worker.take(4, wait=True) is None
    assert (worker.restarts, worker.stopped) == (0, None)
    worker.close()


def test_the_process_steps_back_for_scoring(tmp_path: Path) -> None:
    from lane_describers import Plain

    with ProcessWorker(Plain, threads=3) as worker:
        status = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        assert int(status[16]) == 19  # nice
        assert os.getpgid(worker.pid) != os.getpgid(0), "Ctrl-C would reach it"
        assert os.getsid(worker.pid) == os.getsid(0), "its priority would not be weighed with ours"
        assert int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text()) == 500
        told = Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
        assert {b"OMP_NUM_THREADS=3", b"OPENCV_FOR_THREADS_NUM=3"} <= set(told)


# ------------------------------------------------------------------------------- with a lane


def lane_of(worker: Worker, policy: str, **changes: object) -> Lane:
    values = {"observed": T, "stride": 2} | changes
    return Lane(LaneSettings(policy=parse_policy(policy), **values), worker)  # type: ignore[arg-type]


def through(lane: Lane, n: int = 60, size: int = 8) -> list[Held]:
    held = []
    for first in range(T, n, size):
        block = range(first, min(n, first + size))
        for t in block:
            lane.offer(t, t / 25, partial(moment, t))
        lane.flush()
        held += [lane.held(t, t / 25) for t in block]
    return held


@pytest.mark.parametrize("latency", [0, 3, 20])
def test_results_do_not_depend_on_the_speed_of_the_process(latency: int) -> None:
    from lane_describers import Plain, Slow

    results = []
    for describer in (Plain, Slow, partial(Slow, 0.1)):
        with ProcessWorker(describer) as worker:
            lane = lane_of(worker, "every:2", latency=latency)
            held = through(lane)
            results.append((held, lane.counts))
            lane.close()
    assert results[0] == results[1] == results[2]
    assert results[0][1].made >= 2


def test_live_a_slow_process_drops_and_holds_nobody_up(tmp_path: Path) -> None:
    from lane_describers import Waiting

    with ProcessWorker(partial(Waiting, tmp_path)) as worker:
        lane = lane_of(worker, "every:1", clock="seconds")

        def show(t: int) -> Held:
            lane.offer(t, t / 25, partial(moment, t))
            lane.flush()
            return lane.held(t, t / 25)

        assert {show(t).made_at for t in range(4, 50)} == {-1}  # or this would take a minute
        assert lane.counts == replace(lane.counts, asked=46, made=0, dropped=43)
        (tmp_path / "go").touch()
        frames = iter(range(50, 100_000))
        until(lambda: show(next(frames)).made_at > 4)  # what was not dropped while it was busy
        lane.close()


# ------------------------------------------------------------------------------------ mishaps


def test_killed_amid_a_batch_it_is_started_again_and_says_the_same(tmp_path: Path) -> None:
    from lane_describers import Plain, Waiting

    with ProcessWorker(Plain) as worker:
        expected = through(lane_of(worker, "every:2", latency=4))
    with ProcessWorker(partial(Waiting, tmp_path)) as worker:
        first = worker.pid
        lane = lane_of(worker, "every:2", latency=4)
        killer = threading.Thread(target=_kill, args=(first, tmp_path))
        killer.start()
        assert through(lane) == expected
        killer.join()
        assert worker.pid != first
        assert gone(first)
        assert lane.counts.restarts == worker.restarts == 1
        assert lane.counts.stopped is None


def _kill(pid: int, folder: Path) -> None:
    until((folder / f"begun-{pid}").exists)
    os.kill(pid, signal.SIGKILL)
    until(lambda: len(list(folder.glob("begun-*"))) == 2)
    (folder / "go").touch()


def test_killed_while_it_has_nothing_to_do_it_is_started_when_it_has(tmp_path: Path) -> None:
    from lane_describers import Deadly

    with ProcessWorker(partial(Deadly, 9, tmp_path, times=2)) as worker:
        os.kill(worker.pid, signal.SIGKILL)
        # All of its threads: while one is ending the pipe is open, and a batch would be lost in it.
        until(lambda: not worker._child.alive)
        worker.submit(batch(moment(9)))  # and two deaths over it, which are not yet three
        assert worker.take(9, wait=True) is not None
        assert (worker.restarts, worker.stopped) == (3, None)


def test_a_batch_that_is_fatal_three_times_ends_the_captions_only(tmp_path: Path) -> None:
    from lane_describers import Deadly, Plain

    with ProcessWorker(Plain) as worker:
        expected = through(lane_of(worker, "every:2"), n=20)
    with ProcessWorker(partial(Deadly, 22, tmp_path)) as worker:
        lane = lane_of(worker, "every:2")
        held = through(lane)
        assert len(list(tmp_path.iterdir())) == 3
        assert held[:16] == expected
        assert [there.made_at for there in held[16:]] == [18] * (60 - 20)
        counts = lane.counts
        assert (counts.restarts, counts.made) == (2, 8)
        assert counts.stopped is not None
        assert "ended 3 times over the clips before frame 20 to 26" in counts.stopped
        assert "because of signal 9 (Killed)" in counts.stopped
        assert "--lane off" in counts.stopped
        assert gone(worker.pid)


@pytest.fixture
def hungry_graph(tmp_path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper

    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [1])
    filled = helper.make_tensor_value_info("filled", TensorProto.FLOAT, ["n"])
    node = helper.make_node("ConstantOfShape", ["shape"], ["filled"])
    graph = helper.make_graph([node], "hungry", [shape], [filled])
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


@pytest.mark.parametrize("kind", ["Hungry", "HungryGraph", "Aborting"])
def test_memory_that_runs_out_stops_the_captions_at_once(kind: str, hungry_graph: Path) -> None:
    import lane_describers

    describer = getattr(lane_describers, kind)
    if kind == "HungryGraph":
        describer = partial(describer, hungry_graph)
    with ProcessWorker(describer) as worker:
        lane = lane_of(worker, "every:2")
        assert {there.captions for there in through(lane)} == {()}
        counts = lane.counts
        assert counts.stopped is not None
        assert counts.stopped.startswith("memory ran out while captioning (")
        assert "--precision int4" in counts.stopped
        assert "\n" not in counts.stopped
        assert (counts.restarts, counts.made, counts.offered) == (0, 0, 56)
        assert gone(worker.pid)


def test_memory_that_is_short_when_it_is_started_again_stops_the_captions_too(
    tmp_path: Path,
) -> None:
    from lane_describers import OnceOnly

    with ProcessWorker(partial(OnceOnly, tmp_path)) as worker:
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: gone(worker.pid))
        worker.submit(batch(moment(4)))
        assert worker.take(4, wait=True) is None
        assert worker.stopped is not None
        assert worker.stopped.startswith("memory ran out while captioning (MemoryError)")
        assert worker.restarts == 1


def test_a_helper_that_outlives_the_process_holds_nobody_up() -> None:
    from lane_describers import Parent

    with ProcessWorker(Parent) as worker:
        worker.submit(batch(moment(4)))
        answer = worker.take(4, wait=True)
        assert answer is not None
        helper = int(answer.captions[0])
    assert gone(worker.pid)
    os.kill(helper, signal.SIGKILL)
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("captions")])


def test_a_mistake_of_the_describer_is_named_and_stops_the_captions() -> None:
    from lane_describers import Mistaken, Short

    for describer, text in ((Mistaken, r"KeyError: 'vision'"), (Short, r"1 text for 2 clips")):
        with ProcessWorker(describer) as worker:
            worker.submit(batch(moment(4), moment(5)))
            assert worker.take(4, wait=True) is None
            assert worker.stopped is not None
            assert worker.stopped.startswith("the captioner failed: ")
            assert text in worker.stopped
            worker.submit(batch(moment(6)))
            assert worker.take(6, wait=True) is None


def test_what_keeps_it_from_opening_is_an_error_here() -> None:
    import lane_describers

    with pytest.raises(BundleError, match=r"^b/manifest.json: no vlm; add one"):
        ProcessWorker(lane_describers.bad_bundle)
    with pytest.raises(BackendError, match=r"No module named 'no_such_module'; `sfn-rt doctor`"):
        ProcessWorker(lane_describers.not_installed)
    with pytest.raises(BackendError, match=r"memory ran out while captioning \(MemoryError\)"):
        ProcessWorker(lane_describers.no_memory)
    with pytest.raises(BackendError, match=r"ended because of exit status 3 \(the device is gone"):
        ProcessWorker(lane_describers.dies_at_once)


def test_a_python_that_cannot_be_found_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from lane_describers import Plain

    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(BackendError, match=r"does not say where one is"):
        ProcessWorker(Plain)


def test_captions_of_one_window_are_refused_where_the_model_reads_several() -> None:
    class FromFile:
        name = "cached"
        needs_scenes = False

        def caption(self, clip: object) -> str:
            return "never"

    with pytest.raises(InputError, match="captions from a file"):
        InlineWorker(FromFile(), (4, 8), T)


# ------------------------------------------------------- whoever the parent is, however it ends

SCRIPT = f"""
import json, sys
sys.path.insert(0, {str(HERE)!r})
from functools import partial
from pathlib import Path
import numpy as np
import lane_describers
from sfn_rt.frames import Frame
from sfn_rt.semantics.captioner import Moment
from sfn_rt.semantics.worker_process import ProcessWorker

kind, folder = sys.argv[1:]
opening = getattr(lane_describers, kind)
if kind in ("Waiting", "Unfinished"):
    opening = partial(opening, Path(folder))
frames = [Frame(i, 0.0, np.full((2, 2, 3), i, np.uint8)) for i in range(4)]
with ProcessWorker(opening) as worker:
    worker.submit([(0, Moment(4, 0.0, frames, []))])
    answer = worker.take(0, wait=True)
    print(json.dumps({{"text": answer.captions[0], "pid": worker.pid}}))
"""


def start(kind: str, folder: Path, way: str, repository: Path) -> "subprocess.Popen[str]":
    """A parent, in a process group of its own as a shell starts it."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    with script.open() as stdin:
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-" if way == "stdin" else script, kind, folder],
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
            env={**os.environ, "PYTHONPATH": str(repository / "runtime")}, process_group=0,
        )  # fmt: skip


@pytest.mark.parametrize("way", ["stdin", "file"])
def test_scripts_may_come_from_anywhere_and_keep_stdout_to_themselves(
    way: str, tmp_path: Path, repository: Path
) -> None:
    parent = start("Loud", tmp_path, way, repository)
    printed, errors = parent.communicate(timeout=60)
    assert (parent.returncode, errors) == (0, "")
    answer = json.loads(printed)
    assert answer["text"] == "0..3 light 72 of 1"
    assert gone(answer["pid"])


@pytest.mark.parametrize(
    ("kind", "mark", "end"),
    [
        ("Waiting", "begun", signal.SIGINT),
        ("Waiting", "begun", signal.SIGKILL),
        ("Waiting", "begun", signal.SIGTERM),
        ("Unfinished", "opening", signal.SIGINT),
        ("Unfinished", "opening", signal.SIGKILL),
    ],
)
def test_the_process_ends_with_its_parent(
    kind: str, mark: str, end: signal.Signals, tmp_path: Path, repository: Path
) -> None:
    parent = start(kind, tmp_path, "file", repository)
    until(lambda: any(tmp_path.glob(f"{mark}-*")))
    (found,) = tmp_path.glob(f"{mark}-*")
    child = int(found.name.partition("-")[2])
    assert not gone(child)
    os.killpg(parent.pid, end)  # as a terminal does: everyone in the group
    _, errors = parent.communicate(timeout=60)
    until(lambda: gone(child))
    if end == signal.SIGINT:
        assert errors.count("Traceback") == 1, "the parent's own, which the command line catches"
        assert "KeyboardInterrupt" in errors
        assert "lane_describers" not in errors
    else:
        assert (parent.returncode, errors) == (-end, "")
