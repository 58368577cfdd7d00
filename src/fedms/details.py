"""What a run tells of its clients beside scores: classes of their rows, and where gates send them.

Both are known where clients are simulated. A server whose sites are elsewhere does not learn them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fedms.core.routing import Routing
from fedms.core.rows import ClientData, Rows
from fedms.store.files import write_json, write_lines


def write_labels(folder: Path, classes: Sequence[str], clients: Sequence[ClientData]) -> None:
    """Names of classes, and of every client (class, rows) by split.

    Args:
        folder: of the run; gets `classes.json`, and `labels.jsonl` where there are clients.
        classes: by index.
        clients: that are here.
    """
    write_json(folder / "classes.json", list(classes))
    if clients:
        lines = ({"id": c.id, **_by_split(c)} for c in clients)
        write_lines(folder / "labels.jsonl", lines)


def write_routing(folder: Path, found: Mapping[str, Routing]) -> None:
    """One line a client with a gate (see `Routing`), as `gates.jsonl`; no file without gates."""
    if found:
        lines = ({"id": client, **asdict(routing)} for client, routing in found.items())
        write_lines(folder / "gates.jsonl", lines)


def _by_split(client: ClientData) -> dict[str, list[list[int]]]:
    splits = {"train": client.train, "val": client.val, "test": client.test}
    return {name: _counted(rows) for name, rows in splits.items()}


def _counted(rows: Rows) -> list[list[int]]:
    classes, counts = np.unique(rows.labels, return_counts=True)
    return [list(pair) for pair in zip(classes.tolist(), counts.tolist(), strict=True)]
