"""Figures as people read them."""

from __future__ import annotations

import math


def size(count: float) -> str:
    """Bytes in decimal units."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def operations(count: float) -> str:
    """Floating point operations, in decimal units."""
    power = min(int(math.log10(count)) // 3, 6) if count >= 1 else 0
    prefix = ("", "k", "M", "G", "T", "P", "E")[power]
    return f"{count / 1000**power:.3g} {prefix}FLOP"


def duration(seconds: float) -> str:
    """Seconds, and minutes or hours where there are many."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
