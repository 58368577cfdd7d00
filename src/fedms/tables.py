"""What commands that look and change nothing show on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedms.holdings import Holdings, Shares

_MOST = 40
"""Clients in a table."""
_SHADES = " ░▒▓█"
"""Of a cell in a picture, by share; nothing is a dot."""


def console() -> Console:
    """Standard output, in colours only where it is a terminal and NO_COLOR is not set."""
    return Console(highlight=False)


def show_holdings(found: Holdings, to: Console | None = None) -> None:
    """Who holds what: a table, a picture, and how far clients are from one another."""
    to = to or console()
    facts = found.facts()
    to.print(found.summary, markup=False, soft_wrap=True)
    table = Table("client", box=None, pad_edge=False)
    for name in ("train", "val", "test", "classes", "largest class", "its share", "divergence"):
        table.add_column(name, justify="right")
    for name, client in zip(found.names[:_MOST], facts["clients"], strict=False):
        table.add_row(
            escape(name),
            *(f"{client[count]:,}" for count in ("train", "val", "test", "classes")),
            escape(client["largest_class"]),
            f"{client['largest_share']:.2f}",
            f"{client['divergence']:.3f}",
        )
    to.print(table)
    if len(found.sizes) > _MOST:
        to.print(f"… and {len(found.sizes) - _MOST} more clients")
    to.print()
    for line in picture(found.names[:_MOST], found.classes, found.shares[:_MOST], to.width):
        to.print(Text(line, no_wrap=True, overflow="crop"), soft_wrap=True)
    to.print(
        "\ndivergence: Jensen-Shannon, in bits, of a client's classes from those of all that "
        "train: 0 alike, 1 nothing in common",
        soft_wrap=True,
    )
    between = facts["divergence_between_clients"]
    if between is not None:
        to.print(f"between two clients, in the mean over all pairs: {between:.3f}")


def picture(names: Sequence[str], classes: Sequence[str], shares: Shares, width: int) -> list[str]:
    """Lines with a row a client and a column a class, darker for a larger share of its rows.

    Args:
        names: of clients.
        classes: their labels; neighbours share a column where there are more than fit.
        shares: `(clients, classes)`.
        width: of a line, in characters.
    """
    margin = min(max(map(len, names)), 20) + 2
    room = max(width - margin - 2, 10)
    each = -(-len(classes) // room)  # classes a column
    cells = np.add.reduceat(shares, np.arange(0, len(classes), each), axis=1)
    wide = 2 if 2 * cells.shape[1] <= room else 1
    levels = np.ceil(4 * np.sqrt(cells / cells.max())).astype(int)
    lines = [
        f"{name[:20]:<{margin}}"
        + "".join(("·" + " " * (wide - 1) if not i else _SHADES[i] * wide) for i in row)
        for name, row in zip(names, levels, strict=True)
    ]
    first, last = shortened(classes[0]), shortened(classes[-1])
    per = f", {each} a column" if each > 1 else ""
    scale = " ".join(
        f"{_SHADES[i]} to {cells.max() * (i / 4) ** 2:.0%}" for i in range(1, len(_SHADES))
    )
    head = f"{'':<{margin}}classes {first} … {last}{per}"
    return [head, *lines, f"{'':<{margin}}of a client's rows: · none {scale}"]


def shortened(label: str) -> str:
    """A label, short enough for a line."""
    return label if len(label) <= 24 else label[:23] + "…"
