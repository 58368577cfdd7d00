"""Seeds and cohorts as functions of (seed, purpose, round, client): no global random state.

A run that is resumed, run on other machines or in another order draws the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive_seed(0, "client", round, client_id)`.

    Different purposes give independent streams; the same purpose always gives the same seed.
    """
    words = "\x1f".join(f"{type(word).__name__}:{word}" for word in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest()) >> 1


def draw_cohort(
    clients: Sequence[str], cohort: float | int, seed: int, round: int, attempt: int = 0
) -> tuple[str, ...]:
    """The clients of a round, in the order of `clients`, without replacement.

    Args:
        clients: all client ids.
        cohort: a fraction of the clients (float in (0, 1], rounded, at least one) or a number of
            clients (int >= 1, at most all of them).
        seed: the run's seed.
        round: rounds of training before (`RoundPlan.trained`), so that methods that gather
            something first have the cohorts of others.
        attempt: how often the round was tried before, with other cohorts.

    Raises:
        ValueError: if there are no clients or `cohort` is out of range.
    """
    if not clients:
        raise ValueError("got no clients; expected at least one")
    if cohort <= 0 or (isinstance(cohort, float) and cohort > 1):
        raise ValueError(f"got cohort {cohort}; expected a fraction in (0, 1] or a number >= 1")
    size = round_half_up(cohort * len(clients)) if isinstance(cohort, float) else cohort
    size = max(1, min(size, len(clients)))
    again = (attempt,) if attempt else ()
    rng = np.random.default_rng(derive_seed(seed, "cohort", round, *again))
    chosen = rng.permutation(len(clients))[:size]
    return tuple(clients[i] for i in sorted(chosen))


def round_half_up(value: float) -> int:
    """To the nearest whole number, halves upwards (Python's `round` goes to even)."""
    return int(value + 0.5)
