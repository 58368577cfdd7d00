"""Where a gate sends rows: how many, by class and by weight on the global expert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedms.core.rows import Index

BINS = 10
"""Equal parts of the weights 0 to 1 in which rows are counted."""


@dataclass(frozen=True)
class Routing:
    """Rows of one client, by class and weight.

    Args:
        counts: (class, bin, rows), ascending, where there are rows. Of `BINS` bins the k-th has
            weights from k / BINS to below (k + 1) / BINS; the last one has 1 too.
        weights: (class, sum of weights), ascending.
    """

    counts: tuple[tuple[int, int, int], ...]
    weights: tuple[tuple[int, float], ...]


def routing(labels: Index, weights: NDArray[np.float32]) -> Routing:
    """Counts rows with these classes, `(rows,)`, and weights on the global expert, `(rows,)`."""
    bins = np.clip((weights * BINS).astype(np.int64), 0, BINS - 1)
    pairs, rows = np.unique(np.stack([labels, bins], 1), axis=0, return_counts=True)
    counts = zip(pairs.tolist(), rows.tolist(), strict=True)
    sums = np.bincount(labels, weights=weights.astype(np.float64))
    return Routing(
        tuple((label, bin_, n) for (label, bin_), n in counts),
        tuple((label, float(sums[label])) for label in np.unique(labels).tolist()),
    )
