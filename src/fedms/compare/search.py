"""Choose a method's learning rate, by its validation loss alone.

One seed has few validation rows: where clients make few errors, which of two rates is ahead is
luck. So rates run a race: on seed after seed, until they are clearly behind (Maron and Moore,
"Hoeffding races", NIPS 1994; here by a constant, see `_BEHIND`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedms.core.errors import DivergenceError

Place = Literal["inside", "edge", "any"]
Losses = dict[float, list[float]]
"""Of each rate that was tried, on the first seeds, as many as it ran on."""

_LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Learning rates to go on with where the best of a grid is at its edge."""
_WORTH = 0.99
"""The loss at the edge, as a share of its neighbour's, up to which it is worth to go on."""
_BEHIND = 0.1
"""By how much, as a share, a rate's loss on one seed is above the lowest when it is given up; on k
seeds, by the root of k less. By evidence: the ratio of two rates' losses differs from seed to seed
by 2 to 6 % in nine cells of docs/results.md (a standard deviation, the median over methods), by 11
to 13 % in two, and by 30 % in one (docs/research-log.md).
"""


@dataclass(frozen=True)
class Found:
    """What was chosen.

    Args:
        rate: the learning rate.
        place: "edge" where rates beyond it that were not tried might be better, "any" where all
            did the same: nothing is trained.
        loss: on validation rows, the mean over seeds; NaN where there was nothing to choose.
    """

    rate: float
    place: Place
    loss: float


def search(
    rates: Sequence[float],
    seeds: Sequence[int],
    summary: Callable[[float, int], Mapping[str, Any]],
) -> Found:
    """The learning rate with the lowest validation loss.

    All of two or more run on the first seed; while the lowest loss is at an edge, and clearly below
    its neighbour's, the next rate beyond it too, and lower ones while none is better than no
    training. Then they race, and what is beyond the winner may join.

    Args:
        rates: at least one. One is not searched, and needs no validation rows.
        seeds: at least one.
        summary: of the run at a rate on a seed.

    Raises:
        DivergenceError: if every rate diverges.
    """
    if len(rates) == 1:
        return Found(rates[0], "inside", math.nan)
    first, untrained, errors = seeds[0], math.inf, list[DivergenceError]()

    def loss(rate: float, seed: int) -> float:
        nonlocal untrained
        try:
            validation = summary(rate, seed)["validation"]
        except DivergenceError as error:
            errors.append(error)
            return math.inf
        if seed == first and (zero_shot := validation.get("zero_shot")):
            untrained = float(zero_shot["loss"])
        return float(validation["personal"]["loss"])

    def try_beyond(best: float) -> bool:
        """Try the rate beyond the best, if the best is at an edge and there is one."""
        beyond = _beyond(tried, best) if _at_edge(tried, best) else None
        if beyond is not None:
            tried[beyond] = [loss(beyond, first)]
        return beyond is not None

    def on_first(rate: float) -> float:
        return tried[rate][0]

    tried: Losses = {rate: [loss(rate, first)] for rate in sorted(rates)}
    if not errors and len({on_first(rate) for rate in tried}) == 1:
        return Found(max(tried), "any", on_first(max(tried)))
    while (below := _below(tried)) and min(map(on_first, tried)) >= untrained:
        tried[below] = [loss(below, first)]  # all were so high that they spoiled the model
    while True:
        while try_beyond(min(tried, key=on_first)):
            pass
        best = _race(tried, seeds, loss)
        diverged = {rate for rate, losses in tried.items() if math.inf in losses}
        if len(diverged) == len(tried):
            raise errors[-1]
        tried |= {rate: [math.inf] * len(seeds) for rate in diverged}  # out of further races
        if best not in diverged and not try_beyond(best):
            place: Place = "edge" if _at_edge(tried, best) else "inside"
            return Found(best, place, sum(tried[best]) / len(seeds))


def _race(tried: Losses, seeds: Sequence[int], loss: Callable[[float, int], float]) -> float:
    """The best over all seeds of the rates that ran on all; `tried` learns what they have there.

    In this race or in an earlier one: whoever leads now may have had luck on the first seeds.
    """
    running = list(tried)
    for count, seed in enumerate(seeds, 1):
        for rate in running:
            tried[rate] += [loss(rate, seed)] if len(tried[rate]) < count else []
        sums = {rate: sum(tried[rate][:count]) for rate in running}
        limit = min(sums.values()) * (1 + _BEHIND / math.sqrt(count))
        running = [rate for rate in running if sums[rate] <= limit]
    finished = [rate for rate, losses in tried.items() if len(losses) == len(seeds)]
    return min(finished, key=lambda rate: sum(tried[rate]))


def _at_edge(tried: Losses, best: float) -> bool:
    """Whether the best rate is the last on its side, and clearly better than the one before.

    On the seeds that both ran on.
    """
    if min(tried) < best < max(tried):
        return False
    neighbour = min((rate for rate in tried if rate != best), key=lambda rate: abs(rate - best))
    seeds = min(len(tried[best]), len(tried[neighbour]))
    ours, theirs = (sum(tried[rate][:seeds]) for rate in (best, neighbour))
    return ours == math.inf or ours < _WORTH * theirs


def _beyond(tried: Losses, best: float) -> float | None:
    """The rate next to the best one on the side where nothing was tried, if there is one."""
    if best == min(tried):
        return _below(tried)
    return min((rate for rate in _LADDER if rate > best), default=None)


def _below(tried: Losses) -> float | None:
    """The rate next to the lowest that was tried, if there is one."""
    return max((rate for rate in _LADDER if rate < min(tried)), default=None)
