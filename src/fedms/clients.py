"""Where a run's clients are: in this process, in several, or with Ray's workers."""

from __future__ import annotations

import os
import tomllib
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fedms.build import Experiment, WorkerParts, build
from fedms.config import Config, dump_config, validate
from fedms.core.errors import UserError
from fedms.core.work import beginnings
from fedms.runtimes.faults import Faults, FaultyClients, attackers, mislabelled
from fedms.runtimes.flower.quiet import quiet
from fedms.runtimes.rounds import ScoredClients
from fedms.runtimes.service import AnyClient
from fedms.runtimes.simulator import Simulator
from fedms.runtimes.workers import Workers
from fedms.store.run_folder import RunFolder


def simulated(
    config: Config, experiment: Experiment, folder: RunFolder, resources: ExitStack
) -> ScoredClients:
    """The clients of a run on this machine or cluster; what they take is released with `resources`.

    Raises:
        UserError: if they cannot be where the configuration says.
    """
    faults = Faults(**config.faults.model_dump())
    experiment = _misled(experiment, faults, config.seed)
    clients = _clients(config, experiment, folder, resources)
    if not faults.any:
        return clients
    begin = partial(beginnings, experiment.algorithm, experiment.learner)
    return FaultyClients(clients, faults, config.seed, begin)


def _misled(experiment: Experiment, faults: Faults, seed: int) -> Experiment:
    """With false labels for those who attack by them."""
    if faults.attack != "labels":
        return experiment
    bad = attackers(faults, [client.id for client in experiment.trained], seed)
    classes = len(experiment.federation.classes)
    false = [mislabelled(c, classes) if c.id in bad else c for c in experiment.clients]
    return replace(experiment, clients=tuple(false))


def _clients(
    config: Config, experiment: Experiment, folder: RunFolder, resources: ExitStack
) -> ScoredClients:
    if config.runtime.name == "ray":
        return _with_ray(config, experiment, folder, resources)
    everyone = experiment.trained, folder.client_states, experiment.unseen
    stack, scored = config.runtime.stack, experiment.clients
    if experiment.workers == 1:
        algorithm, learner = experiment.algorithm, experiment.learner
        return Simulator(algorithm, learner, *everyone, stack=stack, scored=scored)
    parts = WorkerParts(config, experiment.federation.classes, folder.path, experiment.workers)
    threads = experiment.computes["threads"]
    workers = Workers(parts, *everyone, workers=parts.workers, threads=threads, stack=stack)
    return resources.enter_context(workers)


def _with_ray(
    config: Config, experiment: Experiment, folder: RunFolder, resources: ExitStack
) -> ScoredClients:
    try:
        with quiet():
            from fedms.runtimes.flower.virtual import Room, VirtualClients
    except ModuleNotFoundError as error:
        raise UserError(
            f'got runtime.name = "ray" without {error.name}; try pip install "fedms[ray]"'
        ) from None
    runtime = config.runtime
    room = Room(runtime.workers, experiment.computes["threads"], runtime.gpus)
    make = AnyParts(dump_config(found_anywhere(config)), folder.path.resolve())
    here = any_client(experiment, folder)
    return resources.enter_context(VirtualClients(make, here, room))


@dataclass(frozen=True)
class AnyParts:
    """Makes what a process needs that may be asked for any client of a run.

    Args:
        configuration: of the run, TOML, with absolute paths.
        folder: of the run.
    """

    configuration: str
    folder: Path

    def __call__(self) -> AnyClient:
        config = validate(tomllib.loads(self.configuration))
        folder = RunFolder.open(self.folder, config.checkpoint_every)
        experiment = build(config, self.folder)
        faults = Faults(**config.faults.model_dump())
        return any_client(_misled(experiment, faults, config.seed), folder)


def any_client(experiment: Experiment, folder: RunFolder) -> AnyClient:
    """All clients of an experiment, each by itself."""
    what = experiment.algorithm, experiment.learner
    who = experiment.trained, experiment.unseen, experiment.clients
    return AnyClient(*what, *who, folder.client_states)


def found_anywhere(config: Config) -> Config:
    """With paths that do not depend on where a process was started."""
    data, model = config.data, config.model
    if data.path and data.source != "hub":
        path = os.path.abspath(Path(data.path).expanduser())
        data = data.model_copy(update={"path": path})
    if Path(model.name).is_dir():
        model = model.model_copy(update={"name": str(Path(model.name).resolve())})
    return config.model_copy(update={"data": data, "model": model})
