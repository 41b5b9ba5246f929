"""What a lower precision, and an engine, compute of the feeds that real video makes.

fp32 is compared on random inputs of every scale (parity.py). A lower precision holds for what its
ranges were measured on and clips the rest by design, so it is compared on what the parts are fed
while video runs through the bundle; and as some tokens always meet other filters there, all values
are compared and the share of those tokens has a budget of its own. The reference is fp32.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from sfn_export.exceptions import EngineError, ParityError
from sfn_export.parity import (
    ROUTING,
    TOLERANCE,
    ParityReport,
    assert_parity,
    check_parts,
    routing_changes,
    sentence_feeds,
)
from sfn_export.path_parity import described, with_backend
from sfn_rt.backends.base import Arrays, Backend, CheckedBackend, PartSpec
from sfn_rt.bundle import FULL, Bundle
from sfn_rt.datasets import Video
from sfn_rt.frames import open_source
from sfn_rt.model import open_model
from sfn_rt.pipeline import VideoRun

KEPT = 6  # blocks of frames of each video, every STEPth that a part is fed
STEP = 2
Feeds = Mapping[str, Sequence[Arrays]]  # part -> what it was fed


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One output of a part in a lower precision, or of an engine, against its reference."""

    tensor: str
    precision: str
    tested: str
    reference: str
    max_abs: float  # relative to the largest magnitude expected
    sqnr_db: float
    rerouted: float | None  # share of tokens sent to other filters; None without a router

    def text(self) -> str:
        """One line, for people."""
        routed = "" if self.rerouted is None else f"  {self.rerouted:.2%} of tokens rerouted"
        return (
            f"{self.tensor:<24} {self.precision:<5} {self.tested} against {self.reference}: "
            f"max|Δ| {self.max_abs:.1e}  SQNR {self.sqnr_db:.0f} dB{routed}"
        )

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


class FeedRecorder(CheckedBackend):
    """A backend that keeps some of what its parts are fed."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.name, self.parts = inner.name, inner.parts
        self._calls = dict.fromkeys(inner.parts, 0)
        self.feeds: dict[str, list[Arrays]] = {part: [] for part in inner.parts}

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """As the inner backend."""
        if self._calls[part] % STEP == 0 and self._calls[part] < KEPT * STEP:
            self.feeds[part].append({name: array.copy() for name, array in feeds.items()})
        self._calls[part] += 1
        return self._inner.infer(part, feeds, names)

    def begin(self) -> None:
        """Keep as many of the next video."""
        self._calls = dict.fromkeys(self._calls, 0)


class RunnerBackend(CheckedBackend):
    """Polygraphy's runners behind the Backend protocol, one a part."""

    def __init__(
        self, name: str, runners: Mapping[str, Any], specs: Mapping[str, PartSpec]
    ) -> None:
        self.name, self.parts, self._runners = name, specs, runners

    def __enter__(self) -> Self:
        for runner in self._runners.values():
            runner.activate()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for runner in self._runners.values():
            if runner.is_active:
                runner.deactivate()

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """The runner's answer, copied out of its buffers."""
        found = self._runners[part].infer(dict(feeds), check_inputs=False)
        return {name: np.array(found[name]) for name in names}


def onnxruntime_runners(
    graphs: Mapping[str, Path], precisions: Mapping[str, str], threads: int | None
) -> dict[str, Any]:
    """A runner of ONNX Runtime on the CPU for each graph."""
    import onnxruntime as ort
    from polygraphy.backend.onnxrt import OnnxrtRunner

    def session(part: str, path: Path) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if precisions[part] == "fp8":  # the optimiser moves a Transpose of fp8: it has no kernel
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    return {part: OnnxrtRunner(session(part, path)) for part, path in graphs.items()}


@dataclass(frozen=True)
class Tokens:
    """How a bundle's sentences become numbers."""

    file: Path | None  # the tokenizer; None: the model has no text branch
    most: int = 0

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """As the manifest says."""
        text = bundle.manifest.semantics.text if bundle.manifest.semantics else None
        return cls(None) if text is None else cls(bundle.path(text.tokenizer), text.max_tokens)


