"""One run from configuration to run folder: train in the simulator, evaluate, keep the models."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedms import checkpoints, report
from fedms.build import Experiment, build
from fedms.checkpoints import Checkpoint
from fedms.checks import check as check_config
from fedms.clients import simulated
from fedms.config import Config, Faults, dump_config
from fedms.core.errors import UserError
from fedms.course import ClientsElsewhere, Course
from fedms.data import Table
from fedms.events import (
    Evaluated,
    Event,
    Finished,
    RoundDone,
    Started,
)
from fedms.given import NOTHING, Given
from fedms.identity import expect_same, identity
from fedms.reopened import run_config
from fedms.runtimes.workers import on_threads
from fedms.store.files import UNWRITABLE, lies_in, locked, sweep
from fedms.store.run_folder import FOUNDATION, RunFolder
from fedms.store.states import DamagedError
from fedms.tracking import check as check_trackers
from fedms.tracking import tracked

__all__ = ["Evaluated", "Event", "Finished", "RoundDone", "Started", "resume", "run", "serve"]


def default_folder(config: Config) -> Path:
    """Where a run goes if nothing else is said."""
    return Path("runs") / f"{config.name}-{config.method}-seed{config.seed}"


def check(config: Config) -> None:
    """Make sure that a run can be performed, as far as is known without data and weights.

    Raises:
        UserError: if method and model do not fit.
    """
    check_config(config)


def run(
    config: Config,
    out: Path | None = None,
    *,
    force: bool = False,
    watch: Callable[[Event], None] = lambda event: None,
    given: Given = NOTHING,
) -> dict[str, Any]:
    """Perform a whole run and return its summary (see `summary.json`).

    Args:
        config: what to run.
        out: the run folder; None for `runs/NAME-METHOD-seedN`.
        force: replace an earlier run's folder.
        watch: is called with every event as it happens.
        given: by a program.

    Raises:
        UserError: if the data, model, configuration or run folder do not fit.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "got runtime.workers > 1 in a script that starts the run when it is imported; "
            'expected run() below: if __name__ == "__main__":'
        )
    path = out or default_folder(config)
    RunFolder.check(path, force=force)
    _expect_apart(config, path)
    check_trackers(config)
    with on_threads(config.runtime.threads):
        known = identity(config, given.table)
        experiment = build(config, path, given.table)
        if given.foundation is not None:
            config, experiment = _at_home(config, experiment, path)
        computes = {**experiment.computes, "identity": known}
        folder = _create(path, config, computes, force=force, foundation=given.foundation)
        return _simulate(config, experiment, folder, watch, given)


def rehearse(config: Config, experiment: Experiment, path: Path) -> dict[str, Any]:
    """Perform a run of parts that are there already, in a new folder, and return its summary."""
    folder = _create(path, config, experiment.computes, force=False)
    return _simulate(config, experiment, folder, lambda event: None, NOTHING)


def resume(
    path: Path,
    *,
    watch: Callable[[Event], None] = lambda event: None,
    tell: Callable[[str], None] = lambda text: None,
    given: Given = NOTHING,
) -> dict[str, Any]:
    """Go on with a run that ended early, from its last checkpoint, and return its summary.

    It ends as it would have without the interruption, to the bit but for times and for what was
    computed twice. A complete run is left as it is.

    Args:
        path: the run folder.
        watch: is called with every event as it happens.
        tell: is told of files that are damaged, and not used; and of versions that have changed.
        given: rows as at its beginning, if they were given then; and when to stop.

    Raises:
        UserError: if it is no run folder, another process is at work in it, no checkpoint is
            whole, or data, model or machine are not those of its beginning.
    """
    config, folder, facts = _reopen(path, given.table)
    if (summary := folder.summary()) is not None:
        with _held_alone(folder):
            sweep(path)
            if not (path / report.NAME).exists():  # it was killed right before
                report.attempt(path)
        return summary
    if "sites" in facts:
        raise UserError(f"got {path}, a run with sites elsewhere; try fedms submit --resume {path}")
    threads = config.runtime.threads or facts.get("threads")  # as it began, for equal sums
    config = config.model_copy(
        update={"runtime": config.runtime.model_copy(update={"threads": threads})}
    )
    with on_threads(threads):
        experiment = build(config, path, given.table)
        clients = [client.id for client in experiment.trained]
        with _held_alone(folder):
            _tell_of_versions(folder, config, tell)
            begin = checkpoints.latest(folder, clients, tell)
        return _simulate(config, experiment, folder, watch, given, begin)


def _expect_apart(config: Config, path: Path) -> None:
    """That what a run is made of is not in the folder that it replaces."""
    for key, value in (("model.name", config.model.name), ("data.path", config.data.path)):
        if value and lies_in(value, path):
            raise UserError(
                f"got {key} = {value!r}, which is in {path}, the run folder to replace; expected "
                "it elsewhere; try another folder (--out; in Python out=), or a copy of it"
            )


