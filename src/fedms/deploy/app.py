"""The server's app: meets its sites, and performs the run with them."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedms.config import validate
from fedms.deploy.bundle import read_request
from fedms.deploy.parts import build_server
from fedms.deploy.terms import terms
from fedms.progress import Progress
from fedms.run import serve
from fedms.runtimes.flower.sites import Sites, serving
from fedms.store.run_folder import RunFolder

if TYPE_CHECKING:
    from flwr.serverapp import Grid


def main(grid: Grid, words: Mapping[str, str | int | float | bool]) -> None:
    """Perform the run that was submitted.

    Args:
        grid: Flower's.
        words: `run`, the name of a `bundle.Request`.
    """
    wanted = read_request(str(words["run"]))
    folder, force, again = Path(wanted.folder), wanted.force, wanted.again
    if not again:
        RunFolder.check(folder, force=force)
    config = validate(tomllib.loads(wanted.configuration))
    rules = config.rounds
    sites = Sites(
        grid,
        wanted.run,
        terms(config),
        deadline=rules.deadline or None,
        spare=rules.spare,
        tell=_say,
    )
    sites.meet(wanted.sites, wanted.patience or None, wanted.names)
    experiment = build_server(config, sites.sizes)
    serve(
        config,
        experiment,
        sites,
        folder,
        name=wanted.run,
        force=force,
        again=again,
        watch=Progress(config),
        tell=_say,
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")  # which Flower keeps
    sys.stderr.flush()


app = serving(main)
