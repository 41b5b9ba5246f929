"""Progress of a long command on a terminal: frames done, frames/s, time left.

Silent where nobody watches: in a pipe, a log file or a cron job nothing is written.
"""

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Self, TextIO

REDRAW_S = 0.1
WINDOW_S = 5.0  # the rate is that of the last seconds: captions make it uneven
BAR_CELLS = 20


class Progress:
    """One line that redraws itself. Use as a context manager; the line is gone afterwards."""

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        done: int = 0,
        enabled: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label = label
        self.total = total  # an estimate; None where a stream does not say
        self.done = done  # a resumed video does not start at 0
        self.stream = sys.stderr if stream is None else stream
        self.visible = enabled and self.stream.isatty()
        self._clock = clock
        self._drawn_at = -REDRAW_S
        self._seen: deque[tuple[float, int]] = deque([(clock(), done)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._erase()

    def advance(self, frames: int = 1) -> None:
        """Count frames as done, and redraw if the last drawing is old enough."""
        self.done += frames
        if not self.visible:
            return
        now = self._clock()
        if now - self._drawn_at < REDRAW_S:
            return
        self._drawn_at = now
        self._seen.append((now, self.done))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        columns = shutil.get_terminal_size().columns
        self.stream.write(f"\r\x1b[2K{self.line()[: columns - 1]}")
        self.stream.flush()

    def note(self, text: str) -> None:
        """Write a lasting line, such as a warning, without tearing the progress line."""
        self._erase()
        self.stream.write(f"{text}\n")
        self.stream.flush()
        self._drawn_at = -REDRAW_S

    def line(self) -> str:
        """`04  ████░░  120/400  30 %  96.2 frames/s  0:02 left`"""
        rate = self.rate()
        parts = [self.label]
        if self.total and self.done <= self.total:
            share = self.done / self.total
            filled = round(share * BAR_CELLS)
            parts.append("█" * filled + "░" * (BAR_CELLS - filled))
            parts.append(f"{self.done}/{self.total}  {share:.0%}")
        else:
            parts.append(f"{self.done} frames")
        if rate > 0:
            parts.append(f"{rate:.1f} frames/s")
            if self.total and self.done <= self.total:
                parts.append(f"{clock_time((self.total - self.done) / rate)} left")
        return "  ".join(part for part in parts if part)

    def rate(self) -> float:
        """Frames a second lately; 0 until there is something to measure."""
        (first_time, first_done), (last_time, last_done) = self._seen[0], self._seen[-1]
        return (last_done - first_done) / (last_time - first_time) if last_time > first_time else 0

    def _erase(self) -> None:
        if self.visible:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()


def clock_time(seconds: float) -> str:
    """75.2 -> "1:15", 3675 -> "1:01:15"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
