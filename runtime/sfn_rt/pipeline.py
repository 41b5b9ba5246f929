"""One video to a folder of results; the whole flow on one screen.

    video -> frames -> look (another thread) -> predict -> evidence
          -> score, event                      as a camera would, frame by frame
          -> tables, curve, heat map, report   when the video is over

Memory does not grow with the video but for some 100 bytes a frame of scores. An interrupted run
leaves a checkpoint that continues to the same bytes.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sfn_rt.events import Box, Description, Event, EventDetector, min_gap_frames
from sfn_rt.evidence import BLOCK, FrameEvidence, Looked
from sfn_rt.exceptions import InputError, OutputError, VideoError
from sfn_rt.frames import Frame, FrameSource, open_source
from sfn_rt.model import Model, open_model, with_captions
from sfn_rt.normal import SAME_SCENE
from sfn_rt.options import ScoreOptions
from sfn_rt.prefetch import prefetch
from sfn_rt.printable import printable
from sfn_rt.progress import Progress
from sfn_rt.rows import Rows
from sfn_rt.scores import CausalScore, PaperConstants, VideoScores, paper_constants, paper_scores
from sfn_rt.semantics.cached import find_captions
from sfn_rt.semantics.caption_text import mostly_foreign
from sfn_rt.semantics.contrast import contrast
from sfn_rt.sinks.files import OutputFolder, output_errors
from sfn_rt.streams import open_stream

CHECKPOINT_S = 10.0


@dataclass(frozen=True)
class ScoreSummary:
    """What `sfn-rt score` answers."""

    video: Path
    out: Path
    n_frames: int
    n_scored: int  # of them; the first, and with some systems the last, cannot be
    seconds: float  # wall time of scoring, report left out
    n_resumed: int  # frames that an earlier, interrupted run had scored
    events: tuple[Event, ...]
    threshold: float
    highest: float  # causal score
    files: tuple[str, ...]
    warnings: tuple[str, ...]
    lane: Mapping[str, Any] | None  # who described the video, when, and what became of it
    problem: str | None  # why decoding broke off, if it did

    def text(self) -> str:
        """For people."""
        fps = (self.n_frames - self.n_resumed) / max(self.seconds, 1e-9)
        lines = [f"warning: {warning}" for warning in self.warnings]
        lines.append(
            f"{self.n_frames} frames, {self.n_scored} scored, at {fps:.1f} frames/s; highest score "
            f"{self.highest:.2f}, threshold {self.threshold:.2f}, {len(self.events)} event"
            f"{'' if len(self.events) == 1 else 's'}"
        )
        if self.lane is not None:
            lines.append(lane_text(self.lane))
        for event in self.events:
            lines.append(f"  {event.start_s:.1f}-{event.end_s:.1f} s: {event.explanation}")
            if new := printable("; ".join(event.new), limit=200):
                lines.append(f"    new in its caption: {new}")
        lines.append(f"{self.out}: {', '.join(self.files)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """For programs."""
        plain = asdict(self)
        return plain | {"video": str(self.video), "out": str(self.out)}


def score_video(source: Path, bundle: Path, options: ScoreOptions) -> ScoreSummary:
    """Score every frame of `source` and write the results to `options.out`."""
    with ExitStack() as stack:
        opened = open_model(
            bundle, threads=options.threads, terms=options.terms, captions=options.captions,
            lane=options.lane, backend=options.backend,
        )  # fmt: skip
        model = stack.enter_context(opened)
        video = stack.enter_context(open_source(source, fps=options.fps))
        model = with_captions(model, options.captions, source, video.name)
        folder = stack.enter_context(
            OutputFolder(options.out, overwrite=options.force, resume=options.resume)
        )
        run = VideoRun(model, video.fps, grid=folder.state / "heat.f16")
        checkpoint = Checkpoint(folder.state, _identity(source, video.name, model, options))
        folder.resumable = folder.resumed  # also where it cannot be continued with these options
        n_resumed = checkpoint.load(run) if folder.resumed else 0
        started = saved = time.perf_counter()
        progress = stack.enter_context(
            Progress("scoring", video.n_frames, enabled=options.progress, done=n_resumed)
        )
        with hint_at_resume(folder, run):
            for block in run.blocks(video, start=n_resumed):
                with output_errors(options.out):  # heat maps go to disk
                    run.take(block)
                progress.advance(len(block.frames))
                if time.perf_counter() - saved > CHECKPOINT_S:
                    with output_errors(options.out):
                        checkpoint.save(run, block)
                    folder.resumable, saved = True, time.perf_counter()
        result = run.finish(video.name)
        seconds = time.perf_counter() - started
        check_frames(source, result.n_frames, model)
        warnings = (*video.warnings, *run.warnings)
        names = write_results(folder, source, result, run, warnings, options)
        folder.commit()
    return ScoreSummary(
        source, options.out, result.n_frames, int(np.isfinite(result.causal).sum()), seconds,
        n_resumed, tuple(run.events), model.threshold.value, float(np.nanmax(result.causal)), names,
        warnings, run.lane(result.captions), video.problem,
    )  # fmt: skip


@contextmanager
def hint_at_resume(folder: OutputFolder, run: "VideoRun") -> Iterator[None]:
    """Ctrl-C says what is left of the work."""
    try:
        yield
    except KeyboardInterrupt:
        left = f"nothing is kept: the first checkpoint comes after {CHECKPOINT_S:g} s"
        if folder.resumable:
            left = "the same command with --resume continues at the last checkpoint"
        raise KeyboardInterrupt(f"at frame {run.n_taken}; {left}") from None


def check_frames(source: Path, n_frames: int, model: Model) -> None:
    """Refuse a video in which nothing can be scored."""
    least = model.perception.least_frames
    if n_frames < least:
        raise VideoError(
            f"{source}: {n_frames} frames are too few; {model.bundle.manifest.system} needs at "
            f"least {least} to score one"
        )


class VideoRun:
    """One video on its way through: evidence to score to event, with all state in one place."""

    def __init__(self, model: Model, fps: float, grid: Path | None = None) -> None:
        self.model, self.fps = model, fps
        perception = model.perception
        if perception.lane is not None:
            perception = replace(perception, lane=replace(perception.lane, fps=fps))
        self.stream = open_stream(perception)
        self._paced = perception.lane is not None and perception.lane.clock == "seconds"
        self.causal = CausalScore(model.tails, model.alpha)
        self.detector = EventDetector(model.threshold.value, min_gap_frames=min_gap_frames(fps))
        visual = model.perception.visual
        self.rows = Rows(model.perception.terms, (visual.grid_height, visual.grid_width), grid)
        self.events: list[Event] = []
        self.warnings: list[str] = []

    def blocks(self, video: FrameSource, start: int = 0) -> Iterator[Looked]:
        """Look at the video's frames from `start` on, ahead of whoever takes the blocks."""
        frames = (frame for frame in video if frame.index >= start)
        if self._paced:
            return prefetch(self.stream.look([frame]) for frame in paced(frames))
        return prefetch(self.stream.look(block) for block in grouped(frames, BLOCK))

    @property
    def n_taken(self) -> int:
        """Frames so far; some systems give their rows only later."""
        return self.rows.n_frames + self.stream.pending

    def take(self, block: Looked) -> list[FrameEvidence]:
        """Predict, score and watch for events; the evidence that has come out."""
        if not self.n_taken:
            self._check_scene(block.frames[0])
        rows = self.stream.predict(block)
        self._score(rows)
        return rows

    def _score(self, rows: Iterable[FrameEvidence]) -> None:
        for row in rows:
            if not all(np.isfinite(value) for value in row.terms.values()):
                raise InputError(
                    f"frame {row.index}: the model's evidence is {dict(row.terms)}, which is no "
                    f"number; export the model again"
                )
            score = self.causal.update(row.terms) if row.terms else float("nan")
            surprise = {t: float(self.model.tails[t].surprise(e)) for t, e in row.terms.items()}
            box = self._box(row, surprise)
            words = partial(self._say, row, surprise, box)
            finished = self.detector.update(row.index, row.time_s, score, words)
            if finished:
                self.events.append(finished)
            self.rows.append(row, score, box)

    def finish(self, name: str, constants: PaperConstants | None = None) -> VideoScores:
        """The video is over: close the open event, and score by the paper's rule.

        The constants are those of the system unless a data set has its own.
        """
        self._score(self.stream.finish())
        counts = self.stream.counts
        if counts is not None and counts.stopped is not None:
            self.warnings.append(f"captions stopped: {counts.stopped}")
        if constants is None:
            _, constants = paper_constants(self.model.bundle.manifest.system)
        if last := self.detector.finish():
            self.events.append(last)
        terms = self.rows.terms()
        scored = any(np.isfinite(values).any() for values in terms.values())
        paper = paper_scores(terms, constants) if scored else self.rows.column("causal")
        return self.rows.result(name, self.fps, paper)

    def lane(self, captions: Sequence[str]) -> dict[str, Any] | None:
        """Who described the video, when, and what became of it; None where nobody could."""
        who, counts = self.model.captioning, self.stream.counts
        if who is None or counts is None:
            return None
        when = who.settings
        return {
            "captioner": who.who,
            "policy": str(when.policy),
            "latency": when.latency if when.clock == "frames" else None,
            "clock": when.clock,
            "weight": when.rule,
            "note": who.note(self.model.perception.terms),
            **asdict(counts),
            "foreign": sum(map(mostly_foreign, captions)),
        }

    def _check_scene(self, frame: Frame) -> None:
        likeness = self.model.normal.scene.likeness(frame.image)
        if likeness < SAME_SCENE:
            self.warnings.append(
                f"this does not look like the scene the model was trained on (likeness "
                f"{likeness:.2f}, expected above {SAME_SCENE}); its scores mean little"
            )

    def _box(self, row: FrameEvidence, surprise: Mapping[str, float]) -> Box | None:
        """The place of the most surprising of the terms that have a place, in source pixels."""
        attributes = self.model.perception.scene.attributes
        visual, moving = surprise.get("visual", -1.0), surprise.get("attribute", -1.0)
        if moving > visual and attributes is not None and row.scene.things:
            return attributes.explain(row.scene)[1]
        if row.box is None or visual < 0:
            return None
        x, y, w, h = row.box
        width, height = row.scene.width, row.scene.height
        return x * width, y * height, w * width, h * height

    def _say(
        self, row: FrameEvidence, surprise: Mapping[str, float], box: Box | None
    ) -> Description:
        """Caption, explanation and box of a frame, the most surprising term's words first."""
        reasons = []
        attributes = self.model.perception.scene.attributes
        if "attribute" in surprise and attributes is not None:
            words, place = attributes.explain(row.scene)
            if box is not None and place is not None and not _holds(place, box):
                words = f"elsewhere: {words}"
            reasons.append((surprise["attribute"], words))
        if "visual" in surprise:
            reasons.append((surprise["visual"], self._looks(row.terms["visual"])))
        if "semantic" in surprise:
            reasons.append((surprise["semantic"], _means(row)))
        reasons.sort(key=lambda reason: -reason[0])
        said = [text for value, text in reasons if value >= 3.0] or [reasons[0][1]]
        told = Description(
            caption=row.caption or "",
            explanation="; ".join(said),
            box=box,
            caption_age=row.caption_age,
            caption_cut=row.caption_cut,
        )
        text, usual = self.model.perception.text, self.model.normal.captions
        if row.caption is None or text is None or usual is None:
            return told
        against = contrast(row.caption, text.encode([row.caption])[0], usual)
        return replace(told, nearest=against.nearest, new=against.new)

    def _looks(self, evidence: float) -> str:
        """Words for the visual evidence of a frame."""
        usual = self.model.tails["visual"].quantile(0.999)
        if self.model.perception.visual.measure == "psnr":  # decibels: differences, not ratios
            worse = evidence - usual
            than = "worse" if worse >= 0 else "better"
            return f"is reconstructed {abs(worse):.1f} dB {than} than 999 of 1000 normal frames"
        ratio = evidence / usual if usual > 0 else 1.0
        return f"looks {ratio:.1f} times as unexpected as 999 of 1000 normal frames"


