"""How faint anomalies must be for the gate to see a loss: fp32's AUC is brought to 85-95.

At an AUC of 100 a precision could lose half of its scores' spread and none of the AUC. So each kind
of anomaly is made fainter, by bisection of its opacity, until the model at full precision sees it
with an AUC of about 90, the mean of both protocols. A kind that it does not see at full opacity, or
sees however faint, is left out and named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sfn_calib.anomalies import KINDS, Anomaly
from sfn_calib.clips import Stretch
from sfn_calib.exceptions import GateError
from sfn_calib.gate import PROTOCOLS, Pair, Scored, Scoring
from sfn_calib.watch import Track, read_stretch, watch
from sfn_rt.evidence import Perception
from sfn_rt.frames import Frame
from sfn_rt.progress import Progress

LEAST, MOST, AIM = 85.0, 95.0, 90.0  # points of AUC at full precision
BLIND = 98.0  # points under one protocol, above which hardly any loss shows there
NEAR = 2.0  # points from the aim at which the search of a kind ends
STEPS = 8  # of the bisection
CLOSE = 0.02  # of opacity: a bracket not worth another step
FEWEST_KINDS = 2
FEWEST_CASES = 3  # stretches that a kind is judged on, where there are as many


@dataclass(frozen=True)
class Case:
    """One anomaly in one stretch, at the opacity that was found for its kind."""

    stretch: int  # its place among the gate's
    kind: str
    strength: float


@dataclass(frozen=True)
class Trials:
    """What the gate scores, and what full precision says of it."""

    cases: tuple[Case, ...]
    reference: tuple[Pair, ...]  # a pair a case
    left_out: dict[str, str]  # kind -> why

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        strengths = {case.kind: case.strength for case in self.cases}
        return {"opacity": strengths, "left_out": self.left_out}


class Studio:
    """The gate's stretches, usual and altered, watched by whichever model is asked."""

    def __init__(
        self, stretches: Sequence[Stretch], side: tuple[int, int], fps: float | None,
        *, seed: int = 0, progress: bool = True,
    ) -> None:  # fmt: skip
        self.stretches, self._side, self._fps = stretches, side, fps
        self._seed, self._progress = seed, progress

    def usual(self, perception: Perception, label: str) -> list[Track]:
        """Every stretch as it is."""
        with self._bar(label, range(len(self.stretches))) as bar:
            tracks = []
            for stretch in self.stretches:
                tracks.append(watch(perception, read_stretch(stretch, self._fps)))
                bar.advance(len(stretch))
            return tracks

    def pairs(
        self, perception: Perception, usual: Sequence[Track], cases: Sequence[Case], label: str
    ) -> list[Pair]:
        """Every case watched, beside the same stretch as it is."""
        with self._bar(label, [case.stretch for case in cases]) as bar:
            found = []
            for case in cases:
                found.append(self._pair(perception, usual[case.stretch], case))
                bar.advance(len(self.stretches[case.stretch]))
            return found

    def _pair(self, perception: Perception, usual: Track, case: Case) -> Pair:
        stretch = self.stretches[case.stretch]
        frames = read_stretch(stretch, self._fps)
        images = [frame.image for frame in frames]
        anomaly = Anomaly(images, case.kind, self._side, (self._seed, case.stretch))
        altered = watch(
            perception,
            (
                Frame(frame.index, frame.time_s, anomaly.frame(t, case.strength))
                for t, frame in enumerate(frames)
            ),
        )
        first = altered.unscored
        abnormal = anomaly.abnormal[first : first + altered.n_frames]
        return Pair(stretch.video, case.kind, usual, altered, abnormal)

    def _bar(self, label: str, stretches: Sequence[int]) -> Progress:
        total = sum(len(self.stretches[i]) for i in stretches)
        return Progress(label, total, enabled=self._progress)


@dataclass(frozen=True)
class Search:
    """The bisection of one kind's opacity, between one too faint and one seen well enough.

    The log-odds of the AUC grow about evenly with the opacity, from 0 at 0, so the bracket is cut
    where a straight line between its ends meets the aim, and not too near to either.
    """

    low: float = 0.0
    high: float = 1.0
    low_auc: float = 50.0
    high_auc: float = 99.99

    @property
    def strength(self) -> float:
        """The opacity to try next."""
        below, above = _log_odds(self.low_auc), _log_odds(self.high_auc)
        share = (_log_odds(AIM) - below) / max(above - below, 1e-9)
        return self.low + (self.high - self.low) * float(np.clip(share, 0.1, 0.9))

    def after(self, strength: float, auc: float) -> "Search":
        """The bracket, smaller by one measurement."""
        if auc < AIM:
            return replace(self, low=strength, low_auc=auc)
        return replace(self, high=strength, high_auc=auc)


def _log_odds(auc: float) -> float:
    share = min(max(auc / 100, 1e-4), 1 - 1e-4)
    return float(np.log(share / (1 - share)))


@dataclass(frozen=True)
class Known:
    """What an earlier search on the same footage and model came to; it is measured all the same."""

    opacity: Mapping[str, float]
    left_out: Mapping[str, str]


def find_trials(
    studio: Studio, perception: Perception, scoring: Scoring, known: Known | None = None
) -> Trials:
    """Anomalies of all kinds that fit, as faint as full precision can just see them."""
    usual = studio.usual(perception, "fp32, normal")
    finder = _Finder(studio, perception, scoring, usual)
    if known is None:
        finder.try_all_at_full()
    else:
        finder.left_out.update(known.left_out)
    seen = [kind for kind in KINDS if kind not in finder.left_out]
    finder.share_out(seen)
    for kind in seen:
        finder.search(kind, known.opacity.get(kind) if known else None)
    trials = finder.trials()
    _check(trials, scoring)
    return trials


