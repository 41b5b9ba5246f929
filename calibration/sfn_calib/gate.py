"""The gate: what a precision changes in scores, routing and AUC, against the budget of its recipe.

Every stretch of held-out normal footage is scored twice, as it is and with a synthetic anomaly
(anomalies.py), by the model at full precision and by the variant. Scores are the runtime's, under
both protocols; `paper` scales each stretch and its altered copy together, as one video. The AUC is
that of the altered frames against all unaltered ones.

A loss counts, a gain does not. The interval of the loss is a bootstrap over videos: frames of one
video are not independent of each other.

Axes: n scored frames of one stretch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfn_calib.recipe import Budget
from sfn_calib.watch import Track
from sfn_rt.metrics import roc_auc
from sfn_rt.scores import FloatArray, PaperConstants, Tail, causal_scores, paper_scores

PROTOCOLS = ("paper", "causal")
RESAMPLES = 1000
LIKELY = 0.95  # of the interval


@dataclass(frozen=True, eq=False)
class Pair:
    """One stretch as it is, and with an anomaly."""

    video: str
    kind: str
    usual: Track
    altered: Track
    abnormal: NDArray[np.bool_]  # (n,) frames of the altered copy in which something shows


@dataclass(frozen=True)
class Scoring:
    """How evidence becomes a score: the model's own statistics, and the published rule."""

    tails: Mapping[str, Tail]
    alpha: float
    constants: PaperConstants

    def scores(self, pair: Pair, protocol: str) -> tuple[FloatArray, FloatArray]:
        """(n,) of the usual copy, (n,) of the altered one; what is no number counts as 0."""
        usual, altered = _finite(pair.usual.terms), _finite(pair.altered.terms)
        if protocol == "causal":
            return (
                causal_scores(usual, self.tails, self.alpha),
                causal_scores(altered, self.tails, self.alpha),
            )
        joined = {term: np.concatenate([usual[term], altered[term]]) for term in usual}
        whole = paper_scores(joined, self.constants)
        return whole[: pair.usual.n_frames], whole[pair.usual.n_frames :]