def record_feeds(
    bundle: Bundle, videos: Sequence[Video], *, frames: int, fps: float | None, threads: int | None
) -> dict[str, list[Arrays]]:
    """What every part is fed while the first `frames` frames of each video are scored in fp32."""
    with open_model(bundle.folder, threads=threads) as opened:
        recorder = FeedRecorder(opened.perception.backend)
        model = with_backend(opened, recorder)
        for video in videos:
            recorder.begin()
            with open_source(video.path, fps=fps) as source:
                run = VideoRun(described(model, None, video), source.fps)
                for block in run.blocks(source):
                    run.take(block)
                    if run.rows.n_frames >= frames:
                        break
    tokens = Tokens.of(bundle)
    if tokens.file is not None:
        recorder.feeds["text"] = list(sentence_feeds("unit", 3, tokens.file, tokens.most))
    if missing := [part for part, feeds in recorder.feeds.items() if not feeds]:
        raise EngineError(f"the clips are too short: {missing[0]} was fed nothing; name others")
    return recorder.feeds


def precisions_of(bundle: Bundle, asked: str) -> dict[str, str]:
    """The arithmetic of each part: a key of TOLERANCE, whatever its variant is called."""
    variants = bundle.variants(asked)
    if asked == FULL or asked in bundle.manifest.forms:
        return dict.fromkeys(variants, FULL)
    path = bundle.path(bundle.manifest.precisions[asked].report)
    try:
        lower = json.loads(path.read_bytes())["recipe"]["precision"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{path} does not say its recipe's precision; calibrate again") from error
    if lower not in TOLERANCE:
        raise EngineError(f"{path}: no budget for {lower!r}; there are {', '.join(TOLERANCE)}")
    return {part: lower if v == asked else FULL for part, v in variants.items()}


def compare_full(
    reference: Backend,
    tested: Backend,
    precisions: Mapping[str, str],
    tokens: "Tokens",
    names: tuple[str, str],
) -> list[Compared]:
    """The parts in full precision on random inputs of every scale; raises where one is over.

    `names` are those of what is tested and of the reference, for people.
    """
    parts = [part for part in tested.parts if precisions[part] == FULL]
    if not parts:
        return []
    report = check_parts(
        reference, tested, tokenizer=tokens.file, max_tokens=tokens.most, parts=parts
    )
    return worst_of(report, names)


def worst_of(report: ParityReport, names: tuple[str, str]) -> list[Compared]:
    """The worst case of each tensor."""
    routes = [route.share for route in report.rerouted]
    found = []
    for tensor in dict.fromkeys(d.tensor for d in report.differences):
        same = [d for d in report.differences if d.tensor == tensor]
        found.append(
            Compared(
                tensor=tensor, precision=FULL, tested=names[0], reference=names[1],
                max_abs=max(d.max_abs for d in same), sqnr_db=min(d.sqnr_db for d in same),
                rerouted=max(routes, default=None) if tensor.startswith("decoder.") else None,
            )
        )  # fmt: skip
    return found


def compare_lower(
    reference: Backend,
    tested: Backend,
    precisions: Mapping[str, str],
    feeds: Feeds,
    names: tuple[str, str],
) -> list[Compared]:
    """The parts in a lower precision, on all feeds at once; raises where one is over budget."""
    found: list[Compared] = []
    for part in tested.parts:
        if (precision := precisions[part]) != FULL:
            expected, actual = (_all(b, part, feeds[part]) for b in (reference, tested))
            found += _compare_lower(part, expected, actual, precision, names)
    return found


def _compare_lower(
    part: str,
    expected: Arrays,
    actual: Arrays,
    precision: str,
    names: tuple[str, str],
) -> list[Compared]:
    budget = TOLERANCE[precision]
    case = f"{precision}, {names[0]} against {names[1]}, real clips"
    rerouted = None
    if ROUTING in expected:
        rerouted = float(routing_changes(expected[ROUTING], actual[ROUTING]).mean())
        if rerouted > budget.max_rerouted:
            raise ParityError(
                f"{part}.{ROUTING}: {rerouted:.2%} of the tokens were routed differently (budget "
                f"{budget.max_rerouted:.1%}), {case}; budget reason: {budget.why}"
            )
    found = []
    for name in (name for name in expected if name != ROUTING):
        done = assert_parity(f"{part}.{name}", expected[name], actual[name], budget, case)
        found.append(
            Compared(
                tensor=done.tensor, precision=precision, tested=names[0], reference=names[1],
                max_abs=done.max_abs, sqnr_db=done.sqnr_db, rerouted=rerouted,
            )
        )  # fmt: skip
    return found


def _all(backend: Backend, part: str, feeds: Sequence[Arrays]) -> Arrays:
    """The answers to all feeds, one behind the other."""
    answers = [backend.infer(part, feed) for feed in feeds]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