def _at_home(config: Config, experiment: Experiment, path: Path) -> tuple[Config, Experiment]:
    """With the foundation model where it will be, in the run folder."""
    name = str(path.resolve() / FOUNDATION)
    model = config.model.model_copy(update={"name": name})
    experiment = replace(experiment, head={**experiment.head, "model": name})
    return config.model_copy(update={"model": model}), experiment


def _reopen(path: Path, table: Table | None = None) -> tuple[Config, RunFolder, dict[str, Any]]:
    """A run that is there, if it can go on here."""
    found = RunFolder.open(path)
    config, facts = run_config(found.config), found.facts()
    folder = RunFolder.open(path, config.checkpoint_every)
    if config.data.source == "memory" and table is None:
        raise UserError(
            f"got {path}, a run of rows that a Python program gave; expected them again; try "
            "FedMS.resume there"
        )
    expect_same(config, facts, path, identity(config, table))
    return config, folder, facts


def _tell_of_versions(folder: RunFolder, config: Config, tell: Callable[[str], None]) -> None:
    """Sums may come out otherwise, in their last bits."""
    if changed := folder.resumed(config.seed):
        tell(
            f"{folder.path} was begun with {'; '.join(changed)}: "
            "it may not end to the bit as it would have"
        )


def _create(
    path: Path,
    config: Config,
    computes: Mapping[str, Any],
    *,
    force: bool,
    foundation: Path | None = None,
) -> RunFolder:
    every, text = config.checkpoint_every, dump_config(config)
    return RunFolder.create(
        path,
        text,
        seed=config.seed,
        computes=computes,
        every=every,
        force=force,
        foundation=foundation,
    )


@contextmanager
def _held_alone(folder: RunFolder) -> Iterator[None]:
    """Keep other processes from the folder of a run; say what to do where its disk is full."""
    try:
        with locked(folder.config):
            yield
    except BlockingIOError:
        raise UserError(f"got {folder.path}, where another process is at work") from None
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(
            f"got {folder.path}, which cannot be written ({error}); expected room, and leave to "
            "write; once there is, try to resume the run: it goes on from its last checkpoint"
        ) from error


def _simulate(
    config: Config,
    experiment: Experiment,
    folder: RunFolder,
    watch: Callable[[Event], None],
    given: Given,
    begin: Checkpoint | None = None,
) -> dict[str, Any]:
    with ExitStack() as resources:
        resources.enter_context(_held_alone(folder))
        watch = resources.enter_context(tracked(config, folder.path, watch))
        simulator = simulated(config, experiment, folder, resources)
        return Course(config, experiment, folder, watch, simulator).perform(begin, given.stop)


def serve(
    config: Config,
    experiment: Experiment,
    clients: ClientsElsewhere,
    out: Path | None = None,
    *,
    name: str = "",
    force: bool = False,
    again: bool = False,
    watch: Callable[[Event], None] = lambda event: None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Perform a whole run with clients elsewhere; what is private stays with them.

    Args:
        config: what to run.
        experiment: without rows, as `deploy.parts.build_server` makes it.
        clients: those who are there.
        out: as for `run`.
        name: under which clients keep what is of this run.
        force: as for `run`.
        again: go on with the run in `out`, as `resume` does. Of a complete one clients are told
            again to keep their models, and who did is told.
        watch: as for `run`.
        tell: as for `resume`.

    Raises:
        UserError: if the run folder does not fit, or clients fail.
    """
    if config.faults != Faults():
        raise UserError("got faults for a run with sites; expected them in simulations only")
    check_trackers(config)
    path = out or default_folder(config)
    if not again:
        _expect_apart(config, path)
    with on_threads(config.runtime.threads):
        if again:
            config, folder, _ = _reopen(path)
        else:
            computes = {**experiment.computes, "identity": identity(config), "sites": name}
            folder = _create(path, config, computes, force=force)
        with _held_alone(folder):
            if again and (summary := folder.summary()) is not None:
                _finish(folder, summary["rounds"], clients, tell)
                return summary
            if again:
                _tell_of_versions(folder, config, tell)
            begin = checkpoints.latest(folder, (), tell) if again else None
            with tracked(config, path, watch) as watching:
                run = Course(config, experiment, folder, watching, clients, clients)
                return run.perform(begin)


def _finish(
    folder: RunFolder, rounds: int, clients: ClientsElsewhere, tell: Callable[[str], None]
) -> None:
    """Have clients keep their models of a complete run, as at its end; nothing changes here."""
    try:
        state, _ = folder.server_states.load(rounds)
    except DamagedError as error:
        raise UserError(
            f"{error}; expected the last checkpoint, of which clients are told"
        ) from None
    kept = ", ".join(clients.finish(state))
    tell(f"sites that keep their models of this run: {kept or 'none that is there'}")
