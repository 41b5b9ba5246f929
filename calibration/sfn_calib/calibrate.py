"""A bundle and normal footage to the same bundle with one more precision, or to a refusal.

    clips      which normal footage calibrates, which judges                        clips.py
    feeds      what each part is fed on the calibration clips                       watch.py
    trials     held-out footage with anomalies that fp32 just sees                  faint.py
    settle     graphs by the recipe; layers given back until the gate holds         mixed.py
    pack       graphs, report and picture into the bundle                 variant.py, report.py

Everything is written beside the bundle and moves into its place at the end, so an interruption
leaves the bundle as it was. A refusal leaves the report and the picture beside it.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfn_calib.clips import LEAST_GATE, Clips, choose_clips, known_held_out
from sfn_calib.exceptions import CalibrationError, GateError
from sfn_calib.faint import Known, Studio, Trials, find_trials, run_trials
from sfn_calib.gate import GateFigures, Pair, Scoring, compare
from sfn_calib.mixed import Attempt, Workshop, settle
from sfn_calib.recipe import Recipe
from sfn_calib.report import REPORT_SCHEMA, Made, picture
from sfn_calib.variant import add_precision, copy_without, taken
from sfn_calib.watch import open_reference, record_feeds, with_backend
from sfn_rt.backends.base import Backend
from sfn_rt.bundle import FULL, MANIFEST, Bundle, load_bundle
from sfn_rt.bundle_folder import bundle_folder
from sfn_rt.datasets import Dataset, open_dataset
from sfn_rt.frames import open_source
from sfn_rt.model import Model
from sfn_rt.normal import NormalFootage
from sfn_rt.options import check_fps, check_threads
from sfn_rt.scores import paper_constants
from sfn_rt.sinks.files import write_atomic

Say = Callable[[str], None]
RUN_JSON = "run.json"  # of a run folder
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
CLIPS = 64
GATE_FRAMES = 1200
FEW_VIDEOS = 4  # below, an interval over videos says little


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """What is calibrated, on what, and where it goes."""

    bundle: Path
    data: Path
    precision: str  # a recipe's name, or the path of one
    out: Path | None = None  # None: the bundle itself is replaced
    run: Path | None = None  # the run that the bundle was exported from
    clips: int = CLIPS
    gate_frames: int = GATE_FRAMES
    threads: int | None = None
    fps: float | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_threads(self.threads)
        check_fps(self.fps)
        if self.clips < 8:
            raise CalibrationError(f"--clips must be at least 8, got {self.clips}")
        if self.gate_frames < LEAST_GATE:
            raise CalibrationError(
                f"--gate-frames must be at least {LEAST_GATE}, got {self.gate_frames}"
            )


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` answers."""

    out: Path
    made: Made

    def text(self) -> str:
        """For people."""
        made = self.made
        return f"{made.table()}\n{self.out}: has {made.recipe.name} now, {made.seconds:.0f} s"


def calibrate(options: CalibrationOptions, say: Say) -> Calibrated:
    """Add a precision to a bundle; nothing changes there unless the gate holds."""
    start = time.perf_counter()
    recipe = Recipe.load(options.precision)
    bundle = load_bundle(options.bundle)
    check_bundle(bundle, recipe)
    dataset = open_dataset(options.data, fps=options.fps)
    clips = find_clips(bundle, dataset, options)
    for note in clips.notes:
        say(f"note: {note}")
    out = options.out or options.bundle
    if recipe.name in bundle.manifest.precisions:
        say(f"note: replaces the {recipe.name} that {options.bundle} has")
    with (
        bundle_folder(out) as work,
        open_reference(bundle, options.threads) as model,
    ):
        manifest = copy_without(bundle, work, recipe.name)
        gate = Gate.build(model, clips, dataset, options, say)
        attempt, ran_on = gate.settle(bundle, work, recipe, say)
        made = Made(
            recipe=recipe,
            bundle=_identity(bundle),
            clips=clips,
            observed=bundle.manifest.observed,
            trials=gate.trials,
            attempt=attempt,
            terms=model.perception.terms,
            emulation=ran_on,
            seconds=time.perf_counter() - start,
        )
        report = json.dumps(made.to_json(), indent=1, allow_nan=False) + "\n"
        image = picture(
            gate.trials.reference, attempt.pairs, gate.scoring, recipe.name,
            attempt.figures.protocols,
        )  # fmt: skip
        if attempt.misses:
            raise refused(made, out, report, image)
        (work / f"{recipe.name}.json").write_text(report, encoding="utf-8")
        (work / f"{recipe.name}.png").write_bytes(image)
        add_precision(work, manifest, recipe.name, attempt.variants, attempt.figures.numbers())
        load_bundle(work, verify=False)
    return Calibrated(out, made)


def check_bundle(bundle: Bundle, recipe: Recipe) -> None:
    """Refuse what cannot have this precision before any video is read."""
    if bundle.manifest.system != "sfn-vad":
        raise CalibrationError(
            f"{bundle.folder}: a {bundle.manifest.system} model; lower precisions are made of "
            f"sfn-vad alone, as no recipe was measured on the other: it runs at {FULL}"
        )
    if not NAME.fullmatch(recipe.name) or recipe.name == FULL:
        raise CalibrationError(
            f"recipe {recipe.name!r}: its name becomes that of files and of --precision; call it "
            f"something of a-z, 0-9, - and _ other than {FULL}"
        )
    if (file := taken(bundle, recipe.name)) is not None:
        raise CalibrationError(
            f"{bundle.path(file)} is another file of the bundle and would be replaced; "
            f"give the recipe another name"
        )


