"""Federated averaging, key by key, as a stream.

For every key the average runs over the clients that sent it, weighted by their training examples
(McMahan et al. 2017, arXiv 1602.05629, extended to unequal key sets). A and B of a LoRA pair are
averaged apart, as FedIT does (arXiv 2305.05644); that is not the average of their products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedms.core.algorithm import Aggregate, ClientUpdate, Score


class Averager:
    """Sums updates in float64; memory does not grow with the cohort.

    Add the updates in client order: then the result is the same to the bit whatever order they
    arrived in.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, int] = {}
        self._score = Score()
        self._rows = 0
        self._depths: list[int] = []
        self._took: list[str] = []

    def add(self, update: ClientUpdate) -> None:
        """Count one accepted update with the weight `update.rows`."""
        for name, tensor in update.tensors.items():
            if name in self._sums:
                self._sums[name].add_(tensor, alpha=update.rows)
                self._weights[name] += update.rows
            else:
                self._sums[name] = tensor.to(torch.float64) * update.rows
                self._weights[name] = update.rows
        self._score += update.score
        self._rows += update.rows
        self._depths.append(update.depth)
        self._took.append(update.client)

    @property
    def clients(self) -> int:
        """How many updates were counted."""
        return len(self._depths)

    def result(self) -> Aggregate:
        """The weighted averages in float32. A key that nobody sent is not in it."""
        means = {n: (s / self._weights[n]).to(torch.float32) for n, s in self._sums.items()}
        depths = tuple(self._depths)
        return Aggregate(means, self._rows, len(depths), self._score, depths, tuple(self._took))


def average(updates: Sequence[ClientUpdate]) -> Aggregate:
    """The aggregate of a list of updates, summed in the order of client ids."""
    averager = Averager()
    for update in sorted(updates, key=lambda u: u.client):
        averager.add(update)
    return averager.result()
