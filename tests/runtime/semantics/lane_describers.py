"""Describers for the worker's process, each awkward in one way; imported there by name."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sfn_rt.exceptions import BundleError
from sfn_rt.semantics.caption_text import NOTHING_SAID
from sfn_rt.semantics.captioner import Moment, Said


def words(moment: Moment) -> str:
    frames = moment.frames
    light = sum(int(frame.image.sum()) for frame in frames)
    deep = "" if moment.hidden is None else f" {float(moment.hidden.sum()):g}"
    return f"{frames[0].index}..{frames[-1].index} light {light}{deep}"


class Plain:
    """Says which frames it was shown, and how large its batch was."""

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        return [
            Said(f"{words(m)} of {len(moments)}", cut=m.t % 3 == 0) if m.t % 7 else Said(" ", False)
            for m in moments
        ]


class Silent:
    """Says that nothing was said, as a language model's captioner does."""

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        return [Said(NOTHING_SAID, cut=False) for _ in moments]


class Short(Plain):
    """Leaves out all but one."""

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        return super().describe(moments)[:1]


class Slow(Plain):
    """Takes a time that nobody can foresee."""

    def __init__(self, longest_s: float = 0.02) -> None:
        self._longest_s = longest_s

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        time.sleep(random.random() * self._longest_s)
        return super().describe(moments)


class Waiting(Plain):
    """Says in a file that it has begun, and goes on when another file is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        (self._folder / f"begun-{os.getpid()}").touch()
        deadline = time.monotonic() + 60
        while not (self._folder / "go").exists():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        for moment in moments:
            (self._folder / f"described-{moment.t}").touch()
        return super().describe(moments)


class Loud(Plain):
    """Prints by every way there is."""

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        print("printed by python")
        print("an error by python", file=sys.stderr)
        os.write(1, b"written by a library\n")
        os.write(2, b"an error by a library\n")
        os.write(1, b"x" * 200_000)  # more than a pipe holds
        return super().describe(moments)


class Deadly(Plain):
    """Ends its process over one frame, each time, or only as often as told."""

    def __init__(self, t: int, folder: Path, times: int = 99) -> None:
        self._t, self._folder, self._times = t, folder, times

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        deaths = len(list(self._folder.iterdir()))
        if any(m.t == self._t for m in moments) and deaths < self._times:
            (self._folder / str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().describe(moments)


class Aborting(Plain):
    """Ends as C++ does when nobody catches what was thrown."""

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()


class Hungry(Plain):
    """Asks numpy for more memory than any machine has."""

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        np.ones(1 << 60, np.uint8)
        return super().describe(moments)


class HungryGraph(Plain):
    """Asks ONNX Runtime for more memory than any machine has."""

    def __init__(self, graph: Path) -> None:
        import onnxruntime as ort

        self._session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        self._session.run(None, {"shape": np.array([1 << 50], np.int64)})
        return super().describe(moments)


class OnceOnly(Plain):
    """Opens once; after that there is no memory for it."""

    def __init__(self, folder: Path) -> None:
        if (folder / "opened").exists():
            raise MemoryError
        (folder / "opened").touch()


class Parent:
    """Starts a process that keeps its stderr open; says which."""

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        return [Said(str(helper.pid), cut=False)]


class Mistaken(Plain):
    """Has a bug."""

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        raise KeyError("vision")


class Unfinished:
    """Takes as long to open as one likes."""

    def __init__(self, folder: Path) -> None:
        (folder / f"opening-{os.getpid()}").touch()
        time.sleep(60)


def bad_bundle() -> Plain:
    raise BundleError("b/manifest.json: no vlm; add one with `python -m sfn_export vlm`")


def not_installed() -> Plain:
    import no_such_module  # noqa: F401

    return Plain()


def no_memory() -> Plain:
    raise MemoryError


def dies_at_once() -> Plain:
    print("the device is gone", file=sys.stderr, flush=True)
    os._exit(3)
