"""A worker whose describer lives in a process of its own, so that captioning holds nothing up.

A thread here feeds that process one batch at a time and collects what it says; nobody else ever
touches the pipe. A process that dies is started again and gets the same batch, so that what it
says does not depend on it. A batch that is fatal three times, an allocation that fails, or an
error of the describer ends the captions, with the reason, and nothing else.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Self

from sfn_rt import exceptions
from sfn_rt.exceptions import BackendError, SfnError
from sfn_rt.semantics.caption_text import NOTHING_SAID
from sfn_rt.semantics.worker import OUT_OF_MEMORY, Answer, Batch, Describer
from sfn_rt.semantics.worker_main import out_of_memory, receive, send, unpack

FATAL = 3  # deaths over one batch that end the captions
KEPT = 4000  # bytes of what the process printed last
DRAIN_S = 1.0  # for the last of it; whatever it has started itself may keep the pipe open
POLL_S = 0.5  # a wait without end cannot be interrupted everywhere
# The path comes first: of sfn_rt itself, too, this process's own is meant.
START = (
    "import sys; sys.path[:] = sys.argv[1:]; from sfn_rt.semantics.worker_main import main; main()"
)
THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"
)  # fmt: skip
WINDOWS = ("BELOW_NORMAL_PRIORITY_CLASS", "CREATE_NEW_PROCESS_GROUP")


class ProcessWorker:
    """Describes in another process; asking and looking for answers never waits."""

    instant = False

    def __init__(
        self, open_describer: Callable[[], Describer], *, threads: int | None = None
    ) -> None:
        """Start the process and wait until `open_describer()`, called there, has returned.

        `threads` (else one) limits libraries that take their number of them from the environment.
        """
        self._opening = pickle.dumps(open_describer)
        self._threads = threads or 1
        self._changed = threading.Condition()  # guards all below
        self._queue: deque[Batch] = deque()
        self._wanted: set[int] = set()
        self._answers: dict[int, Answer] = {}
        self._closed = False
        self._bug: BaseException | None = None
        self.restarts = 0
        self.stopped: str | None = None
        self._child = _Child(self._threads)
        try:
            self._child.open(self._opening)
        except BaseException:
            self._child.kill()
            raise
        self._server = threading.Thread(target=self._serve, name="captions", daemon=True)
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._child.pid

    def submit(self, batch: Batch) -> None:
        """Ask for captions, together."""
        with self._changed:
            if self.stopped is None and not self._closed:
                self._queue.append(batch)
                self._wanted.update(number for number, _ in batch)
                self._changed.notify_all()

    def take(self, number: int, wait: bool) -> Answer | None:
        """The answer to a number, once."""
        with self._changed:
            while wait and number in self._wanted and number not in self._answers:
                self._changed.wait(POLL_S)
            if self._bug is not None:
                raise self._bug
            if number in self._answers:
                self._wanted.discard(number)
            return self._answers.pop(number, None)

    def forget(self, numbers: Iterable[int]) -> None:
        """These answers are not wanted any more; a batch of which none is, is not described."""
        with self._changed:
            for number in numbers:
                self._wanted.discard(number)
                self._answers.pop(number, None)

    def close(self) -> None:
        """End the process at once: it holds nothing that would be lost."""
        with self._changed:
            self._closed = True
            self._wanted.clear()
            self._changed.notify_all()
            self._child.kill()
        self._server.join()

    def _serve(self) -> None:
        try:
            while (batch := self._next()) is not None:
                outcome = self._describe(batch)
                with self._changed:
                    if isinstance(outcome, str):
                        self._stop(outcome)
                        return
                    told = zip((number for number, _ in batch), outcome, strict=True)
                    self._answers |= {n: said for n, said in told if n in self._wanted}
                    self._changed.notify_all()
        except BaseException as error:  # of this code; raised where answers are waited for
            with self._changed:
                self._bug = None if self._closed else error
                self._stop(str(error))

    def _next(self) -> Batch | None:
        """The batch to describe now; None where this worker is closed."""
        with self._changed:
            while not self._closed:
                if not self._queue:
                    self._changed.wait()
                elif any(number in self._wanted for number, _ in self._queue[0]):
                    return self._queue.popleft()
                else:
                    self._queue.popleft()
            return None

    def _describe(self, batch: Batch) -> list[Answer] | str:
        """Answers to a batch, or why there will be no more captions."""
        moments = [moment for _, moment in batch]
        gone: list[str] = []
        while len(gone) < FATAL and not self._closed:
            try:
                if not self._child.alive:
                    self._restart()
                kind, content = self._child.ask(("describe", moments))
            except EOFError:
                how = self._child.last_words()
                if out_of_memory(how):
                    return OUT_OF_MEMORY.format(error=how)
                gone.append(how)
            except SfnError as error:  # it could not be opened again
                if out_of_memory(error):
                    return str(error)
                gone.append(str(error))
            except MemoryError as error:  # while the batch was sent
                return OUT_OF_MEMORY.format(error=str(error) or "MemoryError")
            else:
                if kind == "memory":
                    return OUT_OF_MEMORY.format(error=content)
                if kind == "failed":
                    return f"the captioner failed: {content}"
                return [_answer(*said) for said in content]
        if self._closed:
            return "closed"
        frames = f"{moments[0].t}" + (f" to {moments[-1].t}" if len(moments) > 1 else "")
        return (
            f"the captioner's process ended {FATAL} times over the clips before frame {frames}, "
            f"last because {gone[-1]}; score again with `--lane off`, or with more memory"
        )

    def _restart(self) -> None:
        child = _Child(self._threads)
        with self._changed:
            self._child.kill()
            self._child = child
            if self._closed:
                child.kill()
            self.restarts += not self._closed
        child.open(self._opening)

    def _stop(self, reason: str) -> None:
        """With the lock held: nothing comes any more, and nobody waits."""
        if not self._closed:
            self.stopped = reason
        self._wanted.clear()
        self._queue.clear()
        self._answers.clear()
        self._child.kill()
        self._changed.notify_all()


class _Child:
    """The process, and the pipe to it. EOFError means that it is gone."""

    def __init__(self, threads: int) -> None:
        if not sys.executable:
            raise BackendError(
                "the captioner needs a Python of its own and this program does not say where one "
                "is; set sys.executable, or score with `--lane off`"
            )
        # A process group of its own, so that Ctrl-C at the terminal reaches the parent alone. Not
        # a session of its own: Linux weighs a session's processes against one another only, and
        # a low priority would be none.
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=None if os.name == "nt" else 0,
            creationflags=sum(getattr(subprocess, flag, 0) for flag in WINDOWS),
            env={**os.environ, **dict.fromkeys(THREADS, str(threads))},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._printed = bytearray()  # the end of it
        self._drain = threading.Thread(target=self._listen, name="captions stderr", daemon=True)
        self._drain.start()
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, message: object) -> Any:
        """Send a message and wait for the reply to it."""
        try:
            send(self._to, message)
            return unpack(receive(self._from))
        except (OSError, ValueError):  # broken, or closed by `kill`
            raise EOFError from None

    def open(self, opening: bytes) -> None:
        """Have the describer opened; what keeps it from that is raised here."""
        try:
            kind, *content = self.ask(("open", opening))
        except EOFError:
            raise BackendError(
                f"the captioner cannot be opened: its process ended because {self.last_words()}; "
                f"score with `--lane off`, or free memory"
            ) from None
        if kind == "memory":
            raise BackendError(OUT_OF_MEMORY.format(error=content[0]))
        if kind == "error":
            name, text = content
            known = getattr(exceptions, name, None)
            if isinstance(known, type) and issubclass(known, SfnError):
                raise known(text)
            raise BackendError(
                f"the captioner cannot be opened in its process: {text}; `sfn-rt doctor` shows "
                f"what is missing, `--lane off` scores without captions"
            )

    def last_words(self) -> str:
        """How a process that is gone ended, and the last line that it printed."""
        status = self._process.wait()
        self._drain.join(DRAIN_S)
        how = f"of exit status {status}"
        if status < 0:
            how = f"of signal {-status} ({signal.strsignal(-status)})"
            if -status == signal.SIGKILL:
                how += ", which is also what Linux does when memory is short"
        printed = bytes(self._printed).decode(errors="replace").split("\n")
        line = next((line.strip() for line in reversed(printed) if line.strip()), "")
        return f"{how} ({line})" if line else how

    def kill(self) -> None:
        """End it now and let go of the pipe."""
        self._process.kill()
        self._process.wait()
        self._drain.join(DRAIN_S)
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):  # what was to be flushed has nowhere to go
                pipe.close()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as pipe:
            while chunk := os.read(pipe.fileno(), KEPT):
                self._printed = (self._printed + chunk)[-KEPT:]


def _answer(text: str, cut: bool) -> Answer:
    empty = not text.strip() or text == NOTHING_SAID
    return Answer((text if text.strip() else NOTHING_SAID,), cut, empty)
