"""The `fedms` command itself, and what its commands have in common."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

T = TypeVar("T")
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


def say_aside(text: str) -> None:
    """To standard error, where it is in nobody's way."""
    typer.echo(text, err=True)


@contextmanager
def until_told(said: str) -> Iterator[None]:
    """Ctrl-C, and the signal by which systems end programs, are how it should end."""

    def end(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(said, err=True)
    finally:
        signal.signal(signal.SIGTERM, before)


def configuration(words: list[str]) -> Any:
    """The configuration from a file, where the first word is one, and overrides."""
    from fedms.config import load_config

    return load_config(*split(words))


def split(words: list[str]) -> tuple[Path | None, list[str]]:
    """The configuration file, where the first word is one, and the overrides."""
    has_file = bool(words) and "=" not in words[0]
    return Path(words[0]) if has_file else None, words[has_file:]


def listed(text: str, kind: Callable[[str], T], option: str) -> list[T]:
    """Values by commas, without repetitions."""
    try:
        values = list(dict.fromkeys(kind(word.strip()) for word in text.split(",") if word.strip()))
    except ValueError:
        values = []
    if not values:
        fail(f"got {option} {text!r}; expected values by commas, e.g. {option} 1,2")
    return values


def fail(message: str) -> NoReturn:
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
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; nothing was written")
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            fail("interrupted; nothing was written")
        raise
