"""Who waits says now and then for what."""

from __future__ import annotations

import time
from collections.abc import Callable

from fedms.core.words import brief

_FIRST, _EVERY = 30.0, 60.0
"""Seconds until it is said first, and again."""


class Reminder:
    """Begins when it is made; whoever waits calls it as often as it looks."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._next = tell, time.monotonic() + _FIRST

    def __call__(self, text: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            self._tell(brief(text))
