"""Curves in braille characters, each of which is a grid of two by four dots.

A page of code in place of a package: it is all that a terminal can show of a curve.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

Point = tuple[float, float]
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a character, by line and column of its dots."""
_EMPTY = 0x2800


def curve(
    points: Sequence[Point], across: tuple[float, float], width: int, height: int
) -> list[str]:
    """Lines of text with a curve through the points.

    Args:
        points: by their horizontal place, at least one; the vertical range is theirs.
        across: the horizontal range, first below last.
        width: of the curve, in characters.
        height: in lines.
    """
    low, high = span([y for _, y in points])
    cells = [[_EMPTY] * width for _ in range(height)]
    for x, y in _connected([_place(p, across, (low, high), width, height) for p in points]):
        cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return ["".join(map(chr, row)) for row in cells]


def span(values: Sequence[float]) -> tuple[float, float]:
    """The range of values; it begins at theirs where they are all equal."""
    low, high = min(values), max(values)
    return (low, high) if low < high else (low, low + 1.0)


def _place(
    point: Point, across: tuple[float, float], up: tuple[float, float], width: int, height: int
) -> tuple[int, int]:
    """Column and line of a point's dot, from the upper left."""
    x = (point[0] - across[0]) / (across[1] - across[0])
    y = (up[1] - point[1]) / (up[1] - up[0])
    return round(x * (2 * width - 1)), round(y * (4 * height - 1))


def _connected(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The dots, and those between one and the next."""
    yield places[0]
    for (x0, y0), (x1, y1) in pairwise(places):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for step in range(1, steps + 1):
            yield round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)
