"""The contract between an algorithm and whatever runs it.

A `FederatedAlgorithm` is a frozen record of plain functions. It says what the server and a client
compute; it does not know whether clients are looped over in one process or sit on other machines.
Stages, depth and key groups are data in the `RoundPlan`, so that a runtime never asks which
algorithm or stage it serves.

One round, as every runtime performs it (`perform` is in `core.work`)::

    plan = algorithm.plan(state)
    for each client of the cohort:
        turn = Turn(learner, plan, broadcast, client_state, data, seed)
        work = algorithm.client_update(turn)
    updates = perform(the clients' work, learner, pace of the round)
    state = algorithm.server_update(state, plan, average of the updates)

A client's work is a generator: it yields what it wants trained (`Fit`) and is sent the result, so
that a runtime can have the clients of a stack trained together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import torch

from fedms.core.costs import Costs
from fedms.core.discriminant import Discriminant
from fedms.core.layout import Layout, Shapes
from fedms.core.routing import Routing
from fedms.core.rows import ClientData, Rows, Split
from fedms.core.tensors import Tensors, fingerprint

Role = Literal["global", "local", "personal"]


@dataclass(frozen=True, eq=False)
class Expert:
    """The tensors of one expert that differ from the frozen foundation model.

    A block without tensors is inactive (its LoRA product is zero), so `Expert({})` is the
    foundation model itself. Names are PEFT's, without a role.

    Args:
        tensors: by name.
        prior: whether the log of the client's own class frequencies is added to its logits.
        beneath: frozen pairs (A, B) of any rank, by the same names as adapter tensors; their
            products are added to the same projections. Where the expert has mixers, both products
            are weighed by the softmax of `mixer @ input`, or of an MLP of the input, token by
            token: the expert's own first.
        likeness: `(width,)`. Where it is given, both products are weighed alike in all layers, row
            by row, when the expert predicts: its own by the dot product of `likeness` and the row's
            feature under `tensors` alone, of unit length, held within 0..1; the one beneath by
            the rest. It has tensors for all that is beneath, and no mixers.
    """

    tensors: Tensors
    prior: bool = False
    beneath: Tensors = field(default_factory=dict)
    likeness: torch.Tensor | None = None

    @cached_property
    def fingerprint(self) -> str:
        likeness = {} if self.likeness is None else {"likeness": self.likeness}
        parts = (self.tensors, self.beneath, likeness)  # which may have tensors in common
        return "/".join(fingerprint(tensors) for tensors in parts)


@dataclass(frozen=True, eq=False)
class View:
    """What to predict with: one expert, or both joined by a gate.

    Args:
        expert: the only expert, or the local one of a mixture.
        partner: the frozen global expert of a mixture, or None.
        gate: the gate's tensors (adapter and head), or None without a partner.
        oracle: a bound for gates that choose one expert (a mixture can be right where both are
            wrong): each example's gate is all for one expert, the one with which the model is
            right, or with which it gives the class more probability. It sees labels; only scores
            use it.
        calibration: `(6,)` weights of evidence (see `core.calibration`), by which it predicts
            instead; None: as the gate mixes. Training knows nothing of it.
        statistics: what all clients' class statistics say, or None: where its experts look for
            classes (where `model.class_vectors` says so), and evidence where it is calibrated.
    """

    expert: Expert
    partner: Expert | None = None
    gate: Tensors | None = None
    oracle: bool = False
    calibration: torch.Tensor | None = None
    statistics: Discriminant | None = None


@dataclass(frozen=True)
class Score:
    """Sums over rows, so that scores add.

    `loss` is the negative log-likelihood in nats; `gate_weight` is the summed weight on the global
    expert, 0 where there is no gate.
    """

    correct: int = 0
    rows: int = 0
    loss: float = 0.0
    gate_weight: float = 0.0

    def __add__(self, other: Score) -> Score:
        return Score(
            self.correct + other.correct,
            self.rows + other.rows,
            self.loss + other.loss,
            self.gate_weight + other.gate_weight,
        )

    @property
    def accuracy(self) -> float | None:
        """Fraction of rows predicted correctly, None without rows."""
        return self.correct / self.rows if self.rows else None


@dataclass(frozen=True, eq=False)
class Fit:
    """What a client asks to have trained.

    Args:
        view: the expert to start from.
        names: the expert's tensors that train.
        data: the client's rows.
        epochs: passes over its training rows.
        seed: of the order of rows.
        rate: what learning rates are multiplied by, greater than 0.
        pull: `pull / 2` times the squared distance from `anchor` is added to the loss; at least 0.
        anchor: tensors by name; what is missing pulls towards where it started.
        gate: whether the view's gate, if it has one, trains too.
        prior: weights of a class's log frequency among the client's rows, and of being unseen
            there, whose sum is added to every expert's logits while it trains.
    """

    view: View
    names: frozenset[str]
    data: ClientData
    epochs: int
    seed: int
    rate: float = 1.0
    pull: float = 0.0
    anchor: Tensors = field(default_factory=dict)
    gate: bool = True
    prior: tuple[float, float] | None = None


class Learner(Protocol):
    """One resident foundation model that predicts and trains under any `View`."""

    @property
    def layout(self) -> Layout: ...

    def initial_expert(self, names: frozenset[str], seed: int) -> dict[str, torch.Tensor]:
        """Tensors as they are before any training; each depends on `seed` and its name alone."""
        ...

    def initial_gate(self, seed: int) -> dict[str, torch.Tensor]:
        """The gate before any training: its adapter is the identity, its weights are even."""
        ...

    def fit(self, fits: Sequence[Fit], pace: int) -> list[View]:
        """The views with what was trained of each (at least one), as if each had been alone.

        Nothing of what is given is changed; what is not named stays frozen. `pace` is the seed of
        what clients of a round have in common (see `core.rows.shuffled_batches`).
        """
        ...

    def mean_direction(self, expert: Expert, rows: Rows) -> torch.Tensor:
        """`(width,)`: the mean of the rows' features under an expert, each of unit length."""
        ...

    def score(self, view: View, data: ClientData, split: Split) -> Score:
        """How well `view` predicts the client's rows of one split."""
        ...

    def routing(self, view: View, data: ClientData) -> Routing:
        """Where a view with a partner sends the client's test rows, of which there are some."""
        ...

    def derivatives(self, view: View, data: ClientData) -> dict[str, torch.Tensor]:
        """Of the log loss on the client's validation rows by `view.calibration`, summed over rows.

        See `core.calibration.derivatives`; zeros without validation rows.
        """
        ...

    def statistics(
        self, data: ClientData, names: frozenset[str] = frozenset()
    ) -> dict[str, torch.Tensor]:
        """Sums over the client's training rows, see `core.discriminant.sums`.

        `names`: what it trains next, so that what lies below may be kept on the way.
        """
        ...

    def spent(self) -> Costs:
        """What all work since the last call cost."""
        ...


