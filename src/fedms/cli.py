"""The `fedms` command. What is heavy is imported inside the commands, so that help is instant."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedms.run import Event

_INTERRUPTED = 130
"""What typer exits with on Ctrl-C."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Personalised federated fine-tuning of foundation models.",
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"fedms {installed('fedms')}")
        raise typer.Exit


@app.command()
def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="A TOML file (default: the embedded digits job), and settings that override it.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder [runs/NAME-METHOD-seedN].")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON only.")
    ] = False,
) -> None:
    """Train, evaluate and keep the models of every client.

    Example: fedms run recipes/banking77.toml stage2.rounds=5 --out runs/try
    """
    from fedms.progress import Progress
    from fedms.run import default_folder
    from fedms.run import run as perform

    config = _config(words or [])
    folder = out or default_folder(config)
    watch: Callable[[Event], None] = (lambda event: None) if as_json else Progress(config)
    try:
        summary = perform(config, folder, force=force, watch=watch)
    except KeyboardInterrupt:
        kept = (
            f"what was done so far is in {folder}"
            if (folder / "config.toml").exists()
            else "nothing was written"
        )
        _fail(f"interrupted; {kept}")
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **summary}, indent=2))


@app.command()
def bench(
    only: Annotated[str | None, typer.Option(help="Only this measure.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print rows as JSON only, with the machine.")
    ] = False,
) -> None:
    """Measure fedms beside plain transformers and PEFT, on this machine, in a few minutes.

    Example: fedms bench --only text
    """
    import torch

    from fedms.bench import MEASURES, measure
    from fedms.progress import bench_table
    from fedms.store.run_folder import environment

    if only is not None and only not in MEASURES:
        _fail(f"got --only {only}; expected one of {', '.join(MEASURES)}")
    machine = {**environment(0), "threads": torch.get_num_threads()}
    rows = []
    for row in measure(only):
        rows.append(row)
        if not as_json:
            typer.echo(f"measured: {row.measure}", err=True)
    if as_json:
        typer.echo(json.dumps([{**asdict(row), "machine": machine} for row in rows], indent=2))
    else:
        bench_table(rows, machine)


def _config(words: list[str]) -> Any:
    """The configuration from a file, where the first word is one, and overrides."""
    from fedms.config import load_config

    has_file = bool(words) and "=" not in words[0]
    return load_config(Path(words[0]) if has_file else None, words[has_file:])


def _fail(message: str) -> None:
    """One line on standard error, exit code 2."""
    typer.echo(f"fedms: {' '.join(message.split())}", err=True)
    raise SystemExit(2)


def main() -> None:
    """Entry point: what the user can mend ends in one line and exit code 2."""
    from fedms.config import ConfigError
    from fedms.core.errors import UserError

    try:
        app()
    except (UserError, ConfigError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written")
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            _fail("interrupted; nothing was written")
        raise


if __name__ == "__main__":
    main()
