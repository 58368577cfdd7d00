"""All clients in this process, one stack of them after another, over one resident model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedms.core.algorithm import (
    ClientInfo,
    ClientUpdate,
    ClientWork,
    FederatedAlgorithm,
    Learner,
    Role,
    RoundPlan,
    Score,
    ServerState,
    Turn,
    View,
)
from fedms.core.costs import Costs
from fedms.core.routing import Routing
from fedms.core.rows import ClientData, Split
from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors, pick
from fedms.core.work import perform
from fedms.runtimes.rounds import Answer
from fedms.store.states import ClientStates

_POOL = 4
"""Stacks whose clients are sorted by rows together."""
Scores = dict[str, dict[str, Score]]
"""By role, then client."""
SCORED: tuple[Split, ...] = ("val", "test")
"""Splits on which models are scored."""


@dataclass(frozen=True, eq=False)
class Sent:
    """What goes to every client of a round."""

    plan: RoundPlan
    tensors: Tensors


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
        scored: clients to be scored, where they are not those that train.
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
        scored: Sequence[ClientData] | None = None,
    ) -> None:
        self._algorithm, self._learner, self._states = algorithm, learner, states
        self._clients = {client.id: client for client in clients}
        self._scored = tuple(clients if scored is None else scored)
        self._unseen, self._stack = tuple(unseen), stack
        self.declared = declare(clients)

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
        state, data = self._states.load(client, sent.plan.round), self._clients[client]
        seed = derive_seed(sent.plan.seed, "client", sent.plan.round, client)
        turn = Turn(self._learner, sent.plan, sent.tensors, state, data, seed)
        return self._algorithm.client_update(turn)

    def _answer(self, sent: Sent, client: str, update: ClientUpdate, costs: Costs) -> Answer:
        """What leaves a client; its private state is kept here."""
        if update.state is not None:
            self._states.save(client, update.state, sent.plan.round)
        return Answer(replace(update, state=None), costs)

    def evaluate(self, state: ServerState) -> dict[Split, Scores]:
        """Scores by role of the clients. A role that the method does not have is missing.

        `oracle` is the bound of `View.oracle`, of personal models that are mixtures.
        """
        return {split: self._evaluate(state, split) for split in SCORED}

    def _evaluate(self, state: ServerState, split: Split) -> Scores:
        scores: Scores = {}
        roles: tuple[Role, ...] = ("global", "local", "personal")
        for data in self._scored:
            own = self._states.load(data.id, state.round)
            for role in roles:
                view = self._algorithm.view(state, own, role)
                if view is None:
                    continue
                score = self._learner.score(view, data, split)
                scores.setdefault(role, {})[data.id] = score
                if role == "personal" and view.partner is not None:
                    score = self._learner.score(replace(view, oracle=True), data, split)
                    scores.setdefault("oracle", {})[data.id] = score
        return scores

    def routing(self, state: ServerState) -> dict[str, Routing]:
        """Where gates send test rows, of clients whose personal model is a mixture."""
        found = {}
        for data in self._scored:
            view = self._algorithm.view(state, self._states.load(data.id, state.round), "personal")
            if view is not None and view.partner is not None and len(data.test):
                found[data.id] = self._learner.routing(view, data)
        return found

    def newcomers(self, plan: RoundPlan, state: ServerState, rounds: int, rows: int) -> Scores:
        """Test scores of unseen clients' personal models: `before` and `after` they adapt.

        Before, they have what the server shares. Then each performs the method's rounds on few of
        its training rows, and sends nothing.

        Args:
            plan: of a round as the method ends with; what it sends is taken from `state`.
                Newcomers' rounds come after it: they took no part in what it led to.
            state: the server's, after training.
            rounds: of the plan, each with an order of rows of its own; at least 0.
            rows: drawn from a client's training rows, at least 1.
        """
        scores: Scores = {}
        algorithm, learner = self._algorithm, self._learner
        for data in self._unseen:
            few = _some(data, rows, derive_seed(plan.seed, "newcomer", data.id))
            updates = [*adapting(algorithm, learner, plan, state, few, rounds)]
            for when, own in (("before", None), ("after", updates[-1].state if updates else None)):
                view = algorithm.view(state, own, "personal")
                assert view is not None
                score = learner.score(view, replace(few, test=data.test), "test")
                scores.setdefault(when, {})[data.id] = score
        return scores

    def score_all(self, view: View) -> dict[Split, dict[str, Score]]:
        """Every client's scores under the same view."""
        return {
            split: {data.id: self._learner.score(view, data, split) for data in self._scored}
            for split in SCORED
        }

    def spent(self) -> Costs:
        """What evaluation since the last call cost."""
        return self._learner.spent()


def adapting(
    algorithm: FederatedAlgorithm,
    learner: Learner,
    plan: RoundPlan,
    state: ServerState,
    data: ClientData,
    rounds: int,
) -> Iterator[ClientUpdate]:
    """The rounds of somebody who took no part, each from the private state that the last one left.

    They end early where one leaves no state: the method has no models of clients' own, or the
    client diverged at once. What they upload is sent nowhere. See `Simulator.newcomers`.
    """
    tensors, own = send(plan, state.tensors).tensors, None
    for number in range(rounds):
        seed = derive_seed(plan.seed, "newcomer", data.id, number)
        later = replace(plan, round=plan.round + 1 + number)
        work = algorithm.client_update(Turn(learner, later, tensors, own, data, seed))
        (update,) = perform([work], learner, seed)
        yield update
        own = update.state
        if own is None:
            return


def _parts(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _some(data: ClientData, rows: int, seed: int) -> ClientData:
    """The client with so many of its training rows, or all if it has fewer."""
    chosen = np.random.default_rng(seed).permutation(len(data.train))[:rows]
    return replace(data, train=data.train.take(np.sort(chosen)))


def _info(client: ClientData) -> ClientInfo:
    rows = len(client.train)
    return ClientInfo(client.id, rows, client.cap, client.rank, len(client.val))


def declare(clients: Iterable[ClientData]) -> dict[str, ClientInfo]:
    """What clients say of themselves at the start."""
    return {client.id: _info(client) for client in clients}


def send(plan: RoundPlan, tensors: Tensors) -> Sent:
    """What the plan sends, of the server's tensors."""
    return Sent(plan, pick(tensors, plan.broadcast | plan.constant))
