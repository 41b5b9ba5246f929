"""Scores of a labelled test set to everything there is to say about them.

Every evidence (each no-model baseline, each term alone, the paper's two, all terms) is measured
under both protocols of `scores.py`:

    paper    Eq. (13)-(14) with constants chosen on test sets; reads the test video's future
    causal   tails of normal footage, moving average; what a camera can do

A baseline passes the same two: smoothed like a term under `paper`; under `causal` averaged as
it is, or as its surprise where a tail of it on normal footage is at hand. The frames that the
model cannot score, at both ends of each video, are left out for all. AUC and the rest come from
metrics.py; AUC is micro (all frames of all videos in one ROC) and macro (mean over the videos that
hold both classes).

What the labels cannot give (they hold one class only) is NaN here, null in JSON and n/a in the
table, and `reasons` says why. The JSON is described by schemas/evaluation.schema.json.
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sfn_rt.exceptions import DataError, InputError
from sfn_rt.metrics import (
    EventMetrics,
    Labels,
    RocCurve,
    average_precision,
    equal_error_rate,
    event_metrics,
    macro_auc,
    roc_auc,
    roc_curve,
)
from sfn_rt.printable import printable
from sfn_rt.scores import (
    EMA_ALPHA,
    PAPER_TERMS,
    PUBLISHED,
    TERMS,
    FloatArray,
    PaperConstants,
    Tail,
    VideoScores,
    causal_scores,
    moving_average,
    paper_scores,
    paper_term,
    scored_span,
)
from sfn_rt.threshold import Threshold

SCHEMA_VERSION = 1
LOCALISATION_KEYS = ("box_hit_share", "box_hit_chance", "frames", "pixel_auroc")
_WIDTH = 100  # columns of the table
_NAME_WIDTH = 38

Kind = Literal["baseline", "term", "combination"]
Protocol = Literal["paper", "causal"]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One evidence under one protocol, as shares of 1."""

    micro_auc: float
    macro_auc: float
    average_precision: float
    equal_error_rate: float
    roc: RocCurve = field(repr=False, compare=False)  # for pictures; not part of the JSON

    def to_json(self) -> dict[str, float | None]:
        """The four figures."""
        names = ("micro_auc", "macro_auc", "average_precision", "equal_error_rate")
        return {name: _finite(getattr(self, name)) for name in names}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One evidence under both protocols."""

    evidence: str
    kind: Kind
    terms: tuple[str, ...]  # of the bundle's terms; empty for a baseline
    paper: Figures
    causal: Figures


@dataclass(frozen=True, kw_only=True)
class VideoRow:
    """One video, all terms together."""

    name: str
    frames: int
    scored: int
    abnormal: int  # of the scored frames
    paper_auc: float
    causal_auc: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result: `table` for people, `to_json` for programs, `rows[i].paper.roc` for pictures."""

    rows: tuple[Row, ...]
    videos: tuple[VideoRow, ...]
    threshold: Threshold
    deployed: EventMetrics
    localisation: Mapping[str, float] | None
    constants: PaperConstants
    constants_name: str
    alpha: float
    fps: float
    unscored: tuple[int, int]  # frames at the beginning and at the end of each video
    fingerprint: str | None
    labels_from: str | None  # the file, folder or rule that made the labels
    reasons: tuple[str, ...]  # why figures are n/a
    notes: tuple[str, ...]

    @property
    def published(self) -> bool:
        """The constants are those the paper gives for a data set; its weights, not ours."""
        paper = PUBLISHED.get(self.constants_name)
        if paper is None or self.constants_name == "default":
            return False
        return replace(paper, attribute=self.constants.attribute) == self.constants

    def row(self, evidence: str) -> Row:
        """One evidence by name, as it stands in the table."""
        for row in self.rows:
            if row.evidence == evidence:
                return row
        raise InputError(
            f"no evidence {evidence!r} in this evaluation; it has "
            f"{[row.evidence for row in self.rows]}"
        )

    @property
    def all_terms(self) -> Row:
        """The row of everything the bundle scores with."""
        return self.rows[-1]

    def best_baseline(self, protocol: Protocol) -> tuple[str, float] | None:
        """The no-model baseline with the highest micro AUC under a protocol, if there is one."""
        known = [
            (row.evidence, auc)
            for row in self.rows
            if row.kind == "baseline" and not np.isnan(auc := getattr(row, protocol).micro_auc)
        ]
        return max(known, key=lambda item: item[1], default=None)

    def to_json(self) -> dict[str, Any]:
        """What schemas/evaluation.schema.json describes: every number finite, or null."""
        scored = sum(video.scored for video in self.videos)
        abnormal = sum(video.abnormal for video in self.videos)
        return {
            "schema_version": SCHEMA_VERSION,
            "labels": {
                "fingerprint": self.fingerprint,
                "source": self.labels_from,
                "videos": len(self.videos),
                "frames": sum(video.frames for video in self.videos),
                "scored_frames": scored,
                "abnormal_frames": abnormal,
                "normal_frames": scored - abnormal,
                "unscored_first_frames": self.unscored[0],
                "unscored_last_frames": self.unscored[1],
            },
            "protocols": {
                "paper": {
                    "constants": self.constants_name,
                    "published": self.published,
                    **asdict(self.constants),
                    "uses_future": True,
                },
                "causal": {"alpha": self.alpha, "uses_future": False},
            },
            "rows": [
                {
                    "evidence": row.evidence,
                    "kind": row.kind,
                    "terms": list(row.terms),
                    "paper": row.paper.to_json(),
                    "causal": row.causal.to_json(),
                }
                for row in self.rows
            ],
            "deployed": {
                "threshold": asdict(self.threshold),
                "fps": self.fps,
                **{name: _finite(value) for name, value in asdict(self.deployed).items()},
            },
            "localisation": None
            if self.localisation is None
            else {name: _finite(value) for name, value in self.localisation.items()},
            "videos": [
                {name: _finite(value) for name, value in asdict(video).items()}
                for video in self.videos
            ],
            "reasons": list(self.reasons),
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """Plain text of at most 100 columns; rates in per cent."""
        parts = (self._head, self._evidence, self._deployed, self._places, self._videos)
        blocks = ["\n".join(part()) for part in parts]
        remarks = [*(f"n/a: {reason}" for reason in self.reasons), *self.notes]
        blocks.append("\n".join(_wrapped(remark, "- ") for remark in remarks))
        lines = "\n\n".join(block for block in blocks if block).splitlines()
        return "\n".join(line.rstrip() for line in lines)

    def _head(self) -> Iterator[str]:
        scored = sum(video.scored for video in self.videos)
        abnormal = sum(video.abnormal for video in self.videos)
        origin = f" from {printable(self.labels_from)}" if self.labels_from else ""
        yield _wrapped(
            f"{_count(len(self.videos), 'video')}, {_count(scored, 'scored frame')}: {abnormal} "
            f"abnormal, {scored - abnormal} normal; {self._left_out()} of each video are left "
            f"out. Labels {self.fingerprint or 'without a fingerprint'}{origin}."
        )
        c = self.constants
        origin = f"published for {self.constants_name}" if self.published else self.constants_name
        yield _wrapped(
            f"paper: constants {origin} ({c.text()}); uses each test video's future, so no camera "
            f"can run it."
        )
        yield _wrapped(
            f"causal: normal footage and the past only (moving average, alpha {self.alpha:g})."
        )

    def _left_out(self) -> str:
        first, last = self.unscored
        if last:
            return f"the first {first} and the last {last} frames"
        return f"frames 0-{first - 1}"

    def _evidence(self) -> Iterator[str]:
        width = min(_NAME_WIDTH, 2 + max(len(printable(row.evidence)) for row in self.rows))
        columns = "".join(f"{name:>7}" for name in ("micro", "macro", "AP", "EER"))
        yield f"{'':{width}}  {'paper':^28}  {'causal':^28}"
        yield f"{'%':{width}}  {columns}  {columns}"
        titles = {"baseline": "no model", "term": "one term", "combination": "together"}
        kind = None
        for row in self.rows:
            if row.kind != kind:
                kind = row.kind
                yield titles[kind]
            name = "  " + printable(row.evidence, limit=width - 2)
            cells = "  ".join(
                "".join(f"{_percent(value)}" for value in figures.to_json().values())
                for figures in (row.paper, row.causal)
            )
            yield f"{name:{width}}  {cells}"
        yield from self._margin()

    def _margin(self) -> Iterator[str]:
        margins = []
        protocols: tuple[Protocol, ...] = ("paper", "causal")
        for protocol in protocols:
            best = self.best_baseline(protocol)
            auc = getattr(self.all_terms, protocol).micro_auc
            if best is not None and not np.isnan(auc):
                margins.append(f"{protocol} {100 * (auc - best[1]):+.1f} ({printable(best[0])})")
        if margins:
            yield _wrapped(
                f"{self.all_terms.evidence} against the best no-model baseline, points of micro "
                f"AUC: {', '.join(margins)}"
            )

    def _deployed(self) -> Iterator[str]:
        d = self.deployed
        yield _wrapped(f"At the deployed threshold {self.threshold.value:.4g} (causal score):")
        yield _wrapped(self.threshold.rule, "  rule: ")
        yield (
            f"  false alarms an hour    {_number(d.false_alarms_per_hour, '  ')}  "
            f"{d.false_alarms} on {d.normal_hours * 3600:.0f} s of normal frames"
        )
        yield f"  normal frames alarmed   {_percent(d.normal_alarmed, ' %')}"
        yield f"  events found            {_percent(d.share_found, ' %')}  {d.found} of {d.events}"
        yield f"  median delay            {_number(d.delay_s, ' s')}"

    def _places(self) -> Iterator[str]:
        if self.localisation is None:
            return
        place = self.localisation
        yield f"Localisation on {_count(int(place['frames']), 'frame')} with marked pixels"
        yield (
            f"  peak boxes that hit     {_percent(place['box_hit_share'], ' %')}  a random place: "
            f"{_percent(place['box_hit_chance'], ' %').strip()}"
        )
        yield f"  pixel AUROC             {_percent(place['pixel_auroc'], ' %')}"

    def _videos(self) -> Iterator[str]:
        width = min(_NAME_WIDTH, max(5, *(2 + len(printable(v.name)) for v in self.videos)))
        yield f"{'AUC a video, %':{width}}  {'frames':>8}{'abnormal':>10}{'paper':>8}{'causal':>8}"
        for video in self.videos:
            name = f"{'  ' + printable(video.name, limit=width - 2):{max(width, 14)}}"
            yield (
                f"{name}  {video.frames:>8}{video.abnormal:>10}"
                f" {_percent(video.paper_auc)} {_percent(video.causal_auc)}"
            )


def evaluate(
    videos: Sequence[VideoScores],
    labels: Mapping[str, Labels],
    *,
    tails: Mapping[str, Tail],
    constants: PaperConstants,
    constants_name: str,
    threshold: Threshold,
    fps: float,
    alpha: float = EMA_ALPHA,
    baselines: Mapping[str, Mapping[str, FloatArray]] | None = None,
    localisation: Mapping[str, float] | None = None,
    fingerprint: str | None = None,
    labels_from: str | None = None,
    notes: Sequence[str] = (),
) -> Evaluation:
    """Measure scored videos against their labels (T,), 1 = abnormal, by video name.

    `baselines` holds (T,) evidence by baseline and video; `tails` those of the terms and, by
    their name, of baselines that were fitted on normal footage; `localisation` is what
    `metrics.localisation` returns. The deployed figures use the scores as the pipeline left them.
    """
    baselines = baselines or {}
    _check(videos, labels, baselines, localisation)
    names = [name for name in TERMS if name in videos[0].terms]
    abnormal = [np.asarray(labels[video.name]).astype(bool) for video in videos]
    spans = [scored_span(video.terms) for video in videos]
    truth = [y[span] for y, span in zip(abnormal, spans, strict=True)]
    score_terms = _TermScores(videos, tails, constants, alpha)

    rows = [
        Row(
            evidence=name,
            kind="baseline",
            terms=(),
            paper=_figures([paper_term(x, constants) for x in evidence], truth),
            causal=_figures([_causal_baseline(x, tails.get(name), alpha) for x in evidence], truth),
        )
        for name, by_video in baselines.items()
        for evidence in [
            [_like(by_video[v.name], span) for v, span in zip(videos, spans, strict=True)]
        ]
    ]
    rows += [
        Row(
            evidence=name,
            kind="term",
            terms=(name,),
            paper=_figures(
                [paper_term(video.terms[name], constants, name) for video in videos], truth
            ),
            causal=_figures(score_terms.causal((name,)), truth),
        )
        for name in names
    ]
    together = {"all terms": tuple(names)}
    if set(PAPER_TERMS) <= set(names):
        together = {"visual + semantic (the paper's two)": PAPER_TERMS, **together}
    rows += [
        Row(
            evidence=name,
            kind="combination",
            terms=terms,
            paper=_figures(score_terms.paper(terms), truth),
            causal=_figures(score_terms.causal(terms), truth),
        )
        for name, terms in together.items()
    ]

    every = tuple(names)
    video_rows = tuple(
        VideoRow(
            name=video.name,
            frames=video.n_frames,
            scored=len(y),
            abnormal=int(y.sum()),
            paper_auc=roc_auc(paper[span], y),
            causal_auc=roc_auc(causal[span], y),
        )
        for video, span, y, paper, causal in zip(
            videos, spans, truth, score_terms.paper(every), score_terms.causal(every), strict=True
        )
    )
    deployed = event_metrics(
        [video.causal for video in videos],
        abnormal,
        threshold.value,
        fps,
    )
    return Evaluation(
        rows=tuple(rows),
        videos=video_rows,
        threshold=threshold,
        deployed=deployed,
        localisation=None if localisation is None else dict(localisation),
        constants=constants,
        constants_name=constants_name,
        alpha=alpha,
        fps=fps,
        unscored=(spans[0].start, videos[0].n_frames - spans[0].stop),
        fingerprint=fingerprint,
        labels_from=labels_from,
        reasons=tuple(_reasons(video_rows, deployed, localisation)),
        notes=tuple(notes),
    )


class _TermScores:
    """Scores of the videos from a choice of terms; the causal ones are the slow part, so kept."""

    def __init__(
        self,
        videos: Sequence[VideoScores],
        tails: Mapping[str, Tail],
        constants: PaperConstants,
        alpha: float,
    ) -> None:
        self._videos, self._tails = videos, tails
        self._constants, self._alpha = constants, alpha
        self._causal: dict[tuple[str, ...], list[FloatArray]] = {}

    def paper(self, terms: tuple[str, ...]) -> list[FloatArray]:
        return [paper_scores(chosen, self._constants) for chosen in self._chosen(terms)]

    def causal(self, terms: tuple[str, ...]) -> list[FloatArray]:
        if terms not in self._causal:
            self._causal[terms] = [
                causal_scores(chosen, self._tails, self._alpha) for chosen in self._chosen(terms)
            ]
        return self._causal[terms]

    def _chosen(self, terms: tuple[str, ...]) -> Iterator[dict[str, FloatArray]]:
        return ({name: video.terms[name] for name in terms} for video in self._videos)


def _figures(scores: Sequence[FloatArray], truth: Sequence[npt.NDArray[np.bool_]]) -> Figures:
    """Of one evidence; scores (T,) are NaN on the frames that the labels leave out."""
    scored = [score[np.isfinite(score)] for score in scores]
    all_scores, all_labels = np.concatenate(scored), np.concatenate(truth)
    both = bool(all_labels.any() and not all_labels.all())

    def figure(measure: Callable[[FloatArray, Labels], float]) -> float:
        return measure(all_scores, all_labels) if both else float("nan")

    return Figures(
        micro_auc=figure(roc_auc),
        macro_auc=macro_auc(scored, truth),
        average_precision=figure(average_precision),  # of one class it would be a perfect 1
        equal_error_rate=figure(equal_error_rate),
        roc=roc_curve(all_scores, all_labels),
    )


def _like(evidence: FloatArray, span: slice) -> FloatArray:
    """A baseline knows every frame; the model does not, so nobody is measured on the others."""
    masked = np.full(len(evidence), np.nan)
    masked[span] = evidence[span]
    return masked


def _causal_baseline(evidence: FloatArray, tail: Tail | None, alpha: float) -> FloatArray:
    if tail is None:
        return moving_average(evidence, alpha)
    return causal_scores({"baseline": evidence}, {"baseline": tail}, alpha)


def _check(
    videos: Sequence[VideoScores],
    labels: Mapping[str, Labels],
    baselines: Mapping[str, Mapping[str, FloatArray]],
    localisation: Mapping[str, float] | None,
) -> None:
    """Refuse what would otherwise be measured against the wrong frames."""
    if not videos:
        raise DataError("nothing to evaluate: no test video has labels")
    first: tuple[int, int] | None = None
    names = [video.name for video in videos]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"test videos need different names, these occur twice: {twice}")
    for video in videos:
        if video.name not in labels:
            raise DataError(f"{video.name}: no labels; there are labels for {sorted(labels)[:8]}")
        if len(labels[video.name]) != video.n_frames:
            raise DataError(
                f"{video.name}: {len(labels[video.name])} labels for {video.n_frames} frames; "
                f"one label a frame is needed"
            )
        if not np.isin(labels[video.name], (0, 1)).all():
            raise DataError(
                f"{video.name}: labels must be 0 (normal) or 1 (abnormal), got values up to "
                f"{np.max(labels[video.name])}"
            )
        if video.terms.keys() != videos[0].terms.keys():
            raise InputError(
                f"{video.name}: scored with {sorted(video.terms)}, {videos[0].name} with "
                f"{sorted(videos[0].terms)}; score all videos with the same terms"
            )
        if unknown := sorted(set(video.terms) - set(TERMS)):
            raise InputError(f"{video.name}: unknown terms {unknown}; known ones are {TERMS}")
        span = scored_span(video.terms)
        if span.start == span.stop:
            raise DataError(
                f"{video.name}: none of its {video.n_frames} frames has a score; leave this video "
                f"out"
            )
        unscored = (span.start, video.n_frames - span.stop)
        first = unscored if first is None else first
        if unscored != first:
            raise InputError(
                f"{video.name}: {unscored[0]} frames at its beginning and {unscored[1]} at its end "
                f"have no score, of {videos[0].name} {first[0]} and {first[1]}; one system "
                f"scores all videos alike"
            )
        inside = np.zeros(video.n_frames, dtype=bool)
        inside[span] = True
        for name, values in {**video.terms, "causal": video.causal}.items():
            if not np.array_equal(np.isfinite(values), inside):
                raise InputError(
                    f"{video.name}: {name} must be a number on frames {span.start} to "
                    f"{span.stop - 1} and on no others, as every term"
                )
        for name, by_video in baselines.items():
            found = len(by_video[video.name]) if video.name in by_video else 0
            if found != video.n_frames:
                raise DataError(
                    f"{video.name}: baseline {name!r} has {found} values for "
                    f"{video.n_frames} frames"
                )
    if localisation is not None and set(localisation) != set(LOCALISATION_KEYS):
        raise InputError(
            f"localisation must have the keys {list(LOCALISATION_KEYS)}, got {list(localisation)}"
        )


