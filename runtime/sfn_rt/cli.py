"""`sfn-rt`: each command parses, calls one function and prints what it answers.

Exit codes: 0 done; 1 a bug, or a doctor's finding; 2 a mistake the user can repair, in one
line on stderr; 3 the video broke off and what could be decoded was scored; 130 Ctrl-C.
"""

import errno
import json
import os
import sys
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sfn_rt import __version__
from sfn_rt.exceptions import BundleError, SfnError

EXIT_MISTAKE = 2
EXIT_TRUNCATED = 3
EXIT_INTERRUPTED = 130
CANNOT_WRITE = {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EROFS}


class Reporting:
    """The one place where what was raised becomes a line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        # A caption may hold any letter, a terminal's encoding may not.
        if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)  # type: ignore[misc]  # of the command mixed with
        except SfnError as error:
            fail(str(error))
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            fail(f"{error.filename or 'output'}: {error.strerror}; choose another --out")
        except KeyboardInterrupt as stopped:
            typer.echo(" ".join(("interrupted", *map(str, stopped.args))), err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None


class Commands(Reporting, TyperGroup):
    """A command line of several commands."""


class OneCommand(Reporting, TyperCommand):
    """A command line that is one command."""


def fail(message: str) -> None:
    """One clean line, whatever names from outside the message quotes."""
    from sfn_rt.printable import printable

    typer.echo(f"error: {printable(message)}", err=True)
    raise typer.Exit(EXIT_MISTAKE) from None


# Plain help: rich would take longer to import than the rest of `--help` takes to run.
app = typer.Typer(
    cls=Commands,
    name="sfn-rt",
    help="Scores video for anomalies with a model that saw normal footage only.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", help="Exported model; else $SFN_BUNDLE, else ./bundle."),
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Threads of the backend; by default it chooses.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
FpsOption = Annotated[
    float | None, typer.Option(help="Frames a second, where the video does not state it.")
]
CaptionsOption = Annotated[
    Path | None,
    typer.Option(help="A file of captions, or a folder with one a video; else what moves is told."),
]
TermsOption = Annotated[
    str | None,
    typer.Option(help="Terms of the score: visual,semantic,attribute; default all there are."),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Write into a folder that holds other files.")
]


CaptionerOption = Annotated[
    str | None,
    typer.Option(
        help="scene (what moves), vlm (the bundle's) or student (no captions); default as trained."
    ),
]
LaneOption = Annotated[
    str | None,
    typer.Option(
        "--lane",
        help="When to caption: every:N, change, suspicion or off; default: as trained, change "
        "with the VLM.",
    ),
]
LatencyOption = Annotated[
    int | None,
    typer.Option("--lane-latency", help="Frames that a caption takes; default 0, 25 with the VLM."),
]
ClockOption = Annotated[
    str,
    typer.Option("--lane-clock", help="frames, or seconds: play the video as a camera would."),
]


BackendOption = Annotated[
    str,
    typer.Option(
        envvar="SFN_BACKEND",
        help="cpu, cuda, tensorrt or tensorrt-rtx; the last two run `sfn-rt build`'s.",
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(envvar="SFN_PRECISION", help="fp32, or one that the bundle was calibrated for."),
]
EnginesOption = Annotated[
    Path | None,
    typer.Option(help="Folder of built engines; else $SFN_ENGINES, else the user's cache."),
]
DeviceOption = Annotated[int, typer.Option(help="Which of several GPUs.")]


def print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sfn-rt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Scores video for anomalies with a model that saw normal footage only."""


