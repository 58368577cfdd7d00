"""A figure of a run for notebooks, made without pyplot: nothing global changes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_COLOURS = {"global": "#0072b2", "local": "#e69f00", "personal": "#009e73"}
"""Told apart by colour-blind readers too (Okabe and Ito)."""
_LONGEST = 40
"""Clients that are told apart by their names."""


class Shown(Figure):
    """A figure that notebooks show inline without further ado."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=100)
        return content.getvalue()


def overview(rounds: Sequence[Mapping[str, Any]], clients: Sequence[Mapping[str, Any]]) -> Shown:
    """Accuracy by round, and of every client's models.

    Args:
        rounds: as `Result` has them.
        clients: likewise.
    """
    figure = Shown(figsize=(10, 3.5), layout="constrained")
    first, second = figure.subplots(1, 2)
    _by_round(first, rounds)
    _by_client(second, clients)
    for axes in (first, second):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    first.set_ylabel("accuracy")
    return figure


def _by_round(axes: Axes, rounds: Sequence[Mapping[str, Any]]) -> None:
    _line(axes, rounds, "validation_accuracy", "validation", marker=".", color="#999999")
    for role, colour in _COLOURS.items():
        _line(axes, rounds, f"test_accuracy_{role}", f"test, {role}", marker="o", color=colour)
    second = [r["round"] for r in rounds if r["stage"] == 2]
    if second and second[0] > 1:
        axes.axvline(second[0] - 0.5, color="#999999", linestyle=":", label="stage 2")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")


def _line(
    axes: Axes, rounds: Sequence[Mapping[str, Any]], key: str, label: str, **look: Any
) -> None:
    points = [(r["round"], r[key]) for r in rounds if key in r]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **look)


def _by_client(axes: Axes, clients: Sequence[Mapping[str, Any]]) -> None:
    places = range(len(clients))
    for role, colour in _COLOURS.items():
        found = [client.get(f"test_accuracy_{role}") for client in clients]
        points = [(x, y) for x, y in zip(places, found, strict=True) if y is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o", label=role, color=colour, alpha=0.7)
    if len(clients) <= _LONGEST:
        names = [client["id"] for client in clients]
        axes.set_xticks(list(places), names, rotation=45, parse_math=False)
    axes.set_xlabel("client")
