"""Who holds which rows: IID, skewed by label or by size, or the data's own clients.

The partitioners are those of flwr-datasets, run on a small data set of labels alone; this is the
only module that imports it, and only when called, because it pulls in plotting libraries, which
takes seconds. Three of its habits are mended here: IID parts are contiguous (rows are shuffled
first), shards leave out the remainder of the division (those rows are dealt afterwards), and a
Dirichlet draw that leaves a client too small gives up after ten tries (more are made, up to a
bound; then an error says why).
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedms.core.errors import UserError
from fedms.core.seeds import derive_seed
from fedms.data.apportion import apportion
from fedms.data.messages import listing, nearest
from fedms.data.table import coded, natural_key

By = Literal["iid", "dirichlet", "shards", "quantity", "column"]
WAYS = ("iid", "dirichlet", "shards", "quantity", "column")
_DIRICHLET_RESTARTS = 10

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Partitioning:
    """How rows are dealt to clients.

    Args:
        by: "iid" (equal parts at random), "dirichlet" (each class divided over the clients by a
            Dirichlet draw: label skew), "shards" (rows sorted by label, cut into equal shards, each
            client gets a few: few classes per client), "quantity" (sizes by a Dirichlet draw, rows
            at random: size skew), or "column" (the data's natural clients).
        clients: how many; with "column" at most so many, the largest (ties by name), 0 for all.
        alpha: concentration for "dirichlet" and "quantity", above 0; a small one is skewed.
        shards_per_client: for "shards", 1 or more.
        min_rows: the fewest rows of a client, 0 or more. Natural clients with fewer are left out;
            the other ways deal again until all have them, or refuse.

    Raises:
        UserError: if a value is out of range.
    """

    by: By = "iid"
    clients: int = 10
    alpha: float = 0.5
    shards_per_client: int = 2
    min_rows: int = 1

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise UserError(
                f"got by={self.by!r}; expected one of {listing(WAYS)}; "
                f"try {nearest(str(self.by), WAYS)}"
            )
        least = 0 if self.by == "column" else 1
        _require("clients", self.clients, self.clients >= least, f"{least} or more", "10")
        finite = math.isfinite(self.alpha) and self.alpha > 0
        _require("alpha", self.alpha, finite, "a number above 0", "0.5")
        shards = self.shards_per_client
        _require("shards_per_client", shards, shards >= 1, "1 or more", "2")
        _require("min_rows", self.min_rows, self.min_rows >= 0, "0 or more", "1")


def partition(
    labels: Sequence[str], groups: Sequence[str] | None, how: Partitioning, seed: int
) -> dict[str, Index]:
    """Deals rows to clients.

    Args:
        labels: class of every row.
        groups: natural client of every row, needed by "column" alone.
        how: the way to deal.
        seed: of all that is random; "column" is not.

    Returns:
        Client id ("0", "1", …, or the group's name) to its rows, ascending int64. No row is in two
        clients; every row is in one, but for natural clients left out by `min_rows` or `clients`.

    Raises:
        UserError: if the rows cannot be dealt like this.
    """
    if how.by == "column":
        return _natural(groups, how)
    if how.clients * max(how.min_rows, 1) > len(labels):
        raise UserError(
            f"got clients={how.clients} with at least {max(how.min_rows, 1)} rows each; expected "
            f"at most the {len(labels)} rows there are to deal; try fewer clients, or a smaller "
            f"min_rows"
        )
    if how.by == "iid":
        return _iid(labels, how, seed)
    if how.by == "dirichlet":
        return _dirichlet(labels, how, seed)
    if how.by == "shards":
        return _shards(labels, how, seed)
    return _quantity(labels, how, seed)


def _require(name: str, got: float, holds: bool, expected: str, example: str) -> None:
    if not holds:
        raise UserError(f"got {name}={got}; expected {expected}; try {name}={example}")


def _iid(labels: Sequence[str], how: Partitioning, seed: int) -> dict[str, Index]:
    return _deal(_partitioners().IidPartitioner(how.clients), labels, _order(len(labels), seed))


def _dirichlet(labels: Sequence[str], how: Partitioning, seed: int) -> dict[str, Index]:
    order = _order(len(labels), seed)
    for restart in range(_DIRICHLET_RESTARTS):
        draw = _partitioners().DirichletPartitioner(
            how.clients,
            "label",
            float(how.alpha),
            min_partition_size=how.min_rows,
            seed=derive_seed(seed, "dirichlet", restart),
        )
        try:
            return _deal(draw, labels, order)
        except ValueError as error:
            if "attempts" not in str(error):  # else ten draws, all with too small a client
                raise
    raise UserError(
        f"got alpha={how.alpha} for clients={how.clients} and {len(labels)} rows, where "
        f"{_DIRICHLET_RESTARTS * 10} draws left some client with fewer than min_rows="
        f"{how.min_rows}; expected all to reach it; try a larger alpha, fewer clients or "
        f"a smaller min_rows"
    )


def _shards(labels: Sequence[str], how: Partitioning, seed: int) -> dict[str, Index]:
    shards = how.clients * how.shards_per_client
    size = len(labels) // shards
    if size == 0 or size * how.shards_per_client < how.min_rows:
        raise UserError(
            f"got {shards} shards ({how.clients} clients with {how.shards_per_client}) for "
            f"{len(labels)} rows and min_rows={how.min_rows}; expected {how.min_rows} rows or more "
            f"per client and 1 or more per shard; try fewer clients or shards_per_client"
        )
    order = _order(len(labels), seed)
    dealt, left = order[: shards * size], order[shards * size :]
    way = _partitioners().ShardPartitioner(
        how.clients, "label", how.shards_per_client, seed=derive_seed(seed, "shards")
    )
    return _deal_left(_deal(way, labels, dealt), labels, left)


def _deal_left(parts: Mapping[str, Index], labels: Sequence[str], left: Index) -> dict[str, Index]:
    """Each row left over by equal shards goes to the smallest client that has its class."""
    rows = {client: part.tolist() for client, part in parts.items()}
    classes = {client: {labels[row] for row in part} for client, part in rows.items()}
    for row in left.tolist():
        holders = [client for client in rows if labels[row] in classes[client]] or list(rows)
        rows[min(holders, key=lambda client: len(rows[client]))].append(row)
    return {client: np.array(sorted(part), np.int64) for client, part in rows.items()}


def _quantity(labels: Sequence[str], how: Partitioning, seed: int) -> dict[str, Index]:
    rng = np.random.default_rng(derive_seed(seed, "quantity"))
    least = max(how.min_rows, 1)
    share = rng.dirichlet(np.full(how.clients, float(how.alpha)))
    sizes = least + apportion(len(labels) - how.clients * least, share, rng)
    return _deal(_partitioners().SizePartitioner(sizes.tolist()), labels, _order(len(labels), seed))


def _natural(groups: Sequence[str] | None, how: Partitioning) -> dict[str, Index]:
    if groups is None:
        raise UserError(
            "got by='column' for data without a column of clients; expected one; "
            "try naming the column, or by='dirichlet'"
        )
    names, codes = coded(groups)
    counts = np.bincount(codes)
    enough = [k for k in range(len(names)) if counts[k] >= how.min_rows]
    if not enough:
        raise UserError(
            f"got min_rows={how.min_rows}, which none of {len(names)} natural clients has "
            f"(the largest: {counts.max(initial=0)}); expected one or more to have it; "
            f"try a smaller min_rows"
        )
    enough.sort(key=lambda k: (-counts[k], natural_key(names[k])))
    kept = np.asarray(enough[: how.clients or None])
    rows = np.flatnonzero(np.isin(codes, kept)).astype(np.int64)
    way = _partitioners().NaturalIdPartitioner("label")
    parts = _deal(way, groups, rows)
    named = {names[way.partition_id_to_natural_id[int(k)]]: part for k, part in parts.items()}
    return {name: named[name] for name in sorted(named, key=natural_key)}


def _partitioners() -> Any:
    import flwr_datasets.partitioner

    return flwr_datasets.partitioner


def _order(rows: int, seed: int) -> Index:
    return np.random.default_rng(derive_seed(seed, "order")).permutation(rows)


def _deal(way: Any, labels: Sequence[str], rows: Index) -> dict[str, Index]:
    """Runs a partitioner on `rows` in their order; gives row numbers in ascending order."""
    from datasets import Dataset

    way.dataset = Dataset.from_dict({"row": rows, "label": coded(labels)[1][rows]})
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        warnings.simplefilter("ignore")
        return {str(k): _rows_of(way.load_partition(k)) for k in range(way.num_partitions)}


def _rows_of(part: Any) -> Index:
    return np.sort(np.asarray(part[:]["row"], dtype=np.int64))
