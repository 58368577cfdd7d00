"""What passes through a model cost by their sizes, from a few rows of each kind.

A pass of a kind is really done, on a few rows, when it is first asked for: forward and, where
something trains, backward. FLOPs and saved bytes are linear in rows and at most quadratic in
tokens, so that a handful of such passes tells those of any size. Seconds are measured at the size
that was asked for, while the time that was given for it lasts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedms.core.costs import Costs
from fedms.core.rows import Rows
from fedms.models.learner import ModelLearner
from fedms.models.meter import polynomial
from fedms.models.prefix import Room

Work = Callable[[ModelLearner, Rows], Costs]
"""Does a pass with a learner and some rows, and says what it cost, its seconds among it."""
_PLENTY = 10**15


@dataclass
class _Price:
    """Of one kind of pass: its law, two points in time, and how much was asked of it."""

    law: NDArray[np.float64]
    small: tuple[int, float]
    full: tuple[int, float] | None = None
    steps: int = 0
    flops: int = field(default=0)

    def at(self, rows: int, tokens: int) -> tuple[int, int]:
        """FLOPs and saved bytes."""
        flops, saved = polynomial((rows, tokens)) @ self.law
        return round(float(flops)), round(float(saved))

    def seconds(self, usual: float) -> float:
        """Of all that was asked: so much a pass and so much a FLOP (`usual`, if not measured)."""
        slope = usual
        if self.full and self.full[0] > self.small[0]:
            slope = max(self.full[1] - self.small[1], 0.0) / (self.full[0] - self.small[0])
        return self.steps * max(self.small[1] - slope * self.small[0], 0.0) + slope * self.flops


class Tariff:
    """Prices of passes through one model.

    Args:
        learner: with the model. Its rows and caches are not touched.
        sample: rows as they will come, of which the longest is taken.
        seconds: for measuring time; what has not been measured by then is inferred from the rest.
    """

    def __init__(self, learner: ModelLearner, sample: Rows, seconds: float) -> None:
        size = max(learner.training.batch_size, 3)
        parts = learner.backbone, learner.slots, learner.head
        settings = replace(learner.training, batch_size=size), learner.mixing
        self._probes = {
            kept: ModelLearner(*parts, *settings, Room(_PLENTY * kept)) for kept in (False, True)
        }
        lengths = learner.backbone.lengths(sample)
        self._texts = lengths is not None
        longest = 0 if lengths is None else int(lengths.argmax())
        self._row = sample.take(np.array([longest]))
        self._longest = 1 if lengths is None else int(lengths.max())
        self._prices: dict[Hashable, _Price] = {}
        self._left = seconds
        self.measuring = 0.0
        """Seconds that passes took which were done to be measured."""

    def charge(
        self, kind: Hashable, rows: int, tokens: int, work: Work, *, kept: bool = False
    ) -> Costs:
        """What a pass costs that is of this kind and size.

        Args:
            kind: must tell apart passes whose costs differ by more than their sizes.
            rows: of the batch.
            tokens: of its rows, as they are padded; 1 where rows are alike.
            work: does such a pass, if the kind is new.
            kept: whether it has what the prefix cache keeps.
        """
        if kind not in self._prices:
            began = time.perf_counter()
            self._prices[kind] = self._measured(rows, tokens, work, self._probes[kept])
            self.measuring += time.perf_counter() - began
        price = self._prices[kind]
        flops, saved = price.at(rows, tokens)
        price.steps, price.flops = price.steps + 1, price.flops + flops
        return Costs(flops=flops, peak_activation_bytes=saved)

    def state(self, boundary: int) -> tuple[int, int] | None:
        """Tokens and width of what enters a block, with the adapters that slots hold now."""
        probe = self._probes[True]
        if probe.prefixes.state is None:
            probe.prefixes.keep(self._few(1, self._longest), boundary, "")
        return probe.prefixes.state

    def seconds(self) -> dict[str, float]:
        """Of all that was charged since the last call, by the first word of its kind."""
        points = [price.full for price in self._prices.values() if price.full]
        usual = sum(s for _, s in points) / max(sum(flops for flops, _ in points), 1)
        found: dict[str, float] = {}
        for kind, price in self._prices.items():
            word = str(kind[0] if isinstance(kind, tuple) else kind)
            found[word] = found.get(word, 0.0) + price.seconds(usual)
            price.steps = price.flops = 0
        return found

    def _measured(self, rows: int, tokens: int, work: Work, probe: ModelLearner) -> _Price:
        sizes = self._small_sizes()
        done = [work(probe, self._few(*size)) for size in sizes]
        counted = np.array([(c.flops, c.peak_activation_bytes) for c in done], dtype=float)
        law = _solved(np.array([polynomial(size) for size in sizes]), counted)
        small = done[0].flops, sum(done[0].seconds.values())
        full, began = None, time.perf_counter()
        if self._left > 0:
            cost = work(probe, self._few(rows, tokens))
            full = cost.flops, sum(cost.seconds.values())
        self._left -= time.perf_counter() - began
        return _Price(law, small, full)

    def _small_sizes(self) -> list[tuple[int, int]]:
        """Enough of them to tell the law: two numbers of rows, three of tokens where they vary."""
        if not self._texts:
            return [(1, 1), (2, 1)]
        longest = self._probes[True].backbone.padded(self._longest)
        lengths = sorted({max(-(-longest * part // 4), 2) for part in (1, 2, 4)})
        padded = sorted({self._probes[True].backbone.padded(length) for length in lengths})
        return [(count, length) for length in padded for count in (2, 3)]

    def _few(self, rows: int, tokens: int) -> Rows:
        """New rows of so many tokens, one of them shorter, as batches of texts have them."""
        if not self._texts:
            return self._row.take(np.zeros(rows, dtype=np.int64))
        columns: dict[str, Any] = {}
        for name, column in self._row.columns.items():
            ids = np.resize(column[0], tokens)
            columns[name] = [ids[: max(tokens - (i == rows - 1), 1)] for i in range(rows)]
        return Rows(columns, np.resize(self._row.labels, rows))


def _solved(terms: NDArray[Any], counted: NDArray[Any]) -> NDArray[np.float64]:
    """The law by which counts follow from terms."""
    scale = np.abs(terms).max(0)
    law = np.linalg.lstsq(terms / scale, counted, rcond=None)[0]
    return np.asarray(law / scale[:, None])
