"""Commands across machines: deploy, server, site, submit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fedms.cli.base import app, configuration, fail, finite, listed, say, say_aside, until_told

LINES = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def _say(as_json: bool) -> Callable[[str], None]:
    """How what happens is told."""
    if as_json:
        return lambda text: typer.echo(json.dumps({"said": text}))
    return say


def _need_flower() -> None:
    from importlib.util import find_spec

    if find_spec("flwr") is None or find_spec("cryptography") is None:
        fail("got no flwr and cryptography; expected both; try: pip install 'fedms[flower]'")


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Write what a server and sites on other machines need, with certificates and keys.

    Written again, it keeps authority, keys and sites: to add sites, or for other settings.

    Example: fedms deploy clinics.toml --sites north,south --address fl.example.org:9443
    """
    _need_flower()
    from fedms.deploy.folders import write_deployment
    from fedms.deploy.parts import ELSEWHERE

    names = listed(sites, str, "--sites")
    config = configuration(words or [], elsewhere=ELSEWHERE)
    made = write_deployment(to, config, names, address=address, listen=listen, secure=not insecure)
    if as_json:
        folders = {path.name: str(path) for path in made.site_folders}
        typer.echo(json.dumps({"server": str(made.path), "sites": folders}, indent=2))
        return
    say(f"on this machine:  fedms server {made.path}")
    for path in made.site_folders:
        say(f"hand over {path}, there:  fedms site {path.name} data.path=FILE")
    say(f"then, on this machine:  fedms submit {made.path}")


@app.command()
def server(
    folder: Annotated[Path, typer.Argument(help="The server's folder of a deployment.")],
    proxy: Annotated[
        str, typer.Option(help="nginx, or none where another one publishes /v1/fleet/.")
    ] = "nginx",
    as_json: LINES = False,
) -> None:
    """Let sites in and perform what is submitted, until interrupted.

    Example: fedms server deployment/server
    """
    _need_flower()
    from fedms.deploy.folders import read_server
    from fedms.deploy.server import serve

    with until_told("server ended"):
        serve(read_server(folder), _say(as_json), proxy=proxy)


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
    as_json: LINES = False,
) -> None:
    """Take part with rows that stay here, until interrupted.

    Example: fedms site north data.path=/data/letters.csv
    """
    _need_flower()
    from fedms.deploy.folders import read_site, site_config
    from fedms.deploy.site import attend

    found = read_site(folder)
    found = replace(found, server=server) if server else found
    with until_told("site ended"):
        attend(found, site_config(found, words or []), _say(as_json), state)


@app.command()
def submit(
    folder: Annotated[Path, typer.Argument(help="The server's folder of a deployment.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of this run."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder [runs/NAME-METHOD-seedN].")] = None,
    sites: Annotated[
        int | None, typer.Option(min=1, help="Sites to wait for [all that are let in].")
    ] = None,
    patience: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="Seconds to wait for them; 0: for ever."),
    ] = 0.0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run.")] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run, or have its sites keep their models.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON at the end.")
    ] = False,
) -> None:
    """Perform a run with the sites of a deployment, and show it until it ends.

    Example: fedms submit deployment/server seed=1 rounds.deadline=600 --out runs/first
    """
    _need_flower()
    from fedms.config import load_config
    from fedms.deploy import submit as submitting
    from fedms.deploy.folders import read_server
    from fedms.run import default_folder

    found = read_server(folder)
    config = load_config(found.path / "config.toml", words or [])
    path = resume or out or default_folder(config)
    tell = say_aside if as_json else say
    how = submitting.Waiting(sites or len(found.let_in), patience, found.let_in)
    if resume and (words or out or force):
        fail("got --resume with settings, --out or --force; expected --resume alone")
    try:
        if resume:
            submitting.resume(found, path, how, say=tell)
        else:
            submitting.submit(found, config, path, how, force=force, say=tell)
    except KeyboardInterrupt:
        fail(f"interrupted; the run was stopped; to go on: fedms submit {folder} --resume {path}")
    if as_json:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        typer.echo(json.dumps({"folder": str(path), **summary}, indent=2))
