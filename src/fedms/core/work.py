"""How a round's work is done, whatever runs it: clients in step, from the server's tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedms.core.algorithm import (
    ClientUpdate,
    ClientWork,
    FederatedAlgorithm,
    Fit,
    Learner,
    RoundPlan,
    View,
)
from fedms.core.tensors import Tensors, under


def perform(works: Sequence[ClientWork], learner: Learner, pace: int) -> list[ClientUpdate]:
    """Do several clients' work in step: what they ask for at the same time is trained together.

    `pace` is a seed that all clients of a round share, see `core.rows.shuffled_batches`.
    """
    updates: dict[int, ClientUpdate] = {}
    fitted: dict[int, View] = {}
    waiting = list(range(len(works)))
    while waiting:
        asked: dict[int, Fit] = {}
        for i in waiting:
            try:
                asked[i] = works[i].send(fitted[i]) if i in fitted else next(works[i])
            except StopIteration as end:
                updates[i] = end.value
        waiting = list(asked)
        if asked:
            fitted = dict(zip(waiting, learner.fit(list(asked.values()), pace), strict=True))
    return [updates[i] for i in range(len(works))]


def beginnings(
    algorithm: FederatedAlgorithm, learner: Learner, plan: RoundPlan, tensors: Tensors
) -> dict[str, torch.Tensor]:
    """The server's tensors, and beside them those that clients send back but are not sent.

    So what a client changed can be told in its first round with a block, too.
    """
    unsent = (name for name in plan.upload - tensors.keys() if name.startswith("global/"))
    names = frozenset(name.removeprefix("global/") for name in unsent)
    fresh = learner.initial_expert(names, algorithm.fresh(plan))
    return {**under("global", fresh), **tensors}