@app.command()
def score(
    video: Annotated[Path, typer.Argument(help="A video file or a folder of frames.")],
    bundle: BundleOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default out/<video's name>.")
    ] = None,
    threads: ThreadsOption = None,
    report: Annotated[bool, typer.Option(help="Also a heat map video and report.html.")] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after an interruption.")
    ] = False,
    force: ForceOption = False,
    captions: CaptionsOption = None,
    captioner: CaptionerOption = None,
    lane: LaneOption = None,
    lane_latency: LatencyOption = None,
    lane_clock: ClockOption = "frames",
    terms: TermsOption = None,
    fps: FpsOption = None,
    backend: BackendOption = "cpu",
    precision: PrecisionOption = "fp32",
    engines: EnginesOption = None,
    device: DeviceOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Score VIDEO: scores, events, curve, heat map, report."""
    from sfn_rt.options import ScoreOptions, parse_terms

    options = ScoreOptions(
        out=out or Path("out") / (video.resolve().stem or "video"),
        threads=threads,
        report=report,
        resume=resume,
        force=force,
        captions=captions,
        terms=parse_terms(terms),
        fps=fps,
        lane=lane_options(captioner, lane, lane_latency, lane_clock),
        backend=backend_options(backend, precision, engines, device),
    )
    chosen = choose_bundle(bundle)
    from sfn_rt.pipeline import score_video  # imported late: `--help` loads no backend

    summary = score_video(video, chosen, options)
    if resume:
        where = f"continued at frame {summary.n_resumed}"
        if not summary.n_resumed:
            where = f"nothing to continue in {options.out}; scored from the beginning"
        typer.echo(f"note: {where}", err=True)
    print_answer(summary.text(), summary.to_json(), as_json)
    if summary.problem is not None:
        typer.echo(f"warning: {video}: {summary.problem}", err=True)
        raise typer.Exit(EXIT_TRUNCATED)


@app.command("eval")
def evaluate(
    data: Annotated[Path, typer.Argument(help="A data folder with test videos and labels.")],
    bundle: BundleOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default out/<data's name>.")
    ] = None,
    threads: ThreadsOption = None,
    force: ForceOption = False,
    captions: CaptionsOption = None,
    captioner: CaptionerOption = None,
    lane: LaneOption = None,
    lane_latency: LatencyOption = None,
    terms: TermsOption = None,
    fps: FpsOption = None,
    backend: BackendOption = "cpu",
    precision: PrecisionOption = "fp32",
    engines: EnginesOption = None,
    device: DeviceOption = 0,
    labels: Annotated[
        str | None,
        typer.Option(help="masks, frames or a label file's name, where DATA has several."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the scores of DATA against its labels."""
    from sfn_rt.options import EvalOptions, parse_terms

    options = EvalOptions(
        out=out or Path("out") / (data.resolve().name or "data"),
        threads=threads,
        force=force,
        captions=captions,
        terms=parse_terms(terms),
        fps=fps,
        labels=labels,
        lane=lane_options(captioner, lane, lane_latency),
        backend=backend_options(backend, precision, engines, device),
    )
    chosen = choose_bundle(bundle)
    from sfn_rt.evaluate import evaluate_dataset

    evaluation = evaluate_dataset(data, chosen, options)
    print_answer(evaluation.text(), evaluation.to_json(), as_json)


