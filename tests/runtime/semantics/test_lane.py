"""When captions are made and which counts: the rules, whatever the block size or machine."""

import json
import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest

from sfn_rt.exceptions import InputError
from sfn_rt.frames import Frame
from sfn_rt.semantics.captioner import Clip, Moment
from sfn_rt.semantics.lane import Held, Lane, LaneCounts, LaneSettings, Policy, parse_policy
from sfn_rt.semantics.narrator import Recent
from sfn_rt.semantics.scene import Scene, Thing
from sfn_rt.semantics.worker import OUT_OF_MEMORY, Answer, Batch, InlineWorker

T = 4
N = 60
ALL = (N,)
Signal = Callable[[int], bool]


class Listing:
    """A captioner that says what it was shown."""

    name = "listing"
    needs_scenes = True

    def caption(self, clip: Clip) -> str:
        first, last = clip.scenes[0].width, clip.scenes[-1].width  # a scene's width is its index
        indices = [frame.index for frame in clip.frames]
        return f"{first}..{last} {indices} {'long' if clip.longer else 'short'}"


class ByHand:
    """A worker whose answers come when the test says so."""

    instant = False
    restarts = 0

    def __init__(self) -> None:
        self.stopped: str | None = None
        self.batches: list[Batch] = []
        self.answers: dict[int, Answer] = {}
        self.waited = False
        self.forgotten: set[int] = set()

    def submit(self, batch: Batch) -> None:
        self.batches.append(batch)

    def answer(self, text: str = "") -> None:
        """Finish the oldest batch."""
        for number, moment in self.batches.pop(0):
            self.answers[number] = Answer((f"{text}{moment.t}",), cut=moment.t % 2 == 0)

    def take(self, number: int, wait: bool) -> Answer | None:
        self.waited |= wait
        return self.answers.pop(number, None)

    def forget(self, numbers: Iterable[int]) -> None:
        self.forgotten |= set(numbers)

    def close(self) -> None:
        pass


def settings(policy: str, **changes: object) -> LaneSettings:
    values = {"observed": T, "stride": 3} | changes
    return LaneSettings(policy=parse_policy(policy), **values)  # type: ignore[arg-type]


def frame(i: int) -> Frame:
    return Frame(i, i / 25, np.full((2, 2, 3), i, np.uint8))


def scene(i: int) -> Scene:
    return Scene(i, 2, (Thing(1.0, 2.0, 3.0, 4.0, 12.0, 0.1 * i, 0.0, 0.0),))


def listing(windows: Sequence[int] = (T,)) -> InlineWorker:
    return InlineWorker(Listing(), windows, T)


def moment(t: int) -> Moment:
    return Moment(t, t / 25, [frame(i) for i in range(t - T, t)], [scene(t - 1)])


def run(
    lane: Lane,
    frames: Iterable[int] = range(N),
    sizes: Sequence[int] = ALL,
    *,
    changed: Signal = lambda t: False,
    suspicious: Signal = lambda t: False,
    windows: Sequence[int] = (T,),
    recent: Recent | None = None,
) -> list[Held]:
    """What is held at each predicted frame, going through the frames in blocks."""
    recent = recent or Recent(T, windows)
    frames, held, turn = list(frames), [], 0
    while frames:
        size = sizes[turn % len(sizes)]
        block, frames, turn = frames[:size], frames[size:], turn + 1
        predicted = recent.step([frame(i) for i in block], [scene(i) for i in block])
        for one, there in predicted:
            t = one.index
            lane.offer(t, one.time_s, there, changed=changed(t), suspicious=suspicious(t))
        lane.flush()
        held += [lane.held(one.index, one.time_s) for one, _ in predicted]
    return held


def random_sizes(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(1, 12) for _ in range(20)]


# ------------------------------------------------------------------------------- policies


