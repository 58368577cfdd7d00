"""What a request may be at most, and how the service refuses."""

from __future__ import annotations

from dataclasses import dataclass

from fedms.core.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What a service takes.

    Args:
        body: bytes of a request's body.
        bodies: bytes of all bodies that are held at a time.
        inputs: examples of a request.
        characters: of a text.
        pixels: of a picture.
        batch: rows in a pass over the foundation model.
        waiting: rows that are read or wait for their turn; what comes beyond is told to come again.
        wait: seconds for which a batch waits for more rows once it has one. 0: what arrives while
            a batch is computed is the next one, so that nobody waits where there is no queue.
        patience: seconds in which a request's body must arrive.
    """

    body: int = 8_000_000
    bodies: int = 256_000_000
    inputs: int = 64
    characters: int = 20_000
    pixels: int = 16_000_000
    batch: int = 64
    waiting: int = 1024
    wait: float = 0.0
    patience: float = 30.0


class NotFoundError(UserError):
    """There is no such client."""


class OverloadedError(UserError):
    """More is asked than can be answered now."""


class DamagedError(UserError):
    """A client's model cannot be read; who asks can do nothing about that."""
