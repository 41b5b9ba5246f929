import json

import numpy as np
import pytest

from sfn_rt.events import Description, Event, EventDetector, find_events, min_gap_frames
from sfn_rt.exceptions import InputError


def said(frame: int) -> Description:
    return Description(
        caption=f"caption {frame}",
        explanation=f"why {frame}",
        box=(frame / 3, 0.0, 8.0, 9.0),
        nearest="a usual caption",
        new=("caption", str(frame)),
        caption_age=frame % 8,
        caption_cut=frame % 2 == 0,
    )


def detect(scores, threshold=1.0, release=0.8, gap=1) -> list[Event]:
    detector = EventDetector(threshold, release=release, min_gap_frames=gap)
    events = []
    for frame, score in enumerate(scores):
        event = detector.update(
            frame,
            frame / 10,
            score,
            lambda frame=frame: said(frame),
        )
        events += [event] if event else []
    last = detector.finish()
    assert detector.finish() is None
    return events + ([last] if last else [])


def spans(events: list[Event]) -> list[tuple[int, int]]:
    return [(event.start_frame, event.end_frame) for event in events]


def test_an_event_begins_at_the_threshold_and_ends_below_the_release():
    (event,) = detect([0, 0.9, 1.0, 0.85, 1.7, 0.8, 0.79, 0.9, 0])
    assert event == Event(
        start_frame=2,
        end_frame=5,
        peak_frame=4,
        start_s=0.2,
        end_s=0.5,
        peak_s=0.4,
        score=1.7,
        caption="caption 4",
        explanation="why 4",
        box=(4 / 3, 0.0, 8.0, 9.0),
        nearest="a usual caption",
        new=("caption", "4"),
        caption_age=4,
        caption_cut=True,
    )


def test_short_gaps_are_merged_and_long_ones_are_not():
    scores = [2, 0, 0, 2, 0, 0, 0, 2]
    assert spans(detect(scores, gap=2)) == [(0, 0), (3, 3), (7, 7)]
    assert spans(detect(scores, gap=3)) == [(0, 3), (7, 7)]
    assert spans(detect(scores, gap=4)) == [(0, 7)]


def test_unscored_frames_belong_to_no_event():
    nan = float("nan")
    assert spans(detect([nan, nan, 2, 2, nan, 2])) == [(2, 3), (5, 5)]


def test_an_event_is_reported_as_soon_as_it_cannot_go_on():
    detector = EventDetector(1.0, min_gap_frames=2)
    results = [detector.update(t, 0.0, s, Description) for t, s in enumerate([2, 0, 0, 0])]
    assert [result is not None for result in results] == [False, False, True, False]


def test_dropped_frames_do_not_glue_events_together():
    detector = EventDetector(1.0, min_gap_frames=2)
    assert detector.update(0, 0.0, 2.0, Description) is None
    finished = detector.update(100, 10.0, 2.0, Description)
    assert finished is not None
    assert (finished.start_frame, finished.end_frame) == (0, 0)
    assert detector.finish().start_frame == 100


def test_describe_is_asked_only_at_new_peaks():
    asked = []
    detector = EventDetector(1.0, min_gap_frames=1)
    for frame, score in enumerate([0.9, 1.0, 2.0, 2.0, 1.5, 3.0, 0.0]):
        detector.update(
            frame, 0.0, score, lambda frame=frame: Description(caption=asked.append(frame) or "")
        )
    assert asked == [1, 2, 5]


@pytest.mark.parametrize("gap", [0, 1, 3, 10])
@pytest.mark.parametrize("release", [0.5, 0.8, 1.0])
def test_whole_video_rule_equals_the_stream(gap: int, release: float):
    rng = np.random.default_rng(gap)
    for _ in range(40):
        scores = rng.random(80) * 1.5
        scores[rng.random(80) < 0.1] = np.nan
        assert find_events(scores, 1.0, release=release, min_gap_frames=gap) == spans(
            detect(scores, release=release, gap=gap)
        )
    assert find_events(np.array([]), 1.0) == []


def test_an_event_without_a_caption_has_nothing_to_say_of_it():
    detector = EventDetector(1.0)
    detector.update(0, 0.0, 2.0, lambda: Description(explanation="3 times faster"))
    event = detector.finish()
    assert event is not None
    assert (event.caption, event.nearest, event.new) == ("", "", ())
    assert (event.caption_age, event.caption_cut) == (None, False)


@pytest.mark.parametrize("cut", [3, 10, 25, 33, 50])
def test_detector_goes_on_exactly_from_a_saved_state(cut: int):
    scores = np.random.default_rng(8).random(60) * 1.5

    def run(detector: EventDetector, start: int, stop: int) -> list[Event | None]:
        return [
            detector.update(t, t / 7, scores[t], lambda t=t: said(t)) for t in range(start, stop)
        ]

    whole = EventDetector(1.0, min_gap_frames=3)
    expected = [*run(whole, 0, 60), whole.finish()]
    first = EventDetector(1.0, min_gap_frames=3)
    before = run(first, 0, cut)
    second = EventDetector(1.0, min_gap_frames=3)
    second.restore(json.loads(json.dumps(first.state())))
    assert [*before, *run(second, cut, 60), second.finish()] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "threshold must be a positive"),
        ({"threshold": float("nan")}, "threshold must be a positive"),
        ({"threshold": 1.0, "release": 0.0}, "release must be in"),
        ({"threshold": 1.0, "min_gap_frames": -1}, "min_gap_frames must be 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], message: str):
    with pytest.raises(InputError, match=message):
        EventDetector(**settings)


def test_the_gap_is_a_second_at_any_frame_rate():
    assert [min_gap_frames(fps) for fps in (0.1, 10, 25, 29.97)] == [1, 10, 25, 30]
