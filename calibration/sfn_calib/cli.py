"""Lower precision on the command line: `python -m sfn_calib BUNDLE --data DATA`."""

from pathlib import Path
from typing import Annotated

import typer

from sfn_rt.cli import OneCommand

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command(cls=OneCommand, name="python -m sfn_calib", no_args_is_help=True)
def calibrate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="An exported model.")],
    data: Annotated[
        Path, typer.Option(help="The data set it was trained on; its normal videos alone are used.")
    ],
    precision: Annotated[
        str, typer.Option(help="fp16, bf16, int8, fp8, or the path of a recipe.")
    ] = "int8",
    out: Annotated[
        Path | None, typer.Option(help="A new bundle; default the bundle itself.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="The run it was exported from: tells what it was not trained on."),
    ] = None,
    clips: Annotated[int, typer.Option(help="Clips that activations are measured on.")] = 64,
    gate_frames: Annotated[
        int, typer.Option(help="Normal frames that are held out to judge; as many as there are.")
    ] = 1200,
    threads: Annotated[int | None, typer.Option(help="Threads of ONNX Runtime.")] = None,
    fps: Annotated[float | None, typer.Option(help="Where the videos do not state it.")] = None,
) -> None:
    """Add a lower precision to BUNDLE, if it holds its gate in AUC on normal footage alone."""
    from sfn_calib.calibrate import CalibrationOptions
    from sfn_calib.calibrate import calibrate as run_calibration

    options = CalibrationOptions(
        bundle=bundle,
        data=data,
        precision=precision,
        out=out,
        run=run,
        clips=clips,
        gate_frames=gate_frames,
        threads=threads,
        fps=fps,
    )
    typer.echo(run_calibration(options, typer.echo).text())
