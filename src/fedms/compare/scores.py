"""What is said of a method: means over seeds, their intervals, and tests against another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from scipy import stats

from fedms.compare.records import Point
from fedms.compare.runs import Result

_LEVEL = 0.95
Scored = Literal["test", "unseen", "unseen_adapted"]
"""Scores of a `Result`."""


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and half of its 95 % interval (Student's t; None of one seed)."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, None)
        quantile = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1))
        return cls(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)))


@dataclass(frozen=True)
class Versus:
    """A method beside the one it is tested against, client by client on every seed.

    Natural clients (`partition.by = "column"`) are the same on every seed, but for unseen ones, so
    that what is tested is a client's mean difference over its seeds. Drawn clients are others on
    every seed, and each pair of client and seed counts.

    Args:
        spread: of the difference of mean accuracies, over seeds.
        of: how many clients, or pairs of client and seed, there are.
        better, worse: those of them with a higher or lower accuracy.
        natural: whether they are clients.
        p: of Wilcoxon's signed-rank test over them, two-sided; None where no two differ. Clients of
            one federation are not independent, so it is a measure, no proof.
    """

    spread: Spread
    of: int
    better: int
    worse: int
    natural: bool
    p: float | None


def versus(ours: Sequence[Result], theirs: Sequence[Result], of: Scored = "test") -> Versus | None:
    """The first beside the second, on the seeds and clients of both; None where they share none.

    Args:
        ours: results of one method.
        theirs: of another.
        of: the scores that are compared.
    """
    one, other = (
        {r.seed: getattr(r, of)["per_client"] for r in results if getattr(r, of)}
        for results in (ours, theirs)
    )
    ahead = [
        (seed, client, accuracy - other[seed][client])
        for seed, clients in one.items()
        for client, accuracy in clients.items()
        if client in other.get(seed, {})
    ]
    if not ahead:
        return None
    natural = ours[0].record.config.get("partition", {}).get("by") == "column"
    by_seed: dict[int, list[float]] = {}
    tested: dict[object, list[float]] = {}
    for seed, client, difference in ahead:
        by_seed.setdefault(seed, []).append(difference)
        tested.setdefault(client if natural else (seed, client), []).append(difference)
    means = [round(statistics.fmean(each), 12) for each in tested.values()]  # equal ones are equal
    differ = [mean for mean in means if mean]  # the test is exact then, where they are few
    better = sum(mean > 0 for mean in differ)
    p = float(stats.wilcoxon(differ).pvalue) if differ else None
    spread = Spread.of([statistics.fmean(each) for each in by_seed.values()])
    return Versus(spread, len(means), better, len(differ) - better, natural, p)


def ahead_in(score: str, ours: Sequence[Result], theirs: Sequence[Result]) -> Spread | None:
    """The difference of a score of personal models, seed by seed; None where no seed is of both.

    Of the worst decile there are no pairs of clients: whoever it is, may be another with each.
    """
    other = {r.seed: r.test[score] for r in theirs}
    found = [r.test[score] - other[r.seed] for r in ours if r.seed in other]
    return Spread.of(found) if found else None


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of every method, in the order given."""
    return {name: list(group) for name, group in groupby(results, key=lambda r: r.method)}


def within(points: Sequence[Point], resource: str, budget: float) -> Point | None:
    """The point with the best validation accuracy of those that cost at most `budget`.

    Of equal ones the last. `resource` names a field of `Point`. None where nothing was scored that
    early.
    """
    affordable = [p for p in points if getattr(p, resource) <= budget]
    return max(affordable, key=lambda p: (p.validation or 0.0, p.round), default=None)


def until(points: Sequence[Point], accuracy: float) -> Point | None:
    """The first point whose validation accuracy is at least this; None where none is."""
    return next((p for p in points if p.validation is not None and p.validation >= accuracy), None)
