"""What a run's files say while it goes on; nothing is locked, and nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from fedms.store.files import read_lines
from fedms.store.run_folder import RunFolder

ROLES = ("personal", "global")
"""Of models whose test accuracy is shown, if they are there."""
_ROUND = {"round", "stage", "client_depths", "validation", "upload_bytes", "download_bytes"}
"""What a line of a round must have to be shown."""


@dataclass(frozen=True)
class Seen:
    """A run as it is now.

    Args:
        path: its folder.
        rounds: lines of `rounds.jsonl` that are whole, in order.
        clients: lines of `clients.jsonl` that are whole.
        summary: of a complete run, else None.
        quiet: seconds since its files changed.
    """

    path: Path
    rounds: Sequence[dict[str, Any]]
    clients: Sequence[dict[str, Any]]
    summary: dict[str, Any] | None
    quiet: float

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """By name, values after rounds, counted from 1; without those that have none."""
        sent = accumulate(r["upload_bytes"] + r["download_bytes"] for r in self.rounds)
        found: dict[str, list[tuple[int, float | None]]] = {
            "validation accuracy": self._each(itemgetter("validation")),
            **{f"test accuracy, {role}": self._each(partial(_mean, role)) for role in ROLES},
            "depth": self._each(_depth),
            "bytes sent": [(r["round"] + 1, s) for r, s in zip(self.rounds, sent, strict=True)],
        }
        known = {n: [(x, y) for x, y in points if y is not None] for n, points in found.items()}
        return {name: points for name, points in known.items() if points}

    def _each(
        self, value: Callable[[dict[str, Any]], float | None]
    ) -> list[tuple[int, float | None]]:
        return [(line["round"] + 1, value(line)) for line in self.rounds]

    def latest(self) -> dict[str, float]:
        """Every client's personal test accuracy when it was scored last."""
        scored = {c["id"]: (c.get("test") or {}).get("personal") for c in self.clients}
        return {client: score for client, score in scored.items() if score is not None}

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "folder": str(self.path),
            "finished": self.summary is not None,
            "rounds": len(self.rounds),
            "quiet_seconds": self.quiet,
            "curves": self.curves(),
            "clients": self.latest(),
        }


def look(path: Path) -> Seen:
    """A run, running or complete.

    Raises:
        UserError: if it is no run folder.
    """
    folder = RunFolder.open(path)
    summary = folder.summary()  # first: what is read after it is complete if this is
    files = [path / "rounds.jsonl", path / "clients.jsonl"]
    rounds, clients = (
        [line for line in read_lines(file) if isinstance(line, dict) and needed <= line.keys()]
        for file, needed in zip(files, (_ROUND, {"id"}), strict=True)
    )
    changed = max(file.stat().st_mtime for file in [folder.config, *files] if file.exists())
    return Seen(path, rounds, clients, summary, max(time.time() - changed, 0.0))


def _mean(role: str, line: dict[str, Any]) -> float | None:
    scores = (line.get("test") or {}).get(role)
    return None if scores is None else scores["mean"]


def _depth(line: dict[str, Any]) -> float | None:
    """The median of clients'; None where nothing is trained."""
    return median(line["client_depths"]) if line["stage"] and line["client_depths"] else None
