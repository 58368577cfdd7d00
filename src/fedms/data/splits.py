"""Clients with train, validation and test rows of their own, as row numbers into a table.

Every client is tested on its own distribution: where the data give a split, the test rows of each
class are dealt in the proportions in which its training rows were dealt; where they give none, each
client's rows are split at random, each class in proportion. A row is in one split of one client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedms.core.errors import UserError
from fedms.core.rows import ClientSizes
from fedms.core.seeds import derive_seed, round_half_up
from fedms.data.apportion import apportion
from fedms.data.messages import listing
from fedms.data.partition import Partitioning, partition
from fedms.data.table import Table, coded, natural_key

Index = NDArray[np.int64]
_NONE: Index = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class ClientIndex:
    """One client's rows: ascending int64 row numbers into the table; train is never empty."""

    id: str
    train: Index
    val: Index
    test: Index


@dataclass(frozen=True, eq=False)
class Federation:
    """All clients of an experiment.

    Args:
        classes: labels of the rows that clients hold, in `Table.classes` order, each with a
            training row of some client or unseen client; or those that the configuration gives.
        clients: who trains.
        unseen: kept out of training, evaluated at the end.
        dropped_clients: natural clients left out by `min_rows` or `clients`.
        dropped_rows: their rows.
        own_test: clients whose test rows were split off their own training rows although other
            rows of the data are marked as test.
    """

    classes: tuple[str, ...]
    clients: tuple[ClientIndex, ...]
    unseen: tuple[ClientIndex, ...] = ()
    dropped_clients: int = 0
    dropped_rows: int = 0
    own_test: int = 0


def assign(
    table: Table,
    how: Partitioning,
    *,
    test_fraction: float = 0.2,
    val_fraction: float = 0.1,
    unseen_clients: int = 0,
    seed: int = 0,
) -> Federation:
    """Makes clients of a table; a pure function of its arguments.

    Rows without a split are partitioned and each client's are split. Otherwise the training rows
    are partitioned (and `how.min_rows` counts those); natural clients have their own rows of every
    split, for other clients test and validation rows are dealt as the training rows of their class
    were. Where the data have no test or validation rows, and for a natural client that has none,
    they are split off its training rows.

    Args:
        table: the examples.
        how: who holds what.
        test_fraction: share of a client's rows for test where they are split, 0 or more. Rounded
            half up per client; a systematic sample by class, in which every row has the same
            chance; but a client keeps a training row, and so does every class in the federation.
        val_fraction: share for validation, likewise, of the same rows before the test rows are
            taken out; together below 1.
        unseen_clients: so many clients, chosen by the seed, go to `unseen`; fewer than all.
        seed: of all that is random.

    Raises:
        UserError: if a fraction or count is out of range, the rows cannot be dealt as `how` says, a
            client has no training rows or the name `new`, or a class is found in test or validation
            rows alone.
    """
    _check_fractions(test_fraction, val_fraction)
    labels = coded(table.labels)[1]
    marked = _marked(table)
    dealt = _deal_train(table, marked["train"], how, seed)
    natural = how.by == "column"
    tests, vals = (
        _belonging(table, marked[name], dealt)
        if natural
        else _proportional(labels, marked[name], dealt, name, seed)
        for name in ("test", "val")
    )
    for client in dealt:
        _expect_name(client)
    keep = _one_per_class(labels, np.concatenate(list(dealt.values())), seed)
    clients, own_test = [], 0
    for client, rows in dealt.items():
        there = ClientIndex(client, rows, vals[client], tests[client])
        split_test = not len(there.test) and (natural or not len(marked["test"]))
        split_val = not len(there.val) and (natural or not len(marked["val"]))
        fractions = (test_fraction * split_test, val_fraction * split_val)
        clients.append(_completed(there, labels, keep, fractions, seed))
        own_test += bool(len(clients[-1].test) > len(there.test) and len(marked["test"]))
    return _federation(table, clients, how, unseen=unseen_clients, own_test=own_test, seed=seed)


