"""Rules that bear some clients who send anything: what is averaged, and of whom.

All clients of a round count alike, for how many rows a client has is its own word. Where clients
send unequal sets of tensors (SAL: each its own depth), a rule is applied to every group of tensors
that the same clients sent, and in it to all tensors together, where it is about distances. Sums
over rows (class statistics, calibration) are no parameters: they are added up by every rule, once
they were found plausible (`core.screening`).

- `median`, `trimmed`: of every coordinate (Yin et al. 2018, arXiv 1803.01498).
- `geometric`: the point with the least sum of distances (RFA, Pillutla et al. 2019,
  arXiv 1912.13445), by Weiszfeld's iteration.
- `krum`, `multikrum`: the update with the nearest neighbours, or the mean of those that have the
  nearest (Blanchard et al. 2017, arXiv 1703.02757).
- `clip`: the mean, weighted by rows, of changes that are no longer than the cohort's median change
  (Sun et al. 2019, arXiv 1911.07963).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedms.core.aggregation import Averager
from fedms.core.algorithm import Aggregate, ClientUpdate
from fedms.core.tensors import Tensors

Name = Literal["mean", "median", "trimmed", "geometric", "krum", "multikrum", "clip"]
SUMS = ("statistics/", "calibration/")
"""How names start of what is no parameter, but a sum over rows."""
_STEPS, _CLOSE, _TINY = 200, 1e-10, 1e-12


@dataclass(frozen=True)
class Rule:
    """How updates become one.

    Args:
        name: of the rule.
        malicious: the share of clients that may be, from 0 to below 0.5: so many are trimmed at
            both ends, or left out as neighbours and from the mean of `multikrum`.
    """

    name: Name = "mean"
    malicious: float = 0.2

    def bad(self, clients: int) -> int:
        """How many of so many clients may be malicious."""
        return int(self.malicious * clients)


class Aggregator(Protocol):
    """Takes updates in client order, then gives what becomes of them."""

    @property
    def clients(self) -> int: ...

    def add(self, update: ClientUpdate) -> None: ...

    def result(self) -> Aggregate: ...


def aggregator(rule: Rule, received: Tensors) -> Aggregator:
    """For one round.

    Args:
        rule: how.
        received: what clients had before they trained, by the names that they send.
    """
    return Averager() if rule.name == "mean" else _Robust(rule, received)


class _Robust:
    """Holds all updates of a round."""

    def __init__(self, rule: Rule, received: Tensors) -> None:
        self._rule, self._received = rule, received
        self._updates: list[ClientUpdate] = []

    @property
    def clients(self) -> int:
        return len(self._updates)

    def add(self, update: ClientUpdate) -> None:
        self._updates.append(update)

    def result(self) -> Aggregate:
        averager, updates = Averager(), self._updates
        if self._rule.name == "clip":
            updates = clipped(updates, self._received)
        for update in updates:
            averager.add(update)
        whole = averager.result()
        if self._rule.name == "clip":
            return whole
        found = dict(whole.tensors)
        for senders, names in _groups(updates).items():
            sent = {name: [updates[i].tensors[name] for i in senders] for name in names}
            found |= combine(self._rule, sent)
        return replace(whole, tensors=found)


def _groups(updates: Sequence[ClientUpdate]) -> dict[tuple[int, ...], list[str]]:
    """Names of parameters by those who sent them."""
    senders: dict[str, list[int]] = {}
    for i, update in enumerate(updates):
        for name in update.tensors:
            if not name.startswith(SUMS):
                senders.setdefault(name, []).append(i)
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, some in senders.items():
        groups.setdefault(tuple(some), []).append(name)
    return groups


def combine(rule: Rule, sent: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """What becomes of tensors that the same clients sent, float32.

    Args:
        rule: any but `mean` and `clip`, which are averages.
        sent: by name, of every client in the same order; at least one client.
    """
    stacked = {name: torch.stack([t.double() for t in each]) for name, each in sent.items()}
    count = len(next(iter(stacked.values())))
    bad = rule.bad(count)
    if rule.name == "median":
        found = {name: _median(t) for name, t in stacked.items()}
    elif rule.name == "trimmed":
        found = {n: t.sort(0).values[bad : count - bad].mean(0) for n, t in stacked.items()}
    elif rule.name == "geometric":
        found = _geometric(stacked)
    else:
        best = _nearest(stacked, bad, 1 if rule.name == "krum" else count - bad)
        found = {name: t[best].mean(0) for name, t in stacked.items()}
    return {name: t.float() for name, t in found.items()}


def _median(values: Tensor) -> Tensor:
    """Of the first axis; of an even number, between the two in the middle."""
    ordered, count = values.sort(0).values, len(values)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def _nearest(stacked: Tensors, bad: int, count: int) -> list[int]:
    """So many clients, with the least sums of squared distances to their nearest neighbours."""
    clients = len(next(iter(stacked.values())))
    apart = torch.zeros(clients, clients, dtype=torch.float64)
    for tensor in stacked.values():
        flat = tensor.reshape(clients, -1)
        for i in range(clients):  # differences, for squares of large values cancel badly
            apart[i] += (flat - flat[i]).square().sum(1)
    neighbours = max(1, clients - bad - 2)
    scores = apart.sort(1).values[:, 1 : neighbours + 1].sum(1)
    return sorted(scores.argsort(stable=True)[:count].tolist())


def _geometric(stacked: Tensors) -> dict[str, Tensor]:
    point = {name: _median(t) for name, t in stacked.items()}
    for _ in range(_STEPS):
        squares = [(t - point[n]).flatten(1).square().sum(1) for n, t in stacked.items()]
        lengths = torch.stack(squares).sum(0).sqrt().clamp_min(_TINY)
        weights = (1 / lengths) / (1 / lengths).sum()
        new = {name: torch.tensordot(weights, t, dims=1) for name, t in stacked.items()}
        moved = sum(float((new[n] - point[n]).square().sum()) for n in new) ** 0.5
        size = sum(float(t.square().sum()) for t in new.values()) ** 0.5
        point = new
        if moved <= _CLOSE * (size + _TINY):
            break
    return point


def change(update: ClientUpdate, received: Tensors) -> float:
    """Length of what an update changes of parameters; of those that were not there, all of it."""
    squares = 0.0
    for name, tensor in update.tensors.items():
        if not name.startswith(SUMS):
            moved = tensor.double() - before(name, tensor, received)
            squares += float(moved.square().sum())
    return math.sqrt(squares)


def before(name: str, tensor: Tensor, received: Tensors) -> Tensor:
    """What was received under a name, of a lower rank where that is sent; zeros if nothing was."""
    was = received.get(name)
    if was is None:
        return torch.zeros_like(tensor, dtype=torch.float64)
    return was[tuple(slice(size) for size in tensor.shape)].double()


def clipped(updates: Sequence[ClientUpdate], received: Tensors) -> list[ClientUpdate]:
    """Updates whose changes are shortened to the median length of all."""
    lengths = [change(update, received) for update in updates]
    most = float(_median(torch.tensor(lengths, dtype=torch.float64))) if lengths else 0.0
    return [
        update if length <= most else _shortened(update, received, most / length)
        for update, length in zip(updates, lengths, strict=True)
    ]


def _shortened(update: ClientUpdate, received: Tensors, share: float) -> ClientUpdate:
    tensors = dict(update.tensors)
    for name, tensor in update.tensors.items():
        if not name.startswith(SUMS):
            start = before(name, tensor, received)
            tensors[name] = (start + share * (tensor.double() - start)).float()
    return replace(update, tensors=tensors)
