"""One door to every source: read, leave out what is not wanted, check, and sample.

The order is fixed: rows with unwanted labels go first (so that they may carry anything in the other
columns), then empty rows, damaged images and duplicates; split names are normalised; last comes
`max_rows`.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedms.core.errors import UserError
from fedms.core.seeds import derive_seed
from fedms.data.apportion import apportion
from fedms.data.folders import read_digits, read_folder
from fedms.data.given import Part, read_given
from fedms.data.images import decode_image
from fedms.data.messages import listing, nearest
from fedms.data.readers import read_csv, read_hub, read_parquet
from fedms.data.request import SPLITS, Request
from fedms.data.table import Table

SOURCES = ("csv", "parquet", "folder", "hub", "digits", "memory")
KINDS = ("auto", "text", "image")


def load_table(
    source: str,
    path: str | Path | None = None,
    *,
    input: str = "text",
    label: str = "label",
    split: str | None = None,
    group: str | None = None,
    kind: str = "auto",
    drop_labels: Collection[str] = (),
    drop_empty: bool = False,
    drop_damaged: bool = False,
    drop_duplicates: bool = False,
    max_rows: int | None = None,
    seed: int = 0,
    config: str | None = None,
    classes: Collection[str] = (),
    parts: Sequence[Part] = (),
) -> Table:
    """Reads labelled examples and checks them.

    Args:
        source: "csv", "parquet", "folder" (one sub-folder per class), "hub", "digits" or "memory".
        path: file or folder; for "hub" the id of a data set; unused for "digits".
        input: column with the text or the image, or text columns joined with "+" (by newline, empty
            ones left out). Like `label` not used by "folder" and "digits".
        label: column with the class.
        split: column with train, val or test (or training, valid, validation, dev). A column that
            is empty everywhere counts as none.
        group: column with the natural client.
        kind: "auto", "text" or "image"; with "image" a text column holds paths, relative to the
            file's folder.
        drop_labels: classes to leave out; with `classes` there need be no rows of them here.
        drop_empty: leave out rows without text instead of refusing them.
        drop_damaged: leave out images that cannot be read, instead of refusing them when they are
            needed; they are decoded for this.
        drop_duplicates: keep only the first of the rows with equal input.
        max_rows: keep at most so many rows, a random subset with the proportions of the splits;
            the order is kept.
        seed: of that subset.
        config: configuration of a data set with several, for "hub".
        classes: that rows may have, of which any number may be there; empty: whatever they have.
        parts: data sets for "memory". Either all name a client, and these are the groups, or none.

    Raises:
        UserError: if something is missing, unreadable or empty, a class is none of `classes`, no
            row is left, or fewer than 2 classes are where these are not given.
    """
    _check_options(source, kind, max_rows)
    want = Request(input, label, split, group, kind)
    table = read_given(parts, want) if parts else _read(source, path, want, config)
    if not len(table):
        raise UserError(f"got no rows in {_name(source, path)}; expected some; try another path")
    rows = len(table)
    table = _without_labels(table, drop_labels, expected=not classes)
    table = _without_empty(table, drop_empty)
    if drop_damaged and table.kind == "image":
        table = table.take(_where([_is_whole(table, row) for row in range(len(table))]))
    if drop_duplicates:
        table = _without_duplicates(table)
    table = replace(table, dropped=rows - len(table), split=_normal_split(table))
    if max_rows is not None and max_rows < len(table):
        table = _sample(table, max_rows, seed)
    _check_classes(table, _name(source, path), classes)
    return table


def load_inputs(path: Path, input: str, kind: str = "auto") -> Table:
    """Reads the examples of a csv or Parquet file, without labels.

    Args:
        path: .csv, .csv.gz or .parquet.
        input: as for `load_table`.
        kind: likewise.

    Raises:
        UserError: if it cannot be read, or has no such column.
    """
    want = Request(input, None, None, None, kind)
    return read_parquet(path, want) if path.suffix == ".parquet" else read_csv(path, want)


def _check_options(source: str, kind: str, max_rows: int | None) -> None:
    for option, value, known in (("source", source, SOURCES), ("kind", kind, KINDS)):
        if value not in known:
            raise UserError(
                f"got {option}={value!r}; expected one of {listing(known)}; "
                f"try {nearest(str(value), known)}"
            )
    if max_rows is not None and max_rows < 2:
        raise UserError(f"got max_rows={max_rows}; expected 2 or more; try leaving it out")


def _read(source: str, path: str | Path | None, want: Request, config: str | None) -> Table:
    if source == "csv":
        return read_csv(path, want)
    if source == "parquet":
        return read_parquet(path, want)
    if source == "folder":
        return read_folder(path, want)
    if source == "memory":
        raise UserError(
            'got data.source = "memory", rows that a Python program gave to its run; expected them '
            "from there; try FedMS.resume, or another data.source"
        )
    if source == "hub":
        return read_hub(path, want, config)
    return read_digits(want)


def _name(source: str, path: str | Path | None) -> str:
    return source if path is None else repr(str(path))


def _where(mask: Sequence[bool] | NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.flatnonzero(np.asarray(mask, dtype=bool)).astype(np.int64)


def _without_labels(table: Table, unwanted: Collection[str], *, expected: bool) -> Table:
    if not unwanted:
        return table
    known = table.classes
    for label in unwanted:
        if expected and label not in known:
            raise UserError(
                f"got drop_labels with {label!r}, which no row has; expected labels of the data; "
                f"try {nearest(label, known)}"
            )
    drop = frozenset(unwanted)
    return table.take(_where([label not in drop for label in table.labels]))


def _without_empty(table: Table, drop: bool) -> Table:
    """Refuses rows without a label, a client or an input; rows without text may be dropped."""
    for name, column in (
        ("label (data.label)", table.labels),
        ("client (partition.column)", table.groups),
    ):
        empty = _where([not value for value in column or ()])
        if len(empty):
            raise UserError(
                f"got no {name} at {table.where(empty[0])}{_others(len(empty) - 1)}; "
                f"expected one for every row; try filling it in or removing the row"
            )
    if table.kind == "image":
        return table
    filled = _where([bool(text.strip()) for text in table.inputs])
    if len(filled) == len(table) or drop:
        return table.take(filled)
    first = int(np.setdiff1d(np.arange(len(table)), filled)[0])
    raise UserError(
        f"got no text (data.input) at {table.where(first)}"
        f"{_others(len(table) - len(filled) - 1)}; "
        f"expected some; try data.drop_empty=true, or joining columns as in data.input=subject+text"
    )


def _others(count: int) -> str:
    return f" (and {count:,} more row{'s' if count > 1 else ''})" if count else ""


def _is_whole(table: Table, row: int) -> bool:
    try:
        decode_image(table.inputs[row], table.where(row))
    except UserError:
        return False
    return True


def _without_duplicates(table: Table) -> Table:
    first: dict[Hashable, int] = {}
    for row, key in enumerate(table.alike(range(len(table)))):
        first.setdefault(key, row)
    return table.take(np.fromiter(first.values(), np.int64, len(first)))


def _normal_split(table: Table) -> list[str] | None:
    if table.split is None or not any(table.split):
        return None
    names = [name.strip().lower() for name in table.split]
    unknown = sorted({raw for raw, n in zip(table.split, names, strict=True) if n not in SPLITS})
    if unknown:
        raise UserError(
            f"got split {listing(unknown)}; expected train, val or test; try renaming them, "
            f"data.drop_labels for the classes they hold, or no split column"
        )
    return [SPLITS[name] for name in names]


def _sample(table: Table, rows: int, seed: int) -> Table:
    """A random subset in the old order; every split keeps its share of the rows."""
    rng = np.random.default_rng(derive_seed(seed, "sample"))
    split = np.asarray(table.split if table.split is not None else [""] * len(table))
    names, counts = np.unique(split, return_counts=True)
    shares = apportion(rows, counts, rng)
    chosen = [
        rng.choice(_where(split == name), size=share, replace=False)
        for name, share in zip(names, shares, strict=True)
    ]
    return table.take(np.sort(np.concatenate(chosen)))


def _check_classes(table: Table, name: str, classes: Collection[str]) -> None:
    for label in sorted(set(table.classes) - set(classes)) if classes else ():
        row = list(table.labels).index(label)
        raise UserError(
            f"got class {label!r} at {table.where(row)}, which is none of the federation's "
            f"{len(classes)} classes; expected one of them; try {nearest(label, classes)}, or "
            f"data.drop_labels for it"
        )
    if len(table.classes) < (1 if classes else 2):
        raise UserError(
            f"got {len(table)} rows with {len(table.classes)} class {listing(table.classes)} from "
            f"{name}; expected {'a class' if classes else '2 classes'} or more; try another label "
            f"column, or fewer rows left out"
        )
