"""The one round loop, whatever the algorithm and wherever the clients are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedms.core.aggregation import Averager
from fedms.core.algorithm import ClientUpdate, FederatedAlgorithm, RoundPlan, ServerState
from fedms.core.errors import UserError
from fedms.core.screening import reason_to_reject
from fedms.core.seeds import draw_cohort
from fedms.core.tensors import Tensors


@dataclass(frozen=True)
class ClientInfo:
    """What a client declared at the start: its training rows, and the cap on its blocks."""

    rows: int
    cap: int | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """A client's update and the bytes that crossed the wire for it, both ways."""

    update: ClientUpdate
    download_bytes: int
    upload_bytes: int


class Clients(Protocol):
    """The clients of a federation, in this process or elsewhere."""

    @property
    def declared(self) -> Mapping[str, ClientInfo]: ...

    def train(self, plan: RoundPlan, tensors: Tensors, cohort: Sequence[str]) -> Iterator[Answer]:
        """Have every client of the cohort perform the round; answers come in cohort order.

        `tensors` are the server's; the plan names those that are sent.
        """
        ...


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


def run_rounds(
    algorithm: FederatedAlgorithm, clients: Clients, state: ServerState
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """Perform rounds until the algorithm has no more, from any state.

    Updates are screened, then averaged in client order.

    Yields:
        the state after every round, with its record.

    Raises:
        UserError: if every update of a round is rejected.
    """
    names = sorted(clients.declared)
    while (plan := algorithm.plan(state)) is not None:
        began = time.perf_counter()
        cohort = draw_cohort(names, plan.cohort, plan.seed, plan.round)
        averager, rejected, up, down, trained = Averager(), {}, 0, 0, 0
        for answer in clients.train(plan, state.tensors, cohort):
            up, down = up + answer.upload_bytes, down + answer.download_bytes
            update = answer.update
            info = clients.declared[update.client]
            expected = algorithm.expects(plan, info.cap)
            reason = reason_to_reject(update, plan, expected, info.rows)
            if reason:
                rejected[update.client] = reason
                continue
            averager.add(update)
            trained = max(trained, update.trained_parameters)
        aggregate = averager.result()
        if not aggregate.clients:
            first = next(iter(rejected.items()))
            raise UserError(
                f"got no usable update in round {plan.round + 1}; all {len(rejected)} were "
                f"rejected (client {first[0]}: {first[1]}); try a lower training.learning_rate"
            )
        state = algorithm.server_update(state, plan, aggregate)
        yield (
            state,
            RoundRecord(
                round=plan.round,
                stage=plan.stage,
                depth=plan.depth,
                client_depths=aggregate.depths,
                cohort=cohort,
                rejected=rejected,
                validation=aggregate.score.accuracy,
                upload_bytes=up,
                download_bytes=down,
                trainable_parameters=trained,
                seconds=time.perf_counter() - began,
            ),
        )
