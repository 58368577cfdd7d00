"""Whole numbers in given proportions: the largest-remainder method, ties broken at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def apportion(
    total: int,
    weights: ArrayLike,
    rng: np.random.Generator,
    most: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Deals `total` units to shares in proportion to their weights.

    Every share gets its quota rounded down; the units left go one by one to the largest remainders,
    ties in random order. A share at its limit passes its units on to the others.

    Args:
        total: units to deal, 0 or more.
        weights: one non-negative weight per share; all zero means equal.
        rng: breaks the ties.
        most: the most each share can take, or None for no limit.

    Returns:
        int64, one number per share; their sum is `total`, or the sum of `most` if that is less.
    """
    weight = np.asarray(weights, dtype=np.float64)
    limit = np.full(len(weight), total) if most is None else np.asarray(most, dtype=np.int64)
    dealt = np.zeros(len(weight), dtype=np.int64)
    left = min(total, int(limit.sum()))
    while left:
        room = limit - dealt
        share = np.where(room > 0, weight, 0.0)
        share = share if share.sum() > 0 else (room > 0).astype(np.float64)
        units = np.minimum(_largest_remainder(left, share / share.sum(), rng), room)
        dealt += units
        left -= int(units.sum())
    return dealt


def _largest_remainder(
    total: int, share: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Shares of sum 1 to whole numbers of sum `total`; a share of 0 gets nothing."""
    quota = total * share
    units = np.floor(quota + 1e-9).astype(np.int64)
    remainder = np.where(share > 0, np.round(quota - units, 9), -1.0)
    order = np.lexsort((rng.random(len(share)), -remainder))
    missing = total - int(units.sum())
    units[order[:missing]] += 1
    return units
