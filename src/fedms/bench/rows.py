"""The rows that measures give, and how two works are timed beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fedms.models.meter import wait


@dataclass(frozen=True)
class Row:
    """One figure beside another, both from one run.

    Args:
        measure: what was measured.
        ours: of fedms, median over the repeats.
        peer: of the peer, or None where fedms stands alone.
        peer_name: what the peer is.
        ratio: `ours / peer`: below 1, fedms takes less.
        unit: of both.
        repeats: measurements behind each median, alternating between fedms and peer.
    """

    measure: str
    ours: float
    peer: float | None
    peer_name: str | None
    ratio: float | None
    unit: str
    repeats: int

    @classmethod
    def of(
        cls,
        measure: str,
        ours: float,
        unit: str,
        repeats: int,
        peer: tuple[str, float] | None = None,
    ) -> Row:
        """A row with its ratio; `peer` is its name and figure."""
        name, figure = peer or (None, None)
        return cls(measure, ours, figure, name, ours / figure if figure else None, unit, repeats)


def alternate(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
) -> dict[str, float]:
    """Median seconds of every work; they take turns, so that a busy machine is busy for all.

    Each is done twice before, unmeasured, and ends when the device has done all that it was told.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
        work()
    wait(device)
    for _ in range(repeats):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            wait(device)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}
