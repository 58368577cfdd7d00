"""Words from elsewhere, as terminals and logs may have them: names in data can hold anything."""

from __future__ import annotations

_JOINERS = "\u200c\u200d"
"""They show nothing and belong to words of some languages, and to emoji."""
_ELSE = "\ufffd"


def printable(text: str) -> str:
    """The same lines, with a mark for characters that steer terminals or turn text around."""
    if text.isprintable():
        return text
    kept = "\n\t" + _JOINERS
    return "".join(c if c.isprintable() or c in kept else _ELSE for c in text)


def one_line(text: str) -> str:
    """Printable characters only, in one line."""
    return "".join(c if c.isprintable() else " " for c in text)
