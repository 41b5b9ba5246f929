"""Evidence per frame to one score per frame, by the paper's rule and by a rule a camera can run.

Two protocols, always reported side by side:

    paper    S = w_v smooth(E_v) + w_s smooth(E_s)                        paper Eq. (13)-(14)
             E is min-max scaled over its video first where the published constants say so.
             Offline: it reads the whole test video, its future included.
    causal   m_t = (1 - a) m_(t-1) + a sum over terms of -log P(normal >= E_t)
             P is the tail of each term on held-out normal footage, a = 0.2. One frame at a
             time, nothing from the test video's future, one threshold for all videos.

Axes: T frames of one video, M stored values of normal evidence. Frames that a system cannot score,
at the beginning of a video and with some at its end, are NaN in every term and in every score:
the first `OBSERVED` of sfn-vad, which predicts; the first 8 and the last 7 of dual-memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sfn_rt.exceptions import InputError

FloatArray = npt.NDArray[np.float64]

OBSERVED = 4  # frames that a prediction of sfn-vad needs before it; they are never scored
EMA_ALPHA = 0.2
PAPER_TERMS = ("visual", "semantic")
TERMS = (*PAPER_TERMS, "attribute")

# The attribute term is in nats, on one scale for all videos, so it is never min-maxed: what is
# rarer than 1 in 1000 things counts as much as the worst frame of a min-maxed term.
ABSOLUTE_TERMS = ("attribute",)
ABSOLUTE_SCALE = float(np.log(1000.0))

_TRUNCATE = 4.0  # the Gaussian is cut at this many sigmas, as scipy.ndimage does
_MAX_SAMPLE = 4096  # normal values a tail keeps; 200 of them lie beyond the 95th percentile
_TAIL_SHARE = 0.05  # beyond the 95th percentile the tail is exponential
_MAX_SURPRISE = 1e6  # nats; keeps a score finite whatever arrives, and far above any real one


@dataclass(frozen=True, kw_only=True)
class PaperConstants:
    """Weights and smoothing of Eq. (13)-(14), which the authors chose on each test set."""

    visual: float
    semantic: float
    attribute: float = 1 / ABSOLUTE_SCALE  # this project's own term; the paper has none
    sigma: float  # frames
    minmax: bool  # scale each term to 0..1 over its video before smoothing

    def __post_init__(self) -> None:
        weights = {name: self.weight(name) for name in TERMS}
        for name, value in {**weights, "sigma": self.sigma}.items():
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number, 0 or more, got {value}")

    def weight(self, term: str) -> float:
        """The weight of one of `TERMS`."""
        if term not in TERMS:
            raise InputError(f"paper score: unknown term {term!r}; known terms are {list(TERMS)}")
        return float(getattr(self, term))

    def text(self) -> str:
        """For people."""
        weights = ", ".join(f"{term} {self.weight(term):g}" for term in TERMS)
        scaled = "min-max a video" if self.minmax else "no min-max"
        return f"{weights}, sigma {self.sigma:g}, {scaled}"


PUBLISHED: Mapping[str, PaperConstants] = MappingProxyType(
    {
        "ped2": PaperConstants(visual=0.8, semantic=0.2, sigma=5, minmax=True),
        "avenue": PaperConstants(visual=0.9, semantic=0.1, sigma=4, minmax=False),
        "shanghaitech": PaperConstants(visual=0.2, semantic=0.8, sigma=13, minmax=True),
        "default": PaperConstants(visual=0.5, semantic=0.5, sigma=5, minmax=True),
        # The second system's publication, on every data set: PSNR, scaled over its video.
        "dual-memory": PaperConstants(visual=1, semantic=0, sigma=0, minmax=True),
    }
)


def paper_constants(system: str, published: str | None = None) -> tuple[str, PaperConstants]:
    """Name and constants for a system on a data set, by its published name if it has one."""
    name = system if system in PUBLISHED else published or "default"
    return name, PUBLISHED[name]


@dataclass(frozen=True, kw_only=True)
class VideoScores:
    """Everything the pipeline found out about one video, a row a frame."""

    name: str
    fps: float
    time_s: FloatArray  # (T,)
    terms: Mapping[
        str, FloatArray
    ]  # (T,) each; NaN on unscored frames; a term that is off is absent
    paper: FloatArray  # (T,)
    causal: FloatArray  # (T,)
    box: npt.NDArray[np.float32]  # (T, 4) x, y, w, h of the peak in source pixels; NaN = none
    caption_id: npt.NDArray[np.int32]  # (T,) index into captions; -1 = none
    captions: tuple[str, ...]
    caption_age: FloatArray | None = None  # (T,) frames since it was asked for; NaN = no caption
    caption_weight: FloatArray | None = None  # (T,) of it in the semantic term; NaN = not scored

    def __post_init__(self) -> None:
        n_frames = len(self.time_s)
        columns: dict[str, npt.NDArray[Any]] = {
            **self.terms,
            "paper": self.paper,
            "causal": self.causal,
            "caption_id": self.caption_id,
        }
        for name, optional in (("age", self.caption_age), ("weight", self.caption_weight)):
            if optional is not None:
                columns[f"caption_{name}"] = optional
        for name, values in columns.items():
            if values.shape != (n_frames,):
                raise InputError(
                    f"{self.name}: {name} must have one value for each of the {n_frames} frames, "
                    f"got shape {values.shape}"
                )
        if self.box.shape != (n_frames, 4):
            raise InputError(f"{self.name}: box must be ({n_frames}, 4), got {self.box.shape}")

    @property
    def n_frames(self) -> int:
        """T, unscored frames included."""
        return len(self.time_s)


# --------------------------------------------------------------------------- paper protocol


def smooth_gaussian(x: FloatArray, sigma: float) -> FloatArray:
    """Smooth (T,) along time, from both sides; edges are mirrored. NaN-free input."""
    values = np.asarray(x, dtype=np.float64)
    radius = int(_TRUNCATE * sigma + 0.5)
    if values.size == 0 or radius == 0:
        return values.copy()
    offset = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)
    padded = np.pad(values, radius, mode="symmetric")  # (T + 2 radius,)
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")  # (T,)


def minmax(x: FloatArray) -> FloatArray:
    """Scale (T,) to [0, 1] over its video; a constant becomes zeros.

    The benchmarks' convention, and offline only: it needs the last frame before it can score
    the first, and it finds a most abnormal frame in every video, a normal one included.
    """
    values = np.asarray(x, dtype=np.float64)
    if values.size == 0:
        return values.copy()
    low = values.min()
    span = values.max() - low
    return (values - low) / span if span > 0 else np.zeros_like(values)


def paper_term(x: FloatArray, constants: PaperConstants, term: str = "visual") -> FloatArray:
    """One term of Eq. (13) without its weight: (T,) evidence, min-max if told, then smoothed."""
    span = scored_span({"evidence": x})
    scored = np.asarray(x[span], dtype=np.float64)
    if constants.minmax and term not in ABSOLUTE_TERMS:
        scored = minmax(scored)
    score = np.full(len(x), np.nan)
    score[span] = smooth_gaussian(scored, constants.sigma)
    return score  # (T,)


def paper_scores(terms: Mapping[str, FloatArray], constants: PaperConstants) -> FloatArray:
    """Eq. (13)-(14): the weighted sum of the smoothed terms (T,); absent terms are left out."""
    span = scored_span(terms)
    total = np.full(len(next(iter(terms.values()))), np.nan)
    total[span] = 0.0
    for name in _ordered(terms):
        # Every term is scaled over the same stretch: that on which all have a value.
        smoothed = paper_term(terms[name][span], constants, name)
        total[span] += constants.weight(name) * smoothed
    return total  # (T,)


def scored_span(terms: Mapping[str, FloatArray]) -> slice:
    """The frames on which every term has a value; empty, at the end, where there is none.

    Values may be missing at both ends of a video only: a hole between them is a fault upstream.
    """
    if not terms:
        raise InputError("a score needs at least one term; all of them are switched off")
    lengths = {name: len(values) for name, values in terms.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"terms must cover the same frames, got these lengths: {lengths}")
    finite = np.all([np.isfinite(values) for values in terms.values()], axis=0)  # (T,)
    if not finite.any():
        return slice(len(finite), len(finite))
    first = int(np.argmax(finite))
    stop = len(finite) - int(np.argmax(finite[::-1]))
    if not finite[first:stop].all():
        hole = first + int(np.argmin(finite[first:stop]))
        names = [name for name, values in terms.items() if not np.isfinite(values[hole])]
        raise InputError(f"{', '.join(names)}: frame {hole} must be finite, like those before it")
    return slice(first, stop)


# -------------------------------------------------------------------------- causal protocol


@dataclass(frozen=True, eq=False)
class Tail:
    """How rare a value of one term is on normal footage.

    P(normal >= x) is the share of normal values at or above x, interpolated between them; from
    the first value that at most 5 % reach it goes on as an exponential, because there are no
    normal values there to count and an anomaly is exactly what lies there.
    """

    normal: FloatArray  # (M,) sorted; at most 4096 quantiles of normal evidence
    scale: float  # mean excess beyond the 95th percentile: what lowers P by a factor e
    _value: FloatArray = field(init=False, repr=False)  # (U,) distinct values up to the anchor
    _share: FloatArray = field(init=False, repr=False)  # (U,) P(normal >= value)

    def __post_init__(self) -> None:
        normal = np.ascontiguousarray(self.normal, dtype=np.float64)
        if normal.ndim != 1 or normal.size == 0 or not np.isfinite(normal).all():
            raise InputError(
                f"a tail needs a list of finite normal values, got shape {normal.shape}; "
                f"fit it on at least one scored frame"
            )
        if (np.diff(normal) < 0).any():
            raise InputError("a tail's normal values must be sorted; write it with Tail.fit")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"a tail's scale must be a positive number, got {self.scale}")
        value, share = _survival(normal)
        object.__setattr__(self, "normal", normal)
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "_value", value)
        object.__setattr__(self, "_share", share)

    @classmethod
    def fit(cls, evidence: FloatArray | Iterable[float]) -> Self:
        """From all normal evidence of one term, any shape or order; NaN is left out."""
        values = np.asarray(
            evidence if isinstance(evidence, np.ndarray) else list(evidence), dtype=np.float64
        ).ravel()
        values = np.sort(values[np.isfinite(values)])
        if values.size == 0:
            raise InputError(
                "no normal evidence to fit a tail on; give at least one normal video of "
                f"{OBSERVED + 1} frames or more"
            )
        normal = values
        if values.size > _MAX_SAMPLE:  # order statistics, not interpolated: ties stay ties
            middle = (np.arange(_MAX_SAMPLE) + 0.5) / _MAX_SAMPLE
            normal = values[(middle * values.size).astype(np.int64)]
        anchor = _survival(normal)[0][-1]
        return cls(normal, _mean_excess(values, float(anchor)))

    def surprise(self, x: npt.ArrayLike) -> FloatArray:
        """-log P(normal >= x) in nats for any shape: 0 or more, monotone, continuous, finite."""
        values = np.asarray(x, dtype=np.float64)
        share = np.interp(values, self._value, self._share)
        beyond = np.maximum(values - self._value[-1], 0.0)
        with np.errstate(over="ignore"):
            surprise = beyond / self.scale - np.log(share)
        return np.asarray(np.minimum(surprise, _MAX_SURPRISE) + 0.0)  # + 0.0: no negative zero

    def quantile(self, share: float) -> float:
        """The value that `share` of normal evidence stays below; the inverse of the survival."""
        return self.value(-float(np.log(1.0 - share)))

    def value(self, surprise: float) -> float:
        """The evidence that is as surprising as this, in nats; the inverse of `surprise`."""
        rarest = float(np.log(self._share[-1]))
        if surprise > -rarest:
            return float(self._value[-1] + self.scale * (rarest + surprise))
        return float(np.interp(-np.exp(-surprise), -self._share, self._value))

    def to_arrays(self) -> dict[str, FloatArray]:
        """For an .npz file; `from_arrays` gives the same tail back, bit for bit."""
        return {"normal": self.normal, "scale": np.array(self.scale)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The inverse of `to_arrays`."""
        if missing := sorted({"normal", "scale"} - set(arrays)):
            raise InputError(f"a stored tail lacks {missing}; train or export again")
        return cls(np.asarray(arrays["normal"], dtype=np.float64), float(arrays["scale"]))


