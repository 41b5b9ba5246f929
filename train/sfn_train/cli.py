"""The workshop's first half on the command line: `python -m sfn_train`."""

from pathlib import Path
from typing import Annotated

import typer

from sfn_rt.cli import EXIT_INTERRUPTED, EXIT_MISTAKE, Commands

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
    from sfn_train.devices import is_first
    from sfn_train.loop import Interrupted, fit
    from sfn_train.run_folder import check_out, resumed_config
    from sfn_train.sources import check_sources

    settings = resumed_config(chosen, asked) if resume else read_config(config, asked)
    dataset = open_dataset(data, fps=fps)
    if is_first():
        check_sources(settings, dataset)
        check_out(chosen, resume=resume, force=force)
    say = typer.echo if is_first() else (lambda text: None)
    prepared = prepare(dataset, settings, cache or chosen.parent / "cache", say=say)
    try:
        summary = fit(prepared, settings, chosen, resume=resume)
    except Interrupted:
        if is_first():
            typer.echo(
                f"interrupted; everything is saved: repeat the command with --resume to continue, "
                f"as in: python -m sfn_train train {data} --out {chosen} --resume",
                err=True,
            )
        # Where another process ends with an error, Lightning kills the first one.
        raise typer.Exit(EXIT_INTERRUPTED if is_first() else 0) from None
    if summary is not None:
        typer.echo(summary.text())


@app.command()
def distil(
    run: Annotated[Path, typer.Argument(help="A finished run folder; its student is replaced.")],
    data: Annotated[
        Path | None, typer.Option(help="What the run was trained on; default where it was then.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Of the student; default the run's, or else 64.", min=1)
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second, where the videos do not state it.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Prepared frames; default beside the run folder.")
    ] = None,
) -> None:
    """Teach the student of RUN to expect the semantic error where there is no caption."""
    from sfn_train import distil as student

    typer.echo(student.distil(run, data, width=width, cache=cache, fps=fps, say=typer.echo))


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


