"""Errors that are the user's to mend: one line, no traceback, exit code 2."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """What the user gave is wrong: the message says what was got, expected, and to try."""


class DivergenceError(UserError):
    """Training came to values that are not finite; a lower learning rate may mend it."""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message about a word that is not among the names; empty if none is like it."""
    near = get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
