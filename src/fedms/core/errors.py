"""Errors that are the user's to mend: one line, no traceback, exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """What the user gave is wrong: the message says what was got, expected, and to try."""


class DivergenceError(UserError):
    """Training came to values that are not finite; a lower learning rate may mend it."""
