"""The workshop's second half on the command line: `python -m sfn_export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sfn_rt.cli import Commands

app = typer.Typer(
    cls=Commands,
    name="python -m sfn_export",
    help="Exports a trained run to ONNX graphs and a bundle.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class FormName(StrEnum):
    """How the SFFM is written into the decoder's graph."""

    fastest = "fastest"
    dispatch = "dispatch"
    dense = "dense"


class PrecisionName(StrEnum):
    """Of a VLM's language model."""

    fp32 = "fp32"
    int4 = "int4"
    fp16 = "fp16"


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
FormOption = Annotated[
    FormName, typer.Option(help="The SFFM: blocks of tokens (dispatch), or all filters (dense).")
]
ThreadsOption = Annotated[int | None, typer.Option(help="Threads of ONNX Runtime.")]
ClipsOption = Annotated[
    Path | None, typer.Option(help="Data to compare the whole path on; default the run's own.")
]
FramesOption = Annotated[int, typer.Option(help="Frames of each clip to compare.")]
FpsOption = Annotated[float | None, typer.Option(help="Where the clips do not state it.")]


@app.callback()
def root() -> None:
    """Exports a trained run to ONNX graphs and a bundle."""


@app.command()
def bundle(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="The bundle's folder.")] = Path("bundle"),
    form: Annotated[
        list[FormName] | None,
        typer.Option(
            help="The SFFM: blocks of tokens (dispatch), or all filters (dense). Given again, the "
            "decoder is there in that form too, for --precision fp32-dispatch or fp32-dense."
        ),
    ] = None,
    clips: ClipsOption = None,
    frames: FramesOption = 120,
    fps: FpsOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Trace, compare with PyTorch, and pack RUN into a bundle."""
    from sfn_export.build import ExportOptions, build_bundle
    from sfn_export.dispatch import Form

    forms: list[Form] = [each.value for each in form or [FormName.fastest]]
    options = ExportOptions(
        form=forms[0],
        also=tuple(forms[1:]),
        clips=clips,
        frames=frames,
        fps=fps,
        threads=threads,
    )
    done = build_bundle(run, out, options, typer.echo)
    typer.echo(f"{done.out}: a bundle, equal to PyTorch within its budgets, {done.seconds:.0f} s")


@app.command()
def trace(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Folder for the graphs.")] = Path("graphs"),
    form: FormOption = FormName.fastest,
    threads: ThreadsOption = None,
) -> None:
    """Write RUN's graphs only, each compared with PyTorch."""
    from sfn_export.build import compare_parts, text_of
    from sfn_export.build import trace as trace_run
    from sfn_rt.sinks.files import output_errors
    from sfn_train.checkpoint import load_run

    loaded = load_run(run)
    text = text_of(loaded)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        specs = trace_run(loaded, text, out, form.value, typer.echo)
    typer.echo(compare_parts(loaded, text, out, specs, threads).text())