def alone(
    table: Table, client: str, *, test_fraction: float = 0.2, val_fraction: float = 0.1, seed: int
) -> ClientIndex:
    """The rows of a table that is one client's, split as `assign` splits a natural client's.

    Where the table has rows of all three splits, they are as if other clients' rows were beside
    them. Where rows are split here, a class may have no training row left: others may have some.

    Args:
        table: the client's examples.
        client: its id.
        test_fraction: as for `assign`.
        val_fraction: likewise.
        seed: likewise.

    Raises:
        UserError: if a fraction is out of range, no row is for training, or its name is `new`.
    """
    _expect_name(client)
    _check_fractions(test_fraction, val_fraction)
    labels = coded(table.labels)[1]
    marked = _marked(table)
    there = ClientIndex(client, *(marked[name] for name in ("train", "val", "test")))
    fractions = (test_fraction * (not len(there.test)), val_fraction * (not len(there.val)))
    return _completed(there, labels, _NONE, fractions, seed)


def _expect_name(client: str) -> None:
    """Its models would stand for those of somebody who took no part (`fedms.use.NEW`)."""
    if client == "new":
        raise UserError(
            "got a client called 'new', which is what --client calls somebody who took no part; "
            "expected another name; try writing it otherwise in the rows, as 'New'"
        )


def _completed(
    there: ClientIndex, labels: Index, keep: Index, fractions: tuple[float, float], seed: int
) -> ClientIndex:
    """With fractions of the training rows for (test, val); `keep` stays."""
    rng = _rng(seed, "split", there.id)
    train, test, val = _split(labels, there.train, keep, fractions, rng)
    return ClientIndex(there.id, train, np.union1d(there.val, val), np.union1d(there.test, test))


def describe(federation: Federation, labels: Sequence[str]) -> list[ClientSizes]:
    """Sizes of every client, then of every unseen one; `labels` are those of the table."""
    return [
        ClientSizes(c.id, len(c.train), len(c.val), len(c.test), len({labels[i] for i in c.train}))
        for c in (*federation.clients, *federation.unseen)
    ]


def summary(federation: Federation, table: Table) -> str:
    """One line: clients, rows, smallest / median / largest size and number of classes, doubts."""
    sizes, unseen = describe(federation, table.labels), len(federation.unseen)
    text = spread(sizes, len(federation.classes), unseen=unseen)
    if table.dropped:
        text += f"; {table.dropped:,} rows left out, as data.drop_ says"
    if federation.dropped_clients:
        text += (
            f"; {federation.dropped_clients} clients of {federation.dropped_rows:,} rows left out"
        )
    for what, names in (("client", [c.id for c in sizes]), ("class", federation.classes)):
        text += _alike(what, names)
    if federation.own_test:
        text += f"; {federation.own_test} clients tested on rows split off their training rows"
    return text + _trained_on(federation, table)


def _alike(what: str, names: Sequence[str]) -> str:
    """Which names differ in case or spaces alone, if any: probably one meant twice."""
    met: dict[str, str] = {}
    pairs = []
    for name in (name for name in names if len(name) > 1):  # letters may be classes, of both cases
        first = met.setdefault("".join(name.casefold().split()), name)
        if first != name:
            pairs.append(f"{what} {name!r} beside {first!r}")
    more = f" (and {len(pairs) - 1:,} more)" if len(pairs) > 1 else ""
    return f"; {pairs[0]}{more}: one and the same?" if pairs else ""


