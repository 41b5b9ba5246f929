import io

from sfn_rt.progress import Progress, clock_time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def advance(progress: Progress, clock: Clock, frames: int, seconds: float) -> None:
    for _ in range(frames):
        clock.now += seconds / frames
        progress.advance()


def test_shows_share_rate_and_time_left() -> None:
    terminal, clock = Terminal(), Clock()
    with Progress("04", 400, stream=terminal, clock=clock) as progress:
        advance(progress, clock, frames=100, seconds=2.0)
        line = progress.line()
    assert "100/400  25%" in line
    assert "50.0 frames/s" in line
    assert "0:06 left" in line
    assert terminal.getvalue().endswith("\r\x1b[2K")  # nothing stays behind


def test_a_pipe_stays_silent() -> None:
    pipe = io.StringIO()
    with Progress("04", 10, stream=pipe) as progress:
        progress.advance(10)
    assert pipe.getvalue() == ""
    assert progress.done == 10


def test_notes_are_written_to_a_pipe_too() -> None:
    pipe = io.StringIO()
    with Progress("04", 10, stream=pipe) as progress:
        progress.note("warning: another scene")
    assert pipe.getvalue() == "warning: another scene\n"


def test_redraws_at_most_ten_times_a_second() -> None:
    terminal, clock = Terminal(), Clock()
    with Progress("04", 5000, stream=terminal, clock=clock) as progress:
        advance(progress, clock, frames=5000, seconds=1.0)
    assert terminal.getvalue().count("frames/s") <= 11


def test_an_exceeded_estimate_shows_no_share() -> None:
    terminal, clock = Terminal(), Clock()
    with Progress("04", 10, stream=terminal, clock=clock) as progress:
        advance(progress, clock, frames=12, seconds=1.2)
        assert "12 frames" in progress.line()
        assert "left" not in progress.line()


def test_frames_done_before_a_resume_do_not_count_as_speed() -> None:
    terminal, clock = Terminal(), Clock()
    with Progress("04", 2000, done=1000, stream=terminal, clock=clock) as progress:
        advance(progress, clock, frames=100, seconds=1.0)
        assert 99 < progress.rate() < 101


def test_the_rate_is_that_of_the_last_seconds() -> None:
    terminal, clock = Terminal(), Clock()
    with Progress("04", None, stream=terminal, clock=clock) as progress:
        advance(progress, clock, frames=100, seconds=10.0)
        advance(progress, clock, frames=1000, seconds=10.0)
        assert 95 < progress.rate() < 105


def test_clock_time() -> None:
    assert clock_time(75.2) == "1:15"
    assert clock_time(3675) == "1:01:15"
