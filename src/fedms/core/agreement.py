"""Whether a client's class sums are of the classes that it says they are.

Sums over rows cannot be averaged by a robust rule: clients have other classes, and some have few
rows. But they can be compared. A client whose labels are false has its sums where others have
another class, and with sums of many rows that shows (ours; `benchmarks/liars.py`). What it cannot
show: lies about classes that nobody else has, or of a client with a handful of rows; and a client
that sends true sums and trains on false labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedms.core.discriminant import COUNTS, SUMS
from fedms.core.tensors import Tensors

_LIARS = 0.4
"""The share of clients that may lie: so many are left out of what all are compared with."""
_SHARE = 0.5
"""Of the median agreement: whoever has less than that contradicts the others, …"""
_SPREADS = 4.0
"""… if it is as many robust standard deviations below, too: where features do not hold the classes,
agreements are small and differ by chance."""
_SIGNAL = 3.0
"""So many of them has the median to be above zero, or nobody is judged."""
_ROWS = 10.0
"""Rows that the median counts as in a client's agreement."""
_SCALE = 1.4826
"""From a median absolute deviation to a standard deviation, of normal numbers."""


@dataclass(frozen=True)
class Agreement:
    """Of a client with the others.

    Args:
        value: near 1 if its classes are where others have them, near 0 if they are elsewhere; None
            where there is nothing to compare.
        median: over all clients.
        contradicts: whether it is far below.
    """

    value: float | None
    median: float
    contradicts: bool


def agreements(sent: Sequence[Tensors], rows: Sequence[int]) -> list[Agreement]:
    """Compare every client's class sums with those of all others.

    A client's sums, from the others' overall mean on, are multiplied with means of classes: with
    its own class's, less the mean over all other classes', as a share of what they could be. The
    others are those of whom most agree: a first comparison with everybody leaves out the lowest.

    Args:
        sent: of each client, as `discriminant.sums` divided by its rows.
        rows: of each client.
    """
    if not sent:
        return []
    weights = torch.tensor(rows, dtype=torch.float64)
    counts = torch.stack([one[COUNTS].double() for one in sent]) * weights[:, None]
    sums = torch.stack([one[SUMS].double() for one in sent]) * weights[:, None, None]
    trusted = torch.ones(len(sent), dtype=torch.float64)
    first, _ = _compared(counts, sums, trusted)
    trusted[first.nan_to_num(torch.inf).argsort(stable=True)[: int(_LIARS * len(sent))]] = 0
    values, compared = _compared(counts, sums, trusted)
    median = values.nanmedian()
    if median.isnan():
        return [Agreement(None, 0.0, False)] * len(sent)
    shrunk = (compared * values.nan_to_num(0) + _ROWS * median) / (compared + _ROWS)
    spread = _SCALE * (values - median).abs().nanmedian()
    low = shrunk < torch.minimum(_SHARE * median, median - _SPREADS * spread)
    low &= median > _SIGNAL * spread
    return [
        Agreement(float(value) if n else None, float(median), bool(is_low))
        for value, n, is_low in zip(values, compared, low, strict=True)
    ]


def _compared(counts: Tensor, sums: Tensor, trusted: Tensor) -> tuple[Tensor, Tensor]:
    """Each client's agreement with trusted others (NaN if there is none), and of how many rows."""
    all_counts = trusted @ counts
    all_sums = torch.tensordot(trusted, sums, dims=1)
    values = torch.full((len(counts),), torch.nan, dtype=torch.float64)
    compared = torch.zeros(len(counts), dtype=torch.float64)
    for i, (count, own) in enumerate(zip(counts, sums, strict=True)):
        others, by_class = all_counts - trusted[i] * count, all_sums - trusted[i] * own
        known = others > 0.5  # rows, but for rounding
        mine = known & (count > 0.5)
        if known.sum() < 2 or not mine.any():
            continue
        overall = by_class.sum(0) / others.sum()
        means = ((by_class - others[:, None] * overall) / (others + 1)[:, None])[known]
        moved = own[mine] - count[mine][:, None] * overall
        products = moved @ means.T
        of_class = mine[known].nonzero().flatten()
        with_own = products.gather(1, of_class[:, None]).flatten()
        with_others = (products.sum(1) - with_own) / (len(means) - 1)
        most = (moved.norm(dim=1) * means[of_class].norm(dim=1)).sum()
        if most > 0:
            values[i] = (with_own - with_others).sum() / most
            compared[i] = torch.minimum(count, others)[mine].sum()
    return values, compared
