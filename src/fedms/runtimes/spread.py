"""Clients spread over several processes: scores of all, asked of each, as one answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TypeVar

from fedms.core.algorithm import ClientInfo, RoundPlan, Score, ServerState, View
from fedms.core.costs import Costs
from fedms.core.routing import Routing
from fedms.core.rows import Split
from fedms.runtimes import service
from fedms.runtimes.messages import Message
from fedms.runtimes.simulator import SCORED, Scores

T = TypeVar("T")


class SpreadClients(ABC):
    """The part of `rounds.ScoredClients` that is scores, whatever carries the messages."""

    declared: Mapping[str, ClientInfo]

    def __init__(self) -> None:
        self._spent = Costs()

    @abstractmethod
    def _ask(self, question: Message) -> Iterator[Message]:
        """One answer of every process to the same question."""

    def evaluate(self, state: ServerState) -> dict[Split, Scores]:
        """See `Simulator.evaluate`."""
        found = self._scores(service.ask_evaluate(state))
        return {split: found.get(split, {}) for split in SCORED}

    def routing(self, state: ServerState) -> dict[str, Routing]:
        """See `Simulator.routing`."""
        question = service.ask_routing(state)
        parts = [service.read_routing(answer) for answer in self._ask(question)]
        return self._sorted({c: found for part in parts for c, found in part.items()})

    def newcomers(self, plan: RoundPlan, state: ServerState, rounds: int, rows: int) -> Scores:
        """See `Simulator.newcomers`."""
        return self._scores(service.ask_newcomers(plan, state, rounds, rows)).get("test", {})

    def score_all(self, view: View) -> dict[Split, dict[str, Score]]:
        """See `Simulator.score_all`; for one expert without partner."""
        found = self._scores(service.ask_score_all(view))
        return {split: found.get(split, {}).get("", {}) for split in SCORED}

    def spent(self) -> Costs:
        """See `Simulator.spent`."""
        spent, self._spent = self._spent, Costs()
        return spent

    def _scores(self, question: Message) -> dict[Split, Scores]:
        found: dict[Split, Scores] = {}
        for answer in self._ask(question):
            scores, costs = service.read_scores(answer)
            self._spent += costs
            for split, by_role in scores.items():
                of_split = found.setdefault(split, {})
                for role, by_client in by_role.items():
                    of_split.setdefault(role, {}).update(by_client)
        return {
            split: {role: self._sorted(by_client) for role, by_client in by_role.items()}
            for split, by_role in found.items()
        }

    def _sorted(self, found: dict[str, T]) -> dict[str, T]:
        """In the order in which clients were given."""
        known = [client for client in self.declared if client in found]
        return {client: found[client] for client in (*known, *sorted(found.keys() - {*known}))}
