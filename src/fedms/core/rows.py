"""A client's rows: named columns of equal length with labels, in three splits.

Rows are plain NumPy and Python, so that `data` can make them, `models` can read them and
neither has to know the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
Index = NDArray[np.int64]
Column = Sequence[Any] | NDArray[Any]
_POOL = 8
"""Batches whose rows are sorted by length together."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Columns of one length and their labels.

    Args:
        columns: encoded inputs by name, e.g. `input_ids` (ragged: one integer array a row) or
            `pixel_values` (uint8, `(rows, channels, height, width)`).
        labels: class index of every row, int64, `(rows,)`.

    Raises:
        ValueError: if a column has another length than the labels.
    """

    columns: Mapping[str, Column]
    labels: Index

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if len(column) != len(self.labels):
                raise ValueError(
                    f"column {name!r} has {len(column)} rows; "
                    f"expected {len(self.labels)}, as many as labels"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Index) -> Rows:
        """The rows at `index`, in that order."""
        return Rows({name: _take(c, index) for name, c in self.columns.items()}, self.labels[index])


def join(parts: Sequence[Rows]) -> Rows:
    """Rows of several, one after the other; at least one, all with the same columns."""
    if len(parts) == 1:
        return parts[0]
    columns = {name: _join([part.columns[name] for part in parts]) for name in parts[0].columns}
    return Rows(columns, np.concatenate([part.labels for part in parts]))


def _join(columns: Sequence[Column]) -> Column:
    if all(isinstance(column, np.ndarray) for column in columns):
        return np.concatenate(columns)
    return [value for column in columns for value in column]


def _take(column: Column, index: Index) -> Column:
    if isinstance(column, np.ndarray):
        return column[index]
    return [column[i] for i in index]


def shuffled_batches(
    rows: int, size: int, seed: int, lengths: NDArray[Any] | None = None, pace: int = 0
) -> Iterator[Index]:
    """One epoch: the index of every row once, in an order that depends on the arguments alone.

    The last batch may be smaller; no row is left out. With `lengths`, rows of similar length are
    batched together, so that little padding is computed: within pools of some batches that are
    drawn anew every epoch, and in shuffled order. Of that order, what `pace` decides is when long
    and when short batches come: clients of one pace have batches of like length at the same time,
    which a stack of them pads to one length.
    """
    order = np.random.default_rng(seed).permutation(rows).astype(np.int64)
    if lengths is None:
        yield from (order[start : start + size] for start in range(0, rows, size))
        return
    pools = [order[at : at + _POOL * size] for at in range(0, rows, _POOL * size)]
    order = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in pools] or [order])
    batches = [order[start : start + size] for start in range(0, rows, size)]
    batches.sort(key=lambda batch: int(lengths[batch].max()))
    ranks = np.argsort(np.argsort(np.random.default_rng(pace).random(len(batches))))
    yield from (batches[rank] for rank in ranks)


@dataclass(frozen=True, eq=False)
class ClientData:
    """What one client holds.

    Args:
        id: stable name of the client, any non-empty text.
        train, val, test: its rows. Training rows are never empty; the others may be.
        cap: the most blocks whose adapters this client can train (at least 1), or None for no
            limit. An edge device declares one.
        rank: of the adapters it can train, for methods that allow unequal ranks; None: the slots'.
    """

    id: str
    train: Rows
    val: Rows
    test: Rows
    cap: int | None = None
    rank: int | None = None

    def split(self, name: Split) -> Rows:
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def depth(self, active: int) -> int:
        """How many blocks this client trains when `active` are active: `min(active, cap)`."""
        return active if self.cap is None else min(active, self.cap)


@dataclass(frozen=True)
class ClientSizes:
    """Rows of one client by split, and the number of classes among its training rows."""

    id: str
    train: int
    val: int
    test: int
    classes: int