def _reasons(
    videos: Sequence[VideoRow], deployed: EventMetrics, localisation: Mapping[str, float] | None
) -> Iterator[str]:
    """Why figures are missing, a sentence each."""
    scored = sum(video.scored for video in videos)
    abnormal = sum(video.abnormal for video in videos)
    if abnormal in (0, scored):
        which = "normal" if abnormal == 0 else "abnormal"
        yield f"every scored frame is {which}; AUC, average precision and EER need both classes"
    else:
        one_class = [v.name for v in videos if v.abnormal in (0, v.scored)]
        if one_class:
            shown = ", ".join(printable(name, limit=40) for name in one_class[:12])
            more = f" and {len(one_class) - 12} more" if len(one_class) > 12 else ""
            yield (
                f"one class throughout, so no AUC of their own and no part in macro: {shown}{more}"
            )
    if not deployed.normal_hours:
        yield "no normal frames, so no false alarms to count"
    if not deployed.events:
        yield "no abnormal event in the labels to find"
    elif not deployed.found:
        yield "no event was found, so there is no delay"
    if localisation is not None:
        if not localisation["frames"]:
            yield "no frame has marked pixels to hit"
        if np.isnan(localisation["pixel_auroc"]):
            yield "pixel AUROC needs a heat map, and pixels marked and not marked"


def _finite(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _number(value: float, unit: str = "") -> str:
    """Seven columns and the unit, so that figures stand under one another."""
    return f"{'n/a':>7}{' ' * len(unit)}" if np.isnan(value) else f"{value:7.1f}{unit}"


def _percent(share: float | None, unit: str = "") -> str:
    return _number(float("nan") if share is None else 100 * share, unit)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _wrapped(text: str, lead: str = "") -> str:
    return textwrap.fill(
        printable(text), _WIDTH, initial_indent=lead, subsequent_indent=" " * max(len(lead), 2)
    )
