"""What calibration found, as a table for people, JSON for programs, and a picture.

The picture shows score against score, full precision across and the variant up, one panel a
protocol: a precision that changes nothing is a diagonal, and what it would cost is where normal and
anomalous frames change places. Drawn with OpenCV at twice its size, as neither workshop nor device
has a plotting library.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sfn_calib.clips import Clips
from sfn_calib.convert import Converted
from sfn_calib.faint import Trials
from sfn_calib.gate import PROTOCOLS, Pair, Protocol, Scored, Scoring
from sfn_calib.mixed import Attempt, Layer
from sfn_calib.recipe import Recipe
from sfn_rt import __version__
from sfn_rt.plots import COLOURS, GRID, INK, MUTED
from sfn_rt.scores import FloatArray

REPORT_SCHEMA = 1
WORST = 10  # layers that the table names
PACKAGES = ("numpy", "onnx", "onnxruntime", "opencv-python-headless")
Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Made:
    """Everything a calibration came to, held or refused."""

    recipe: Recipe
    bundle: Mapping[str, Any]  # what was calibrated: hashes of its manifest and configuration
    clips: Clips
    observed: int  # T
    trials: Trials
    attempt: Attempt
    terms: tuple[str, ...]
    emulation: str  # how the variant ran here
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All of NAME.json."""
        attempt = self.attempt
        return {
            "schema_version": REPORT_SCHEMA,
            "precision": self.recipe.name,
            "holds": not attempt.misses,
            "misses": list(attempt.misses),
            "bundle": dict(self.bundle),
            "recipe": self.recipe.to_json(),
            "clips": {
                **self.clips.to_json(),
                "n_clips": sum(len(s) - self.observed for s in self.clips.calibration),
                "gate_frames": self.clips.gate_frames,
            },
            "anomalies": self.trials.to_json(),
            "terms": list(self.terms),
            "gate": attempt.figures.to_json(),
            "rounds": [
                {
                    "given_back": [layer.node for layer in each.given_back],
                    "auc_loss": each.figures.auc_loss,
                    "spearman": each.figures.spearman,
                    "rerouted": each.figures.rerouted,
                    "misses": list(each.misses),
                }
                for each in attempt.rounds
            ],
            "given_back": [layer.to_json() for layer in attempt.given_back],
            "layers": [layer.to_json() for layer in attempt.layers],
            "parts": {part: _part(part, attempt) for part in attempt.graphs},
            "ran_on": self.emulation,
            "versions": versions(),
            "seconds": round(self.seconds, 1),
        }

    def table(self) -> str:
        """For people."""
        attempt, budget = self.attempt, self.recipe.budget
        lines = [
            f"{'':<9}{'fp32':>8}{self.recipe.name:>8}{'loss':>8}{'95 %':>18}{'rank corr.':>12}"
        ]
        for name, p in attempt.figures.protocols.items():
            low, high = p.loss_interval
            lines.append(
                f"{name:<9}{p.auc_fp32:8.2f}{p.auc:8.2f}{p.loss:8.3f}"
                f"{f'{low:+.3f} to {high:+.3f}':>18}{p.spearman:12.4f}"
            )
        lines.append(
            f"{'budget':<9}{'':>16}{budget.auc_points:8g}{'':>18}{budget.spearman:12g}"
            f"   AUC in points"
        )
        lines.append(
            f"tokens routed otherwise: {attempt.figures.rerouted:.2%} "
            f"(budget {budget.rerouted:.1%}); one frame of a copy weighs "
            f"{attempt.figures.one_frame:.3f} points at most"
        )
        lines.append("worst layers: " + (worst_layers(attempt.layers) or "none was converted"))
        if attempt.given_back:
            names = ", ".join(f"{layer.part} {layer.node}" for layer in attempt.given_back)
            lines.append(f"given back to full precision: {names}")
        return "\n".join(lines)


def _part(part: str, attempt: Attempt) -> dict[str, Any]:
    """What became of one part's nodes, those that stayed by reason."""
    done: Converted | None = attempt.converted.get(part)
    by_reason: dict[str, list[str]] = {}
    if done is not None:
        for node, why in done.kept.items():
            by_reason.setdefault(why, []).append(node)
    return {
        "variant": attempt.variants[part],
        "converted": len(done.nodes) if done is not None else 0,
        "kept": by_reason,
        "notes": list(done.notes) if done is not None else ["left out by the recipe"],
    }


def worst_layers(layers: Sequence[Layer]) -> str:
    """The layers with the most quantisation noise, in words."""
    return ", ".join(f"{x.part} {x.node} {x.sqnr_db:.1f} dB" for x in layers[:WORST])