@app.command()
def bench(
    video: Annotated[Path, typer.Argument(help="A video file or a folder of frames.")],
    bundle: BundleOption = None,
    threads: ThreadsOption = None,
    frames: Annotated[int, typer.Option(help="Frames to measure, after the warm-up.")] = 500,
    warmup: Annotated[int, typer.Option(help="Frames to run before measuring.")] = 20,
    streams: Annotated[
        int | None,
        typer.Option(help="Streams kept on one device together, frames decoded beforehand."),
    ] = None,
    block: Annotated[int, typer.Option(help="With --streams: frames of each in a step.")] = 1,
    captioner: CaptionerOption = None,
    lane: LaneOption = None,
    lane_latency: LatencyOption = None,
    backend: BackendOption = "cpu",
    precision: PrecisionOption = "fp32",
    engines: EnginesOption = None,
    device: DeviceOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure frames/s, end to end and by stage; JSON last."""
    from sfn_rt.options import BenchOptions

    options = BenchOptions(
        threads=threads,
        frames=frames,
        warmup=warmup,
        streams=streams,
        block=block,
        lane=lane_options(captioner, lane, lane_latency),
        backend=backend_options(backend, precision, engines, device),
    )
    chosen = choose_bundle(bundle)
    answer: Any
    if streams is None:
        from sfn_rt.bench import bench as measure

        answer = measure(video, chosen, options)
    else:
        from sfn_rt.bench_streams import bench_streams

        answer = bench_streams(video, chosen, options)
    if not as_json:
        typer.echo(answer.text())
    typer.echo(json.dumps(answer.to_json()))


@app.command()
def build(
    bundle: BundleOption = None,
    backend: Annotated[str, typer.Option(help="tensorrt or tensorrt-rtx.")] = "tensorrt",
    precision: PrecisionOption = "fp32",
    max_batch: Annotated[int, typer.Option(help="Frames at once, of all streams together.")] = 16,
    max_frame: Annotated[
        str, typer.Option(help="The largest picture that comes in, width x height.")
    ] = "1920x1080",
    target: Annotated[
        list[str] | None,
        typer.Option(help="tensorrt-rtx: an architecture to build for without it, e.g. SM89."),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Newer releases of TensorRT run it too.")
    ] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave weights to the bundle; smaller files.")
    ] = False,
    workspace: Annotated[
        int | None, typer.Option(help="Scratch memory that a layer may use, MB.")
    ] = None,
    engines: EnginesOption = None,
    device: DeviceOption = 0,
    again: Annotated[bool, typer.Option("--again", help="Also what is built already.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Layers, precisions and fusions of each engine.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build TensorRT engines of a bundle for the GPU here, or with tensorrt-rtx for others."""
    from sfn_rt.engines.build import EngineOptions
    from sfn_rt.engines.command import BuildOptions, build_engines, parse_frame

    options = BuildOptions(
        backend=backend,
        precision=precision,
        targets=tuple(target) if target else None,
        engines=engines,
        device=device,
        again=again,
        engine=EngineOptions(
            max_batch=max_batch,
            max_frame=parse_frame(max_frame),
            version_compatible=version_compatible,
            strip_weights=strip_weights,
            workspace_mb=workspace,
        ),
    )
    summary = build_engines(choose_bundle(bundle), options, report)
    print_answer(summary.text(), summary.to_json(), as_json)


@app.command()
def inspect(
    bundle: Annotated[
        Path | None, typer.Argument(help="Exported model; else $SFN_BUNDLE, else ./bundle.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is in a bundle, every file checked."""
    chosen = choose_bundle(bundle)
    from sfn_rt.bundle_info import inspect_bundle

    info = inspect_bundle(chosen)
    print_answer(info.text(), info.to_json(), as_json)


@app.command()
def doctor(
    bundle: BundleOption = None,
    backend: Annotated[
        str | None,
        typer.Option(
            envvar="SFN_BACKEND", help="Also open the bundle on this one, as a health check."
        ),
    ] = None,
    precision: PrecisionOption = "fp32",
    engines: EnginesOption = None,
    device: DeviceOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Show what is installed and works, what to install, and which system a bundle holds."""
    from sfn_rt.doctor import diagnose

    options = None
    if backend or precision != "fp32":
        options = backend_options(backend or "cpu", precision, engines, device)
    diagnosis = diagnose(bundle or find_bundle(), options)
    print_answer(diagnosis.text(), diagnosis.to_json(), as_json)
    if not diagnosis.can_score:
        raise typer.Exit(1)


def lane_options(
    captioner: str | None, policy: str | None, latency: int | None, clock: str = "frames"
) -> Any:
    """The four options as one; what they may be is the dataclass's to say."""
    from sfn_rt.options import LaneOptions

    return LaneOptions(
        captioner=captioner,  # type: ignore[arg-type]
        policy=policy,
        latency=latency,
        clock=clock,  # type: ignore[arg-type]
    )


def backend_options(name: str, precision: str, engines: Path | None, device: int) -> Any:
    """The four options as one; what they may be is the dataclass's to say."""
    from sfn_rt.options import BackendOptions

    return BackendOptions(
        name=name,  # type: ignore[arg-type]
        precision=precision,
        engines=engines,
        device=device,
    )


def choose_bundle(option: Path | None) -> Path:
    """The bundle to use, said on stderr: the option, else SFN_BUNDLE, else ./bundle."""
    path = option or find_bundle()
    if path is None:
        raise BundleError(
            "no bundle: ./bundle does not exist; pass --bundle, set SFN_BUNDLE, "
            "or make one with `make export`"
        )
    source = "from SFN_BUNDLE" if os.environ.get("SFN_BUNDLE") else "the default"
    typer.echo(f"bundle: {path} ({'as asked' if option else source})", err=True)
    return path


def find_bundle() -> Path | None:
    """The bundle where none is named: SFN_BUNDLE, else ./bundle where it exists."""
    if named := os.environ.get("SFN_BUNDLE"):
        return Path(named)
    return Path("bundle") if Path("bundle").exists() else None


def print_answer(text: str, values: Mapping[str, Any], as_json: bool) -> None:
    typer.echo(json.dumps(values, indent=2, allow_nan=False) if as_json else text)


if __name__ == "__main__":
    sys.exit(app())
