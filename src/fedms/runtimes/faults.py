"""Faults put into a simulation: clients that fail, and clients that lie.

To see what a run is worth when clients are as they are elsewhere. What happens to whom is drawn
from the run's seed, the round and the client, so that a run can be repeated, and resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedms.core.algorithm import ClientInfo, RoundPlan, Score, ServerState, View
from fedms.core.costs import Costs
from fedms.core.robust import SUMS, before
from fedms.core.routing import Routing
from fedms.core.rows import ClientData, Rows, Split
from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors
from fedms.runtimes.rounds import Absent, Answer, Late, ScoredClients

Attack = Literal["none", "sign", "scale", "random", "invalid", "labels"]
_REASONS = {
    "drop": "could not be reached (as faults.drop says)",
    "data": "could not read its rows (as faults.data says)",
    "crash": "crashed while it trained (as faults.crash says)",
    "slow": "gave no answer in time (as faults.slow says)",
}


@dataclass(frozen=True)
class Faults:
    """How often what happens.

    Args:
        drop: the share of clients of a round that are not reached.
        data: of those whose rows cannot be read: they send and keep nothing.
        crash: of those that begin, and send and keep nothing.
        slow: of those whose answer comes too late: they keep what they learned, and it is lost to
            the others. Shares add up to 1 at most.
        attack: what attackers send. `sign`: their change, turned around. `scale`: their change,
            times `strength`. `random`: noise as large as `strength` times their change. `invalid`:
            what is no number. `labels`: they train on false ones, and send what comes of it.
            Sums over rows are as they should be, but for `invalid`: false ones are found out by
            what they cannot be, and the update with them.
        attackers: the share of clients that are attackers, from 0 to below 1.
        strength: see there, greater than 0.
    """

    drop: float = 0.0
    data: float = 0.0
    crash: float = 0.0
    slow: float = 0.0
    attack: Attack = "none"
    attackers: float = 0.0
    strength: float = 10.0

    @property
    def any(self) -> bool:
        """Whether anything happens."""
        return any(getattr(self, name) for name in _REASONS) or self.attack != "none"


def attackers(faults: Faults, clients: Iterable[str], seed: int) -> frozenset[str]:
    """Who attacks, drawn once a run; nobody without an attack."""
    known = sorted(clients)
    count = round(faults.attackers * len(known)) if faults.attack != "none" else 0
    order = np.random.default_rng(derive_seed(seed, "attackers")).permutation(len(known))
    return frozenset(known[i] for i in order[:count])


def mislabelled(data: ClientData, classes: int) -> ClientData:
    """A client whose training and validation rows have false labels: each the next class."""

    def false(rows: Rows) -> Rows:
        return Rows(rows.columns, (rows.labels + 1) % classes)

    return replace(data, train=false(data.train), val=false(data.val))


class FaultyClients:
    """Implements `rounds.ScoredClients` as others do, with faults put into their answers.

    Scores are without faults.

    Args:
        clients: who answers.
        faults: what happens.
        seed: of the run.
        begin: what clients begin a round with, of what they send back, by its plan and the server's
            tensors (`core.work.beginnings`); attackers change by it.
    """

    def __init__(
        self,
        clients: ScoredClients,
        faults: Faults,
        seed: int,
        begin: Callable[[RoundPlan, Tensors], Tensors],
    ) -> None:
        self._clients, self._faults, self._seed, self._begin = clients, faults, seed, begin
        self._bad = attackers(faults, clients.declared, seed)
        self._tries: tuple[int, int] = (-1, 0)

    @property
    def declared(self) -> Mapping[str, ClientInfo]:
        return self._clients.declared

    def train(
        self, plan: RoundPlan, tensors: Tensors, cohort: Sequence[str]
    ) -> Iterator[Answer | Absent | Late]:
        last, tries = self._tries
        self._tries = plan.round, tries + 1 if last == plan.round else 0
        fates = {client: self._fate(plan.round, client) for client in cohort}
        begin = [client for client in cohort if fates[client] in ("", "slow")]
        answers = iter(self._clients.train(plan, tensors, begin))
        first = self._begin(plan, tensors) if self._bad else tensors
        for client in cohort:
            answer = next(answers) if client in begin else None
            if fates[client] or answer is None:
                spent = answer.costs if isinstance(answer, Answer) else Costs()
                yield Absent(client, _REASONS[fates[client]], spent)
            elif isinstance(answer, Answer) and client in self._bad:
                yield self._attacked(answer, first)
            else:
                yield answer

    def _fate(self, round: int, client: str) -> str:
        """One of `_REASONS`, or nothing."""
        seed = derive_seed(self._seed, "fault", round, self._tries[1], client)
        drawn = float(np.random.default_rng(seed).random())
        for name in _REASONS:
            share = getattr(self._faults, name)
            if drawn < share:
                return name
            drawn -= share
        return ""

    def _attacked(self, answer: Answer, first: Tensors) -> Answer:
        update = answer.update
        seed = derive_seed(self._seed, "attack", update.round, update.client)
        noise = torch.Generator().manual_seed(seed)
        false = {
            name: tensor
            if name.startswith(SUMS) and self._faults.attack != "invalid"
            else self._false(tensor, before(name, tensor, first), noise)
            for name, tensor in update.tensors.items()
        }
        return replace(answer, update=replace(update, tensors=false))

    def _false(self, tensor: Tensor, was: Tensor, noise: torch.Generator) -> Tensor:
        """What is sent in place of a tensor; sums, which nothing was before, changed from 0."""
        first = was.to(tensor)
        changed, strength = tensor - first, self._faults.strength
        match self._faults.attack:
            case "sign":
                return first - changed
            case "scale":
                return first + strength * changed
            case "random":
                size = changed.square().mean().sqrt() * strength if tensor.numel() else 0.0
                return first + size * torch.randn(tensor.shape, generator=noise)
            case "invalid":
                return torch.full_like(tensor, float("nan"))
            case _:
                return tensor

    def evaluate(self, state: ServerState) -> dict[Split, dict[str, dict[str, Score]]]:
        return self._clients.evaluate(state)

    def routing(self, state: ServerState) -> dict[str, Routing]:
        return self._clients.routing(state)

    def newcomers(
        self, plan: RoundPlan, state: ServerState, rounds: int, rows: int
    ) -> dict[str, dict[str, Score]]:
        return self._clients.newcomers(plan, state, rounds, rows)

    def score_all(self, view: View) -> dict[Split, dict[str, Score]]:
        return self._clients.score_all(view)

    def spent(self) -> Costs:
        return self._clients.spent()