def _trained_on(federation: Federation, table: Table) -> str:
    """How many test and validation rows have the input of somebody's training row, if any."""
    everyone = (*federation.clients, *federation.unseen)
    train, test, validation = (
        [int(row) for client in everyone for row in getattr(client, part)]
        for part in ("train", "test", "val")
    )
    keys = table.alike([*train, *test, *validation])
    trained = set(keys[: len(train)])
    text, start = "", len(train)
    for name, rows in (("test", test), ("validation", validation)):
        seen = sum(key in trained for key in keys[start : start + len(rows)])
        start += len(rows)
        if seen:
            text += f"; {seen:,} of {len(rows):,} {name} rows are also training rows"
    return f"{text}; try data.drop_duplicates=true" if text else ""


def spread(sizes: Sequence[ClientSizes], classes: int, *, unseen: int = 0) -> str:
    """The part of `summary` that sizes tell; `unseen` of the clients are that."""
    train, val, test, own = np.array([(s.train, s.val, s.test, s.classes) for s in sizes]).T
    text = (
        f"{len(sizes) - unseen} clients, {unseen} unseen; "
        f"{train.sum():,} train, {val.sum():,} val, {test.sum():,} test rows; "
        f"{_spread(train + val + test)} rows and {_spread(own)} of "
        f"{classes} classes per client (min/median/max)"
    )
    if untested := int((test == 0).sum()):
        have, count = ("clients have", "count") if untested > 1 else ("client has", "counts")
        text += f"; {untested} {have} no test rows, and {count} in no average"
    return text


def _spread(numbers: NDArray[np.int64]) -> str:
    return f"{numbers.min()}/{float(np.median(numbers)):g}/{numbers.max()}"


def _check_fractions(test: float, val: float) -> None:
    for name, fraction in (("test_fraction", test), ("val_fraction", val)):
        if not 0 <= fraction < 1:
            raise UserError(f"got {name}={fraction}; expected 0 to below 1; try {name}=0.1")
    if test + val >= 1:
        raise UserError(
            f"got test_fraction={test} and val_fraction={val}; expected a sum below 1, to leave "
            f"training rows; try test_fraction=0.2 and val_fraction=0.1"
        )


def _rng(seed: int, *purpose: str) -> np.random.Generator:
    """Independent random numbers for every purpose or client of a seed."""
    return np.random.default_rng(derive_seed(seed, *purpose))


def _marked(table: Table) -> dict[str, Index]:
    """Rows the data mark as train, val and test; all are train where there is no split."""
    split = np.asarray(["train"] * len(table) if table.split is None else table.split)
    marked = {name: np.flatnonzero(split == name) for name in ("train", "val", "test")}
    if not len(marked["train"]):
        raise UserError(
            f"got rows marked {listing(sorted(set(split.tolist())))}; expected some marked train; "
            f"try no split column"
        )
    return marked


def _deal_train(table: Table, train: Index, how: Partitioning, seed: int) -> dict[str, Index]:
    groups = None if table.groups is None else [table.groups[i] for i in train]
    parts = partition([table.labels[i] for i in train], groups, how, seed)
    dealt = {client: train[rows] for client, rows in parts.items()}
    untrained = [client for client, rows in dealt.items() if not len(rows)]
    if how.by == "column" and how.min_rows == 0 and (how.clients or len(table)) > len(dealt):
        untrained = sorted(set(table.groups or ()) - set(dealt), key=natural_key)
    if untrained:
        raise UserError(
            f"got client {untrained[0]!r} without training rows (and {len(untrained) - 1} more); "
            f"expected one or more each; try partition.min_rows=1, fewer clients or a larger alpha"
        )
    return dealt


def _belonging(table: Table, rows: Index, dealt: Mapping[str, Index]) -> dict[str, Index]:
    """Each natural client's own among `rows`."""
    assert table.groups is not None
    own: dict[str, list[int]] = {client: [] for client in dealt}
    for row in rows.tolist():
        if table.groups[row] in own:
            own[table.groups[row]].append(row)
    return {client: np.array(part, np.int64) for client, part in own.items()}