def _survival(normal: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Distinct values (U,) and P(normal >= value) (U,), up to where the exponential takes over."""
    value, first = np.unique(normal, return_index=True)
    share = 1.0 - first / normal.size
    rare = share <= _TAIL_SHARE + 1e-12
    # Where the largest value itself is common (ties, few frames), the exponential starts there.
    last = int(np.argmax(rare)) if rare.any() else len(value) - 1
    return value[: last + 1], share[: last + 1]


def _mean_excess(values: FloatArray, anchor: float) -> float:
    """Mean distance beyond the anchor; positive even where the sample has nothing beyond it."""
    median = float(np.median(values))
    # Values that are equal but for rounding would give a slope of a million nats. Even a uniform
    # distribution's mean excess is 5 % of the way from its median to its 95th percentile.
    floor = 1e-9 + 1e-6 * float(np.abs(values).max()) + 0.02 * max(anchor - median, 0.0)
    for start in (anchor, median, float(values[0])):
        excess = float(np.mean(values[values >= start] - start))
        if excess > floor:
            return excess
    return floor


class CausalScore:
    """The score of a live stream, a frame at a time: surprises summed, then an EMA."""

    def __init__(self, tails: Mapping[str, Tail], alpha: float = EMA_ALPHA) -> None:
        if not tails:
            raise InputError("a causal score needs the tail of at least one term")
        if not 0.0 < alpha <= 1.0:
            raise InputError(f"alpha of the moving average must be in (0, 1], got {alpha}")
        self._tails = {name: tails[name] for name in _ordered(tails)}
        self._alpha = alpha
        self._mean: float | None = None

    def update(self, evidence: Mapping[str, float]) -> float:
        """The score of the next frame; NaN, and no memory of it, while a term has no value."""
        if evidence.keys() != self._tails.keys():
            raise InputError(
                f"causal score: expected the terms {list(self._tails)}, got {list(evidence)}; "
                f"score with the terms that the bundle's normal footage was measured with"
            )
        if not all(np.isfinite(value) for value in evidence.values()):
            return float("nan")
        surprise = sum(float(tail.surprise(evidence[name])) for name, tail in self._tails.items())
        if self._mean is None:
            self._mean = surprise
        else:
            self._mean += self._alpha * (surprise - self._mean)
        return self._mean

    def state(self) -> dict[str, float | None]:
        """What `restore` needs to go on exactly; survives JSON."""
        return {"mean": self._mean}

    def restore(self, state: Mapping[str, float | None]) -> None:
        """Go on from a `state`."""
        mean = state["mean"]
        self._mean = None if mean is None else float(mean)


def causal_scores(
    terms: Mapping[str, FloatArray], tails: Mapping[str, Tail], alpha: float = EMA_ALPHA
) -> FloatArray:
    """The causal score (T,) of one whole video; tails of terms that are not given are not used."""
    if missing := sorted(set(terms) - set(tails)):
        raise InputError(
            f"no normal footage was measured for {missing}; tails exist for {sorted(tails)}"
        )
    scored_span(terms)
    score = CausalScore({name: tails[name] for name in terms}, alpha)
    columns = {
        name: np.asarray(values, dtype=np.float64).tolist() for name, values in terms.items()
    }
    rows = zip(*columns.values(), strict=True)
    return np.array([score.update(dict(zip(columns, row, strict=True))) for row in rows])  # (T,)


def moving_average(x: FloatArray, alpha: float = EMA_ALPHA) -> FloatArray:
    """The causal score's EMA on bare evidence (T,), for evidence without a tail."""
    mean = float("nan")
    averaged = np.full(len(x), np.nan)
    for t, value in enumerate(np.asarray(x, dtype=np.float64).tolist()):
        if np.isfinite(value):
            mean = mean + alpha * (value - mean) if np.isfinite(mean) else value
            averaged[t] = mean
    return averaged  # (T,)


def _ordered(names: Iterable[str]) -> Sequence[str]:
    """One fixed order of adding, so that the same terms give the same bits however they came."""
    return sorted(
        names, key=lambda name: (TERMS.index(name) if name in TERMS else len(TERMS), name)
    )