def _means(row: FrameEvidence) -> str:
    """Words for the semantic evidence of a frame."""
    if row.caption_weight >= 0.5:
        return "what happens is described unlike normal life"
    return "what is seen would be described unlike normal life"


def lane_text(lane: Mapping[str, Any]) -> str:
    """One line on the captions, for people."""
    text = f"captions: {lane['captioner']}"
    if lane["asked"]:
        plural = "" if lane["offered"] == 1 else "s"
        text += f", {lane['policy']}: {lane['made']} made for {lane['offered']} frame{plural}"
        odd = {"dropped": "dropped", "cut": "cut at the most tokens", "empty": "empty"}
        odd |= {"foreign": "in other than Latin letters"}
        text += "".join(f", {lane[name]} {words}" for name, words in odd.items() if lane[name])
        if restarts := lane["restarts"]:
            text += f"; captioner started again {restarts} time{'' if restarts == 1 else 's'}"
    return f"{text}; {lane['note']}" if lane["note"] else text


def _holds(box: Box, other: Box) -> bool:
    """Whether the centre of `other` lies in `box`, or the other way round."""

    def inside(a: Box, b: Box) -> bool:
        x, y = b[0] + b[2] / 2, b[1] + b[3] / 2
        return a[0] <= x <= a[0] + a[2] and a[1] <= y <= a[1] + a[3]

    return inside(box, other) or inside(other, box)


