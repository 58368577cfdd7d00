"""The `fedms` command. What is heavy is imported inside the commands, so that help is instant."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from fedms.events import Event

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
            f"to go on: fedms resume {folder}"
            if (folder / "config.toml").exists()
            else "nothing was written"
        )
        _fail(f"interrupted; {kept}")
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **summary}, indent=2))


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="The folder of a run that ended early.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON only.")
    ] = False,
) -> None:
    """Go on with a run from its last checkpoint; it ends as if nothing had happened.

    Example: fedms resume runs/digits-fedms-seed0
    """
    from fedms.config import load_config
    from fedms.progress import Progress
    from fedms.run import resume as perform
    from fedms.store.run_folder import RunFolder

    found = RunFolder.open(folder)
    complete = found.summary() is not None
    config = load_config(found.config)
    watch: Callable[[Event], None] = (lambda event: None) if as_json else Progress(config)
    try:
        summary = perform(folder, watch=watch, tell=_say_aside)
    except KeyboardInterrupt:
        _fail(f"interrupted; try again: fedms resume {folder}")
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **summary}, indent=2))
    elif complete:
        typer.echo(f"{folder} is complete; nothing was done")


@app.command()
def compare(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="A TOML file (default: the embedded digits job), and settings for all methods.",
        ),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Names, by commas; `fedms compare --methods help` lists them.")
    ] = "zeroshot,local,fedavg,finetune,ditto,fedsa,fedms",
    seeds: Annotated[str, typer.Option(help="Numbers, by commas.")] = "0,1,2",
    rates: Annotated[
        str,
        typer.Option(
            help="Learning rates: validation chooses each method's; of two or more, it goes on "
            "beyond the last while that is the best."
        ),
    ] = "3e-3,1e-2",
    out: Annotated[Path | None, typer.Option(help="Folder [compare/NAME].")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace complete runs of other settings.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print table.json only.")] = False,
) -> None:
    """Run methods on the same data, seeds and steps, and put them into one table.

    What was run before with the same configuration is used again.

    Example: fedms compare recipes/digits.toml --methods local,finetune,fedms --seeds 0,1
    """
    from fedms.compare import VARIANTS, Plan, plots, table
    from fedms.compare import compare as perform
    from fedms.progress import compare_line

    if methods == "help":
        for name, variant in VARIANTS.items():
            typer.echo(f"{name:18} {variant.group:18} {variant.title.replace('*', '')}")
        return
    config = _config(words or [])
    file, overrides = _split(words or [])
    plan = Plan(
        config=file,
        overrides=overrides,
        methods=_list(methods, str, "--methods"),
        seeds=_list(seeds, int, "--seeds"),
        rates=_list(rates, float, "--rates"),
        out=out or Path("compare") / config.name,
        force=force,
    )

    def watch(name: str, event: Event) -> None:
        if not as_json and (line := compare_line(event)):
            typer.echo(f"{name}: {line}", err=True)

    try:
        results = perform(plan, watch)
    except KeyboardInterrupt:
        _fail(f"interrupted; complete runs are kept in {plan.out}, call again to go on")
    table.write(plan.out, results)
    plots.write(plan.out, results)
    if as_json:
        typer.echo(json.dumps(table.rows(results), indent=2))
    else:
        typer.echo((plan.out / "table.md").read_text())
        typer.echo(f"written: {plan.out}")


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


@app.command()
def deploy(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="A TOML file, and settings that override it; with data.classes.",
        ),
    ] = None,
    sites: Annotated[str, typer.Option(help="Names of the sites, by commas.")] = "",
    to: Annotated[Path, typer.Option(help="Folder to write.")] = Path("deployment"),
    address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT by which sites reach the server [as before; first: 127.0.0.1:9443]."
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(help="The server's own address [as before; first: all, or that of loopback]."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS and keys: for a try on one machine.")
    ] = False,
) -> None:
    """Write what a server and sites on other machines need, with certificates and keys.

    Written again, it keeps authority, keys and sites: to add sites, or for other settings.

    Example: fedms deploy clinics.toml --sites north,south --address fl.example.org:9443
    """
    from fedms.deploy.folders import write_deployment

    names = _list(sites, str, "--sites")
    config = _config(words or [])
    made = write_deployment(to, config, names, address=address, listen=listen, secure=not insecure)
    typer.echo(f"on this machine:  fedms server {made.path}")
    for path in made.site_folders:
        typer.echo(f"hand over {path}, there:  fedms site {path.name} data.path=FILE")
    typer.echo(f"then, on this machine:  fedms submit {made.path}")


@app.command()
def server(
    folder: Annotated[Path, typer.Argument(help="The server's folder of a deployment.")],
    proxy: Annotated[
        str, typer.Option(help="nginx, or none where another one publishes /v1/fleet/.")
    ] = "nginx",
) -> None:
    """Let sites in and perform what is submitted, until interrupted.

    Example: fedms server deployment/server
    """
    from fedms.deploy.folders import read_server
    from fedms.deploy.server import serve

    with _until_told("server ended"):
        serve(read_server(folder), typer.echo, proxy=proxy)


@app.command()
def site(
    folder: Annotated[Path, typer.Argument(help="The site's folder of a deployment.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="The site's own settings, as data.path."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Where what is private is kept [FOLDER/state].")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="HOST:PORT of the server, if it is not as it was written.")
    ] = None,
) -> None:
    """Take part with rows that stay here, until interrupted.

    Example: fedms site north data.path=/data/letters.csv
    """
    from fedms.deploy.folders import read_site, site_config
    from fedms.deploy.site import attend

    found = read_site(folder)
    found = replace(found, server=server) if server else found
    with _until_told("site ended"):
        attend(found, site_config(found, words or []), typer.echo, state)


@app.command()
def submit(
    folder: Annotated[Path, typer.Argument(help="The server's folder of a deployment.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of this run."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder [runs/NAME-METHOD-seedN].")] = None,
    sites: Annotated[
        int | None, typer.Option(min=1, help="Sites to wait for [all of the deployment].")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for them; 0: for ever.")
    ] = 0.0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run.")] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder, which ended early.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON at the end.")
    ] = False,
) -> None:
    """Perform a run with the sites of a deployment, and show it until it ends.

    Example: fedms submit deployment/server seed=1 rounds.deadline=600 --out runs/first
    """
    from fedms.config import load_config
    from fedms.deploy import submit as submitting
    from fedms.deploy.folders import read_server
    from fedms.run import default_folder

    found = read_server(folder)
    config = load_config(found.path / "config.toml", words or [])
    path = resume or out or default_folder(config)
    say = _say_aside if as_json else typer.echo
    how = submitting.Waiting(sites or len(found.sites), patience)
    if resume and (words or out or force):
        _fail("got --resume with settings, --out or --force; expected --resume alone")
    try:
        if resume:
            submitting.resume(found, path, how, say=say)
        else:
            submitting.submit(found, config, path, how, force=force, say=say)
    except KeyboardInterrupt:
        _fail(f"interrupted; the run was stopped; to go on: fedms submit {folder} --resume {path}")
    if as_json:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        typer.echo(json.dumps({"folder": str(path), **summary}, indent=2))


def _say_aside(text: str) -> None:
    typer.echo(text, err=True)


@contextmanager
def _until_told(said: str) -> Iterator[None]:
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


def _config(words: list[str]) -> Any:
    """The configuration from a file, where the first word is one, and overrides."""
    from fedms.config import load_config

    return load_config(*_split(words))


def _split(words: list[str]) -> tuple[Path | None, list[str]]:
    """The configuration file, where the first word is one, and the overrides."""
    has_file = bool(words) and "=" not in words[0]
    return Path(words[0]) if has_file else None, words[has_file:]


def _list(text: str, kind: Callable[[str], T], option: str) -> list[T]:
    """Values by commas, without repetitions."""
    try:
        values = list(dict.fromkeys(kind(word.strip()) for word in text.split(",") if word.strip()))
    except ValueError:
        values = []
    if not values:
        _fail(f"got {option} {text!r}; expected values by commas, e.g. {option} 1,2")
    return values


def _fail(message: str) -> NoReturn:
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
