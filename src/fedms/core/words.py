"""Words from elsewhere, as terminals and logs may have them: names in data can hold anything."""

from __future__ import annotations

import re

_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029"  # control characters, and ends of lines
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"  # directions; halves of pairs
)
_LONGEST = 300


def printable(text: str) -> str:
    """The same lines, with a mark for characters that steer terminals or turn text around."""
    return _STEERING.sub("\ufffd", text)


def one_line(text: str) -> str:
    """Printable characters only, in one line."""
    return "".join(c if c.isprintable() else " " for c in text)


def brief(text: object) -> str:
    """Words from elsewhere, short, in one line, and nothing that moves a terminal's cursor."""
    return one_line(str(text))[:_LONGEST]