@dataclass(frozen=True, eq=False)
class ServerState:
    """What the server knows after `round` complete rounds.

    `tensors` holds only what was ever trained and shared, and what an algorithm's server keeps to
    itself; whatever is missing is as `Learner.initial_expert(names, seed)` gives it.
    """

    seed: int
    round: int
    stage: int
    depth: int
    tensors: Tensors
    queue: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class ClientState:
    """What a client keeps to itself between rounds. It never leaves the client.

    `kept` is the validation accuracy and loss of the checkpoint named `kept/…` in `tensors`,
    or None while there is none.
    """

    tensors: Tensors
    depth: int
    queue: tuple[float, ...] = ()
    rounds: int = 0
    kept: tuple[float, float] | None = None


@dataclass(frozen=True)
class ClientInfo:
    """What a client declared at the start: id, training rows, cap on its blocks, rank, and
    validation rows.
    """

    id: str
    rows: int
    cap: int | None = None
    rank: int | None = None
    validation: int = 0


@dataclass(frozen=True)
class RoundPlan:
    """One round, as data.

    Args:
        round: index from 0.
        stage: 1 or 2, for records.
        depth: active blocks on the server; in stage 2 every client has its own.
        seed: the run's seed, from which untrained tensors are made.
        cohort: fraction or number of clients.
        epochs: passes over a client's training rows; 0 sends and trains nothing.
        rate: what learning rates are multiplied by, greater than 0.
        broadcast: names sent to the cohort in this round.
        constant: names a client needs that no longer change: sent to each client once.
        upload: names that an unlimited client sends back.
        gathered: rounds before it in which nothing was trained, class statistics gathered instead.
    """

    round: int
    stage: int
    depth: int
    seed: int
    cohort: float | int
    epochs: int
    rate: float = 1.0
    broadcast: frozenset[str] = frozenset()
    constant: frozenset[str] = frozenset()
    upload: frozenset[str] = frozenset()
    gathered: int = 0

    @property
    def trained(self) -> int:
        """Rounds of training before it, by which its cohort is drawn: alike for all methods."""
        return self.round - self.gathered


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What a client returns. `tensors`, `rows` and `score` are sent; `state` stays with it.

    Args:
        client: its id.
        round: of the plan it answers.
        rows: training examples, the weight of its tensors in the average.
        tensors: what it uploads.
        score: on its validation rows (stage 1: the model it received; stage 2: its own).
        depth: blocks it trained.
        trained_parameters: numbers it trained, gate included.
        state: its new private state, or None for none.
    """

    client: str
    round: int
    rows: int
    tensors: Tensors
    score: Score
    depth: int
    trained_parameters: int
    state: ClientState | None = None


@dataclass(frozen=True, eq=False)
class Turn:
    """One client's part in a round.

    Args:
        learner: the model it works with.
        plan: of the round.
        broadcast: the plan's broadcast and constant tensors.
        state: what it has kept to itself; None before its first turn.
        data: its rows.
        seed: of this client in this round.
    """

    learner: Learner
    plan: RoundPlan
    broadcast: Tensors
    state: ClientState | None
    data: ClientData
    seed: int

    def fit(self, view: View, names: frozenset[str]) -> Fit:
        """Training of these names as the plan says."""
        return Fit(view, names, self.data, self.plan.epochs, self.seed, self.plan.rate)


ClientWork = Generator[Fit, View, ClientUpdate]
"""A client's round: yields what it wants trained, is sent what came of it, returns its update."""


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The average of a round's accepted updates; a key that nobody sent is missing.

    `took` are the ids of the clients in it.
    """

    tensors: Tensors
    rows: int
    clients: int
    score: Score
    depths: tuple[int, ...] = field(default=())
    took: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class FederatedAlgorithm:
    """A federated method as functions.

    Fields:
        name: as in the configuration.
        rounds: how many there are in all.
        init: `(learner, seed) -> ServerState` before the first round.
        plan: `(state) -> RoundPlan`, or None when training is finished.
        expects: `(plan, client) -> shapes` of exactly what that client uploads.
        client_update: `(turn) -> ClientWork`.
        server_update: `(state, plan, aggregate) -> ServerState`.
        lift: what the server averages of an accepted update, made of what was sent; e.g. products.
        fresh: `(plan) -> seed` of the tensors that clients begin with where they are sent none.
        view: `(state, client_state, role) -> View`, or None where this method has no such model.
            A client that never took part has `client_state` None.
    """

    name: str
    rounds: int
    init: Callable[[Learner, int], ServerState]
    plan: Callable[[ServerState], RoundPlan | None]
    expects: Callable[[RoundPlan, ClientInfo], Shapes]
    client_update: Callable[[Turn], ClientWork]
    server_update: Callable[[ServerState, RoundPlan, Aggregate], ServerState]
    view: Callable[[ServerState, ClientState | None, Role], View | None]
    lift: Callable[[Tensors], Tensors] = lambda tensors: tensors
    fresh: Callable[[RoundPlan], int] = lambda plan: plan.seed