@pytest.mark.parametrize("text", ["every:1", "every:25", "change", "suspicion", "off"])
def test_a_policy_is_what_it_says(text: str) -> None:
    assert str(parse_policy(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "every", "every:", "every:0", "every:-1", "every:1.5", "every:²", "change:3", "off:", "x"],
)
def test_another_policy_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(InputError, match=r"every:N .*, change, suspicion or off") as caught:
        parse_policy(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("stride", 0), ("latency", -1), ("queue", 0), ("refresh", 0), ("half_life", 0.0),
     ("half_life", float("nan")), ("fps", 0.0), ("clock", "minutes"), ("observed", 0)],
)  # fmt: skip
def test_settings_refuse_nonsense(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        settings("change", **{name: value})


def test_policies_refuse_nonsense_however_they_are_made() -> None:
    for policy in (("sometimes", 1), ("every", 0)):
        with pytest.raises(InputError):
            Policy(*policy)  # type: ignore[arg-type]


def test_somebody_must_make_the_captions() -> None:
    with pytest.raises(InputError, match="nobody makes captions for the policy change; give off"):
        Lane(settings("change"), None)


def test_off_never_asks() -> None:
    lane = Lane(settings("off"), None)
    held = run(lane, changed=lambda t: True, suspicious=lambda t: True)
    assert {h.captions for h in held} == {()}
    assert {h.weight for h in held} == {0.0}
    assert lane.counts == LaneCounts(offered=N - T)


def asked_at(lane: Lane, frames: Iterable[int] = range(T, N), **signals: Signal) -> list[int]:
    told = {name: signals.get(name, lambda t: False) for name in ("changed", "suspicious")}
    asked = []
    for t in frames:
        flags = {name: signal(t) for name, signal in told.items()}
        if lane.offer(t, t / 25, lambda t=t: moment(t), **flags):  # type: ignore[misc]
            asked.append(t)
        lane.flush()
        lane.held(t, t / 25)
    return asked


def test_every_asks_at_multiples_from_the_first_clip_on() -> None:
    assert asked_at(Lane(settings("every:8"), listing())) == [4, 12, 20, 28, 36, 44, 52]
    assert asked_at(Lane(settings("every:1"), listing())) == list(range(T, N))
    assert asked_at(Lane(settings("every:3"), listing()), range(26, 36)) == [26, 28, 31, 34]


@pytest.mark.parametrize(("policy", "signal"), [("change", "changed"), ("suspicion", "suspicious")])
def test_a_signal_asks_as_it_rises_and_again_while_it_stays(policy: str, signal: str) -> None:
    up = {10, 11, 12, 20, 22, *range(30, 60)}
    lane = Lane(settings(policy, refresh=9), listing())
    asked = asked_at(lane, **{signal: lambda t: t in up})
    falls = {13, 21, 23} if policy == "change" else set()  # back to normal is a change
    assert asked == sorted({4, 10, 20, 22, 30, 39, 48, 57} | falls)
    other = {"changed": "suspicious", "suspicious": "changed"}[signal]
    assert asked_at(Lane(settings(policy), listing()), **{other: lambda t: t in up}) == [4]


def test_a_signal_that_is_up_at_first_does_not_rise_at_the_next_frame() -> None:
    assert asked_at(Lane(settings("change"), listing()), range(4, 12), changed=lambda t: True) == [
        4
    ]


# ------------------------------------------------------------------- what counts, and how much


@pytest.mark.parametrize("stride", [1, 3, 8, 25])
@pytest.mark.parametrize("windows", [(4,), (2, 4, 8, 16)], ids=str)
def test_every_stride_holds_each_caption_for_a_stride_as_in_training(
    stride: int, windows: tuple[int, ...]
) -> None:
    for seed in range(6):
        lane = Lane(settings(f"every:{stride}", stride=stride), listing(windows))
        held = run(lane, sizes=random_sizes(seed), windows=windows)
        assert len(held) == N - T
        for t, there in enumerate(held, start=T):
            made = t - (t - T) % stride
            frames = range(made - T, made)
            expected = tuple(
                f"{max(0, made - w)}..{made - 1} {list(frames)[-w:]} {'long' if w > T else 'short'}"
                for w in windows
            )
            assert there == Held(expected, t - made, 1.0, False, made)
        assert lane.counts == LaneCounts(offered=56, asked=-(-56 // stride), made=-(-56 // stride))


def test_weight_falls_with_age_by_the_stated_rule() -> None:
    rule = settings("every:100", stride=8, half_life=25.0)
    assert [rule.weight(age) for age in (0, 7)] == [1.0, 1.0]
    assert rule.weight(8) == pytest.approx(0.5 ** (1 / 25))
    assert rule.weight(7 + 25) == pytest.approx(0.5)
    assert rule.weight(7 + 100) == pytest.approx(1 / 16)
    for t, held in enumerate(run(Lane(rule, listing())), start=T):
        assert (held.age, held.weight, held.made_at) == (t - T, rule.weight(t - T), T)


def test_before_the_first_caption_none_counts() -> None:
    held = run(Lane(settings("every:8", latency=6), listing()))
    assert held[:6] == [Held((), 0, 0.0, False, -1)] * 6
    assert held[6].made_at == T
    assert held[6].age == 6


def test_latency_is_how_old_a_caption_is_when_it_begins_to_count() -> None:
    held = run(Lane(settings("every:8", latency=5), listing()))
    for t, there in enumerate(held[5:], start=T + 5):
        newest = t - 5 - (t - 5 - T) % 8
        assert (there.made_at, there.age) == (newest, t - newest)


def test_what_cannot_begin_waits_and_the_oldest_is_dropped() -> None:
    # One caption takes 10 frames, one is asked for every 3, two may wait.
    lane = Lane(settings("every:3", latency=10, queue=2), listing())
    held = run(lane)
    # At 14 the worker is free, and those of 10 and 13 wait: that of 7 was dropped.
    begun = {4: 4, 14: 10, 24: 19, 34: 28, 44: 40, 54: 49}
    due = {begin + 10: made for begin, made in begun.items() if begin + 10 < N}
    for t, there in enumerate(held, start=T):
        newest = [made for begins, made in due.items() if begins <= t]
        assert there.made_at == (newest[-1] if newest else -1)
    counts = lane.counts
    assert (counts.asked, counts.made) == (19, 5)
    pending = 1 + 2  # with the worker, and waiting
    assert counts.dropped == counts.asked - counts.made - pending


@pytest.mark.parametrize("latency", [0, 1, 3, 7, 40])
@pytest.mark.parametrize("policy", ["every:1", "every:4", "change", "suspicion"])
def test_results_do_not_depend_on_blocks(policy: str, latency: int) -> None:
    rng = random.Random(0)
    up = {t for t in range(N) if rng.random() < 0.4}
    ways: dict[str, Signal] = {"changed": lambda t: t in up, "suspicious": lambda t: t in up}

    def once(sizes: Sequence[int]) -> tuple[list[Held], LaneCounts]:
        lane = Lane(settings(policy, latency=latency, refresh=5), listing())
        return run(lane, sizes=sizes, **ways), lane.counts  # type: ignore[arg-type]

    whole = once(ALL)
    for sizes in ((1,), (8,), (5, 2), random_sizes(1), random_sizes(2)):
        assert once(sizes) == whole


def test_a_block_is_one_batch() -> None:
    worker = ByHand()
    lane = Lane(settings("every:2"), worker)
    for t in range(4, 12):
        lane.offer(t, t / 25, lambda t=t: moment(t))  # type: ignore[misc]
    lane.flush()
    assert [[there.t for _, there in batch] for batch in worker.batches] == [[4, 6, 8, 10]]


def test_a_moment_is_looked_at_only_where_a_caption_is_asked_for() -> None:
    looked = []
    lane = Lane(settings("every:5"), listing())
    for t in range(T, 20):
        lane.offer(t, t / 25, lambda t=t: looked.append(t) or moment(t))  # type: ignore[misc]
    assert looked == [4, 9, 14, 19]


# ------------------------------------------------------------------------------- interruption


@pytest.mark.parametrize("latency", [0, 3, 10, 30])
@pytest.mark.parametrize("policy", ["every:1", "every:3", "change", "suspicion", "off"])
def test_a_restored_lane_goes_on_as_if_nothing_had_been(policy: str, latency: int) -> None:
    up = {5, 6, *range(15, 40)}
    windows = (4, 8)
    ways: dict[str, Signal] = {"changed": lambda t: t in up, "suspicious": lambda t: t in up}
    rules = settings(policy, latency=latency, refresh=5)
    whole = Lane(rules, listing(windows))
    expected = run(whole, sizes=(8,), windows=windows, **ways)  # type: ignore[arg-type]
    for done in (2, 8, 16, 32, 40):
        first, recent = Lane(rules, listing(windows)), Recent(T, windows)
        held = run(first, range(done), (8,), recent=recent, **ways)  # type: ignore[arg-type]
        arrays, plain = first.state()
        assert all(name.startswith("lane/") for name in arrays)
        kept = {name: array.copy() for name, array in arrays.items()}
        again, later = Lane(rules, listing(windows)), Recent(T, windows)
        again.restore(kept, json.loads(json.dumps(plain)))
        later.restore(*recent.state())
        held += run(again, range(done, N), (8,), recent=later, **ways)  # type: ignore[arg-type]
        assert held == expected
        assert again.counts == whole.counts


def test_what_is_pending_is_asked_again_in_the_same_batches() -> None:
    worker = ByHand()
    lane = Lane(settings("every:2", latency=3), worker)
    for block in (range(4, 10), range(10, 12)):
        for t in block:
            lane.offer(t, t / 25, lambda t=t: moment(t))  # type: ignore[misc]
        lane.flush()
    first = [[there.t for _, there in batch] for batch in worker.batches]
    assert first == [[4, 6], [8]]  # begun at 4, 7 and 10; that of 10 waits
    worker.answer()
    assert lane.held(7, 0.0).made_at == 4  # of the first batch, the other is not due yet
    arrays, plain = lane.state()
    assert sorted(arrays) == sorted(f"lane/image/{i}" for i in range(10))  # each picture once
    other = ByHand()
    again = Lane(settings("every:2", latency=3), other)
    again.restore(arrays, json.loads(json.dumps(plain)))
    assert [[there.t for _, there in batch] for batch in other.batches] == first
    assert other.forgotten == {other.batches[0][0][0]}  # what had been told is not wanted twice
    other.answer()
    assert len(other.answers) == 2
    assert again.held(10, 0.0).made_at == 6
    np.testing.assert_array_equal(other.batches[0][0][1].frames[3].image, frame(7).image)


def test_a_closed_lane_leaves_nothing_behind_in_a_worker_that_others_use() -> None:
    worker = listing()
    lane = Lane(settings("every:1", latency=50), worker)
    run(lane, range(20))
    other = Lane(settings("every:1"), worker)
    lane.close()
    assert not worker._answers
    assert run(other)[0].made_at == T


# --------------------------------------------------------------------------- clock of seconds


def live(policy: str, worker: ByHand | InlineWorker, **changes: object) -> Lane:
    return Lane(settings(policy, clock="seconds", fps=25.0, **changes), worker)


def test_live_an_answer_counts_when_it_is_there_and_nothing_waits() -> None:
    worker = ByHand()
    lane = live("every:1", worker)
    held = []
    for t in range(T, 20):
        lane.offer(t, t / 25, lambda t=t: moment(t))  # type: ignore[misc]
        lane.flush()
        if t in (9, 15):
            worker.answer()
        held.append(lane.held(t, t / 25).made_at)
    # Free again at 10, the worker gets the two newest: 9 and 10.
    assert held == [-1] * 5 + [4] * 6 + [10] * 5
    assert not worker.waited
    counts = lane.counts
    assert (counts.asked, counts.made, counts.cut) == (16, 3, 2)
    assert counts.dropped == 16 - 3 - 2 - len(worker.batches[0])


def test_live_a_caption_of_a_later_frame_does_not_count_yet() -> None:
    lane = live("every:4", listing())
    held = run(lane, sizes=(20,))
    assert [there.age for there in held[:8]] == [0, 1, 2, 3] * 2
    assert lane.counts.dropped == 0  # whoever answers at once needs no queue


def test_live_durations_follow_the_clock_though_frames_are_missing() -> None:
    lane = live("every:10", listing(), stride=5, half_life=10.0)
    shown = [t for t in range(T, 60) if t % 3 == 0]  # a third of the frames arrive
    numbered = list(enumerate(shown, start=T))
    asked, ages = [], []
    for t, beat in numbered:
        if lane.offer(t, beat / 25, lambda t=t: moment(t)):  # type: ignore[misc]
            asked.append(beat)
        lane.flush()
        held = lane.held(t, beat / 25)
        ages.append(held.age)
        assert held.weight == lane.settings.weight(held.age)
    assert asked == [6, 15, 24, 36, 45, 54]  # the first frame of each tenth one from 4 on
    assert ages == [beat - max(a for a in asked if a <= beat) for beat in shown]


# ------------------------------------------------------------------------------------ mishaps


def test_a_worker_that_stops_is_named_and_what_there_is_goes_on() -> None:
    worker = ByHand()
    lane = Lane(settings("every:4", latency=0), worker)
    for t in (4, 5, 6, 7):
        lane.offer(t, t / 25, lambda t=t: moment(t))  # type: ignore[misc]
    lane.flush()
    worker.answer()
    assert lane.held(7, 0.28).captions == ("4",)
    assert lane.offer(8, 0.32, lambda: moment(8))
    lane.flush()
    worker.stopped = "no memory"
    assert lane.held(8, 0.32).captions == ("4",)
    assert lane.counts.stopped == "no memory"
    assert not lane.offer(12, 0.48, lambda: moment(12))
    lane.flush()
    later = lane.held(33, 1.32)
    assert (later.captions, later.age) == (("4",), 29)
    assert later.weight == lane.settings.weight(29)
    assert (lane.counts.offered, lane.counts.asked, lane.counts.made) == (6, 2, 1)
    assert Lane(settings("every:4"), worker).counts.stopped == "no memory"  # and the next video's


def test_a_lane_counts_restarts_of_its_own_time() -> None:
    worker = ByHand()
    worker.restarts = 3
    lane = Lane(settings("every:4"), worker)
    worker.restarts = 5
    assert lane.counts.restarts == 2
    again = Lane(settings("every:4"), worker)
    again.restore(*lane.state())
    worker.restarts = 6
    assert again.counts.restarts == 3


def test_memory_that_runs_out_in_this_process_stops_captions_only() -> None:
    class Hungry(Listing):
        def caption(self, clip: Clip) -> str:
            if clip.end_frame >= 20:
                np.ones(1 << 60, np.uint8)
            return super().caption(clip)

    lane = Lane(settings("every:4"), InlineWorker(Hungry(), (T,), T))
    held = run(lane, sizes=(8,))
    assert held[-1].made_at == 20
    assert lane.counts.stopped is not None
    assert lane.counts.stopped.startswith(OUT_OF_MEMORY.partition("(")[0])
    assert "--lane off" in lane.counts.stopped
