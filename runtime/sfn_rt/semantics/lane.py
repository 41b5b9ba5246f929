"""The semantic lane: at which frames captions are made, and which of them counts when.

Captioning is the slowest thing there is to do with a frame, so it runs beside the frame path. At
each predicted frame the lane is offered what a caption could be made of; its policy decides:

    every:N     where (t - T) is a multiple of N
    change      when the picture or the motion leaves what is normal, and when it is back
    suspicion   when the visual score leaves it
    off         never

While their signal stays up the last two ask every `refresh` frames; all three ask at the first
frame there is. The newest caption that is finished counts, with the weight

    1 while age < stride,  else 0.5 ** ((age - stride + 1) / half_life)

where age is how many frames ago it was asked for and stride what the model was trained with.

The clock of a file counts frames. One caption at a time takes `latency` frames of it, whatever
the real time: a scorer that gets there first waits, so results are the same on every machine. What
cannot be begun waits in a queue of a few places; when that is full the oldest is dropped. The clock
of a live source counts seconds, each taken for `fps` frames: nothing waits, a caption counts as
soon as it is finished, and whatever has queued up when the worker is free is its next batch.

Axes: t index of a predicted frame, T observed frames.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any, Literal, get_args

from sfn_rt.backends.base import Array
from sfn_rt.exceptions import InputError
from sfn_rt.frames import ASSUMED_FPS
from sfn_rt.semantics.captioner import Moment as Moment
from sfn_rt.semantics.narrator import pack_moments, unpack_moments
from sfn_rt.semantics.worker import Answer, Worker

Kind = Literal["every", "change", "suspicion", "off"]
Clock = Literal["frames", "seconds"]

_numbers = count()  # of requests: a worker may serve several lanes


@dataclass(frozen=True)
class Policy:
    """At which frames captions are asked for."""

    kind: Kind
    every: int = 1  # frames from one to the next, where the kind is "every"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.every < 1:
            raise InputError(_policy_error(f"{self.kind}:{self.every}"))

    def __str__(self) -> str:
        return f"every:{self.every}" if self.kind == "every" else self.kind


def parse_policy(text: str) -> Policy:
    """`every:8`, `change`, `suspicion` or `off`."""
    name, colon, number = text.partition(":")
    if name == "every" and number.isdecimal() and number.isascii() and int(number):
        return Policy("every", int(number))
    if not colon and name in get_args(Kind) and name != "every":
        return Policy(name)  # type: ignore[arg-type]
    raise InputError(_policy_error(text))


def _policy_error(text: str) -> str:
    return (
        f"{text!r} is no policy for captions; give every:N (each N frames, from 1), change, "
        f"suspicion or off"
    )


@dataclass(frozen=True, kw_only=True)
class LaneSettings:
    """When captions are made and how long they count. Durations in frames."""

    policy: Policy
    observed: int  # T
    stride: int  # that the model was trained with: its captions counted in full for so long
    latency: int = 0  # from a caption's beginning until it counts; on the clock of frames
    queue: int = 2  # requests that may wait
    half_life: float = 8.0  # of a caption older than the stride
    refresh: int = 25  # from one caption to the next while a signal stays up
    clock: Clock = "frames"
    fps: float = ASSUMED_FPS  # frames that a second is taken for; on the clock of seconds

    def __post_init__(self) -> None:
        least = {"observed": 1, "stride": 1, "latency": 0, "queue": 1, "refresh": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(
                    f"{name} of the lane must be at least {bound}, got {getattr(self, name)}"
                )
        if not (self.half_life > 0 and self.fps > 0):
            raise InputError(
                f"half_life and fps of the lane must be above 0, got {self.half_life:g} and "
                f"{self.fps:g}"
            )
        if self.clock not in get_args(Clock):
            raise InputError(f"the lane's clock must be frames or seconds, got {self.clock!r}")

    def weight(self, age: int) -> float:
        """How much a caption counts that was asked for `age` frames ago."""
        late = age - self.stride + 1
        return 1.0 if late <= 0 else 0.5 ** (late / self.half_life)

    @property
    def rule(self) -> str:
        """How weight falls with age, for people."""
        return f"1 up to an age of {self.stride - 1} frames, then halved every {self.half_life:g}"


@dataclass(frozen=True)
class Held:
    """The caption that counts at a frame."""

    captions: tuple[str, ...]  # a window each; empty: none yet
    age: int  # frames since it was asked for
    weight: float  # 0..1
    cut: bool
    made_at: int  # frame that it was asked for at; -1: none yet


NOTHING_YET = Held((), 0, 0.0, False, -1)


@dataclass
class LaneCounts:
    """What became of a stream's frames. What is not due when a video ends was asked, not made."""

    offered: int = 0  # frames
    asked: int = 0  # captions, as are the next four
    made: int = 0
    dropped: int = 0
    cut: int = 0
    empty: int = 0
    restarts: int = 0  # of the captioner's process
    stopped: str | None = None  # why no more captions are made


