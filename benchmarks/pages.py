"""Tables in markdown, and the blocks of a page where they stand.

A block is what is between `<!-- begin NAME -->` and `<!-- end NAME -->`; all of it is generated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedms.bench import Row
from fedms.progress import figure


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells as a table in markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def cells(row: Row) -> list[str]:
    """What was measured, fedms' figure, the peer's and their ratio, or dashes."""
    ratio = "–" if row.ratio is None or math.isnan(row.ratio) else f"{row.ratio:.2f}"
    return [row.measure, figure(row.ours, row.unit), figure(row.peer, row.unit), ratio]


def write(page: Path, name: str, text: str) -> None:
    """Put text into a block of a page, in place of what is there.

    Raises:
        ValueError: if the page has no such block.
    """
    before, _, after = _parts(page, name)
    page.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def read(page: Path, name: str) -> str:
    """What stands in a block of a page.

    Raises:
        ValueError: if the page has no such block.
    """
    return _parts(page, name)[1].strip("\n")


def _parts(page: Path, name: str) -> tuple[str, str, str]:
    """The page up to the block, what is in it, and the page after it."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, begins, rest = page.read_text(encoding="utf-8").partition(begin)
    inside, ends, after = rest.partition(end)
    if not (begins and ends):
        raise ValueError(f"got no block {name!r} in {page.name}; expected {begin} … {end}")
    return before + begin, inside, end + after
