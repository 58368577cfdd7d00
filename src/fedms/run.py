"""One run from configuration to run folder: train in the simulator, evaluate, keep the models."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from fedms import checkpoints, report
from fedms.build import Experiment, build, make_rules
from fedms.build import check as check_build
from fedms.checkpoints import Checkpoint
from fedms.clients import simulated
from fedms.config import Config, Faults, dump_config, load_config
from fedms.core.algorithm import Score, ServerState, View
from fedms.core.costs import Costs
from fedms.core.errors import UserError
from fedms.core.metrics import ClientSummary, summarise
from fedms.core.rows import ClientSizes, Split
from fedms.data import Table
from fedms.details import write_labels, write_routing
from fedms.events import (
    Evaluated,
    Event,
    Finished,
    RoundBegins,
    RoundDone,
    Saved,
    Started,
)
from fedms.given import NOTHING, Given
from fedms.identity import identity
from fedms.models.resident import FROZEN
from fedms.outcome import Outcome
from fedms.runtimes.rounds import Held, RoundRecord, ScoredClients, run_rounds
from fedms.runtimes.workers import on_threads
from fedms.store.files import locked, write_json
from fedms.store.run_folder import FOUNDATION, RunFolder
from fedms.tracking import check as check_trackers
from fedms.tracking import tracked

__all__ = ["Evaluated", "Event", "Finished", "RoundDone", "Started", "resume", "run", "serve"]


class ClientsElsewhere(ScoredClients, Protocol):
    """Clients that come and go, and keep what is theirs."""

    held: Held
    """What they have of what stands still."""

    @property
    def sizes(self) -> Sequence[ClientSizes]:
        """Of all that were there so far."""
        ...

    def finish(self, state: ServerState) -> None:
        """Have them keep their models of the run, which ends with this state."""
        ...


Scores = Mapping[Split, Mapping[str, Mapping[str, Score]]]
"""Split, role, client."""
_NAMES: dict[Split, str] = {"val": "validation", "test": "test"}


def default_folder(config: Config) -> Path:
    """Where a run goes if nothing else is said."""
    return Path("runs") / f"{config.name}-{config.method}-seed{config.seed}"


def check(config: Config) -> None:
    """Make sure that a run can be performed, as far as is known without data and weights.

    Raises:
        UserError: if method and model do not fit.
    """
    check_build(config)


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


def _at_home(config: Config, experiment: Experiment, path: Path) -> tuple[Config, Experiment]:
    """With the foundation model where it will be, in the run folder."""
    name = str(path.resolve() / FOUNDATION)
    model = config.model.model_copy(update={"name": name})
    experiment = replace(experiment, head={**experiment.head, "model": name})
    return config.model_copy(update={"model": model}), experiment


def _reopen(path: Path, table: Table | None = None) -> tuple[Config, RunFolder, dict[str, Any]]:
    """A run that is there, if it can go on here."""
    found = RunFolder.open(path)
    config, facts = load_config(found.config), found.facts()
    folder = RunFolder.open(path, config.checkpoint_every)
    if config.data.source == "memory" and table is None:
        raise UserError(
            f"got {path}, a run of rows that a Python program gave; expected them again; try "
            "FedMS.resume there"
        )
    now = identity(config, table)
    for name, then in dict(facts.get("identity", {})).items():
        if now.get(name) != then:
            raise UserError(
                f"got {path}, whose {name} was {then} and is {now.get(name)} now; expected as then"
            )
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
    """Keep other processes from the folder of a run."""
    try:
        with locked(folder.config):
            yield
    except BlockingIOError:
        raise UserError(f"got {folder.path}, where another process is at work") from None


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
        return _Run(config, experiment, folder, watch, simulator).perform(begin, given.stop)


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
        again: go on with the run in `out`, as `resume` does.
        watch: as for `run`.
        tell: as for `resume`.

    Raises:
        UserError: if the run folder does not fit, or clients fail.
    """
    if config.faults != Faults():
        raise UserError("got faults for a run with sites; expected them in simulations only")
    path = out or default_folder(config)
    with on_threads(config.runtime.threads):
        if again:
            config, folder, _ = _reopen(path)
        else:
            computes = {**experiment.computes, "identity": identity(config), "sites": name}
            folder = _create(path, config, computes, force=force)
        with _held_alone(folder):
            if again:
                _tell_of_versions(folder, config, tell)
            begin = checkpoints.latest(folder, (), tell) if again else None
            with tracked(config, path, watch) as watching:
                run = _Run(config, experiment, folder, watching, clients, clients)
                return run.perform(begin)