@dataclass(eq=False)
class _Request:
    """A caption that was asked for."""

    moment: Moment
    beat: int  # of the lane's clock when it was asked for
    number: int = -1  # that the worker knows it by, once it does
    due: int = -1  # frame from which its caption counts, once it has begun
    taken: bool = False  # its answer has been

    @property
    def t(self) -> int:
        """Frame that it was asked for at."""
        return self.moment.t


@dataclass(frozen=True)
class _Finished:
    """A caption that counts from the frame `due` on, until a newer one does."""

    due: int
    t: int
    beat: int
    answer: Answer


class Lane:
    """The captions of one stream. Per block: `offer` each frame, `flush`, then `held` of each."""

    def __init__(self, settings: LaneSettings, worker: Worker | None) -> None:
        """`worker` may be missing where the policy is off."""
        if worker is None and settings.policy.kind != "off":
            raise InputError(f"nobody makes captions for the policy {settings.policy}; give off")
        self.settings = settings
        self._worker = worker
        stopped = worker.stopped if worker is not None else None
        self._counts = LaneCounts(stopped=stopped)
        self._restarts = worker.restarts if worker is not None else 0  # before this stream
        self._signal = False  # at the frame before
        self._newest: int | None = None  # beat of the newest request
        self._free = 0  # beat from which the worker of the frames' clock has nothing to do
        self._waiting: deque[_Request] = deque()
        self._begun: list[_Request] = []  # since the last flush
        self._batches: deque[list[_Request]] = deque()  # with the worker, whole until all is taken
        self._finished: deque[_Finished] = deque()
        self._now: _Finished | None = None

    def offer(
        self,
        t: int,
        time_s: float,
        moment: Callable[[], Moment],
        *,
        changed: bool = False,
        suspicious: bool = False,
    ) -> bool:
        """Take note of a predicted frame; True where a caption is asked for."""
        self._counts.offered += 1
        if self._counts.stopped is not None:
            return False
        beat = self._beat(t, time_s)
        asked = self._wanted(beat, changed, suspicious)
        if asked:
            self._newest = beat
            self._counts.asked += 1
            self._waiting.append(_Request(moment(), beat))
        if self._waiting:
            self._begin_until(t)
        if len(self._waiting) > self.settings.queue:
            self._waiting.popleft()
            self._counts.dropped += 1
        return asked

    def flush(self) -> None:
        """Hand what may begin to the worker, as one batch."""
        if self.settings.clock == "seconds" and self._waiting:
            self._collect(None)
            if not self._batches:
                self._begun.extend(self._waiting)
                self._waiting.clear()
        if self._begun:
            self._submit(self._begun)
            self._begun = []

    def held(self, t: int, time_s: float) -> Held:
        """The caption that counts at a frame; on the clock of frames, waits for what is due."""
        if self._batches:
            self._collect(t)
        while self._finished and self._finished[0].due <= t:
            self._now = self._finished.popleft()
            self._counts.made += 1
            self._counts.cut += self._now.answer.cut
            self._counts.empty += self._now.answer.empty
        if self._now is None:
            return NOTHING_YET
        age = max(0, self._beat(t, time_s) - self._now.beat)  # live clocks are set back at times
        answer = self._now.answer
        return Held(answer.captions, age, self.settings.weight(age), answer.cut, self._now.t)

    @property
    def counts(self) -> LaneCounts:
        """So far."""
        now = self._worker.restarts if self._worker is not None else 0
        return replace(self._counts, restarts=self._counts.restarts + now - self._restarts)

    def close(self) -> None:
        """Give up what is pending; the worker stays open."""
        numbers = [r.number for batch in self._batches for r in batch if not r.taken]
        if self._worker is not None and numbers:
            self._worker.forget(numbers)
        for pending in (self._waiting, self._begun, self._batches):
            pending.clear()

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays (named lane/...) and JSON to continue from, exactly; after `flush`."""
        assert not self._begun, "the state of a lane is taken after flush"
        requests = [*(r for batch in self._batches for r in batch), *self._waiting]
        arrays, moments = pack_moments([request.moment for request in requests])
        plain = {
            "signal": self._signal,
            "newest": self._newest,
            "free": self._free,
            "counts": asdict(self.counts),
            "now": asdict(self._now) if self._now else None,
            "finished": [asdict(finished) for finished in self._finished],
            "batches": [len(batch) for batch in self._batches],
            "requests": [
                {"beat": r.beat, "due": r.due, "taken": r.taken, "moment": moment}
                for r, moment in zip(requests, moments, strict=True)
            ],
        }
        return {f"lane/{name}": array for name, array in arrays.items()}, plain

    def restore(self, arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> None:
        """Continue where `state` was taken: what was pending is asked again, in equal batches."""
        prefix = "lane/"
        mine = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        self._signal, self._newest, self._free = plain["signal"], plain["newest"], plain["free"]
        self._counts = LaneCounts(**plain["counts"])
        self._now = _finished(plain["now"]) if plain["now"] else None
        self._finished = deque(_finished(raw) for raw in plain["finished"])
        moments = unpack_moments(mine, [raw["moment"] for raw in plain["requests"]])
        requests = [
            _Request(moment, raw["beat"], due=raw["due"], taken=raw["taken"])
            for moment, raw in zip(moments, plain["requests"], strict=True)
        ]
        for size in plain["batches"]:
            self._submit(requests[:size])
            requests = requests[size:]
        self._waiting = deque(requests)

    def _beat(self, t: int, time_s: float) -> int:
        """What the clock shows, in frames."""
        return t if self.settings.clock == "frames" else round(time_s * self.settings.fps)

    def _wanted(self, beat: int, changed: bool, suspicious: bool) -> bool:
        """The policy."""
        settings, newest = self.settings, self._newest
        kind, every = settings.policy.kind, settings.policy.every
        signal = {"change": changed, "suspicion": suspicious}.get(kind, False)
        crosses, self._signal = signal != self._signal, signal
        if kind == "off":
            return False
        if newest is None:
            return True
        if kind == "every":  # whether a multiple has been passed: live frames may be missing
            first = settings.observed
            return (beat - first) // every > (newest - first) // every
        if kind == "change" and crosses:  # back to normal is a change as well
            return True
        return signal and (crosses or beat - newest >= settings.refresh)

    def _begin_until(self, t: int) -> None:
        """What can be begun by frame t: on the clock of frames, by the one worker thought of."""
        assert self._worker is not None
        if self.settings.clock == "seconds":
            if self._worker.instant:
                self._begun.extend(self._waiting)
                self._waiting.clear()
            return
        while self._waiting and self._free <= t:
            request = self._waiting.popleft()
            request.due = self._free = max(self._free, request.beat) + self.settings.latency
            self._begun.append(request)

    def _submit(self, batch: list[_Request]) -> None:
        assert self._worker is not None
        for request in batch:
            request.number = next(_numbers)
        self._batches.append(batch)
        self._worker.submit([(request.number, request.moment) for request in batch])
        if known := [request.number for request in batch if request.taken]:
            self._worker.forget(known)

    def _collect(self, t: int | None) -> None:
        """Take the answers that are due by frame t; on the clock of seconds, all there are."""
        assert self._worker is not None
        waits = self.settings.clock == "frames"
        while self._batches:
            for request in self._batches[0]:
                if request.taken:
                    continue
                if waits and t is not None and request.due > t:
                    return
                answer = self._worker.take(request.number, wait=waits)
                if answer is None:
                    if self._worker.stopped is not None:
                        self._stop(self._worker.stopped)
                    return
                request.taken = True
                due = request.due if waits else request.t
                self._finished.append(_Finished(due, request.t, request.beat, answer))
            self._batches.popleft()

    def _stop(self, reason: str) -> None:
        self._counts.stopped = reason
        self.close()


def _finished(raw: Mapping[str, Any]) -> _Finished:
    answer = raw["answer"] | {"captions": tuple(raw["answer"]["captions"])}
    return _Finished(raw["due"], raw["t"], raw["beat"], Answer(**answer))
