"""Rows that a program has in memory, as data sets of the `datasets` library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedms.core.errors import UserError
from fedms.data.readers import concat, dataset_frame, from_frame
from fedms.data.request import Request
from fedms.data.table import Table


@dataclass(frozen=True, eq=False)
class Part:
    """One data set.

    Args:
        rows: a `datasets.Dataset`.
        client: whose rows they are; None: they are to be dealt.
        split: train, val or test, by any name it goes by; None where the data give none.
    """

    rows: Any
    client: str | None = None
    split: str | None = None

    @property
    def name(self) -> str:
        """For error messages."""
        words = [f"client {self.client!r}"] if self.client is not None else ["the data set"]
        return " ".join([*words, *([f"({self.split})"] if self.split else [])])


def read_given(parts: Sequence[Part], want: Request) -> Table:
    """The parts below each other, values as they stand; text and encoded images are not copied.

    Raises:
        UserError: if a part is no data set, has no rows, or lacks a column.
    """
    some = "train" if any(part.split for part in parts) else None  # whoever has no split trains
    tables = []
    for part in parts:
        group = want.group if part.client is None else None
        frame = dataset_frame(_checked(part), part.name)
        table = from_frame(frame, replace(want, group=group), part.split or some)
        groups = table.groups if part.client is None else [part.client] * len(table)
        tables.append(replace(table, groups=groups))
    return concat(tables, "the data sets")


def _checked(part: Part) -> Any:
    from datasets import Dataset

    if not isinstance(part.rows, Dataset):
        raise UserError(
            f"got a {type(part.rows).__name__} for {part.name}; expected a datasets.Dataset; try "
            "Dataset.from_pandas, Dataset.from_dict or Dataset.from_list"
        )
    if not len(part.rows):
        raise UserError(f"got no rows of {part.name}; expected some; try leaving it out")
    return part.rows
