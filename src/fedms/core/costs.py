"""What work cost, in sums that add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["cache", "train", "evaluate", "aggregate"]


@dataclass(frozen=True)
class Costs:
    """Costs of some work; adding keeps the greater of what is bytes.

    Args:
        flops: floating point operations of training, a multiplication and an addition being two;
            the filling of the cache included, evaluation left out. What a client costs does not
            depend on who is trained with it, but that a stack's texts are as long as its longest.
        peak_activation_bytes: the most that one client's step kept for its backward pass.
        cache_bytes: what the prefix cache held, in memory and in files; with workers, the largest.
        peak_device_bytes: the most that was allocated on an accelerator; None where there is none;
            with workers, the largest.
        seconds: wall clock by phase, summed over workers: filling caches, training steps,
            evaluation, and the server's screening and averaging.
    """

    flops: int = 0
    peak_activation_bytes: int = 0
    cache_bytes: int = 0
    peak_device_bytes: int | None = None
    seconds: Mapping[Phase, float] = field(default_factory=dict)

    def __add__(self, other: Costs) -> Costs:
        phases = {**self.seconds, **other.seconds}
        peaks = (self.peak_device_bytes, other.peak_device_bytes)
        return Costs(
            self.flops + other.flops,
            max(self.peak_activation_bytes, other.peak_activation_bytes),
            max(self.cache_bytes, other.cache_bytes),
            max((p for p in peaks if p is not None), default=None),
            {p: self.seconds.get(p, 0.0) + other.seconds.get(p, 0.0) for p in phases},
        )
