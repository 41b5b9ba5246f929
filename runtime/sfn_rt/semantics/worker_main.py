"""The captioner's own process: opens a describer, then describes batches until its parent is gone.

The parent starts it as a fresh interpreter, never as a fork or by importing its own main module
again, so it works under pytest, from a console script and from a script on stdin alike. Stdin and
stdout are the private pipe between the two, and what a library prints goes to stderr, which the
parent keeps to itself. Pickles travel on that pipe alone.

    parent -> ("open", pickled callable)      child -> ("ready",)
              ("describe", moments)                    ("said", [(text, cut), ...])
                                                       ("memory" or "failed", text)
                                                       ("error", exception's name, text)
"""

import contextlib
import os
import pickle
import queue
import re
import signal
import struct
import sys
import threading
from typing import IO, Any

from sfn_rt.exceptions import SfnError

NICE = 19  # of the child: whatever scoring leaves
OOM_SCORE = 500  # of 1000: where Linux must end a process for memory's sake, this one first
ALLOCATION_FAILED = re.compile(
    r"bad[ _]alloc|failed to allocate|out of memory|insufficient memory|_alloc_failed|"
    r"memory ran out",
    re.I,
)

Packed = tuple[bytearray, list[bytearray]]


def send(pipe: IO[bytes], message: object) -> None:
    """Write one message; arrays go as they lie in memory."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    pipe.write(struct.pack(f"<I{len(parts)}Q", len(parts), *(part.nbytes for part in parts)))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Packed:
    """Read one message, for `unpack`; EOFError where the other side is gone."""
    (n_parts,) = struct.unpack("<I", _read(pipe, 4))
    sizes = struct.unpack(f"<{n_parts}Q", _read(pipe, 8 * n_parts))
    head, *buffers = [_read(pipe, size) for size in sizes]
    return head, buffers


def unpack(packed: Packed) -> Any:
    """The message; apart from `receive`, since unpickling imports what the message is made of."""
    head, buffers = packed
    return pickle.loads(head, buffers=buffers)


def out_of_memory(error: BaseException | str) -> bool:
    """Whether this is an allocation that failed, in Python or in a library below it."""
    return isinstance(error, MemoryError) or bool(ALLOCATION_FAILED.search(str(error)))


def main() -> None:
    """Serve the parent on stdin and stdout."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what is printed here must not become part of a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends this process
    _step_back()
    arrived: queue.SimpleQueue[Packed] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, arrived), daemon=True).start()
    describer: Any = None
    while True:
        try:
            kind, content = unpack(arrived.get())
            if kind == "open":
                describer = pickle.loads(content)()
                answer: tuple[object, ...] = ("ready",)
            else:
                said = [(one.text, one.cut) for one in describer.describe(content)]
                if len(said) != len(content):
                    raise ValueError(f"{len(said)} text for {len(content)} clips")
                answer = ("said", said)
        except Exception as error:
            answer = _mishap(error, opened=describer is not None)
        send(replies, answer)


def _listen(requests: IO[bytes], arrived: "queue.SimpleQueue[Packed]") -> None:
    """Ends the process with the parent's end of the pipe, however busy the main thread is."""
    try:
        while True:
            arrived.put(receive(requests))
    except EOFError:
        os._exit(0)
    except MemoryError:
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(1)


def _mishap(error: Exception, *, opened: bool) -> tuple[object, ...]:
    text = str(error) or type(error).__name__
    if not isinstance(error, SfnError) and str(error):
        text = f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    if out_of_memory(error):
        return "memory", text
    if opened:
        return "failed", text
    return "error", type(error).__name__, text


def _step_back() -> None:
    """Scoring comes first, for the processor and for memory, as far as the system lets us say."""
    if hasattr(os, "nice"):  # elsewhere the parent sets the priority
        os.nice(NICE)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(OOM_SCORE))


def _read(pipe: IO[bytes], size: int) -> bytearray:
    content = bytearray(size)
    if pipe.readinto(content) != size:  # type: ignore[attr-defined]
        raise EOFError
    return content
