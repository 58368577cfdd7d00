"""The one round loop, whatever the algorithm and wherever the clients are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from fedms.core.aggregation import Averager
from fedms.core.algorithm import (
    Aggregate,
    ClientInfo,
    ClientUpdate,
    FederatedAlgorithm,
    RoundPlan,
    Score,
    ServerState,
    View,
)
from fedms.core.costs import Costs
from fedms.core.errors import DivergenceError
from fedms.core.rows import Split
from fedms.core.screening import reason_to_reject
from fedms.core.seeds import draw_cohort
from fedms.core.tensors import Tensors


@dataclass(frozen=True, eq=False)
class Answer:
    """A client's update without its private state, the bytes both ways, and what it cost.

    Of clients that were trained together one has the costs of all.
    """

    update: ClientUpdate
    download_bytes: int
    upload_bytes: int
    costs: Costs


@dataclass(frozen=True)
class Absent:
    """A client of the cohort that gave no answer, and why."""

    client: str
    reason: str


class Clients(Protocol):
    """The clients of a federation, in this process or elsewhere."""

    @property
    def declared(self) -> Mapping[str, ClientInfo]: ...

    def train(
        self, plan: RoundPlan, tensors: Tensors, cohort: Sequence[str]
    ) -> Iterator[Answer | Absent]:
        """Have every client of the cohort perform the round; answers come in cohort order.

        `tensors` are the server's; the plan names those that are sent.
        """
        ...


class ScoredClients(Clients, Protocol):
    """Clients that also score models on their own rows; see `Simulator` for all four."""

    def evaluate(self, state: ServerState) -> dict[Split, dict[str, dict[str, Score]]]: ...

    def newcomers(
        self, plan: RoundPlan, state: ServerState, rounds: int, rows: int
    ) -> dict[str, dict[str, Score]]: ...

    def score_all(self, view: View) -> dict[Split, dict[str, Score]]: ...

    def spent(self) -> Costs: ...


@dataclass(frozen=True)
class RoundRecord:
    """One round, for records. `validation` is None where no client has validation rows."""

    round: int
    stage: int
    depth: int
    client_depths: tuple[int, ...]
    cohort: tuple[str, ...]
    rejected: Mapping[str, str]
    validation: float | None
    upload_bytes: int
    download_bytes: int
    trainable_parameters: int
    seconds: float
    costs: Costs = field(default_factory=Costs)


def run_rounds(
    algorithm: FederatedAlgorithm, clients: Clients, state: ServerState
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """Perform rounds until the algorithm has no more, from any state.

    Updates are screened, then averaged in client order.

    Yields:
        the state after every round, with its record.

    Raises:
        DivergenceError: if every update of a round is rejected.
    """
    names = sorted(clients.declared)
    while (plan := algorithm.plan(state)) is not None:
        began = time.perf_counter()
        cohort = draw_cohort(names, plan.cohort, plan.seed, plan.round)
        intake = _Intake(algorithm, plan, clients.declared)
        for answer in clients.train(plan, state.tensors, cohort):
            intake.add(answer)
        state, aggregate = intake.close(state)
        yield state, intake.record(cohort, aggregate, time.perf_counter() - began)


class _Intake:
    """The answers of one round: screened, averaged, and what they cost."""

    def __init__(
        self, algorithm: FederatedAlgorithm, plan: RoundPlan, declared: Mapping[str, ClientInfo]
    ) -> None:
        self._algorithm, self._plan, self._declared = algorithm, plan, declared
        self._averager = Averager()
        self._rejected: dict[str, str] = {}
        self._up = self._down = self._trained = 0
        self._costs = Costs()

    def add(self, answer: Answer | Absent) -> None:
        if isinstance(answer, Absent):
            self._rejected[answer.client] = answer.reason
            return
        began = time.perf_counter()
        update = answer.update
        self._up, self._down = self._up + answer.upload_bytes, self._down + answer.download_bytes
        info = self._declared[update.client]
        expected = self._algorithm.expects(self._plan, info)
        reason = reason_to_reject(update, self._plan, expected, info.rows)
        if reason:
            self._rejected[update.client] = reason
        else:
            lifted = self._algorithm.lift(update.tensors)
            self._averager.add(replace(update, tensors=lifted))
            self._trained = max(self._trained, update.trained_parameters)
        self._costs += answer.costs + _aggregation(began)

    def close(self, state: ServerState) -> tuple[ServerState, Aggregate]:
        """The server's state after the round, and the average behind it."""
        began = time.perf_counter()
        aggregate = self._averager.result()
        if not aggregate.clients:
            client, reason = next(iter(self._rejected.items()))
            raise DivergenceError(
                f"got no usable update in round {self._plan.round + 1}; all {len(self._rejected)} "
                f"were rejected (client {client}: {reason}); try a lower training.learning_rate"
            )
        state = self._algorithm.server_update(state, self._plan, aggregate)
        self._costs += _aggregation(began)
        return state, aggregate

    def record(self, cohort: tuple[str, ...], aggregate: Aggregate, seconds: float) -> RoundRecord:
        return RoundRecord(
            round=self._plan.round,
            stage=self._plan.stage,
            depth=self._plan.depth,
            client_depths=aggregate.depths,
            cohort=cohort,
            rejected=self._rejected,
            validation=aggregate.score.accuracy,
            upload_bytes=self._up,
            download_bytes=self._down,
            trainable_parameters=self._trained,
            costs=self._costs,
            seconds=seconds,
        )


def _aggregation(began: float) -> Costs:
    return Costs(seconds={"aggregate": time.perf_counter() - began})
