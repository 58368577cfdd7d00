"""Reads sources with columns into a raw `Table`: values as they stand, nothing checked or dropped.

Values stay text: "NA", "null" and "007" in a CSV file are themselves; only blanks around labels,
splits and clients are taken off. Images stay undecoded.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from fedms.core.errors import UserError, did_you_mean
from fedms.data.messages import listing, reason
from fedms.data.request import SPLITS, Request, existing, unreadable
from fedms.data.table import Kind, Table


@dataclass(frozen=True)
class _Frame:
    """Columns of one file: what is in them, and where its relative image paths start."""

    names: Sequence[str]
    column: Callable[[str], list[Any]]
    is_image: Callable[[str], bool]
    origin: str
    base: Path | None = None


def read_csv(path: str | Path | None, want: Request) -> Table:
    """A .csv or .csv.gz file with a header, or a folder of them: train.csv, test.csv are splits.

    Columns are between commas; or semicolons or tabs, where only those give the columns asked for.
    """
    return _read_files(path, (".csv", ".csv.gz"), partial(_csv_frame, want=want), want)


def read_parquet(path: str | Path | None, want: Request) -> Table:
    """A Parquet file, or a folder of them; images as bytes or as structs of bytes and path."""
    return _read_files(path, (".parquet",), _parquet_frame, want)


def read_hub(path: str | Path | None, want: Request, config: str | None) -> Table:
    """A data set of the Hugging Face hub, or a local folder `datasets.load_dataset` can read.

    Its splits become the split column unless `want.split` names a column. No remote code is run.
    """
    import datasets

    if path is None:
        raise UserError("got no path; expected a hub id or a local folder; try path='owner/name'")
    try:
        parts = datasets.load_dataset(str(path), name=config)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"got data set {str(path)!r} that cannot be loaded ({reason(error)}); expected a hub "
            f"id or a local folder; try checking its name, its config and the network"
        ) from error
    tables = [
        from_frame(dataset_frame(part, f"{path} ({name})"), want, split=str(name))
        for name, part in parts.items()
    ]
    return concat(tables, str(path))


def _read_files(
    path: str | Path | None,
    suffixes: tuple[str, ...],
    frame: Callable[[Path], _Frame],
    want: Request,
) -> Table:
    root = existing(path, f"a {' or '.join(suffixes)} file, or a folder of them")
    if not root.is_dir():
        return from_frame(frame(root), want, split=None)
    seen = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    files = [p for p in seen if p.name.endswith(suffixes)]
    if not files:
        inside = listing(p.name for p in seen)
        raise UserError(
            f"got folder {str(root)!r} with {inside}; expected {' or '.join(suffixes)} files; "
            f"try data.source=folder if its sub-folders are classes, or the path of one file"
        )
    splits = _splits_of(files) if want.split is None else [None] * len(files)
    tables = [from_frame(frame(f), want, s) for f, s in zip(files, splits, strict=True)]
    return concat(tables, str(root))


def _splits_of(files: Sequence[Path]) -> list[str | None]:
    """Split named at the start of each file's name, or all None where no file names one."""
    words = [re.split(r"[-_.]", file.name.lower())[0] for file in files]
    found = [word if word in SPLITS else None for word in words]
    if any(found) and not all(found):
        raise UserError(
            f"got files {listing(f.name for f in files)}, of which only some name a split; "
            f"expected all or none; try the path of one file, or moving the others away"
        )
    return found


_SEPARATORS = (",", ";", "\t")
"""Of spreadsheets, by language."""


def _csv_frame(path: Path, want: Request) -> _Frame:
    import pandas as pd

    read = partial(pd.read_csv, path, dtype=str, na_filter=False, encoding="utf-8")
    try:
        headers = ((mark, read(sep=mark, nrows=0).columns) for mark in _SEPARATORS)
        fitting = (mark for mark, names in headers if {*_wanted(want, names)} <= {*names})
        separator = next(fitting, ",")
        data = read(sep=separator)
    except (OSError, ValueError, EOFError, zlib.error) as error:  # pandas' errors are ValueErrors
        raise unreadable(path, error, "a CSV file in UTF-8 with a header") from error
    if not isinstance(data.index, pd.RangeIndex):
        raise UserError(
            f"got rows with more fields than the header's {len(data.columns)} in {str(path)!r}; "
            f"expected one field per column; try quoting fields that contain {separator!r}"
        )
    if any(column.str.contains(r"[\r\n]").any() for _, column in data.items()):
        _expect_whole_quotes(path, separator)
    names = [str(name) for name in data.columns]
    return _Frame(names, lambda c: list(data[c]), lambda c: False, path.name, path.parent)


