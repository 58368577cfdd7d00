"""`fedms submit`: a run with the sites of a deployment, followed until it ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedms.config import Config
from fedms.core.errors import UserError
from fedms.deploy import engine
from fedms.deploy.bundle import write_bundle
from fedms.deploy.folders import ServerFolder
from fedms.deploy.server import home
from fedms.store.run_folder import RunFolder

_DONE = "finished:completed"


def submit(
    server: ServerFolder,
    config: Config,
    out: Path,
    *,
    sites: int,
    patience: float = 0.0,
    force: bool = False,
    say: Callable[[str], None],
) -> None:
    """Have a run performed, and show what its server says until it ends.

    Args:
        server: of a `fedms server` that runs on this machine.
        config: of the run.
        out: the run folder.
        sites: how many to wait for, at least 1.
        patience: seconds to wait for them; 0: for ever.
        force: replace an earlier run's folder.
        say: is told what happens.

    Raises:
        UserError: if the run cannot be started, or fails.
        KeyboardInterrupt: once the run is stopped.
    """
    out = out.resolve()
    RunFolder.check(out, force=force)
    app = server.path / "app"
    write_bundle(app, config, run=out.name, out=out, sites=sites, patience=patience, force=force)
    number = str(engine.ask(home(server), "run", str(app), engine.CONNECTION)["run-id"])
    say(f"run {number} is submitted; its folder is {out}")
    try:
        _follow(server, number)
    except KeyboardInterrupt:
        engine.ask(home(server), "stop", number, engine.CONNECTION)
        raise
    status = _status(server, number)
    if status["status"] != _DONE:
        raise UserError(f"run {number} is {status['status']}: {status['status-details']}")


def _follow(server: ServerFolder, number: str) -> None:
    """Show what the run says, as it says it."""
    words = [engine.program("flwr"), "log", number, engine.CONNECTION, "--stream"]
    subprocess.run(words, env=engine.environment(home(server)), check=False)  # noqa: S603


def _status(server: ServerFolder, number: str) -> dict[str, Any]:
    words = ("ls", engine.CONNECTION, "--run-id", number)
    (found,) = engine.ask(home(server), *words)["runs"]
    return dict(found)
