"""A federated method that trains nothing: clients send back what they got, moved.

What is left of a round is what carries it: messages, screening, averaging. Contents are new each
round, and of every client others, for Flower's engine stores and sends equal ones once.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch

from fedms.core.algorithm import (
    Aggregate,
    ClientInfo,
    ClientState,
    ClientUpdate,
    FederatedAlgorithm,
    Fit,
    Learner,
    Role,
    RoundPlan,
    Score,
    ServerState,
    Turn,
    View,
)
from fedms.core.costs import Costs
from fedms.core.layout import Shapes

TENSORS = 32


class Nothing:
    """A learner of whom nothing is asked."""

    def spent(self) -> Costs:
        return Costs()


def echo(size: float, rounds: int) -> FederatedAlgorithm:
    """Rounds that send `size` million bytes to every client and back, in 32 float32 tensors."""
    numbers = max(1, round(size * 1e6 / 4 / TENSORS))
    names = frozenset(f"expert.{i:02}" for i in range(TENSORS))

    def init(learner: Learner, seed: int) -> ServerState:
        noise = torch.Generator().manual_seed(seed)
        tensors = {name: torch.randn(numbers, generator=noise) for name in sorted(names)}
        return ServerState(seed, 0, 1, 1, tensors)

    def plan(state: ServerState) -> RoundPlan | None:
        if state.round == rounds:
            return None
        return RoundPlan(state.round, 1, 1, state.seed, 1.0, 1, broadcast=names, upload=names)

    def expects(plan: RoundPlan, client: ClientInfo) -> Shapes:
        return dict.fromkeys(plan.upload, (numbers,))

    def update(turn: Turn) -> Generator[Fit, View, ClientUpdate]:
        by = 1.0 if turn.data.id == "north" else 0.1
        changed = {name: tensor + by for name, tensor in turn.broadcast.items()}
        score = Score()
        return ClientUpdate(
            turn.data.id, turn.plan.round, len(turn.data.train), changed, score, 1, numbers
        )
        yield  # a generator that asks for nothing

    def follow(state: ServerState, plan: RoundPlan, found: Aggregate) -> ServerState:
        return replace(state, round=state.round + 1, tensors=found.tensors)

    def view(state: ServerState, own: ClientState | None, role: Role) -> View | None:
        return None

    return FederatedAlgorithm("echo", rounds, init, plan, expects, update, follow, view)
