"""Commands that look and change nothing: partition, estimate, doctor, watch."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedms.cli.base import app, configuration, fail, finite
from fedms.cli.completion import run_folders, settings

WORDS = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE]...",
        help="A TOML file (default: the embedded digits job), and settings that override it.",
        autocompletion=settings,
    ),
]
_MARKS = {"good": "ok", "bad": "BAD", "absent": "–"}
_PICTURES = (".svg", ".png")


@app.command()
def partition(
    words: WORDS = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw who holds what into this file, .svg or .png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Show who would hold which rows, and how far clients are from one another.

    Example: fedms partition recipes/femnist.toml partition.max_clients=20 --picture writers.svg
    """
    config = configuration(words or [])
    if picture and picture.suffix.lower() not in _PICTURES:
        fail(f"got --picture {picture}; expected a file that ends in {' or '.join(_PICTURES)}")

    from fedms.holdings import holdings
    from fedms.tables import show_holdings

    found = holdings(config)
    if picture:
        from fedms.compare import plots

        try:
            plots.holdings(picture, found.names, found.classes, found.counts)
        except OSError as error:
            fail(f"got --picture {picture}, which cannot be written: {error.strerror or error}")
    if as_json:
        typer.echo(json.dumps(found.facts(), indent=2))
    else:
        show_holdings(found)
        if picture:
            typer.echo(f"written: {picture}")


@app.command()
def estimate(
    words: WORDS = None,
    seconds: Annotated[
        float,
        typer.Option(min=0, max=10, callback=finite, help="For measuring time, at most."),
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Say what a run will cost, without training: bytes, FLOPs, memory, disk, time.

    Where validation decides when more blocks are trained, the least and the most are told.

    Example: fedms estimate recipes/banking77.toml sal.caps.*=2
    """
    config = configuration(words or [])

    from fedms.estimate import estimate as perform
    from fedms.tables import show_estimate

    found = perform(config, seconds)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show_estimate(found)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Look whether fedms can work here, and say what is missing and the command that adds it.

    Exit code 0 if the main job can run, 1 otherwise.

    Example: fedms doctor
    """
    from fedms.doctor import examine

    checks = []
    for check in examine():
        checks.append(check)
        if not as_json:
            typer.echo(f"{_MARKS[check.state]:4} {check.name:20} {check.said}")
            if check.fix:
                typer.echo(f"{'':25} {check.fix}")
    fine = all(check.state != "bad" for check in checks)
    if as_json:
        typer.echo(json.dumps({"fine": fine, "checks": [asdict(c) for c in checks]}, indent=2))
    else:
        typer.echo("fedms can run here" if fine else "fedms cannot run here: see BAD above")
    raise typer.Exit(0 if fine else 1)


@app.command()
def watch(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The folder of a run, running or complete.", autocompletion=run_folders
        ),
    ],
    once: Annotated[bool, typer.Option("--once", help="Show what there is now, and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the curves so far as JSON, and end.")
    ] = False,
) -> None:
    """Show the curves of a run while it goes on, until it is complete; Ctrl-C ends the watching.

    It reads the folder alone, and disturbs nobody. What is no terminal is given the curves once.

    Example: fedms watch runs/digits-fedms-seed0
    """
    from fedms.live import follow
    from fedms.watching import look

    if as_json:
        typer.echo(json.dumps(look(folder).facts(), indent=2))
        return
    with suppress(KeyboardInterrupt):
        follow(folder, once=once)