@app.command()
def parity(
    run: RunArgument,
    bundle: Annotated[Path, typer.Argument(help="A bundle made from RUN.")],
    clips: ClipsOption = None,
    frames: FramesOption = 120,
    fps: FpsOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Compare a bundle with the RUN it came from: every part, and the whole path on clips."""
    from sfn_export.build import ExportOptions, captions_of, compare_parts, find_clips, text_of
    from sfn_export.path_parity import check_path
    from sfn_rt.bundle import load_bundle
    from sfn_train.checkpoint import load_run

    options = ExportOptions(clips=clips, frames=frames, fps=fps, threads=threads)
    loaded, opened = load_run(run), load_bundle(bundle)
    text = text_of(loaded)
    specs = {part: entry.spec for part, entry in opened.manifest.parts.items()}
    typer.echo(compare_parts(loaded, text, bundle, specs, threads).text())
    if videos := find_clips(loaded, options):
        whole = check_path(
            bundle,
            loaded.model,
            text,
            videos,
            captions=captions_of(loaded),
            frames=frames,
            fps=fps,
            threads=threads,
        )
        typer.echo(whole.text())


@app.command()
def vlm(
    weights: Annotated[str, typer.Argument(help="Folder of an InternVL, or its name on the hub.")],
    bundle: Annotated[Path, typer.Option(help="The bundle that it is added to.")],
    out: Annotated[
        Path | None, typer.Option(help="A new bundle; default the bundle itself.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Another question than the paper's, behind the frames.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="A caption is cut there; default 1024.")
    ] = None,
    precision: Annotated[
        list[PrecisionName] | None,
        typer.Option(
            help="Of its language model; once for each. The device takes the first; fp32 is there "
            "in any case, and what the others change in the captions is reported."
        ),
    ] = None,
    clips: Annotated[
        Path | None, typer.Option(help="Data to report that on; default three drawn videos.")
    ] = None,
    threads: ThreadsOption = None,
) -> None:
    """Add a vision-language model to a bundle, so that the device captions by itself."""
    from sfn_export.vlm import VlmOptions, add_vlm
    from sfn_train.captions.vlm import QUESTION

    options = VlmOptions(
        weights=weights,
        bundle=bundle,
        out=out,
        question=QUESTION if prompt is None else prompt,
        max_tokens=max_tokens,
        precisions=tuple(each.value for each in precision or [PrecisionName.fp32]),
        clips=clips,
        threads=threads,
    )
    done = add_vlm(options, typer.echo)
    typer.echo(
        f"{done.out}: has a VLM now, at fp32 equal to PyTorch within its budgets, "
        f"{done.megabytes:.0f} MB, "
        f"{done.seconds:.0f} s"
    )


@app.command()
def engine(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    run: Annotated[
        Path | None, typer.Option(help="The run it was made from: PyTorch is compared too.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="fp32, or one that the bundle was calibrated for; once for each."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Built ahead of time for SM89, say; once for each. Default the GPU here."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the reports, a folder for each precision.")
    ] = Path("engines"),
    clips: Annotated[
        Path | None, typer.Option(help="Video that feeds a lower precision; default the run's own.")
    ] = None,
    frames: FramesOption = 120,
    fps: FpsOption = None,
    max_batch: Annotated[int, typer.Option(help="Frames at once, of all streams.")] = 16,
    threads: ThreadsOption = None,
) -> None:
    """Build a bundle's engines, look into them, and compare with ONNX Runtime and PyTorch."""
    from sfn_export.engine import examine_engines
    from sfn_export.engine_place import EngineSettings

    for each in precision or ["fp32"]:
        settings = EngineSettings(
            bundle=bundle,
            out=out / each,
            run=run,
            precision=each,
            targets=tuple(target or ()),
            clips=clips,
            frames=frames,
            fps=fps,
            max_batch=max_batch,
            threads=threads,
        )
        examine_engines(settings, typer.echo)
        typer.echo(f"{settings.out}: what became of {bundle} at {each}")


@app.command()
def rtx(
    graphs: Annotated[list[Path], typer.Argument(help="ONNX files, or folders of them.")],
) -> None:
    """Have TensorRT-RTX parse and build every graph on the CPU."""
    from sfn_export.rtx import TARGETS, check_rtx, foreign_operators, graphs_in

    for path in graphs_in(graphs):
        # Of a bundle: a graph that is named is meant, and refused if it must be.
        if path not in graphs and (foreign := foreign_operators(path)):
            typer.echo(
                f"{path}: left out: its operators {', '.join(foreign)} are ONNX Runtime's alone"
            )
            continue
        built = check_rtx(path)
        typer.echo(
            f"{path}: {built.layers} layers, {built.megabytes:.1f} MB for {', '.join(TARGETS)}, "
            f"{built.seconds:.1f} s{', prefill and decode' if built.profiles > 1 else ''}"
        )


@app.command()
def triton(
    bundle: Annotated[Path, typer.Argument(help="An exported model.")],
    out: Annotated[Path, typer.Option(help="The repository's folder.")],
    precision: Annotated[str, typer.Option(help="fp32, or one that the bundle carries.")] = "fp32",
    size: Annotated[
        str | None,
        typer.Option(help="WIDTHxHEIGHT of the frames; default any, with the resize as matrices."),
    ] = None,
    instances: Annotated[int, typer.Option(help="Of each model; on a GPU, of each GPU.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu/--cpu", help="Where the models run.")] = True,
) -> None:
    """Write BUNDLE as a model repository of Triton Inference Server."""
    from sfn_export.triton import TritonOptions, parse_size, write_repository
    from sfn_export.triton_config import Placement

    options = TritonOptions(
        precision=precision,
        size=None if size is None else parse_size(size),
        placement=Placement("KIND_GPU" if gpu else "KIND_CPU", instances),
    )
    typer.echo(write_repository(bundle, out, options).text())
