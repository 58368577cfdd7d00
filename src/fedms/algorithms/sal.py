"""SAL, sparsely activated LoRA: which blocks' adapters are trained, and when there are more.

The abstract says that low-rank matrices are activated progressively while the foundation model is
frozen. Reconstructed: activation runs from the output towards the input (only that order lets the
backward pass stop early and keeps everything below constant), and what triggers it. Three triggers:

- `queue`, a capability queue: the last `queue` validation scores. When it is full and the newest is
  less than `epsilon` above the oldest, `step` more blocks are activated and the queue is emptied.
- `schedule`: `step` more blocks after every `every` rounds.
- `all`: all blocks from the start; plain LoRA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Trigger = Literal["queue", "schedule", "all"]


@dataclass(frozen=True)
class Sal:
    """When depth grows.

    Args:
        trigger: see the module.
        start: active blocks at first, at least 1.
        step: blocks added at a time, at least 1.
        queue: scores in the capability queue, at least 2.
        epsilon: the gain over the queue, as a fraction of rows, below which more is activated.
        every: rounds between activations of `schedule`, at least 1.
    """

    trigger: Trigger = "queue"
    start: int = 1
    step: int = 1
    queue: int = 3
    epsilon: float = 0.002
    every: int = 2

    def first_depth(self, blocks: int) -> int:
        """Active blocks before the first round, of a model of `blocks` blocks."""
        return blocks if self.trigger == "all" else min(self.start, blocks)

    def grow(
        self,
        depth: int,
        scores: tuple[float, ...],
        score: float | None,
        *,
        rounds: int,
        blocks: int,
    ) -> tuple[int, tuple[float, ...]]:
        """Depth and queue after a round.

        Args:
            depth: active blocks in that round.
            scores: the queue before it, oldest first.
            score: its validation accuracy; None (no validation rows) leaves the queue as it is.
            rounds: complete rounds, this one included.
            blocks: blocks of the model, the greatest depth.
        """
        if self.trigger == "all" or depth >= blocks:
            return depth, ()
        if self.trigger == "schedule":
            return min(depth + self.step * (rounds % self.every == 0), blocks), ()
        if score is None:
            return depth, scores
        scores = (*scores, score)[-self.queue :]
        if len(scores) == self.queue and scores[-1] - scores[0] < self.epsilon:
            return min(depth + self.step, blocks), ()
        return depth, scores
