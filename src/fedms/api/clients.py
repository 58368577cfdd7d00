"""From whatever people have their data sets in, to the parts of a table and `[partition]`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedms.core.errors import UserError
from fedms.data import Part

CLIENT = "client"
"""What `partition.column` is called where clients have data sets of their own."""
_NATURAL = {"by": "column", "column": CLIENT}
_TRY = 'try {"name": dataset, …}, a list, or partition=dict(by="dirichlet", clients=10)'


def parts_of(datasets: Any, partition: Any, *, dealt: bool) -> tuple[list[Part], Mapping[str, Any]]:
    """The data sets of a federation, and settings of `[partition]` that deal them.

    Args:
        datasets: data sets by client; a list of them; or one, to be dealt. Each is a `Dataset`, or
            a `DatasetDict` of splits.
        partition: settings, a partitioner of flwr-datasets, or None.
        dealt: whether there are other settings that deal one data set.

    Raises:
        UserError: if they do not fit together.
    """
    if not _is_one(datasets):
        if partition is not None and not isinstance(partition, Mapping):
            raise UserError("got data sets of clients, and a partitioner; expected one of both")
        if {"by", "column"} & {*(partition or {})}:
            raise UserError("got data sets of clients, and how to deal one; expected one of both")
        return list(_of_clients(_named(datasets))), {**(partition or {}), **_NATURAL}
    if partition is not None and not isinstance(partition, Mapping):
        return list(_of_clients(_partitions(datasets, partition))), _NATURAL
    if partition is None and not dealt:
        raise UserError(f"got one data set; expected one a client, or how to deal it; {_TRY}")
    return list(_splits(datasets, None)), partition or {}


def _is_one(datasets: Any) -> bool:
    """Whether it is one data set, or something of which `Part` says that it is none."""
    from datasets import DatasetDict

    clients = isinstance(datasets, Mapping) and not isinstance(datasets, DatasetDict)
    return not clients and not isinstance(datasets, list | tuple)


def _named(datasets: Mapping[Any, Any] | Sequence[Any]) -> dict[str, Any]:
    pairs = datasets.items() if isinstance(datasets, Mapping) else enumerate(datasets)
    named = {str(name): rows for name, rows in pairs}
    if not named or len(named) < len(datasets) or not all(named):
        raise UserError(
            f"got {len(datasets)} data sets with {len(named)} names; expected at least one, each "
            f"with a name of its own; {_TRY}"
        )
    return named


def _of_clients(datasets: Mapping[str, Any]) -> Iterator[Part]:
    for client, rows in datasets.items():
        yield from _splits(rows, client)


def _splits(rows: Any, client: str | None) -> Iterator[Part]:
    """One part, or one of each split."""
    if isinstance(rows, dict):  # a DatasetDict is one
        yield from (Part(part, client, str(split)) for split, part in rows.items())
    else:
        yield Part(rows, client)


def _partitions(rows: Any, partitioner: Any) -> dict[str, Any]:
    """What a partitioner of flwr-datasets makes of a data set; it is left without one."""
    if not hasattr(partitioner, "load_partition"):
        raise UserError(
            f"got partition={partitioner!r}; expected settings, or a partitioner of flwr-datasets; "
            f"{_TRY}"
        )
    if isinstance(rows, dict):
        raise UserError("got splits for a partitioner; expected one Dataset; try rows['train']")
    if partitioner.is_dataset_assigned() and partitioner.dataset is not rows:
        raise UserError("got a partitioner of another data set; expected a new one")
    way = copy.copy(partitioner)
    if not way.is_dataset_assigned():
        way.dataset = rows
    try:
        dealt = {number: way.load_partition(number) for number in range(way.num_partitions)}
    except (LookupError, TypeError, ValueError) as error:
        kind = type(partitioner).__name__
        raise UserError(f"got a {kind} that cannot deal these rows: {error}") from error
    named = getattr(way, "partition_id_to_natural_id", {})
    return {str(named.get(number, number)): part for number, part in dealt.items()}