@dataclass(frozen=True, eq=False)
class Scored:
    """All frames of the gate under one protocol: those of the pairs, one after another."""

    scores: FloatArray
    labels: NDArray[np.bool_]
    videos: NDArray[np.str_]

    @classmethod
    def of(cls, pairs: Sequence[Pair], scoring: Scoring, protocol: str) -> "Scored":
        """Frames of an altered copy in which nothing shows are left out."""
        scores: list[FloatArray] = []
        labels: list[NDArray[np.bool_]] = []
        videos: list[str] = []
        for pair in pairs:
            usual, altered = scoring.scores(pair, protocol)
            shown = altered[pair.abnormal]
            scores += [usual, shown]
            labels += [np.zeros(len(usual), bool), np.ones(len(shown), bool)]
            videos += [pair.video] * (len(usual) + len(shown))
        return cls(np.concatenate(scores), np.concatenate(labels), np.array(videos))

    @property
    def auc(self) -> float:
        """In points."""
        return 100 * roc_auc(self.scores, self.labels)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The figures of one protocol; AUCs in points."""

    auc_fp32: float
    auc: float
    loss: float  # of AUC; 0 where it gained
    loss_interval: tuple[float, float]  # of fp32 - variant, gains negative
    spearman: float


@dataclass(frozen=True, kw_only=True)
class GateFigures:
    """What a precision changes."""

    protocols: Mapping[str, Protocol]
    rerouted: float  # share of tokens, over all layers, that reach other filters
    rerouted_by_layer: tuple[float, ...]
    broken: int  # frames whose evidence is no number
    normal_frames: int
    abnormal_frames: int
    videos: int

    @property
    def one_frame(self) -> float:
        """Points of AUC that move if one frame changes places with all others."""
        return 100 / max(1, min(self.normal_frames, self.abnormal_frames))

    @property
    def auc_loss(self) -> float:
        """The larger of both protocols."""
        return max(p.loss for p in self.protocols.values())

    @property
    def spearman(self) -> float:
        """The smaller of both protocols."""
        return min(p.spearman for p in self.protocols.values())

    def misses(self, budget: Budget) -> list[str]:
        """What does not hold, in words; empty where the gate holds."""
        found = []
        if self.broken:
            found.append(f"{self.broken} frames have evidence that is no number")
        for name, p in self.protocols.items():
            if p.loss > budget.auc_points:
                found.append(
                    f"{name} AUC falls by {p.loss:.3f} points to {p.auc:.2f} "
                    f"(budget {budget.auc_points:g})"
                )
            if p.spearman < budget.spearman:
                found.append(
                    f"{name} scores correlate with {p.spearman:.4f} in rank "
                    f"(at least {budget.spearman:g})"
                )
        if self.rerouted > budget.rerouted:
            found.append(
                f"{self.rerouted:.1%} of tokens are routed otherwise "
                f"(at most {budget.rerouted:.1%})"
            )
        return found

    def numbers(self) -> dict[str, float]:
        """For the manifest."""
        found: dict[str, float] = {}
        for name, p in self.protocols.items():
            found |= {f"auc_fp32_{name}": p.auc_fp32, f"auc_{name}": p.auc}
        found |= {
            "auc_loss": self.auc_loss,
            "spearman": self.spearman,
            "rerouted": self.rerouted,
            "normal_frames": self.normal_frames,
            "abnormal_frames": self.abnormal_frames,
        }
        return {name: float(value) for name, value in found.items()}

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {**asdict(self), "auc_loss": self.auc_loss, "one_frame_points": self.one_frame}

    def text(self) -> str:
        """For people, a line."""
        aucs = ", ".join(
            f"{name} AUC {p.auc_fp32:.2f} -> {p.auc:.2f} (loss {p.loss:.3f}, 95 % "
            f"{p.loss_interval[0]:+.3f} to {p.loss_interval[1]:+.3f})"
            for name, p in self.protocols.items()
        )
        return (
            f"{aucs}; rank correlation {self.spearman:.4f}; {self.rerouted:.2%} of tokens routed "
            f"otherwise; {self.normal_frames} normal and {self.abnormal_frames} abnormal frames of "
            f"{self.videos} videos"
        )


def compare(reference: Sequence[Pair], variant: Sequence[Pair], scoring: Scoring) -> GateFigures:
    """The figures of a variant against full precision, on the same pairs."""
    protocols = {}
    for name in PROTOCOLS:
        full, lower = (Scored.of(pairs, scoring, name) for pairs in (reference, variant))
        protocols[name] = Protocol(
            auc_fp32=full.auc,
            auc=lower.auc,
            loss=max(0.0, full.auc - lower.auc),
            loss_interval=loss_interval(full, lower),
            spearman=spearman(full.scores, lower.scores),
        )
    layers = rerouted(reference, variant)
    tracks = [track for pair in variant for track in (pair.usual, pair.altered)]
    return GateFigures(
        protocols=protocols,
        rerouted=float(np.mean(layers)) if layers else 0.0,
        rerouted_by_layer=layers,
        broken=sum(_n_broken(track.terms) for track in tracks),
        normal_frames=int((~full.labels).sum()),
        abnormal_frames=int(full.labels.sum()),
        videos=len(set(full.videos.tolist())),
    )


def spearman(one: FloatArray, other: FloatArray) -> float:
    """Correlation of ranks, the ranks of equal values shared."""
    if np.array_equal(one, other):
        return 1.0
    a, b = (_ranks(x) for x in (one, other))
    spread = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / spread if spread else 0.0


def rerouted(reference: Sequence[Pair], variant: Sequence[Pair]) -> tuple[float, ...]:
    """Share of tokens whose set of filters differs, a layer; empty without routing."""
    differ: NDArray[np.int64] | None = None
    tokens = 0
    for before, after in zip(reference, variant, strict=True):
        for one, other in ((before.usual, after.usual), (before.altered, after.altered)):
            changed = (one.routing != other.routing).any(axis=-1)  # (n, layers, tokens)
            by_layer = changed.sum(axis=(0, 2))  # (layers,)
            differ = by_layer if differ is None else differ + by_layer
            tokens += changed.shape[0] * changed.shape[2]
    if differ is None or not tokens:
        return ()
    return tuple(float(n) / tokens for n in differ)


def loss_interval(full: Scored, lower: Scored) -> tuple[float, float]:
    """Where fp32's AUC less the variant's lies, in points, if other videos had been drawn."""
    videos = np.unique(full.videos)
    rows = {video: np.flatnonzero(full.videos == video) for video in videos}
    random = np.random.default_rng(0)
    losses = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rows[video] for video in random.choice(videos, len(videos))])
        label = full.labels[drawn]
        losses.append(roc_auc(full.scores[drawn], label) - roc_auc(lower.scores[drawn], label))
    outside = (1 - LIKELY) / 2
    low, high = np.nanquantile(100 * np.array(losses), [outside, 1 - outside])
    return float(low), float(high)


def _ranks(x: FloatArray) -> FloatArray:
    """Ranks about their mean."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count + 1) / 2  # of each distinct value, from 0 on
    return np.asarray(rank[place] - rank[place].mean())


def _finite(terms: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    return {term: np.where(np.isfinite(x), x, 0.0) for term, x in terms.items()}


def _n_broken(terms: Mapping[str, FloatArray]) -> int:
    return int(np.any([~np.isfinite(x) for x in terms.values()], axis=0).sum())
