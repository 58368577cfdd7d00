"""Accuracy over clients: one number per client, then mean, weighted mean, worst decile, spread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedms.core.algorithm import Score
from fedms.core.errors import DivergenceError


@dataclass(frozen=True)
class ClientSummary:
    """Accuracy (0..1) over the clients that have rows.

    Fields:
        mean: every client counts the same.
        weighted: every row counts the same.
        worst_decile: mean of the worst tenth of the clients, at least one.
        std: population standard deviation over clients.
        loss: mean over clients of their mean negative log-likelihood, in nats.
        per_client: accuracy by client; clients without rows are missing.
    """

    mean: float
    weighted: float
    worst_decile: float
    std: float
    loss: float
    per_client: Mapping[str, float]


def summarise(scores: Mapping[str, Score]) -> ClientSummary | None:
    """Summary over clients, or None where no client has rows.

    Raises:
        DivergenceError: if a loss is not finite.
    """
    counted = {client: s for client, s in sorted(scores.items()) if s.rows}
    if not counted:
        return None
    for client, score in counted.items():
        if not math.isfinite(score.loss):
            raise DivergenceError(
                f"got a loss of {score.loss} on client {client}'s rows: training diverged; try a "
                "lower training.learning_rate"
            )
    accuracies = np.array([s.correct / s.rows for s in counted.values()])
    total = sum(counted.values(), Score())
    worst = np.sort(accuracies)[: math.ceil(len(accuracies) / 10)]
    return ClientSummary(
        mean=float(accuracies.mean()),
        weighted=total.correct / total.rows,
        worst_decile=float(worst.mean()),
        std=float(accuracies.std()),
        loss=float(np.mean([s.loss / s.rows for s in counted.values()])),
        per_client={c: float(a) for c, a in zip(counted, accuracies, strict=True)},
    )
