"""The workshop's first half on the command line: `python -m sfn_train`."""

from pathlib import Path
from typing import Annotated

import typer

from sfn_rt.cli import EXIT_INTERRUPTED, Commands

app = typer.Typer(
    cls=Commands,
    name="python -m sfn_train",
    help="Trains SFN-VAD on normal footage.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """Trains SFN-VAD on normal footage."""


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="A folder of normal videos, or a benchmark's.")],
    config: Annotated[str, typer.Option(help="Name, or a YAML file.")] = "edge",
    out: Annotated[
        Path | None, typer.Option(help="The run folder; default runs/<config's name>.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out with its own settings.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --out.")] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting, as in model.dim=64.")
    ] = None,
    devices: Annotated[int | None, typer.Option(help="Processors or GPUs that share it.")] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="End training by then; the schedule fits itself to it.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second, where the videos do not state it.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Prepared frames; default beside the run folder.")
    ] = None,
) -> None:
    """Train on the normal videos of DATA into a run folder."""
    asked = list(changes or [])
    if devices is not None:
        asked.append(f"train.devices={devices}")
    if max_minutes is not None:
        asked.append(f"train.minutes={max_minutes}")
    chosen = out or Path("runs") / (Path(config).stem or "run")

    from sfn_rt.datasets import open_dataset
    from sfn_train.config import read_config
    from sfn_train.data.prepare import prepare
    from sfn_train.loop import Interrupted, check_out, fit, is_first, resumed_config

    settings = resumed_config(chosen, asked) if resume else read_config(config, asked)
    dataset = open_dataset(data, fps=fps)
    if is_first():
        check_out(chosen, resume=resume, force=force)
    say = typer.echo if is_first() else (lambda text: None)
    prepared = prepare(dataset, settings, cache or chosen.parent / "cache", say=say)
    try:
        summary = fit(prepared, settings, chosen, resume=resume)
    except Interrupted:
        typer.echo(
            f"interrupted; everything is saved: repeat the command with --resume to continue, as "
            f"in: python -m sfn_train train {data} --out {chosen} --resume",
            err=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if summary is not None:
        typer.echo(summary.text())


@app.command("demo-data")
def demo_data(
    out: Annotated[Path, typer.Argument(help="The folder to write; must not exist or be empty.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same videos.")] = 0,
) -> None:
    """Make a small labelled video set: a walkway under a camera."""
    from sfn_train.data.synthetic import make_walkway
    from sfn_train.exceptions import RunError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not empty; choose another folder")
    make_walkway(out, seed=seed)
    typer.echo(f"{out}: labelled walkway videos; next: python -m sfn_train train {out}")
