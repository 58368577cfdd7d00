"""A run's curves on the terminal, again and again while it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fedms.curves import curve, span
from fedms.progress import figure
from fedms.tables import console
from fedms.watching import Seen, look

_PAUSE = 0.5
"""Seconds between two looks."""
_LABEL = 10
"""Characters beside a curve."""
_STRIP = "▁▂▃▄▅▆▇█"


def follow(path: Path, *, once: bool = False, to: Console | None = None) -> None:
    """Draw a run until it is complete; once, where it is not on a terminal.

    Raises:
        UserError: if it is no run folder.
    """
    to = to or console()
    seen = look(path)
    if once or not to.is_terminal or seen.summary is not None:
        to.print(_drawn(seen, to), soft_wrap=True)
        return
    with Live(_drawn(seen, to), console=to, auto_refresh=False) as live:
        while seen.summary is None:
            time.sleep(_PAUSE)
            seen = look(path)
            live.update(_drawn(seen, to), refresh=True)


def _drawn(seen: Seen, to: Console) -> Text:
    return Text("\n".join(lines(seen, to.width, to.height)), no_wrap=True, overflow="crop")


def lines(seen: Seen, width: int, height: int) -> Iterator[str]:
    """What is shown of a run.

    Args:
        seen: the run.
        width: of a line, in characters.
        height: lines that there are; a curve takes at least two.
    """
    curves = seen.curves()
    yield f"{_state(seen)}: {seen.path}"
    high = max(2, min(6, (height - 4) // max(len(curves), 1) - 1))
    rounds = (1.0, max(2.0, float(len(seen.rounds))))
    for name, points in curves.items():
        unit = "bytes" if name == "bytes sent" else ""
        yield f"{name}: {_value(points[-1][1], unit)} after round {points[-1][0]}"
        values = [y for _, y in points]
        low, top = (_value(value, unit) for value in span(values))
        labels = [top * (min(values) < max(values)), *[""] * (high - 2), low]
        drawn = curve(points, rounds, max(width - _LABEL - 3, 8), high)
        for label, line in zip(labels, drawn, strict=True):
            yield f"{label:>{_LABEL}} ┤{line}"
    latest = sorted(seen.latest().values())
    if latest:
        room = max(width - 2 * _LABEL, 8)
        shown = [latest[i * len(latest) // room] for i in range(room)]
        shown = shown if len(latest) > room else latest
        yield f"{_counted(len(latest), 'client')}, personal, from worst to best:"
        yield f"{latest[0]:>{_LABEL}.3f} {_strip(shown)} {latest[-1]:.3f}"


def _state(seen: Seen) -> str:
    done = _counted(len(seen.rounds), "round")
    if seen.summary is not None:
        return f"complete, {done}"
    return f"{done} so far; nothing new for {seen.quiet:.0f} s" if seen.quiet > 5 else done


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _value(value: float, unit: str) -> str:
    if unit:
        return figure(value, unit)
    return f"{value:.3f}" if value != int(value) else f"{value:.0f}"


def _strip(values: list[float]) -> str:
    low, high = span(values)
    return "".join(_STRIP[min(int(8 * (v - low) / (high - low)), 7)] for v in values)
