"""Commands that train: run, resume, compare, bench."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedms.cli.base import app, configuration, fail, listed, say_aside, split
from fedms.cli.completion import methods as names_of_methods
from fedms.cli.completion import run_folders, settings

if TYPE_CHECKING:
    from fedms.events import Event

QUIET = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show how it ended, alone: for logs and CI.")
]


def _quietly(event: Event) -> None:
    """What is told of a run where JSON alone is printed: what failed that it can do without."""
    from fedms.events import Warned

    if isinstance(event, Warned):
        say_aside(f"fedms: {event.text}")
    if problem := getattr(event, "problem", ""):
        say_aside(f"fedms: no report: {problem}")


@app.command()
def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="A TOML file (default: the embedded digits job), and settings that override it.",
            autocompletion=settings,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder [runs/NAME-METHOD-seedN].")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run.")] = False,
    quiet: QUIET = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON only.")
    ] = False,
) -> None:
    """Train, evaluate and keep the models of every client.

    Example: fedms run recipes/banking77.toml stage2.rounds=5 --out runs/try
    """
    config = configuration(words or [])  # before what takes seconds to load

    from fedms.progress import Progress
    from fedms.run import default_folder
    from fedms.run import run as perform

    folder = out or default_folder(config)
    try:
        with Progress(config, quiet=quiet or as_json) as progress:
            watch: Callable[[Event], None] = _quietly if as_json else progress
            summary = perform(config, folder, force=force, watch=watch)
    except KeyboardInterrupt:
        kept = (
            f"to go on: fedms resume {folder}"
            if (folder / "config.toml").exists()
            else "nothing was written"
        )
        fail(f"interrupted; {kept}")
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **summary}, indent=2))


@app.command()
def resume(
    folder: Annotated[
        Path,
        typer.Argument(help="The folder of a run that ended early.", autocompletion=run_folders),
    ],
    quiet: QUIET = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON only.")
    ] = False,
) -> None:
    """Go on with a run from its last checkpoint; it ends as if nothing had happened.

    Example: fedms resume runs/digits-fedms-seed0
    """
    from fedms.store.marks import expect_run

    expect_run(folder)

    from fedms.config import load_config
    from fedms.progress import Progress
    from fedms.run import resume as perform
    from fedms.store.run_folder import RunFolder

    found = RunFolder.open(folder)
    complete = found.summary() is not None
    config = load_config(found.config)
    try:
        with Progress(config, quiet=quiet or as_json) as progress:
            watch: Callable[[Event], None] = _quietly if as_json else progress
            summary = perform(folder, watch=watch, tell=say_aside)
    except KeyboardInterrupt:
        fail(f"interrupted; try again: fedms resume {folder}")
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **summary}, indent=2))
    elif complete:
        typer.echo(f"{folder} is complete; nothing was done")


_COMPARED = "zeroshot,probe,local,fedavg,fedcgs,finetune,finetune+statistics,ditto,fedper,fedsa,"
_COMPARED += "feddpa,fedms"
"""What is cheap, usual, or the strongest as published in one of the cells of docs/results.md."""


@app.command()
def compare(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="A TOML file (default: the embedded digits job), and settings for all methods.",
            autocompletion=settings,
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Names, by commas; fedms compare --methods help lists them.",
            autocompletion=names_of_methods,
        ),
    ] = _COMPARED,
    seeds: Annotated[str, typer.Option(help="Numbers, by commas.")] = "0,1,2",
    rates: Annotated[
        str,
        typer.Option(
            help="Learning rates: validation chooses each method's; of two or more, it goes on "
            "beyond the last while that is the best."
        ),
    ] = "3e-3,1e-2",
    targets: Annotated[
        str | None,
        typer.Option(
            help="Validation accuracies, by commas, whose costs are told [some below FedMS' best]."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder [compare/NAME].")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace complete runs of other settings.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print table.json only.")] = False,
) -> None:
    """Run methods on the same data, seeds and steps, and put them into one table.

    What was run before with the same configuration is used again, and what was cut short goes on.
    The tables are written whenever a method is done. One of which every learning rate diverges is
    left out, and told of.

    Example: fedms compare recipes/digits.toml --methods local,finetune,fedms --seeds 0,1
    """
    from fedms.compare import VARIANTS, NoScoresError, Plan, Result, check, plots, rows, table
    from fedms.compare import compare as perform
    from fedms.core.errors import DivergenceError
    from fedms.progress import compare_line

    if methods == "help":
        known = {n: {"group": v.group, "title": v.title} for n, v in VARIANTS.items()}
        lines = (f"{n:18} {v.group:18} {v.title.replace('*', '')}" for n, v in VARIANTS.items())
        typer.echo(json.dumps(known, indent=2) if as_json else "\n".join(lines))
        return
    config = configuration(words or [])
    file, overrides = split(words or [])
    plan = Plan(
        config=file,
        overrides=overrides,
        methods=listed(methods, str, "--methods"),
        seeds=listed(seeds, int, "--seeds"),
        rates=listed(rates, float, "--rates"),
        out=out or Path("compare") / config.name,
        force=force,
    )

    def watch(name: str, event: Event) -> None:
        if not as_json and (line := compare_line(event)):
            typer.echo(f"{name}: {line}", err=True)

    reach = listed(targets, float, "--targets") if targets else []
    if not all(0 < accuracy <= 1 for accuracy in reach):
        fail(f"got --targets {targets}; expected accuracies above 0 and up to 1, as 0.8,0.9")
    check(plan)
    results, diverged = list[Result](), dict[str, str]()
    for name in plan.methods:
        try:
            results += perform(replace(plan, methods=[name]), watch)
        except (DivergenceError, NoScoresError) as error:
            diverged[name] = str(error)
            typer.echo(f"{name}: {error}", err=True)
        except KeyboardInterrupt:
            fail(f"interrupted; what was run is kept in {plan.out}, call again to go on")
        table.write(plan.out, results, targets=reach, diverged=diverged)
        if results:
            plots.write(plan.out, results)
    if not results:
        fail("no method has results: " + next(iter(diverged.values()), "nothing was run"))
    if as_json:
        typer.echo(json.dumps(rows.as_json(results), indent=2))
    else:
        typer.echo((plan.out / "table.md").read_text(encoding="utf-8"))
        typer.echo(f"written: {plan.out}")


@app.command()
def bench(
    only: Annotated[str | None, typer.Option(help="Only this measure.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print rows as JSON only, with the machine.")
    ] = False,
) -> None:
    """Measure fedms beside plain transformers and PEFT, on this machine, in a few minutes.

    Example: fedms bench --only text
    """
    import torch

    from fedms.bench import MEASURES, measure, measures_of
    from fedms.machine import device_name, pick_device
    from fedms.progress import bench_table
    from fedms.store.run_folder import environment

    if only is not None and only not in MEASURES:
        fail(f"got --only {only}; expected one of {', '.join(MEASURES)}")
    on = pick_device(device)
    machine = {**environment(0), "threads": torch.get_num_threads(), "device": device_name(on)}
    rows = []
    for row in measure([only] if only else measures_of(on), on):
        rows.append(row)
        if not as_json:
            typer.echo(f"measured: {row.measure}", err=True)
    if as_json:
        typer.echo(json.dumps([{**asdict(row), "machine": machine} for row in rows], indent=2))
    else:
        bench_table(rows, machine)
