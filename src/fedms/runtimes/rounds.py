"""The one round loop, whatever the algorithm and wherever the clients are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from fedms.core.algorithm import (
    Aggregate,
    ClientInfo,
    ClientUpdate,
    FederatedAlgorithm,
    Learner,
    RoundPlan,
    Score,
    ServerState,
    View,
)
from fedms.core.costs import Costs
from fedms.core.errors import DivergenceError, UserError
from fedms.core.robust import Rule, aggregator, change
from fedms.core.routing import Routing
from fedms.core.rows import Split
from fedms.core.screening import (
    Screen,
    contradicting,
    diverged,
    reason_to_reject,
    too_long,
    weight,
)
from fedms.core.seeds import draw_cohort
from fedms.core.tensors import Tensors, all_finite, pick, wire_bytes
from fedms.core.work import beginnings

Held = dict[str, frozenset[str]]
"""Names of what stands still, by client that has it."""


@dataclass(frozen=True, eq=False)
class Answer:
    """A client's update without its private state, and what it cost.

    Of clients that were trained together one has the costs of all.
    """

    update: ClientUpdate
    costs: Costs


@dataclass(frozen=True)
class Absent:
    """A client of the cohort that gave no answer, why, and what it cost where that is known."""

    client: str
    reason: str
    costs: Costs = field(default_factory=Costs)


@dataclass(frozen=True)
class Late:
    """A client that answered an earlier question after it was no longer waited for."""

    client: str


@dataclass(frozen=True)
class Rules:
    """When a round counts, and how updates become one.

    Args:
        updates: the fewest that a round needs, at least 1; of a smaller cohort, all.
        attempts: cohorts that are tried before the run stops, at least 1.
        screen: which updates are accepted.
        aggregation: what becomes of them.
    """

    updates: int = 1
    attempts: int = 3
    screen: Screen = field(default_factory=Screen)
    aggregation: Rule = field(default_factory=Rule)

    @property
    def measure(self) -> bool:
        """Whether they are about how much clients changed."""
        return self.screen.max_norm_ratio > 0 or self.aggregation.name == "clip"


class Clients(Protocol):
    """The clients of a federation, in this process or elsewhere."""

    @property
    def declared(self) -> Mapping[str, ClientInfo]: ...

    def train(
        self, plan: RoundPlan, tensors: Tensors, cohort: Sequence[str]
    ) -> Iterator[Answer | Absent | Late]:
        """Have every client of the cohort perform the round; answers come in cohort order.

        `tensors` are the server's; the plan names those that are sent.
        """
        ...


class ScoredClients(Clients, Protocol):
    """Clients that also score models on their own rows; see `Simulator` for all five."""

    def evaluate(self, state: ServerState) -> dict[Split, dict[str, dict[str, Score]]]: ...

    def routing(self, state: ServerState) -> dict[str, Routing]: ...

    def newcomers(
        self, plan: RoundPlan, state: ServerState, rounds: int, rows: int
    ) -> dict[str, dict[str, Score]]: ...

    def score_all(self, view: View) -> dict[Split, dict[str, Score]]: ...

    def spent(self) -> Costs: ...


@dataclass(frozen=True)
class RoundRecord:
    """One round, for records. `validation` is None where no client has validation rows.

    `cohort` are those that were asked, `rejected` those of them without a usable update, `warned`
    those whose update was used, though it is odd; of `late` clients answers arrived that nobody
    waited for: to earlier questions, or a second one. `wall_seconds` the run took until the round
    was written down, without what interruptions lost; None where nobody measured that.
    """

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
    warned: Mapping[str, str] = field(default_factory=dict)
    late: tuple[str, ...] = ()
    wall_seconds: float | None = None


def run_rounds(
    algorithm: FederatedAlgorithm,
    clients: Clients,
    state: ServerState,
    rules: Rules = Rules(),
    held: Held | None = None,
    learner: Learner | None = None,
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """Perform rounds until the algorithm has no more, from any state.

    Updates are screened, then averaged in client order. A round of too few is tried again with
    another cohort; what that costs counts.

    Args:
        algorithm: what is performed.
        clients: with whom.
        state: from where.
        rules: when a round counts, and how updates become one.
        held: what clients have of what stands still, which is sent once; kept up to date.
        learner: by which rules know what clients begin with that are sent nothing, where they are
            about how much clients changed; None: all of that counts as change.

    Yields:
        the state after every round, with its record.

    Raises:
        DivergenceError: if a round has no usable update, and all that there are diverged.
        UserError: if it has too few, for other reasons. Either way nothing has changed.
    """
    held = {} if held is None else held
    while (plan := algorithm.plan(state)) is not None:
        intake = _Intake(algorithm, plan, state.tensors, held, rules, learner)
        for attempt in range(rules.attempts):
            declared = clients.declared  # who is there may change between rounds
            drawn = draw_cohort(sorted(declared), plan.cohort, plan.seed, plan.trained, attempt)
            intake.open(drawn, declared)
            for answer in clients.train(plan, state.tensors, drawn):
                intake.add(answer)
            intake.settle()
            if intake.suffices() or intake.is_final(declared):
                break
        state, record = intake.close(state)
        yield state, record


def read_record(facts: Mapping[str, Any]) -> RoundRecord:
    """Of what `asdict` made of it, with whatever is beside it; what came later has its default."""
    names = [field.name for field in fields(RoundRecord)]
    known = {name: facts[name] for name in names if name in facts}
    listed = {"client_depths", "cohort", "late"} & known.keys()
    lists = {name: tuple(known[name]) for name in listed}
    return RoundRecord(**{**known, **lists, "costs": Costs(**facts["costs"])})


class _Intake:
    """The answers of one round: screened, averaged, and what they cost."""

    def __init__(
        self,
        algorithm: FederatedAlgorithm,
        plan: RoundPlan,
        tensors: Tensors,
        held: Held,
        rules: Rules,
        learner: Learner | None,
    ) -> None:
        self._algorithm, self._plan, self._held, self._rules = algorithm, plan, held, rules
        known = learner if rules.measure else None
        self._before = beginnings(algorithm, known, plan, tensors) if known else tensors
        self._tensors, self._each_time = tensors, wire_bytes(pick(tensors, plan.broadcast))
        self._began = time.perf_counter()
        self._asked: set[str] = set()
        self._absent: dict[str, str] = {}
        self._rejected: dict[str, str] = {}
        self._late: list[str] = []
        self._up = self._down = 0
        self._costs = Costs()

    def open(self, drawn: Sequence[str], declared: Mapping[str, ClientInfo]) -> None:
        """Begin with a cohort; of an earlier one costs are left, and who had no usable update."""
        self._drawn, self._declared = drawn, declared
        self._aggregator = aggregator(self._rules.aggregation, self._before)
        self._waiting: list[ClientUpdate] = []
        self._changes: dict[str, float] = {}
        self._trained = 0
        self._answered: set[str] = set()
        self._warned: dict[str, str] = {}

    def add(self, answer: Answer | Absent | Late) -> None:
        match answer:
            case Late():
                self._late.append(answer.client)
            case Absent():
                self._forget(answer.client)
                self._absent[answer.client] = answer.reason
                self._costs += answer.costs
            case Answer() if self._counts(answer.update.client):
                self._add(answer)
            case Answer():
                self._late.append(answer.update.client)

    def _counts(self, client: str) -> bool:
        """Of a client's answers the first one does, if it is one of the federation's."""
        return client in self._declared and client not in self._answered

    def _forget(self, client: str) -> None:
        """What became of it in another cohort."""
        self._asked.add(client)
        self._absent.pop(client, None)
        self._rejected.pop(client, None)

    def _add(self, answer: Answer) -> None:
        began = time.perf_counter()
        update = answer.update
        self._forget(update.client)
        self._answered.add(update.client)
        new = self._plan.constant - self._held.get(update.client, frozenset())
        self._held[update.client] = self._plan.constant
        self._down += self._each_time + wire_bytes(pick(self._tensors, new))
        self._up += wire_bytes(update.tensors)
        info = self._declared[update.client]
        expected = self._algorithm.expects(self._plan, info)
        reason = reason_to_reject(update, self._plan, expected, info)
        if reason:
            self._rejected[update.client] = reason
        elif self._rules.screen.compares(update):
            self._waiting.append(update)  # for all others, to be measured by them
            self._changes[update.client] = change(update, self._before)
        else:
            self._accept(update)
        self._costs += answer.costs + _aggregation(began)

    def _accept(self, update: ClientUpdate) -> None:
        lifted, rows = self._algorithm.lift(update.tensors), self._weight(update)
        self._aggregator.add(replace(update, tensors=lifted, rows=rows))
        self._trained = max(self._trained, update.trained_parameters)

    def _weight(self, update: ClientUpdate) -> int:
        ratio, cohort = self._rules.screen.max_rows_ratio, [self._declared[c] for c in self._drawn]
        if not ratio:
            return update.rows
        rows = weight(update.rows, self._declared[update.client], cohort, ratio)
        if rows < update.rows:
            said = f"counts as {rows} rows of {update.rows}: beyond {ratio:g} times the median"
            self._warned[update.client] = said
        return rows

    def settle(self) -> None:
        """All answers that come are there: those are accepted that waited for others."""
        for client in sorted({*self._drawn} - self._answered - self._absent.keys()):
            self.add(Absent(client, "gave no answer"))
        began, screen = time.perf_counter(), self._rules.screen
        if screen.max_norm_ratio:
            odd = too_long(self._changes, screen.max_norm_ratio)
            self._tell(odd, reject=screen.reject)
        if screen.contradictions != "off":
            odd = contradicting(self._waiting)
            self._tell(odd, reject=screen.contradictions == "reject")
        for update in self._waiting:
            if update.client not in self._rejected:
                self._accept(update)
        self._waiting = []
        self._costs += _aggregation(began)

    def _tell(self, odd: Mapping[str, str], *, reject: bool) -> None:
        said = self._rejected if reject else self._warned
        said.update(odd)

    def suffices(self) -> bool:
        return self._aggregator.clients >= self._least

    @property
    def _least(self) -> int:
        return min(self._rules.updates, len(self._drawn))

    def is_final(self, declared: Mapping[str, ClientInfo]) -> bool:
        """Whether to ask again would bring the same: all clients answered, for they will again."""
        return len(self._drawn) == len(declared) and not self._absent

    def close(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """The server's state after the round, and its record.

        Raises:
            DivergenceError, UserError: see `run_rounds`.
        """
        if not self.suffices():
            raise self._too_few()
        began = time.perf_counter()
        aggregate = self._aggregator.result()
        state = self._algorithm.server_update(state, self._plan, aggregate)
        if not all_finite(state.tensors):
            raise DivergenceError(
                f"got a global model that is not finite in round {self._plan.round + 1}, of "
                "updates that are; try a lower training.learning_rate, or screen.max_norm_ratio=10"
            )
        self._costs += _aggregation(began)
        return state, self._record(aggregate)

    def _too_few(self) -> UserError:
        bad = {**self._absent, **self._rejected}
        client, reason = next(iter(bad.items()))
        if all(map(diverged, bad.values())):
            return DivergenceError(
                f"got {_few(self._aggregator.clients)} in round {self._plan.round + 1}; "
                f"{len(bad)} were rejected (client {client}: {reason}); "
                "try a lower training.learning_rate"
            )
        return UserError(
            f"got {_few(self._aggregator.clients)} in round {self._plan.round + 1}; expected at "
            f"least {self._least} ({len(self._absent)} gave no answer, {len(self._rejected)} were "
            f"rejected; client {client}: {reason}); try to resume when more clients are there, a "
            "longer rounds.deadline, or fewer rounds.min_updates"
        )

    def _record(self, aggregate: Aggregate) -> RoundRecord:
        return RoundRecord(
            round=self._plan.round,
            stage=self._plan.stage,
            depth=self._plan.depth,
            client_depths=aggregate.depths,
            cohort=tuple(sorted(self._asked)),
            rejected={**self._absent, **self._rejected},
            warned=self._warned,
            late=tuple(self._late),
            validation=aggregate.score.accuracy,
            upload_bytes=self._up,
            download_bytes=self._down,
            trainable_parameters=self._trained,
            costs=self._costs,
            seconds=time.perf_counter() - self._began,
        )


def _few(count: int) -> str:
    return "1 usable update" if count == 1 else f"{count or 'no'} usable updates"


def _aggregation(began: float) -> Costs:
    return Costs(seconds={"aggregate": time.perf_counter() - began})