def find_clips(bundle: Bundle, dataset: Dataset, options: CalibrationOptions) -> Clips:
    """Clips for calibration and for the gate."""
    manifest = bundle.manifest
    run = read_run(options.run, bundle) if options.run is not None else None
    return choose_clips(
        dataset,
        NormalFootage.from_arrays(bundle.normal()).scene,
        known_held_out(dataset, manifest.provenance, run),
        observed=manifest.observed,
        clips=options.clips,
        gate_frames=options.gate_frames,
    )


def read_run(path: Path, bundle: Bundle) -> Mapping[str, Any]:
    """What a run says of itself; refuses one that the bundle was not exported from."""
    try:
        raw = json.loads((path / RUN_JSON).read_text("utf-8"))
        same = raw["config_sha256"] == bundle.manifest.provenance.config_sha256
        spans = raw["split"]["held_out"]
        assert all({"video", "start", "stop"} <= span.keys() for span in spans)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise CalibrationError(
            f"{path}: not a run folder that says which footage it held out ({error!r}); give the "
            f"one that {bundle.folder} was exported from, or leave --run out"
        ) from None
    if not same:
        raise CalibrationError(
            f"{path}: its configuration is not the one that {bundle.folder} was exported from; "
            f"give that run, or leave --run out"
        )
    return dict(raw)


def known_opacities(bundle: Bundle, clips: Clips) -> Known | None:
    """What the search came to for another precision of this very model, on this very footage."""
    for precision in bundle.manifest.precisions.values():
        report = json.loads(bundle.path(precision.report).read_text("utf-8"))
        if report["schema_version"] != REPORT_SCHEMA:
            continue
        same_model = report["bundle"]["graphs"] == _identity(bundle)["graphs"]
        if same_model and report["clips"]["gate"] == clips.to_json()["gate"]:
            found = report["anomalies"]
            return Known(found["opacity"], found["left_out"])
    return None


@dataclass(frozen=True)
class Gate:
    """Held-out footage, altered as faintly as full precision can see, and how it is scored."""

    model: Model
    clips: Clips
    studio: Studio
    scoring: Scoring
    trials: Trials
    options: CalibrationOptions

    @classmethod
    def build(
        cls, model: Model, clips: Clips, dataset: Dataset, options: CalibrationOptions, say: Say
    ) -> "Gate":
        """Find how faint the anomalies must be."""
        _, constants = paper_constants(model.bundle.manifest.system)
        scoring = Scoring(model.tails, model.alpha, constants)
        with open_source(clips.gate[0].path, fps=dataset.fps) as source:
            side = moving_size(model, source.height, source.width)
        studio = Studio(clips.gate, side, dataset.fps, progress=options.progress)
        say(
            f"{len(clips.calibration)} runs of clips calibrate; {clips.gate_frames} frames in "
            f"{len(clips.gate)} stretches judge, terms {', '.join(model.perception.terms)}"
        )
        if (videos := len({stretch.video for stretch in clips.gate})) < FEW_VIDEOS:
            say(f"note: only {videos} video(s) judge: the interval of the loss says little")
        known = known_opacities(model.bundle, clips)
        trials = find_trials(studio, model.perception, scoring, known)
        for kind, why in trials.left_out.items():
            say(f"note: anomaly {kind} is left out: {why}")
        return cls(model, clips, studio, scoring, trials, options)

    def judge(self, backend: Backend, label: str) -> tuple[GateFigures, tuple[Pair, ...]]:
        """What a variant makes of it."""
        pairs = run_trials(self.studio, with_backend(self.model, backend), self.trials, label)
        return compare(self.trials.reference, pairs, self.scoring), pairs

    def settle(self, bundle: Bundle, work: Path, recipe: Recipe, say: Say) -> tuple[Attempt, str]:
        """Graphs in `work` that hold, or the last ones that did not; and how they ran here."""
        feeds = record_feeds(self.model, self.clips.calibration, self.options.fps)
        workshop = Workshop(bundle.graphs(), work, recipe, feeds, threads=self.options.threads)
        attempt = settle(workshop, recipe, self.judge, say)
        with workshop.open() as backend:
            return attempt, backend.name


def moving_size(model: Model, height: int, width: int) -> tuple[int, int]:
    """Height and width in source pixels of what moves in the scene, as its visual term knows it."""
    visual, size = model.perception.visual, model.perception.preprocessing
    return (
        max(1, round(visual.box_height * height / size.height)),
        max(1, round(visual.box_width * width / size.width)),
    )


def refused(made: Made, out: Path, report: str, image: bytes) -> GateError:
    """The error that ends it, with the report and the picture written beside the bundle."""
    beside = out.resolve().with_name(f"{out.resolve().name}-{made.recipe.name}-refused")
    for suffix, content in ((".json", report.encode()), (".png", image)):
        write_atomic(beside.with_name(beside.name + suffix), content)
    back, n = len(made.attempt.given_back), len(made.attempt.layers)
    return GateError(
        f"{made.recipe.name} does not hold its gate, with {back} of {n} layers given back: "
        f"{'; '.join(made.attempt.misses)}; nothing is packed, {beside}.json and .png have the "
        f"figures; use another recipe, or train the model longer"
    )


def _identity(bundle: Bundle) -> dict[str, Any]:
    """What was calibrated."""
    manifest = bundle.manifest
    return {
        "manifest_sha256": hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest(),
        "config_sha256": manifest.provenance.config_sha256,
        "data": manifest.provenance.data,
        "graphs": {p: manifest.files[e.files[e.default]] for p, e in manifest.parts.items()},
    }
