"""Plots: of a comparison, accuracies with intervals, and against cost; and of who holds what."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedms.compare.runs import Result
from fedms.compare.scores import Spread, by_method
from fedms.compare.variants import VARIANTS
from fedms.store.files import write_bytes

_COLOURS = {
    "reference": "#999999",
    "one global model": "#0072b2",
    "personal": "#e69f00",
    "ours": "#009e73",
}
"""By group; told apart by colour-blind readers too (Okabe and Ito)."""
_NAMES = 150
"""The most names along an axis."""


def write(folder: Path, results: Sequence[Result]) -> None:
    """Write `accuracy.svg` and `cost.svg`."""
    for name, figure in (("accuracy", _accuracy(results)), ("cost", _cost(results))):
        drawing = io.BytesIO()
        figure.savefig(drawing, format="svg")
        write_bytes(folder / f"{name}.svg", drawing.getvalue())


def holdings(
    path: Path, clients: Sequence[str], classes: Sequence[str], counts: NDArray[Any]
) -> None:
    """Write a picture of `(clients, classes)` rows: darker for a larger share of a client's."""
    tall, wide = (min(1.5 + 0.25 * count, 40) for count in counts.shape)
    figure = Figure(figsize=(max(wide, 5), max(tall, 3)), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True)
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
    for axis, names in ((axes.xaxis, classes), (axes.yaxis, clients)):
        every = -(-len(names) // _NAMES)
        axis.set_ticks(np.arange(0, len(names), every), [str(n)[:24] for n in names[::every]])
    axes.tick_params(axis="x", labelrotation=90)
    axes.set_xlabel("class")
    axes.set_ylabel("client")
    figure.colorbar(drawn, label="share of the client's training rows")
    drawing = io.BytesIO()
    figure.savefig(drawing, format=path.suffix[1:].lower())
    write_bytes(path, drawing.getvalue())


def _accuracy(results: Sequence[Result]) -> Figure:
    """A line a method: mean over clients with its interval, and the worst decile."""
    methods = by_method(results)
    figure = Figure(figsize=(8, 1 + 0.35 * len(methods)), layout="constrained")
    axes = figure.subplots()
    for place, (name, found) in enumerate(reversed(methods.items())):
        colour = _COLOURS[VARIANTS[name].group]
        mean = Spread.of([r.test["mean"] for r in found])
        worst = Spread.of([r.test["worst_decile"] for r in found])
        axes.errorbar(mean.mean, place, xerr=mean.half or 0, fmt="o", color=colour, capsize=3)
        axes.plot(worst.mean, place, "<", color=colour, alpha=0.6)
    titles = [VARIANTS[name].title.replace("*", "") for name in reversed(methods)]
    axes.set_yticks(range(len(methods)), titles)
    axes.set_xlabel("test accuracy: mean over clients (dot), worst decile (triangle)")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _cost(results: Sequence[Result]) -> Figure:
    """Accuracy after rounds against what they cost, of the first seed of every method."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key, scale, label in zip(
        figure.subplots(1, 2),
        ("bytes", "flops"),
        (1e6, 1e12),
        ("MB sent", "training TFLOPs"),
        strict=True,
    ):
        for name, found in by_method(results).items():
            if VARIANTS[name].run:
                continue
            points = found[0].record.points
            axes.plot(
                [getattr(p, key) / scale for p in points],
                [p.test for p in points],
                marker=".",
                color=_COLOURS[VARIANTS[name].group],
                linewidth=2 if name == "fedms" else 1,
                label=VARIANTS[name].title.replace("*", ""),
            )
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy, mean over clients")
    if figure.axes[0].lines:
        figure.legend(loc="outside right center", fontsize="small")
    return figure
