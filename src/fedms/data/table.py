"""A table of labelled examples: what every source is read into, and what clients are cut from."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["text", "image"]

_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def coded(values: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct values in order of their letters, and the place there of every one.

    As `np.unique` has it, for which all of them would be as long as the longest.
    """
    names = sorted(set(values))
    places = {name: i for i, name in enumerate(names)}
    return names, np.fromiter((places[value] for value in values), np.int64, len(values))


def natural_key(name: str) -> tuple[int, float, str]:
    """Sorting key: numbers first and by value ("9" before "10"), then other names by letters."""
    return (0, float(name), name) if _NUMBER.fullmatch(name) else (1, 0.0, name)


@dataclass(frozen=True, eq=False)
class Table:
    """One row per example, all columns of one length.

    Args:
        kind: what the inputs are.
        inputs: text (str), or undecoded images (bytes, path, or uint8 array: see `decode_image`).
        labels: class name of every row.
        split: "train", "val" or "test" of every row, or None where the data give no split.
        groups: natural client of every row (writer, author, domain), or None.
        dropped: rows of the source left out for their label, as empty, damaged or duplicates.
        origins: file or data set every row comes from, for error messages; None if unknown.
        numbers: 1-based number of every row in its origin, 0 where the origin is that one
            example; None for 1, 2, 3, ….

    Raises:
        ValueError: if a column has another length than the inputs.
    """

    kind: Kind
    inputs: Sequence[Any]
    labels: Sequence[str]
    split: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    dropped: int = 0
    origins: Sequence[str] | None = None
    numbers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "split", "groups", "origins", "numbers"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.inputs):
                raise ValueError(
                    f"got {len(column)} {name}; expected {len(self.inputs)}, one per input"
                )

    def __len__(self) -> int:
        return len(self.inputs)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Distinct labels, sorted; numbers by value."""
        return tuple(sorted(set(self.labels), key=natural_key))

    def where(self, row: int) -> str:
        """Names row `row` (from 0) by its place in its origin, for error messages."""
        number = row + 1 if self.numbers is None else self.numbers[row]
        origin = "the table" if self.origins is None else self.origins[row]
        return f"row {number} of {origin}" if number else origin

    def fingerprint(self) -> str:
        """Hash of inputs, labels, splits and groups."""
        found = hashlib.blake2b(digest_size=16)
        for column in (self.inputs, self.labels, self.split or (), self.groups or ()):
            found.update(f"{len(column)}\n".encode())
            for value in column:
                content = _content(value)
                found.update(f"{type(value).__name__} {len(content)}\n".encode() + content)
        return found.hexdigest()

    def alike(self, rows: Sequence[int]) -> list[Hashable]:
        """A key for each of `rows`, equal where inputs (text, bytes, pixels, or files) are.

        Of inputs whose length no other of `rows` has, that is all; the others are read and hashed.
        """
        lengths = [_length(self.inputs[row]) for row in rows]
        often = Counter(lengths)
        return [
            length if often[length] == 1 else _hash(self.inputs[row])
            for row, length in zip(rows, lengths, strict=True)
        ]

    def take(self, index: NDArray[np.int64]) -> Table:
        """The rows at `index`, in that order."""
        numbers = range(1, len(self) + 1) if self.numbers is None else self.numbers
        return replace(
            self,
            inputs=[self.inputs[i] for i in index],
            labels=[self.labels[i] for i in index],
            split=_at(self.split, index),
            groups=_at(self.groups, index),
            origins=_at(self.origins, index),
            numbers=_at(numbers, index),
        )


def _length(value: Any) -> int:
    """Of a text or of bytes, pixels or a file, in characters or bytes; a lost file's is −1."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Path):
        try:
            return value.stat().st_size
        except OSError:
            return -1
    return len(value if isinstance(value, bytes) else str(value))


def _hash(value: Any) -> bytes:
    try:
        content = _content(value)
    except OSError:
        content = str(value).encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def _content(value: Any) -> bytes:
    """Of an input: text, encoded bytes, pixels, or the file behind a path."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.ndarray):
        return f"{value.shape}".encode() + value.tobytes()
    if isinstance(value, Path):
        return value.read_bytes()
    return str(value).encode(errors="surrogatepass")


def _at(column: Sequence[Any] | None, index: NDArray[np.int64]) -> list[Any] | None:
    return None if column is None else [column[i] for i in index]
