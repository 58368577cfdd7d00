"""What models are asked about on a command line: texts, images, files of them, standard input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fedms import data
from fedms.core.errors import UserError
from fedms.data.request import existing

FILES = (".csv", ".csv.gz", ".parquet")
"""Of examples, a row each."""
_TABLE, _IMAGE = "a .csv, .csv.gz or .parquet file", "an image file"
_ENDINGS = (
    *("csv", "parquet", "tsv", "txt", "text", "json", "jsonl", "xls", "xlsx", "pdf", "docx"),
    *("html", "zip", "png", "jpg", "jpeg", "gif", "bmp", "tif", "tiff", "webp"),
)
"""Of names of files, which texts of one word rarely have."""
_ALIKE = 0.66
"""One of three letters is another one, or in another place."""


def read_inputs(
    words: Sequence[str], lines: Iterable[str], kind: str, column: str, *, tables: bool = False
) -> data.Table:
    """Examples as they are given on a command line.

    Args:
        words: a csv or Parquet file; `-` for `lines`; for images files and folders of images; for
            texts anything else is the text itself, but what is or looks like another file.
        lines: of standard input.
        kind: `text` or `image`.
        column: of files, as `data.input`.
        tables: whether words are such files alone.

    Returns:
        What there is, in order. Empty lines are passed over, and empty rows of files, which
        `dropped` counts.

    Raises:
        UserError: if there are none, or a file cannot be read.
    """
    inputs: list[Any] = []
    origins: list[str] = []
    empty = 0
    for word in words:
        if word == "-":
            for number, line in enumerate(_decoded(lines), start=1):
                if text := line.rstrip("\n").strip():
                    inputs.append(existing(text, _IMAGE) if kind == "image" else line.rstrip("\n"))
                    origins.append(f"line {number} of standard input")
        elif word.endswith(FILES):
            table = data.load_inputs(Path(word), column, kind)
            there = [i for i, given in enumerate(table.inputs) if _is_there(given)]
            inputs += [table.inputs[i] for i in there]
            origins += [table.where(i) for i in there]
            empty += len(table) - len(there)
        elif tables:
            raise UserError(f"got --column with {word!r}; expected {_TABLE} that has it")
        elif kind == "image":
            files = _files(word)
            inputs += files
            origins += map(str, files)
        else:
            _expect_text(word)
            inputs.append(word)
            origins.append(repr(word))
    if not inputs:
        raise UserError(f"got no input; expected {kind}s, a file of them, or - for standard input")
    for text, origin in zip(inputs, origins, strict=True):
        if kind == "text" and not text.strip():
            raise UserError(f"got no text at {origin}; expected some; try removing it")
        if kind == "text" and not is_unicode(text):
            raise UserError(f"got bytes at {origin} that are no UTF-8; expected text in UTF-8")
    labels, numbers = [""] * len(inputs), [0] * len(inputs)
    of_kind: data.Kind = "image" if kind == "image" else "text"
    return data.Table(of_kind, inputs, labels, dropped=empty, origins=origins, numbers=numbers)


def _expect_text(word: str) -> None:
    """Make sure that a word of a command line is not meant as a file of which it is the name.

    Raises:
        UserError: if there is a file of this name, or its end is one of a file's or nearly so.
    """
    path = Path(word)
    if word and _exists(path):
        raise UserError(
            f"got {word!r}, which is a {'folder' if path.is_dir() else 'file of another kind'}; "
            f"expected a text, or {_TABLE}; try - for lines of standard input"
        )
    end = path.suffix[1:].lower()
    if len(word.split()) == 1 and len(end) > 2 and get_close_matches(end, _ENDINGS, 1, _ALIKE):
        try:
            existing(word, _TABLE)
        except UserError as error:
            raise UserError(f"{error}; if it is a text, try it on standard input (-)") from None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a name can be
        return False


def _is_there(given: Any) -> bool:
    """Whether a file's row has something in it."""
    if isinstance(given, str | bytes):
        return bool(given.strip() if isinstance(given, str) else given)
    return given is not None


def _decoded(lines: Iterable[str]) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError:
        raise UserError("got bytes on standard input that are no UTF-8; expected text") from None


def is_unicode(text: str) -> bool:
    """Whether a text has no half characters (lone surrogates), which tokenizers do not take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _files(word: str) -> list[Path]:
    """A file, or those of a folder."""
    if not word:
        raise UserError("got '' in place of an image; expected a file or a folder")
    path = existing(word, f"{_IMAGE}, or a folder of them")
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
