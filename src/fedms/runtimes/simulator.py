"""All clients in this process, one after another, over one resident model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedms.core.algorithm import (
    FederatedAlgorithm,
    Learner,
    Role,
    RoundPlan,
    Score,
    ServerState,
    View,
)
from fedms.core.rows import ClientData, Split
from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors, pick, serialise
from fedms.runtimes.rounds import Answer, ClientInfo
from fedms.store.states import ClientStates


class Simulator:
    """Implements `rounds.Clients`; private states live in `states`, one file a client.

    A client's update depends on its own data, its own state and what is sent to it, and on nothing
    that another client left in the model.
    """

    def __init__(
        self,
        algorithm: FederatedAlgorithm,
        learner: Learner,
        clients: Sequence[ClientData],
        states: ClientStates,
    ) -> None:
        self._algorithm, self._learner, self._states = algorithm, learner, states
        self._clients = {client.id: client for client in clients}
        self.declared = {c.id: ClientInfo(len(c.train), c.cap) for c in clients}
        self._constant_at: dict[str, frozenset[str]] = {}

    def train(self, plan: RoundPlan, tensors: Tensors, cohort: Sequence[str]) -> Iterator[Answer]:
        broadcast = pick(tensors, plan.broadcast)
        constant = pick(tensors, plan.constant)
        sent, sent_once = _wire_bytes(broadcast), _wire_bytes(constant)
        for client in cohort:
            first = self._constant_at.get(client) != plan.constant
            self._constant_at[client] = plan.constant
            update = self._algorithm.client_update(
                self._learner,
                plan,
                {**broadcast, **constant},
                self._states.load(client),
                self._clients[client],
                derive_seed(plan.seed, "client", plan.round, client),
            )
            if update.state is not None:
                self._states.save(client, update.state)
            down = sent + (sent_once if first else 0)
            yield Answer(update, down, _wire_bytes(update.tensors), self._learner.spent())

    def evaluate(
        self, state: ServerState, split: Split, clients: Sequence[ClientData] | None = None
    ) -> dict[str, dict[str, Score]]:
        """Scores of clients (None: those that train) by role.

        A role that the method does not have is missing.
        """
        scores: dict[str, dict[str, Score]] = {}
        roles: tuple[Role, ...] = ("global", "local", "personal")
        for data in self._clients.values() if clients is None else clients:
            own = self._states.load(data.id)
            for role in roles:
                view = self._algorithm.view(state, own, role)
                if view is not None:
                    score = self._learner.score(view, data, split)
                    scores.setdefault(role, {})[data.id] = score
        return scores

    def score_all(self, view: View, split: Split) -> Mapping[str, Score]:
        """Every client's score under the same view."""
        return {c: self._learner.score(view, d, split) for c, d in self._clients.items()}


def _wire_bytes(tensors: Tensors) -> int:
    """Bytes of the tensors as they would cross the wire; 0 for none."""
    return len(serialise(tensors)) if tensors else 0