class _Finder:
    """The searches of all kinds, and the best that each has come to."""

    def __init__(
        self, studio: Studio, perception: Perception, scoring: Scoring, usual: Sequence[Track]
    ) -> None:
        self._studio, self._perception, self._scoring = studio, perception, scoring
        self._usual = usual
        self._cases: dict[str, list[Case]] = {}
        self._found: dict[str, tuple[float, list[Case], list[Pair]]] = {}  # first: off the aim by
        self._at_full: dict[str, float] = {}
        self.left_out: dict[str, str] = {}

    def share_out(self, kinds: Sequence[str]) -> None:
        """Every stretch has a kind, and every kind some stretches spread over all."""
        self._found.clear()
        n = len(self._studio.stretches)
        each = min(n, max(FEWEST_CASES, -(-n // max(1, len(kinds)))))
        self._cases = {}
        for k, kind in enumerate(kinds):
            taken: list[int] = []
            for j in range(each):
                place = (k + j * len(kinds)) % n
                while place in taken:
                    place = (place + 1) % n
                taken.append(place)
            self._cases[kind] = [Case(place, kind, 1.0) for place in taken]

    def try_all_at_full(self) -> None:
        """Leave out the kinds that the model does not see at full opacity."""
        self.share_out(KINDS)
        for kind in KINDS:
            self._at_full[kind] = auc = float(np.mean(self._look(kind, 1.0, 0)))
            if auc < LEAST:
                self.left_out[kind] = f"hardly seen even at full opacity, AUC {auc:.1f}"

    def search(self, kind: str, first: float | None) -> None:
        """Find the opacity of a kind, beginning with the `first` where one is known."""
        at_full = self._at_full.get(kind, Search.high_auc)
        search = Search(high_auc=at_full)
        strength = (search.strength if at_full > AIM else 1.0) if first is None else first
        auc = float("nan")
        for step in range(1, STEPS + 1):
            aucs = self._look(kind, strength, step)
            auc = float(np.mean(aucs))
            if abs(auc - AIM) <= NEAR:
                return
            search = search.after(strength, auc)
            if search.high - search.low < CLOSE:
                break
            strength = search.strength
        if kind not in self._found:
            self.left_out[kind] = f"no opacity brings it into the range, AUC {auc:.1f} at last"

    def trials(self) -> Trials:
        """The best of every kind that has one."""
        found = [self._found[kind] for kind in KINDS if kind in self._found]
        return Trials(
            tuple(case for _, cases, _ in found for case in cases),
            tuple(pair for _, _, pairs in found for pair in pairs),
            self.left_out,
        )

    def _look(self, kind: str, strength: float, step: int) -> list[float]:
        """The AUCs of a kind at an opacity, remembered where they fit and are the nearest yet."""
        cases = [replace(case, strength=strength) for case in self._cases[kind]]
        label = f"fp32, {kind} {strength:.2f} ({step})"
        pairs = self._studio.pairs(self._perception, self._usual, cases, label)
        aucs = auc_of(pairs, self._scoring, self._others(cases))
        miss = abs(float(np.mean(aucs)) - AIM)
        if miss <= AIM - LEAST and (kind not in self._found or miss < self._found[kind][0]):
            self._found[kind] = miss, cases, pairs
        return aucs

    def _others(self, cases: Sequence[Case]) -> list[Pair]:
        """The stretches without an anomaly of this kind: normal frames count from all videos."""
        own = {case.stretch for case in cases}
        return [
            Pair(stretch.video, "", track, track, np.zeros(track.n_frames, bool))
            for i, (stretch, track) in enumerate(
                zip(self._studio.stretches, self._usual, strict=True)
            )
            if i not in own
        ]


def run_trials(
    studio: Studio, perception: Perception, trials: Trials, label: str
) -> tuple[Pair, ...]:
    """The same cases as another model sees them."""
    usual = studio.usual(perception, f"{label}, normal")
    return tuple(studio.pairs(perception, usual, trials.cases, f"{label}, altered"))


def auc_of(pairs: Sequence[Pair], scoring: Scoring, others: Sequence[Pair] = ()) -> list[float]:
    """AUC in points, by protocol; 50 where no frame shows anything.

    `others` are unaltered stretches, whose frames are normal under the causal protocol. They take
    no part in the other: scaled without an anomaly, every video has frames that look like one.
    """
    if not any(pair.abnormal.any() for pair in pairs):
        return [50.0 for _ in PROTOCOLS]
    return [
        Scored.of([*pairs, *(others if protocol == "causal" else ())], scoring, protocol).auc
        for protocol in PROTOCOLS
    ]


def in_range(aucs: Sequence[float]) -> bool:
    """Whether a loss would show: the mean of both protocols fits, and neither sees everything."""
    return LEAST <= float(np.mean(aucs)) <= MOST and max(aucs) <= BLIND


def _check(trials: Trials, scoring: Scoring) -> None:
    """Refuse a gate through which anything would pass."""
    kinds = {case.kind for case in trials.cases}
    if len(kinds) < FEWEST_KINDS:
        said = "; ".join(f"{kind}: {why}" for kind, why in trials.left_out.items())
        raise GateError(
            f"no gate can be built, as too few anomalies have an AUC of {LEAST:g} to {MOST:g} at "
            f"fp32 ({said}); give more normal footage, or train the model longer"
        )
    aucs = auc_of(trials.reference, scoring)
    if not in_range(aucs):
        said = ", ".join(f"{name} {auc:.1f}" for name, auc in zip(PROTOCOLS, aucs, strict=True))
        raise GateError(
            f"no gate can be built: all anomalies together have an AUC of {said} at fp32, not "
            f"{LEAST:g} to {MOST:g}, so a loss would not show; give more normal footage"
        )