def versions() -> dict[str, str]:
    """What made the graphs and ran them."""
    found = {"sfn": __version__, "python": platform.python_version(), "cpu": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# --- the picture ------------------------------------------------------------------------------

SIDE = 460  # of a panel, pixels
LEFT, TOP, GAP, BOTTOM = 74, 96, 96, 78
ZOOM = 2  # drawn larger and reduced, so that small text and points have soft edges
NORMAL, ABNORMAL = COLOURS[0], COLOURS[1]
POINT = 2.2  # radius


def picture(
    reference: Sequence[Pair], variant: Sequence[Pair], scoring: Scoring, name: str,
    protocols: Mapping[str, Protocol],
) -> bytes:  # fmt: skip
    """Score against score of every frame of the gate, as a PNG."""
    width = LEFT + len(PROTOCOLS) * SIDE + (len(PROTOCOLS) - 1) * GAP + 30
    canvas = Canvas(TOP + SIDE + BOTTOM, width)
    canvas.text(LEFT, 30, f"{name} against fp32: score of every frame of the gate", size=19)
    canvas.dot(width - 250, 24, NORMAL, radius=5)
    canvas.text(width - 238, 30, "normal", size=14)
    canvas.dot(width - 160, 24, ABNORMAL, radius=5)
    canvas.text(width - 148, 30, "anomalous", size=14)
    for i, protocol in enumerate(PROTOCOLS):
        full, lower = (Scored.of(pairs, scoring, protocol) for pairs in (reference, variant))
        figures = protocols[protocol]
        left = LEFT + i * (SIDE + GAP)
        title = (
            f"{protocol}: AUC {figures.auc_fp32:.2f} fp32, {figures.auc:.2f} {name} "
            f"(loss {figures.loss:.3f})"
        )
        canvas.text(left, TOP - 16, title, size=15)
        _panel(canvas, left, full, lower, name)
    return canvas.png()


def _panel(canvas: "Canvas", left: int, full: Scored, lower: Scored, name: str) -> None:
    """One protocol: axes, the diagonal, and the points, a random order so that none hides all."""
    values = np.concatenate([full.scores, lower.scores])
    low, high = min(0.0, float(values.min())), float(np.quantile(values, 0.995)) * 1.05 or 1.0
    span = (high - low) or 1.0

    def across(x: float) -> float:
        return left + SIDE * (x - low) / span

    def up(y: float) -> float:
        return TOP + SIDE - SIDE * (y - low) / span

    for tick in ticks(low, high):
        canvas.line(across(tick), TOP, across(tick), TOP + SIDE, GRID)
        canvas.line(left, up(tick), left + SIDE, up(tick), GRID)
        canvas.text(across(tick), TOP + SIDE + 20, f"{tick:g}", size=13, colour=MUTED, at="middle")
        canvas.text(left - 8, up(tick) + 5, f"{tick:g}", size=13, colour=MUTED, at="end")
    canvas.line(left, TOP + SIDE, left + SIDE, TOP, MUTED)
    inside = [np.clip(scored.scores, low, high) for scored in (full, lower)]
    for n in np.random.default_rng(0).permutation(len(full.scores)):
        colour = ABNORMAL if full.labels[n] else NORMAL
        canvas.dot(across(float(inside[0][n])), up(float(inside[1][n])), colour, radius=POINT)
    middle = left + SIDE / 2
    canvas.text(middle, TOP + SIDE + 46, "score at fp32", size=14, colour=MUTED, at="middle")
    canvas.text(left - 8, TOP + 4, name, size=14, colour=MUTED, at="end")


class Canvas:
    """A white picture to draw on, in pixels of its final size."""

    def __init__(self, height: int, width: int) -> None:
        self._image: Image = np.full((ZOOM * height, ZOOM * width, 3), 255, np.uint8)

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        """A thin straight line."""
        ends = [(round(ZOOM * x), round(ZOOM * y)) for x, y in ((x0, y0), (x1, y1))]
        cv2.line(self._image, ends[0], ends[1], _bgr(colour), ZOOM, cv2.LINE_AA)

    def dot(self, x: float, y: float, colour: str, *, radius: float) -> None:
        """A filled circle."""
        centre = (round(ZOOM * x), round(ZOOM * y))
        cv2.circle(self._image, centre, round(ZOOM * radius), _bgr(colour), -1, cv2.LINE_AA)

    def text(
        self, x: float, y: float, text: str, *, size: int, colour: str = INK, at: str = "start"
    ) -> None:
        """A line of ASCII on the base line y."""
        font, scale = cv2.FONT_HERSHEY_SIMPLEX, ZOOM * size / 30
        (width, _), _ = cv2.getTextSize(text, font, scale, ZOOM)
        left = ZOOM * x - {"start": 0.0, "middle": width / 2, "end": float(width)}[at]
        place = (round(left), round(ZOOM * y))
        cv2.putText(self._image, text, place, font, scale, _bgr(colour), ZOOM, cv2.LINE_AA)

    def png(self) -> bytes:
        """The picture at its final size."""
        height, width = self._image.shape[:2]
        size = (width // ZOOM, height // ZOOM)
        small = cv2.resize(self._image, size, interpolation=cv2.INTER_AREA)
        done, data = cv2.imencode(".png", small)
        assert done
        return data.tobytes()


def ticks(low: float, high: float) -> FloatArray:
    """About five round values within low .. high."""
    raw = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return np.asarray(np.round(np.arange(first, last + 1) * step, 10) + 0.0)


def _bgr(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return blue, green, red
