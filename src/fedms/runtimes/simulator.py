"""All clients in this process, one stack of them after another, over one resident model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fedms.core.algorithm import (
    ClientUpdate,
    ClientWork,
    FederatedAlgorithm,
    Learner,
    Role,
    RoundPlan,
    Score,
    ServerState,
    View,
    perform,
)
from fedms.core.costs import Costs
from fedms.core.rows import ClientData, Split
from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors, pick, wire_bytes
from fedms.runtimes.rounds import Answer, ClientInfo
from fedms.store.states import ClientStates

_POOL = 4
"""Stacks whose clients are sorted by rows together."""
Scores = dict[str, dict[str, Score]]
"""By role, then client."""


@dataclass(frozen=True, eq=False)
class Sent:
    """What goes to every client of a round, and its bytes: each round, and those sent only once."""

    plan: RoundPlan
    tensors: Tensors
    bytes: int
    bytes_once: int


class Simulator:
    """Implements `rounds.Clients`; private states live in `states`, one file a client.

    A client's update depends on its own data, its own state and what is sent to it, and on nothing
    that another client left in the model.

    Args:
        algorithm, learner: what every client runs.
        clients: those that train.
        states: where their private states are kept.
        unseen: clients that never train, to be scored.
        stack: how many clients are trained together, at least 1.
    """

    def __init__(
        self,
        algorithm: FederatedAlgorithm,
        learner: Learner,
        clients: Sequence[ClientData],
        states: ClientStates,
        unseen: Sequence[ClientData] = (),
        *,
        stack: int = 1,
    ) -> None:
        self._algorithm, self._learner, self._states = algorithm, learner, states
        self._clients = {client.id: client for client in clients}
        self._unseen, self._stack = tuple(unseen), stack
        self.declared = declare(clients)
        self._constant_at: dict[str, frozenset[str]] = {}

    def train(self, plan: RoundPlan, tensors: Tensors, cohort: Sequence[str]) -> Iterator[Answer]:
        yield from self.answers(send(plan, tensors), cohort)

    def answers(self, sent: Sent, cohort: Sequence[str]) -> Iterator[Answer]:
        """The clients' rounds, in order. Those of a stack are alike in cap and training rows."""
        for pool in _parts(cohort, self._stack * _POOL if self._stack > 1 else 1):
            done: dict[str, Answer] = {}
            for stack in _parts(sorted(pool, key=self._size), self._stack):
                done |= zip(stack, self._perform(sent, stack), strict=True)
            yield from (done[client] for client in pool)

    def _size(self, client: str) -> tuple[float, int]:
        """What clients are sorted by: the most blocks they train, then the most rows first."""
        data = self._clients[client]
        return data.cap or math.inf, -len(data.train)

    def _perform(self, sent: Sent, stack: Sequence[str]) -> list[Answer]:
        """The round of some clients, trained together. One answer has the costs of all."""
        works = [self._work(sent, client) for client in stack]
        pace = derive_seed(sent.plan.seed, "pace", sent.plan.round)
        updates = perform(works, self._learner, pace)
        costs = [self._learner.spent(), *(Costs() for _ in stack[1:])]
        return [self._answer(sent, *each) for each in zip(stack, updates, costs, strict=True)]

    def _work(self, sent: Sent, client: str) -> ClientWork:
        return self._algorithm.client_update(
            self._learner,
            sent.plan,
            sent.tensors,
            self._states.load(client),
            self._clients[client],
            derive_seed(sent.plan.seed, "client", sent.plan.round, client),
        )

    def _answer(self, sent: Sent, client: str, update: ClientUpdate, costs: Costs) -> Answer:
        """What leaves a client; its private state is kept here."""
        first = self._constant_at.get(client) != sent.plan.constant
        self._constant_at[client] = sent.plan.constant
        if update.state is not None:
            self._states.save(client, update.state)
        down = sent.bytes + (sent.bytes_once if first else 0)
        return Answer(replace(update, state=None), down, wire_bytes(update.tensors), costs)

    def evaluate(self, state: ServerState, split: Split, *, unseen: bool = False) -> Scores:
        """Scores by role of clients: those that train, or those that never do.

        A role that the method does not have is missing.
        """
        scores: Scores = {}
        roles: tuple[Role, ...] = ("global", "local", "personal")
        for data in self._unseen if unseen else self._clients.values():
            own = self._states.load(data.id)
            for role in roles:
                view = self._algorithm.view(state, own, role)
                if view is not None:
                    score = self._learner.score(view, data, split)
                    scores.setdefault(role, {})[data.id] = score
        return scores

    def score_all(self, view: View, split: Split) -> dict[str, Score]:
        """Every client's score under the same view."""
        return {c: self._learner.score(view, d, split) for c, d in self._clients.items()}

    def spent(self) -> Costs:
        """What evaluation since the last call cost."""
        return self._learner.spent()


def _parts(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def declare(clients: Iterable[ClientData]) -> dict[str, ClientInfo]:
    """What clients say of themselves at the start."""
    return {client.id: ClientInfo(len(client.train), client.cap) for client in clients}


def send(plan: RoundPlan, tensors: Tensors) -> Sent:
    """What the plan sends, of the server's tensors."""
    broadcast, constant = pick(tensors, plan.broadcast), pick(tensors, plan.constant)
    return Sent(plan, {**broadcast, **constant}, wire_bytes(broadcast), wire_bytes(constant))