def _proportional(
    labels: Index, rows: Index, dealt: Mapping[str, Index], purpose: str, seed: int
) -> dict[str, Index]:
    """Deals `rows` class by class, in the proportions of the clients' training rows of it."""
    rng = _rng(seed, "deal", purpose)
    counts = _class_counts(labels, dealt)
    parts: dict[str, list[Index]] = {client: [] for client in dealt}
    for label in np.unique(labels[rows]):
        mine = rng.permutation(rows[labels[rows] == label])
        ends = np.cumsum(apportion(len(mine), counts[:, label], rng))
        for part, piece in zip(parts.values(), np.split(mine, ends[:-1]), strict=True):
            part.append(piece)
    return {client: np.sort(np.concatenate([_NONE, *part])) for client, part in parts.items()}


def _class_counts(labels: Index, dealt: Mapping[str, Index]) -> Index:
    """Rows of each class, `(clients, classes)`."""
    classes = int(labels.max()) + 1
    return np.stack([np.bincount(labels[rows], minlength=classes) for rows in dealt.values()])


def _one_per_class(labels: Index, rows: Index, seed: int) -> Index:
    """One random row of every class among `rows`: these stay training rows."""
    shuffled = _rng(seed, "keep").permutation(rows)
    return shuffled[np.unique(labels[shuffled], return_index=True)[1]]


def _split(
    labels: Index,
    rows: Index,
    keep: Index,
    fractions: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[Index, Index, Index]:
    """One client's rows as (train, test, val); `keep` and one row at least are train."""
    train, parts = rows, []
    for fraction in fractions:
        wanted = min(round_half_up(fraction * len(rows)), len(train) - 1)
        parts.append(_systematic(labels, np.setdiff1d(train, keep), wanted, rng))
        train = np.setdiff1d(train, parts[-1])
    return train, parts[0], parts[1]


def _systematic(labels: Index, rows: Index, wanted: int, rng: np.random.Generator) -> Index:
    """A systematic sample: every k-th row from a random start, with rows of a class side by side.

    Every row has the same chance, the only one of its class too, so that the sample misses what a
    new row would miss; and a class gets its share, rounded up or down.
    """
    wanted = min(wanted, len(rows))
    if not wanted:
        return _NONE
    shuffled = rng.permutation(rows)
    rank = rng.permutation(int(labels.max()) + 1)
    by_class = shuffled[np.argsort(rank[labels[shuffled]], kind="stable")]
    at = (np.arange(wanted) + rng.random()) * (len(rows) / wanted)
    return np.sort(by_class[at.astype(np.int64)])


def _federation(
    table: Table,
    clients: Sequence[ClientIndex],
    how: Partitioning,
    *,
    unseen: int,
    own_test: int,
    seed: int,
) -> Federation:
    rows = np.concatenate([part for c in clients for part in (c.train, c.val, c.test)])
    trained = {table.labels[i] for c in clients for i in c.train}
    held = {table.labels[i] for i in rows}
    for label in sorted(held - trained, key=natural_key):
        raise UserError(
            f"got class {label!r} in validation or test rows alone; expected training rows of "
            f"every class; try data.drop_labels for it ({len(held - trained)} such), or no split "
            "column"
        )
    if not 0 <= unseen < len(clients):
        raise UserError(
            f"got partition.unseen_clients={unseen} of {len(clients)} clients; expected 0 to "
            f"{len(clients) - 1}; try fewer, or more clients"
        )
    chosen = set(_rng(seed, "unseen").choice(len(clients), size=unseen, replace=False).tolist())
    natural = len(set(table.groups or ())) if how.by == "column" else len(clients)
    return Federation(
        classes=tuple(label for label in table.classes if label in held),
        clients=tuple(c for k, c in enumerate(clients) if k not in chosen),
        unseen=tuple(c for k, c in enumerate(clients) if k in chosen),
        dropped_clients=natural - len(clients),
        dropped_rows=len(table) - len(rows),
        own_test=own_test,
    )
