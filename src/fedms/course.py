"""The course of one run: rounds, scores, records, models, whoever has the clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from fedms import checkpoints, report
from fedms.build import Experiment, make_rules
from fedms.checkpoints import Checkpoint
from fedms.config import Config
from fedms.core.algorithm import Score, ServerState, View
from fedms.core.costs import Costs
from fedms.core.metrics import ClientSummary, summarise
from fedms.core.rows import ClientSizes, Split
from fedms.details import write_labels, write_routing
from fedms.events import Evaluated, Event, Finished, RoundBegins, RoundDone, Saved, Started
from fedms.models.resident import FROZEN
from fedms.outcome import Outcome
from fedms.runtimes.rounds import Held, RoundRecord, ScoredClients, run_rounds
from fedms.store.files import flush, write_json
from fedms.store.run_folder import RunFolder


class ClientsElsewhere(ScoredClients, Protocol):
    """Clients that come and go, and keep what is theirs."""

    held: Held
    """What they have of what stands still."""

    @property
    def sizes(self) -> Sequence[ClientSizes]:
        """Of all that were there so far."""
        ...

    def finish(self, state: ServerState) -> Sequence[str]:
        """Have them keep their models of the run, which ends with this state; says who did."""
        ...


Scores = Mapping[Split, Mapping[str, Mapping[str, Score]]]
"""Split, role, client."""
_NAMES: dict[Split, str] = {"val": "validation", "test": "test"}


class Course:
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
        self._resumed: RoundRecord | None = None
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
            self._resumed = self._records[-1]
            self._simulator.spent()  # zero-shot scores were counted before
        if self._elsewhere is not None:
            self._elsewhere.held.update(held)
            held = self._elsewhere.held
        rules, every = make_rules(self._config), self._config.checkpoint_every
        self._watch(RoundBegins(state.round))
        learner = self._experiment.learner
        for after, record in run_rounds(algorithm, self._simulator, state, rules, held, learner):
            stage_ended = after.stage != state.stage
            state = after
            due = stage_ended or self._is_due(state.round)
            scores = self._evaluate(state, record) if due else {}
            costs = record.costs + self._simulator.spent()
            self._record(replace(record, costs=costs, wall_seconds=self._wall()), scores)
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
        self._watch(Finished(summary, self._folder.path, report.attempt(self._folder.path)))
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
        here = done - (self._resumed.round + 1 if self._resumed else 0)
        self._watch(
            RoundDone(
                record,
                blocks=len(self._experiment.learner.layout.blocks),
                rounds=self._rounds,
                sent_bytes=sum(r.upload_bytes + r.download_bytes for r in self._records),
                seconds=seconds,
                seconds_left=seconds / here * (self._rounds - done),
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
        flush(folder.adapters)
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
            "not_used": sum(len(r.rejected) for r in self._records),
            **result,
            "cost": self._cost(),
        }

    def _wall(self) -> float | None:
        """Seconds of the run: of this process, and until the checkpoint from which it went on."""
        before = self._resumed.wall_seconds if self._resumed else 0.0
        return None if before is None else before + time.perf_counter() - self._began

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
            "wall_seconds": self._wall(),
            "peak_activation_bytes": costs.peak_activation_bytes,
            "peak_device_bytes": costs.peak_device_bytes,
            "cache_bytes": costs.cache_bytes,
            "trainable_parameters": max(r.trainable_parameters for r in self._records),
            "total_parameters": frozen,
        }


def _accuracies(scores: Mapping[str, Mapping[str, Score]], client: str) -> dict[str, float | None]:
    return {
        role: by_client[client].accuracy
        for role, by_client in scores.items()
        if client in by_client
    }


def _gate_weight(scores: Mapping[str, Mapping[str, Score]], client: str) -> float | None:
    """Mean weight on the global expert over a client's test rows, where it has a mixture."""
    score = scores.get("personal", {}).get(client)
    if score is None or not score.rows or client not in scores.get("oracle", {}):
        return None
    return score.gate_weight / score.rows


def _summarised(scores: Mapping[str, Score] | None) -> dict[str, Any] | None:
    summary = summarise(scores) if scores else None
    return asdict(summary) if summary else None


def _without_clients(summary: ClientSummary) -> dict[str, float]:
    return {name: value for name, value in asdict(summary).items() if name != "per_client"}