def write_results(
    folder: OutputFolder,
    source: Path,
    result: VideoScores,
    run: VideoRun,
    warnings: Iterable[str],
    options: ScoreOptions,
) -> tuple[str, ...]:
    """Fill the output folder; names of the files in it."""
    from sfn_rt.report import write_report

    model = run.model
    manifest = model.bundle.manifest
    lane = run.lane(result.captions)
    name, constants = paper_constants(manifest.system)
    meta = {
        "profile": manifest.profile,
        "system": manifest.system,
        "bundle": str(model.bundle.folder),
        "sha": model.sha256,
        "terms": ", ".join(model.perception.terms),
        "computed": model.computed.text(),
        "captions": "none" if lane is None else str(lane["captioner"]),
        "paper score": f"constants {name}: {constants.text()}",
        "trained on": manifest.provenance.data,
    }
    if manifest.lag:
        meta["delay"] = f"{manifest.lag} frames: the evidence of a frame sees those after it"
    with output_errors(options.out):
        paths = write_report(
            folder.files, source, result, run.events, run.rows.heat(),
            threshold=model.threshold, meta=meta, warnings=tuple(warnings),
            heat_scale=model.normal.heat_scale, fps=options.fps, lane=lane,
            video=options.report, html=options.report,
        )  # fmt: skip
    return tuple(path.name for path in paths)