class _Run:
    """A run in progress: what it has cost so far, and where its records go."""

    def __init__(
        self,
        config: Config,
        experiment: Experiment,
        folder: RunFolder,
        watch: Callable[[Event], None],
        simulator: ScoredClients,
        elsewhere: ClientsElsewhere | None = None,
    ) -> None:
        self._config, self._experiment, self._folder = config, experiment, folder
        self._watch, self._simulator = watch, simulator
        self._began = time.perf_counter()
        self._records: list[RoundRecord] = []
        self._rounds = experiment.algorithm.rounds
        self._elsewhere = elsewhere

    def perform(
        self, begin: Checkpoint | None = None, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Zero-shot scores, all rounds with their evaluations, then adapters and summary.

        A run that is stopped has all of these but `summary.json`, and can go on.
        """
        algorithm = self._experiment.algorithm
        self._watch(Started(self._experiment, self._folder.path, self._rounds))
        self._write_partition()
        here = (*self._experiment.clients, *self._experiment.unseen)
        write_labels(self._folder.path, self._experiment.federation.classes, here)
        zero_shot = self._zero_shot()
        scores: Scores = {}
        if begin is None:
            state = algorithm.init(self._experiment.learner, self._config.seed)
            held: Held = {}
        else:
            state, held, self._records = begin.state, begin.held, begin.records
            self._simulator.spent()  # zero-shot scores were counted before
        if self._elsewhere is not None:
            self._elsewhere.held.update(held)
            held = self._elsewhere.held
        rules, every = make_rules(self._config), self._config.checkpoint_every
        self._watch(RoundBegins(state.round))
        for after, record in run_rounds(algorithm, self._simulator, state, rules, held):
            stage_ended = after.stage != state.stage
            state = after
            due = stage_ended or self._is_due(state.round)
            scores = self._evaluate(state, record) if due else {}
            costs = record.costs + self._simulator.spent()
            self._record(replace(record, costs=costs), scores)
            last = state.round == self._rounds
            stopped = stop() and not last
            if stopped or last or state.round % every == 0:
                checkpoints.write(self._folder, state, held)
                self._watch(Saved(state.round))
            if stopped:
                break
            if not last:
                self._watch(RoundBegins(state.round))
        if not scores:  # stopped; or it ended after its last round, before it was complete
            scores = self._simulator.evaluate(state)
        self._save_models(state)
        write_routing(self._folder.path, self._simulator.routing(state))
        summary = self._summary(zero_shot, scores, self._unseen(state))
        if state.round == self._rounds:
            self._folder.write_summary(summary)
        self._watch(Finished(summary, self._folder.path, _report(self._folder.path)))
        return summary

    def _sizes(self) -> Sequence[ClientSizes]:
        """Of all clients; of those elsewhere, of all that came so far."""
        return self._elsewhere.sizes if self._elsewhere else self._experiment.partition

    def _clients(self) -> Sequence[ClientSizes]:
        """Of those that train."""
        everyone = self._sizes()
        return everyone[: len(everyone) - len(self._experiment.unseen)]

    def _write_partition(self) -> None:
        partition = [asdict(sizes) for sizes in self._sizes()]
        write_json(self._folder.path / "partition.json", partition)

    def _unseen(self, state: ServerState) -> Mapping[str, Mapping[str, Score]]:
        """Scores of newcomers: they do as in the last round, with what the server has after it."""
        last = self._records[-1]
        again = replace(state, round=last.round, stage=last.stage)
        plan, deal = self._experiment.algorithm.plan(again), self._config.partition
        assert plan is not None
        plan = replace(plan, rate=1.0)
        return self._simulator.newcomers(plan, state, deal.unseen_rounds, deal.unseen_rows)

    def _is_due(self, rounds: int) -> bool:
        every = self._config.evaluate_every
        return rounds == self._rounds or bool(every and rounds % every == 0)

    def _zero_shot(self) -> Scores:
        """The foundation model alone, where it can score classes without training."""
        if self._experiment.learner.head.shapes:
            return {}
        scores = self._simulator.score_all(View(FROZEN))
        return {split: {"zero_shot": score} for split, score in scores.items()}

    def _record(self, record: RoundRecord, scores: Scores) -> None:
        """Write a round down, with the scores after it if there are any, and show both."""
        test = {role: summarise(by_client) for role, by_client in scores.get("test", {}).items()}
        brief = {r: _without_clients(s) for r, s in test.items() if s}
        self._folder.add_round({**asdict(record), "test": brief or None})
        self._records.append(record)
        seconds = time.perf_counter() - self._began
        done = len(self._records)
        self._watch(
            RoundDone(
                record,
                blocks=len(self._experiment.learner.layout.blocks),
                rounds=self._rounds,
                sent_bytes=sum(r.upload_bytes + r.download_bytes for r in self._records),
                seconds=seconds,
                seconds_left=seconds / done * (self._rounds - done),
            )
        )
        if brief:
            self._watch(Evaluated(done, {role: s["mean"] for role, s in brief.items()}))

    def _evaluate(self, state: ServerState, record: RoundRecord) -> Scores:
        """Score every role on every client's validation and test rows, and write them down."""
        scores = self._simulator.evaluate(state)
        self._write_partition()
        for info in self._clients():
            own = self._folder.client_states.load(info.id, state.round)
            self._folder.add_client(
                {
                    "round": state.round,
                    "stage": record.stage,
                    "id": info.id,
                    "rows": {"train": info.train, "val": info.val, "test": info.test},
                    "classes": info.classes,
                    "depth": own.depth if own else None,
                    "gate_weight": _gate_weight(scores["test"], info.id),
                    **{name: _accuracies(scores[split], info.id) for split, name in _NAMES.items()},
                }
            )
        return scores

    def _save_models(self, state: ServerState) -> None:
        """Adapters of the global expert and gate, and of every client that is here."""
        experiment, folder = self._experiment, self._folder
        base = self._config.model.name
        outcome = Outcome(experiment.algorithm, experiment.learner, base, experiment.head)
        outcome.save_shared(folder.adapters, state)
        for client in experiment.clients:
            own = folder.client_states.load(client.id, state.round)
            outcome.save_own(folder.client_adapters(client.id), state, own, client)
        if self._elsewhere is not None:
            self._elsewhere.finish(state)

    def _summary(
        self, zero_shot: Scores, scores: Scores, unseen: Mapping[str, Mapping[str, Score]]
    ) -> dict[str, Any]:
        names = ("zero_shot", "global", "local", "personal", "oracle")
        found = {split: {**zero_shot.get(split, {}), **scores.get(split, {})} for split in _NAMES}
        result = {
            name: {role: _summarised(found[split].get(role)) for role in names}
            for split, name in _NAMES.items()
        }
        result["test"]["unseen"] = _summarised(unseen.get("before"))
        result["test"]["unseen_adapted"] = _summarised(unseen.get("after"))
        return {
            "method": self._config.method,
            "seed": self._config.seed,
            "clients": len(self._clients()),
            "rounds": len(self._records),
            **result,
            "cost": self._cost(),
        }

    def _cost(self) -> dict[str, Any]:
        """What the whole run cost."""
        model = self._experiment.learner.backbone.model
        frozen = sum(p.numel() for p in model.parameters())
        costs = sum((r.costs for r in self._records), Costs())
        return {
            "upload_bytes": sum(r.upload_bytes for r in self._records),
            "download_bytes": sum(r.download_bytes for r in self._records),
            "train_flops": costs.flops,
            "train_seconds": sum(r.seconds for r in self._records),
            "phase_seconds": dict(costs.seconds),
            "wall_seconds": time.perf_counter() - self._began,
            "peak_activation_bytes": costs.peak_activation_bytes,
            "peak_device_bytes": costs.peak_device_bytes,
            "cache_bytes": costs.cache_bytes,
            "trainable_parameters": max(r.trainable_parameters for r in self._records),
            "total_parameters": frozen,
        }


def _report(folder: Path) -> str:
    """Write the report of a run that is complete, whatever comes of that: why there is none."""
    try:
        report.write([folder])
    except UserError as error:
        return str(error)
    return ""


def _accuracies(scores: Mapping[str, Mapping[str, Score]], client: str) -> dict[str, float | None]:
    return {
        role: by_client[client].accuracy
        for role, by_client in scores.items()
        if client in by_client
    }


def _gate_weight(scores: Mapping[str, Mapping[str, Score]], client: str) -> float | None:
    """Mean weight on the global expert over a client's test rows, where it has a gate."""
    score = scores.get("personal", {}).get(client)
    if score is None or not score.rows or "local" not in scores or client not in scores["local"]:
        return None
    return score.gate_weight / score.rows


def _summarised(scores: Mapping[str, Score] | None) -> dict[str, Any] | None:
    summary = summarise(scores) if scores else None
    return asdict(summary) if summary else None


def _without_clients(summary: ClientSummary) -> dict[str, float]:
    return {name: value for name, value in asdict(summary).items() if name != "per_client"}