def _expect_whole_quotes(path: Path, separator: str) -> None:
    """That no field in quotes goes over several lines and ends in the midst of one.

    Such a quote is a slip, and pandas makes one row of all these lines without a word.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            records, last, more = csv.reader(file, delimiter=separator, strict=True), 0, True
            while more:
                first = last + 1
                try:
                    more = next(records, None) is not None
                except csv.Error as error:
                    if records.line_num > first:
                        raise UserError(
                            f"got a stray quote in lines {first} to {records.line_num} of "
                            f"{path.name}, which makes them one row; expected fields that are in "
                            "quotes as a whole, with quotes in them doubled; try removing it"
                        ) from error
                last = records.line_num
    except UnicodeDecodeError:
        pass  # compressed in another way that pandas knows
    finally:
        csv.field_size_limit(limit)


def _parquet_frame(path: Path) -> _Frame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error, "a Parquet file") from error

    def column(name: str) -> list[Any]:
        try:
            values = file.read(columns=[name]).column(name)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, error, "a Parquet file") from error
        return _arrow_values(values, _class_names(schema.metadata).get(name))

    def is_image(name: str) -> bool:
        return _arrow_is_image(schema.field(name).type)

    return _Frame(schema.names, column, is_image, path.name, path.parent)


def dataset_frame(part: Any, origin: str) -> _Frame:
    """Columns of a `datasets.Dataset`; classes by their names, where it has these."""
    import datasets

    names = {c: f.names for c, f in part.features.items() if isinstance(f, datasets.ClassLabel)}
    arrow = part.with_format("arrow")

    def column(name: str) -> list[Any]:
        return _arrow_values(arrow.select_columns([name])[:].column(name), names.get(name))

    def is_image(name: str) -> bool:
        return _arrow_is_image(part.features.arrow_schema.field(name).type)

    return _Frame(list(part.features), column, is_image, origin)


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Names of the ClassLabel columns, from what `datasets` writes into a Parquet file's schema."""
    try:
        features = dict(json.loads((metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return {}
    claims = {name: f for name, f in features.items() if isinstance(f, dict)}
    return {name: f.get("names") for name, f in claims.items() if f.get("_type") == "ClassLabel"}


def _arrow_values(values: Any, names: Any) -> list[Any]:
    """Values of a column; of whole numbers, those of a list of `names`."""
    from pyarrow import types

    items: list[Any] = values.to_pylist()
    if not isinstance(names, list) or not types.is_integer(values.type):
        return items
    return [names[i] if i is not None and 0 <= i < len(names) else i for i in items]


def _arrow_is_image(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def from_frame(frame: _Frame, want: Request, split: str | None) -> Table:
    """The table that is asked for; all rows are of one split, unless a column names it."""
    inputs = _inputs(want, frame.names)
    for name in _wanted(want, frame.names):
        if name not in frame.names:
            raise UserError(
                f"got column {name!r}, which {frame.origin} does not have; expected one of "
                f"{listing(frame.names)}{did_you_mean(name, frame.names)}"
            )
        if frame.names.count(name) > 1:
            raise UserError(
                f"got {frame.names.count(name)} columns {name!r} in {frame.origin}; expected one; "
                f"try renaming the others"
            )
    kind = _frame_kind(frame, inputs, want.kind)
    found = _images(frame, inputs[0]) if kind == "image" else _joined(frame, inputs)
    labels = [""] * len(found) if want.label is None else _names(frame, want.label)
    splits = None if split is None else [split] * len(labels)
    return Table(
        kind=kind,
        inputs=found,
        labels=labels,
        split=_names(frame, want.split) if want.split is not None else splits,
        groups=None if want.group is None else _names(frame, want.group),
        origins=[frame.origin] * len(labels),
        numbers=range(1, len(labels) + 1),
    )


def _inputs(want: Request, names: Iterable[str]) -> list[str]:
    """A column's name may have a plus sign in it."""
    return [want.input] if want.input in names else want.input.split("+")


def _wanted(want: Request, names: Iterable[str]) -> list[str]:
    """Columns that must be there."""
    others = (want.label, want.split, want.group)
    return [*_inputs(want, names), *(name for name in others if name is not None)]


def _frame_kind(frame: _Frame, inputs: Sequence[str], asked: str) -> Kind:
    images = [name for name in inputs if frame.is_image(name)]
    if asked == "text" and images:
        raise UserError(
            f"got kind='text' for column {images[0]!r} of {frame.origin}, which holds bytes; "
            f"expected text; try kind='image'"
        )
    if asked != "image" and not images:
        return "text"
    if len(inputs) > 1:
        raise UserError(
            f"got input {'+'.join(inputs)!r} for images; expected one column; try {inputs[0]!r}"
        )
    return "image"


def _names(frame: _Frame, name: str) -> list[str]:
    """Of classes, splits or clients: blanks around them are slips."""
    return [text.strip() for text in _texts(frame, name)]


def _texts(frame: _Frame, name: str) -> list[str]:
    """The column as text; missing values, NaN among them, are empty."""
    try:
        return [_text(value) for value in frame.column(name)]
    except UnicodeDecodeError:
        raise UserError(
            f"got bytes in column {name!r} of {frame.origin} that are no UTF-8; expected text"
        ) from None


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    return "" if _missing(value) else str(value)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _joined(frame: _Frame, names: Sequence[str]) -> list[str]:
    columns = [_texts(frame, name) for name in names]
    if len(columns) == 1:
        return columns[0]
    return ["\n".join(t for t in row if t.strip()) for row in zip(*columns, strict=True)]


def _images(frame: _Frame, name: str) -> list[Any]:
    """Bytes where there are bytes, else a path; relative paths start at the file's folder.

    Missing images are None, which `decode_image` refuses with the row's number.
    """

    def item(value: Any) -> Any:
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        return (frame.base or Path()) / value if isinstance(value, str) and value else value

    return [item(value) for value in frame.column(name)]


def concat(tables: Sequence[Table], origin: str) -> Table:
    """The tables below each other; their kinds and columns are the same by construction."""
    if len({table.kind for table in tables}) > 1:
        raise UserError(
            f"got text and images in the files of {origin!r}; expected one kind; try one file"
        )

    def joined(columns: Iterable[Sequence[Any] | None]) -> list[Any]:
        return list(chain.from_iterable(column or () for column in columns))

    first = tables[0]
    return Table(
        kind=first.kind,
        inputs=joined(t.inputs for t in tables),
        labels=joined(t.labels for t in tables),
        split=None if first.split is None else joined(t.split for t in tables),
        groups=None if first.groups is None else joined(t.groups for t in tables),
        origins=joined(t.origins for t in tables),
        numbers=joined(t.numbers for t in tables),
    )