data_app = typer.Typer(help="Looks at data folders.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.callback()
def data_root() -> None:
    """Looks at data folders."""


@data_app.command("check")
def data_check(
    data: Annotated[Path, typer.Argument(metavar="FOLDER", help="The data folder.")],
    labels: Annotated[
        str | None,
        typer.Option(help="masks, frames or a label file's name, where there are several."),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second, where the videos do not state it.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read only the first frame of each video.")
    ] = False,
) -> None:
    """Say what FOLDER holds, what is missing and where its owners offer it; exit 2 if anything."""
    from sfn_rt.printable import printable
    from sfn_train.data.check import check_data

    report = check_data(data, fps=fps, labels=labels, quick=quick)
    typer.echo(report.text())
    for problem in report.problems:
        typer.echo(f"error: {printable(problem)}", err=True)
    if report.problems:
        raise typer.Exit(EXIT_MISTAKE)


@app.command()
def captions(
    data: Annotated[Path, typer.Argument(help="A folder of normal videos, or a benchmark's.")],
    weights: Annotated[str, typer.Option(help="Folder of an InternVL, or its name on the hub.")],
    out: Annotated[Path, typer.Option(help="The cache; what is there already is not redone.")],
    text: Annotated[
        Path | None, typer.Option(help="Sentence encoder's folder; default all-MiniLM-L6-v2.")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="Of a plain BERT: pooler (sup-SimCSE), cls or mean.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which videos: train, test or all.")] = "all",
    stride: Annotated[int, typer.Option(help="Frames from one caption to the next.")] = 1,
    batch: Annotated[int, typer.Option(help="Clips described at once.")] = 8,
    max_tokens: Annotated[int, typer.Option(help="A caption is cut there.")] = 1024,
    prompt: Annotated[
        str | None, typer.Option(help="Another question than the paper's, behind the frames.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Work on a Ray cluster: its address, auto, or local for a new one here."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="On the cluster; default one a GPU, without GPUs one a CPU.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second, where the videos do not state it.")
    ] = None,
) -> None:
    """Describe every clip of DATA with a vision-language model."""
    from sfn_rt.datasets import open_dataset
    from sfn_train.captions.make import CaptionOptions, make_captions
    from sfn_train.captions.vlm import QUESTION
    from sfn_train.weights.folder import find_folder

    options = CaptionOptions(
        weights=find_folder(weights),
        out=out,
        text=text,
        pooling=pooling,
        split=split,
        stride=stride,
        batch=batch,
        max_tokens=max_tokens,
        question=prompt or QUESTION,
        ray=ray,
        workers=workers,
    )
    try:
        summary = make_captions(open_dataset(data, fps=fps), options, say=typer.echo)
    except KeyboardInterrupt:
        typer.echo(
            "interrupted; all captions but those of the batch in work are kept: repeat the "
            "command to go on",
            err=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    typer.echo(summary.text())


@app.command()
def ablate(
    data: Annotated[Path, typer.Argument(help="Normal videos, and test videos with labels.")],
    table: Annotated[
        str, typer.Option(help="branches, filters, memory, losses, windows, or all.")
    ] = "all",
    config: Annotated[str, typer.Option(help="Base of all rows: a name, or a YAML file.")] = "edge",
    steps: Annotated[int, typer.Option(help="Training steps a row and seed.", min=1)] = 200,
    seeds: Annotated[str, typer.Option(help="Each row is run with each of them.")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="Results; repeating the command goes on.")] = Path(
        "runs/ablation"
    ),
    cache: Annotated[
        Path | None, typer.Option(help="Prepared frames; default beside the results.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write the tables as a page, too.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of every row.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes that share the cores.", min=1)] = 1,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second, where the videos do not state it.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the results in --out and start again.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Tell what is in --out; run nothing.")
    ] = False,
) -> None:
    """Run the rows of a table of ablations and print them beside the published figures."""
    from sfn_train.ablation.rows import Base, seeds_of
    from sfn_train.ablation.runner import Request, ablate

    request = Request(
        data=data,
        table=table,
        base=Base(config=config, changes=tuple(changes or ()), steps=steps),
        seeds=seeds_of(seeds),
        out=out,
        cache=cache or out.parent / "cache",
        fps=fps,
        jobs=jobs,
        force=force,
        only_report=report,
        docs=docs,
    )
    try:
        typer.echo(ablate(request, typer.echo))
    except KeyboardInterrupt:
        typer.echo("interrupted; finished trials are kept: repeat the command to go on", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


weights_app = typer.Typer(help="Looks at weights from elsewhere.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")


@weights_app.callback()
def weights_root() -> None:
    """Looks at weights from elsewhere."""


@weights_app.command("check")
def weights_check(
    folder: Annotated[str, typer.Argument(help="An InternVL or a sentence encoder.")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Also have the whole language model say a few tokens.")
    ] = False,
) -> None:
    """Say what FOLDER is, verify it, and print its files' hashes; exit 2 if it cannot be used."""
    from sfn_train.weights.check import check_weights, findings_text

    typer.echo(findings_text(check_weights(folder, deep=deep)))


@weights_app.command("convert")
def weights_convert(
    folder: Annotated[str, typer.Argument(help="An InternVL in its own layout, or a plain BERT.")],
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist or be empty.")],
) -> None:
    """Write FOLDER in the layout that transformers reads, without running any code in it."""
    from sfn_train.weights.convert import convert

    typer.echo(convert(folder, out).text())


@app.command()
def features(
    data: Annotated[Path, typer.Argument(help="A folder of normal videos, or a benchmark's.")],
    out: Annotated[Path, typer.Option(help="The cache; what is there already is not redone.")],
    config: Annotated[str, typer.Option(help="Name, or a YAML file.")] = "paper_ped2",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting, as in model.tower=FOLDER.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, or float16.")] = "bfloat16",
    batch: Annotated[int, typer.Option(help="Frames in the tower at once.", min=1)] = 8,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second, where the videos do not state it.")
    ] = None,
) -> None:
    """Compute what the frozen vision tower says of the training frames of DATA, once for all."""
    from sfn_rt.datasets import open_dataset
    from sfn_train.config import read_config
    from sfn_train.data.feature_cache import make_features, number_type

    settings = read_config(config, list(changes or []))
    kind, dataset = number_type(dtype), open_dataset(data, fps=fps)
    try:
        done = make_features(dataset, settings, out, dtype=kind, batch=batch, say=typer.echo)
    except KeyboardInterrupt:
        typer.echo(
            "interrupted; all frames but those of the batch in work are kept: repeat the command "
            "to go on",
            err=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    typer.echo(done)
