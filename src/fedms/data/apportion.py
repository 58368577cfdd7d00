"""Whole numbers in given proportions: the largest-remainder method, ties broken at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def apportion(total: int, weights: ArrayLike, rng: np.random.Generator) -> NDArray[np.int64]:
    """Deals `total` units to shares in proportion to their weights.

    Every share gets its quota rounded down; the units left go one by one to the largest remainders,
    ties in random order.

    Args:
        total: units to deal, 0 or more.
        weights: one non-negative weight per share; all zero means equal.
        rng: breaks the ties.

    Returns:
        int64, one number per share; their sum is `total`.
    """
    weight = np.asarray(weights, dtype=np.float64)
    share = weight if weight.sum() > 0 else np.ones(len(weight))
    quota = total * share / share.sum()
    units: NDArray[np.int64] = np.floor(quota + 1e-9).astype(np.int64)
    remainder = np.where(share > 0, np.round(quota - units, 9), -1.0)
    order = np.lexsort((rng.random(len(share)), -remainder))
    units[order[: total - int(units.sum())]] += 1
    return units
