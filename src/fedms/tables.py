"""What commands that look and change nothing show on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedms.holdings import Holdings, Shares
from fedms.progress import Terminal, figure

_MOST = 40
"""Clients in a table."""
_SHADES = " ░▒▓█"
"""Of a cell in a picture, by share; nothing is a dot."""
_LARGE = ("", "k", "M", "G", "T", "P", "E")


def console() -> Console:
    """Standard output, in colours only where it is a terminal and NO_COLOR is not set."""
    return Terminal(highlight=False)


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


_FIGURES = {
    "upload_bytes_per_client": ("sent by a client", "bytes"),
    "download_bytes_per_client": ("sent to a client", "bytes"),
    "upload_bytes": ("sent by all", "bytes"),
    "download_bytes": ("sent to all", "bytes"),
    "train_flops": ("training", "flops"),
    "peak_activation_bytes": ("activations of a step", "bytes"),
    "cache_bytes": ("prefix cache", "bytes"),
    "cache_disk_bytes": ("of it, in files while it runs", "bytes"),
    "run_folder_bytes": ("run folder", "bytes"),
    "trainable_parameters": ("parameters trained at most", "count"),
    "seconds": ("time, about", "seconds"),
}
"""Of an estimate: what they are, and in what."""


def show_estimate(found: Mapping[str, Any], to: Console | None = None) -> None:
    """What a run will cost, in all and by depth."""
    to = to or console()
    to.print(
        f"[bold]{found['method']}[/bold]: {found['clients']} clients, {found['rounds']} rounds; "
        f"model of {amount(found['model_bytes'], 'bytes')}, {found['precision']} on "
        f"{found['device']}",
        soft_wrap=True,
    )
    ends = ("least", "most")[found["exact"] :]
    table = Table("the whole run")
    for name in ends:
        table.add_column("" if found["exact"] else name, justify="right")
    for key, (what, unit) in _FIGURES.items():
        table.add_row(what, *(amount(found[end][key], unit) for end in ends))
    to.print(table)
    depths = Table("depth", *("parameters", "sent once", "a step", "activations", "cache"))
    keys = ("parameters", "upload_bytes", "step_flops", "activation_bytes", "cache_bytes")
    units = ("count", "bytes", "flops", "bytes", "bytes")
    for column in depths.columns:
        column.justify = "right"
    for row in found["depths"]:
        cells = (amount(row[k], unit) for k, unit in zip(keys, units, strict=True))
        depths.add_row(str(row["depth"]), *cells)
    to.print(depths)
    if found["cache_full"]:
        to.print(
            "The prefix cache has no room for all (runtime.cache_bytes, cache_disk_bytes); the "
            "rest is computed again every time.",
            soft_wrap=True,
        )
    low, high = found["deepest"]
    said = f"The run reaches depth {high}."
    if not found["exact"]:
        said = f"Validation decides when depth grows: it may reach {low} to {high}."
    to.print(
        f"{said} All is for one process that trains a client at a time; time is an estimate from "
        "short measurements on this machine.",
        soft_wrap=True,
    )


def amount(value: float, unit: str) -> str:
    """A figure as people read it."""
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "bytes":
        return figure(value, "bytes")
    if unit == "seconds":
        return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"
    steps = min(int(math.log10(max(value, 1)) / 3), len(_LARGE) - 1)
    return f"{value / 1000**steps:.1f} {_LARGE[steps]}FLOP"


def shortened(label: str) -> str:
    """A label, short enough for a line."""
    return label if len(label) <= 24 else label[:23] + "…"
