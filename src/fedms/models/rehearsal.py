"""A learner that does all but compute, so that a run can be rehearsed before it is performed.

In the place of a `ModelLearner`, it has the run's own code decide what is sent, stored, trained,
scored and kept. Only passes through the model are left out, and charged by a `Tariff`. Features are
random, what trains moves a little, and every score is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedms.core import calibration
from fedms.core.algorithm import Fit, Score, View
from fedms.core.costs import Costs
from fedms.core.rows import ClientData, Rows, Split
from fedms.core.seeds import derive_seed
from fedms.models.adapters import AdapterSlots
from fedms.models.backbone import Backbone
from fedms.models.learner import ModelLearner
from fedms.models.meter import Meter
from fedms.models.prefix import Kept, PrefixCache, Room
from fedms.models.resident import PREDICT_BATCH
from fedms.models.stack import Trainee
from fedms.models.tariff import Tariff

_MOVE = 1e-3


class Rehearsal(ModelLearner):
    """See the module.

    Args:
        real: the learner in whose place it is; both have one model.
        room: of the prefix cache that is kept account of.
        tariff: what passes cost.
    """

    def __init__(self, real: ModelLearner, room: Room, tariff: Tariff) -> None:
        parts = real.backbone, real.slots, real.head, real.training, real.mixing
        super().__init__(*parts, room)
        self._tariff = tariff
        self.prefixes: Ledger = Ledger(real.backbone, real.slots, room, self.meter, tariff)

    def fit(self, fits: Sequence[Fit], pace: int = 0) -> list[View]:
        """Charges every step; what trains is moved."""
        return [self._fit(fit, pace) for fit in fits]

    def _fit(self, fit: Fit, pace: int) -> View:
        with self.meter.phase("cache"):
            one = Trainee(self, fit)
        for epoch in range(fit.epochs):
            self._epoch(one, epoch, derive_seed(pace, "epoch", epoch))
        with torch.no_grad():
            for tensor in (*one.expert.values(), *one.gate.values()):
                if tensor.requires_grad:
                    tensor.add_(_MOVE)
        return one.trained()

    def _epoch(self, one: Trainee, epoch: int, pace: int) -> None:
        with self.meter.phase("train"):
            for index in one.batches(one.rows, self.training.batch_size, epoch, pace):
                tokens = 1 if one.lengths is None else int(one.lengths[index].max())
                self.meter.charge(self.step(one, len(index), tokens))
        if self.mixing.data == "val" and one.constants is not None and one.fit.gate:
            with self.meter.phase("cache"):
                kept = one.prefix(self, one.gate_rows)
                with self.slots.holding({n: t[None] for n, t in one.adapters.items()}):
                    self.forward(one.gate_rows, kept)

    def step(self, one: Trainee, rows: int, longest: int) -> Costs:
        """What a step of a client costs, with rows of so many tokens at most."""
        tokens = _padded(self.backbone, longest)

        def work(probe: ModelLearner, few: Rows) -> Costs:
            nothing = few.take(np.array([], dtype=np.int64))
            client = replace(one.fit.data, train=few, val=nothing, test=nothing)
            fit = replace(one.fit, data=client, epochs=1)
            probe.fit([fit])  # fills caches
            probe.spent()
            probe.fit([fit])
            done = probe.spent()
            return replace(done, seconds={"train": done.seconds["train"]})

        blocks = tuple(self.slots.blocks_of(one.adapters))
        kept = one.kept is not None
        kind = ("train", one.form, one.kept and one.kept.boundary, blocks)
        return self._tariff.charge(kind, rows, tokens, work, kept=kept)

    def forward(self, rows: Rows, kept: Kept | None, shares: Tensor | None = None) -> Tensor:
        """Charges the passes; features are random."""

        def work(probe: ModelLearner, few: Rows) -> Costs:
            own = probe.prefixes.keep(few, kept.boundary, kept.below) if kept else None
            some = None if shares is None else torch.full((len(few),), 0.5)
            for _ in range(2):
                probe.spent()
                with probe.meter.phase("cache"):
                    probe.forward(few, own, some)
            return probe.spent()

        kind = ("forward", kept and kept.boundary, self.slots.active, shares is None)
        for count, tokens in _passes(self.backbone, rows, PREDICT_BATCH):
            cost = self._tariff.charge(kind, count, tokens, work, kept=kept is not None)
            self.meter.charge(cost)
        generator = torch.Generator().manual_seed(len(rows))
        random = torch.randn(len(rows), self.backbone.width, generator=generator)
        return random.to(self.backbone.device)

    def score(self, view: View, data: ClientData, split: Split) -> Score:
        """Charges nothing for what is remembered, as the run does not either."""
        rows = data.split(split)
        if not len(rows):
            return Score()
        self._look(view, data, rows)
        return Score(0, len(rows))

    def derivatives(self, view: View, data: ClientData) -> dict[str, Tensor]:
        """Zeros."""
        if len(data.val):
            self._look(view, data, data.val)
        return {name: torch.zeros(shape) for name, shape in calibration.SHAPES.items()}

    @torch.no_grad()
    def _look(self, view: View, data: ClientData, rows: Rows) -> None:
        """The passes that a prediction needs."""
        with self.meter.phase("evaluate"):
            self.features(view.expert, rows)
            self.constants(view, data, rows)
            if view.statistics is not None:
                self.frozen(rows)
                self.frozen(data.train)


class Ledger(PrefixCache):
    """A prefix cache's accounts: the rule is its own, but there are no states."""

    def __init__(
        self, backbone: Backbone, slots: AdapterSlots, room: Room, meter: Meter, tariff: Tariff
    ) -> None:
        super().__init__(backbone, slots, room, meter)
        self._tariff = tariff
        self.full = False
        """Whether there was no room for something."""

    def _compute(
        self, rows: Rows, boundary: int, below: str, lengths: np.ndarray[Any, Any] | None
    ) -> Kept | None:
        def work(probe: ModelLearner, few: Rows) -> Costs:
            for again in (few, few.take(np.arange(len(few)))):
                probe.spent()
                with probe.meter.phase("cache"):
                    probe.prefixes.keep(again, boundary, below)
            return probe.spent()

        self._state = self._state or self._tariff.state(boundary)
        starts = None if lengths is None else np.concatenate([[0], np.cumsum(lengths)])
        place = self._place(len(rows), starts)
        if place is None:
            return None
        kind = ("prefix", boundary, tuple(b for b in self._slots.active if b < boundary))
        for count, tokens in _passes(self._backbone, rows, self.BATCH):
            cost = self._tariff.charge(kind, count, tokens, work, kept=True)
            self._meter.charge(cost)
        return Kept(boundary, below, place[0], starts, place[1])

    def _say(self, kind: str, words: str) -> None:
        self.full = self.full or kind == "room"

    def _in_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros((), dtype=dtype).expand(shape)

    def _in_file(self, folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._in_memory(shape, dtype)


def _passes(backbone: Backbone, rows: Rows, size: int) -> Iterator[tuple[int, int]]:
    """Rows and tokens of the batches in which all rows pass."""
    lengths = backbone.lengths(rows)
    for index in backbone.passes(rows, size):
        longest = 1 if lengths is None else int(lengths[index].max())
        yield len(index), _padded(backbone, longest)


def _padded(backbone: Backbone, longest: int) -> int:
    return backbone.padded(longest) if backbone.takes == "text" else 1
