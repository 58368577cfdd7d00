"""`fedms submit`: a run with the sites of a deployment, followed until it ends."""

from __future__ import annotations

import secrets
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedms.config import Config, dump_config, load_config
from fedms.core.errors import UserError
from fedms.deploy import engine
from fedms.deploy.bundle import Request, requested, write_bundle
from fedms.deploy.folders import ServerFolder
from fedms.deploy.server import home
from fedms.deploy.terms import differences
from fedms.store.run_folder import RunFolder

_DONE = "finished:completed"


@dataclass(frozen=True)
class Waiting:
    """For so many sites, at least 1, of those with these names; so many seconds, 0: for ever."""

    sites: int
    seconds: float = 0.0
    names: tuple[str, ...] = ()


def submit(
    server: ServerFolder,
    config: Config,
    out: Path,
    how: Waiting,
    *,
    force: bool = False,
    say: Callable[[str], None],
) -> None:
    """Have a run performed, and show what its server says until it ends.

    Args:
        server: of a `fedms server` that runs on this machine.
        config: of the run.
        out: the run folder.
        how: sites are waited for.
        force: replace an earlier run's folder.
        say: is told what happens.

    Raises:
        UserError: if the run cannot be started, or fails.
        KeyboardInterrupt: once the run is stopped.
    """
    out = out.resolve()
    RunFolder.check(out, force=force)
    handed_over = load_config(server.path / "config.toml")
    if differing := differences(config, handed_over):
        raise UserError(
            f"got {', '.join(differing)} other than sites have; expected as in "
            f"{server.path / 'config.toml'}; try fedms deploy with these settings, and to hand "
            "over each site's config.toml anew"
        )
    name = f"{out.name}-{secrets.token_hex(4)}"  # of its own at sites, whatever the folder's is
    _perform(server, config, out, name, how, force=force, say=say)


def resume(server: ServerFolder, out: Path, how: Waiting, *, say: Callable[[str], None]) -> None:
    """Have a run gone on with that ended early, from its last checkpoint.

    Of a complete one sites are told again to keep their models, who may have missed its end.

    Args:
        server: as for `submit`.
        out: the run folder.
        how: as for `submit`.
        say: likewise.

    Raises:
        UserError: if it is no run with sites, or as `submit`.
        KeyboardInterrupt: once the run is stopped.
    """
    folder = RunFolder.open(out.resolve())
    name = folder.facts().get("sites")
    if not name:
        raise UserError(f"got {out}, a run on one machine; try fedms resume {out}")
    if folder.summary() is not None:
        say(f"{out} is complete; sites are told again to keep their models")
    _perform(server, load_config(folder.config), folder.path, name, how, again=True, say=say)


def _perform(
    server: ServerFolder,
    config: Config,
    out: Path,
    name: str,
    how: Waiting,
    *,
    force: bool = False,
    again: bool = False,
    say: Callable[[str], None],
) -> None:
    if how.sites < 1:
        raise UserError(
            f"got no key in {server.path / 'nodes'}, so no site is let in; expected one at least; "
            "try fedms deploy with --sites NAME"
        )
    request = Request(
        dump_config(config),
        run=name,
        folder=str(out),
        sites=how.sites,
        names=how.names,
        patience=how.seconds,
        force=force,
        again=again,
    )
    with requested(home(server), request):
        number = _start(server, name)
        say(f"run {number} is submitted; its folder is {out}")
        try:
            _follow(server, number)
        except KeyboardInterrupt:
            engine.ask(home(server), "stop", number, engine.CONNECTION)
            raise
        status = _status(server, number)
    if status["status"] != _DONE:
        raise UserError(f"run {number} is {status['status']}: {status['status-details']}")


def _start(server: ServerFolder, name: str) -> str:
    """Hand over a run's app, in a folder of its own: others may be submitted at the same time."""
    with tempfile.TemporaryDirectory(prefix="fedms-") as app:
        write_bundle(Path(app), name)
        return str(engine.ask(home(server), "run", app, engine.CONNECTION, alone=True)["run-id"])


def _follow(server: ServerFolder, number: str) -> None:
    """Show what the run says, as it says it."""
    words = [engine.program("flwr"), "log", number, engine.CONNECTION, "--stream"]
    subprocess.run(words, env=engine.environment(home(server)), check=False)  # noqa: S603


def _status(server: ServerFolder, number: str) -> dict[str, Any]:
    words = ("ls", engine.CONNECTION, "--run-id", number)
    (found,) = engine.ask(home(server), *words)["runs"]
    return dict(found)
