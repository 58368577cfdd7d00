"""The server's app: meets its sites, and performs the run with them."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedms.config import validate
from fedms.deploy.parts import build_server
from fedms.deploy.terms import terms
from fedms.progress import Progress
from fedms.run import serve
from fedms.runtimes.flower.sites import Sites, serving
from fedms.store.run_folder import RunFolder

if TYPE_CHECKING:
    from flwr.serverapp import Grid


def main(grid: Grid, words: Mapping[str, str | int | float | bool]) -> None:
    """Perform the run that was submitted, as `bundle` writes it down.

    Args:
        grid: Flower's.
        words: `configuration`, TOML; `run`, a name; `folder`, of the run, here; `sites`, how many
            to wait for; `patience`, for how many seconds, 0: for ever; `force`, whether an earlier
            run's folder is replaced; `again`, whether the run that is there is gone on with.
    """
    folder, name = Path(str(words["folder"])), str(words["run"])
    force, again = bool(words["force"]), bool(words["again"])
    if not again:
        RunFolder.check(folder, force=force)
    config = validate(tomllib.loads(str(words["configuration"])))
    rules, patience = config.rounds, float(words["patience"]) or None
    sites = Sites(
        grid,
        name,
        terms(config),
        deadline=rules.deadline or None,
        spare=rules.spare,
        tell=_say,
    )
    sites.meet(int(words["sites"]), patience)
    experiment = build_server(config, sites.sizes)
    serve(
        config,
        experiment,
        sites,
        folder,
        name=name,
        force=force,
        again=again,
        watch=Progress(config),
        tell=_say,
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")  # which Flower keeps
    sys.stderr.flush()


app = serving(main)