class Checkpoint:
    """What an interrupted run needs to continue to the same bytes."""

    def __init__(self, folder: Path, identity: Mapping[str, object]) -> None:
        self._folder, self._identity = folder, dict(identity)

    def save(self, run: VideoRun, block: Looked) -> None:
        """Write the state after `block`, whole or not at all."""
        arrays, stream = run.stream.state(block)
        rows_arrays, rows = run.rows.state()
        plain = {
            "identity": self._identity,
            "stream": stream,
            "rows": rows,
            "causal": run.causal.state(),
            "detector": run.detector.state(),
            "events": [asdict(event) for event in run.events],
            "warnings": run.warnings,
        }
        arrays |= {f"rows/{name}": array for name, array in rows_arrays.items()}
        arrays["plain"] = np.array(json.dumps(plain))
        beside = self._folder / "checkpoint.partial.npz"
        np.savez(beside, **arrays)  # type: ignore[arg-type]
        beside.replace(self._folder / "checkpoint.npz")

    def load(self, run: VideoRun) -> int:
        """Put `run` back to the last checkpoint; frames done by then, 0 where there is none."""
        path = self._folder / "checkpoint.npz"
        if not path.exists():
            return 0
        with np.load(path, allow_pickle=False) as stored:
            arrays: dict[str, Any] = {name: stored[name] for name in stored.files}
        plain = json.loads(str(arrays.pop("plain")))
        if plain["identity"] != self._identity:
            known = plain["identity"]
            changed = [key for key in self._identity if known.get(key) != self._identity[key]]
            raise OutputError(
                f"--resume: the interrupted run had another {' and '.join(changed)}; give the "
                f"same ones, or leave --resume out to start again"
            )
        rows = {k.removeprefix("rows/"): v for k, v in arrays.items() if k.startswith("rows/")}
        run.stream.restore(arrays, plain["stream"])
        run.rows.restore(rows, plain["rows"])
        run.causal.restore(plain["causal"])
        run.detector.restore(plain["detector"])
        run.events = [Event.of(raw) for raw in plain["events"]]
        run.warnings = list(plain["warnings"])
        return run.n_taken


def _identity(source: Path, name: str, model: Model, options: ScoreOptions) -> dict[str, object]:
    """What must not change between an interruption and its continuation."""
    stat = source.stat()
    captions = find_captions(options.captions, name).read_text() if options.captions else None
    return {
        "video": [str(source.resolve()), stat.st_size, stat.st_mtime_ns],
        "bundle": model.sha256,
        "--terms": list(model.perception.terms),
        "--captions": captions,
        "--fps": options.fps,
        "lane": options.lane.to_json(),
        "backend": options.backend.to_json(),
        "--threads": options.threads,
    }


def paced(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Frames when their time comes, as a camera gives them."""
    start: float | None = None
    for frame in frames:
        now = time.monotonic()
        start = now - frame.time_s if start is None else start
        time.sleep(max(0.0, start + frame.time_s - now))
        yield frame


def grouped(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Lists of `size` consecutive frames; the last may be shorter."""
    group: list[Frame] = []
    for frame in frames:
        group.append(frame)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
