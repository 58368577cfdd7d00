"""The command that looks at runs: report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedms.cli.base import app


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run folders, complete or not; several: side by side."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file [report.html in the run's folder; of several, here]."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is no report.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print where it is, and the figures of all runs.")
    ] = False,
) -> None:
    """Write what runs came to as one HTML file that needs no network.

    Example: fedms report runs/digits-fedms-seed0 runs/digits-local-seed0 --out both.html
    """
    from fedms.report import figures, write

    path = write(folders, out, force=force)
    if as_json:
        typer.echo(json.dumps({"report": str(path), "runs": figures(folders)}, indent=2))
    else:
        typer.echo(f"report: {path}")
