"""The `fedms` command itself, and what its commands have in common."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperGroup

T = TypeVar("T")
SPINS = 10_000
"""How often torch's threads look for work before they sleep (libgomp, which reads it when torch is
loaded): enough to lose little alone; its 300,000 make a run on a busy machine many times slower
(`docs/performance.md`). What the user has set stands."""
_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""
_MACHINE = {getattr(errno, f"E{n}") for n in ("NOSPC", "DQUOT", "ROFS", "ACCES", "PERM")}
_MACHINE |= {errno.ENAMETOOLONG, errno.EMFILE}
"""What files cannot do here, whatever the program."""
_FIRST = ("run", "resume", "watch", "partition", "estimate", "compare", "predict", "evaluate")
"""Commands that help lists before the others."""


class Commands(TyperGroup):
    """Lists what people need first, and says which command was probably meant."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        names = super().list_commands(ctx)
        return [n for n in _FIRST if n in names] + [n for n in names if n not in _FIRST]

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        if args and self.get_command(ctx, args[0]) is None:
            from fedms.core.errors import did_you_mean

            names = self.list_commands(ctx)
            hint = did_you_mean(args[0], names)
            fail(f"got command {args[0]!r}; expected one of {', '.join(names)}{hint}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # rich's own takes [words in brackets] for styles
    help="Personalised federated fine-tuning of foundation models.",
    epilog="Exit codes: 0 fine; 2 what was given is wrong, or it was interrupted, and one line on "
    "standard error says so; 1 anything else. Completion: fedms --install-completion.",
)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --version: print JSON only.")
    ] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        found = installed("fedms")
        typer.echo(json.dumps({"fedms": found}) if as_json else f"fedms {found}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def say(text: str) -> None:
    """To standard output."""
    from fedms.core.words import printable

    typer.echo(printable(text))


def say_aside(text: str) -> None:
    """To standard error, where it is in nobody's way."""
    from fedms.core.words import printable

    typer.echo(printable(text), err=True)


@contextmanager
def until_told(said: str) -> Iterator[None]:
    """To be interrupted is how it should end."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(said, err=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, by which systems and schedulers end programs, is what Ctrl-C is: all is put away."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    if before in (signal.SIG_IGN, None):  # ignored, or not this program's to change
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def configuration(words: list[str], elsewhere: str | None = None) -> Any:
    """The configuration from a file, where the first word is one, and overrides."""
    from fedms.config import load_config

    return load_config(*split(words), elsewhere=elsewhere)


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
        example = "fedms,local" if kind is str else "1,2"
        fail(f"got {option} {text!r}; expected values by commas, e.g. {option} {example}")
    return values


def finite(value: float) -> float:
    """A number, which nan is not, though it is within any bounds."""
    if math.isnan(value):
        fail("got nan; expected a number")
    return value


def fail(message: str) -> NoReturn:
    """One line on standard error, exit code 2."""
    say_aside(f"fedms: {' '.join(message.split())}")
    raise SystemExit(2)


def main() -> None:
    """Entry point: what the user can mend ends in one line and exit code 2."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    try:
        with _interruptible():
            code = app(prog_name="fedms", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        said = _to_mend(error)
        if said is None:
            raise
        fail(said)
    if code == _INTERRUPTED:
        fail("interrupted; nothing was written")
    raise SystemExit(code)


def _to_mend(error: Exception) -> str | None:
    """What to say of an error that is the user's; None for others.

    Help does without what knows some kinds of them, which takes time to load.
    """
    from fedms.core.errors import UserError

    config = sys.modules.get("fedms.config")
    if isinstance(error, UserError) or (config and isinstance(error, config.ConfigError)):
        return str(error)
    if isinstance(error, OSError) and error.errno in _MACHINE:
        of = f" ({error.filename})" if error.filename else ""
        return f"got {error.strerror}{of}; expected files that can be read and written"
    if isinstance(error, RuntimeError) and "out of memory" in str(error):  # torch's, of a GPU
        return (
            "got a device without memory for this; expected room for weights, kept prefixes and "
            "a step; try a smaller runtime.cache_bytes, training.batch_size or runtime.stack "
            "(of a service or predict: --device cpu)"
        )
    usage = getattr(error, "format_message", None)  # of words and options
    if usage is None:
        return None
    context = getattr(error, "ctx", None)
    where = context.command_path if context else "fedms"
    return f"{usage().rstrip('.')}; try {where} --help"
