"""The learner: trains and predicts with one resident foundation model under any view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core import calibration, discriminant
from fedms.core.algorithm import Fit, Score, View
from fedms.core.costs import Costs
from fedms.core.layout import Layout
from fedms.core.routing import Routing, routing
from fedms.core.rows import ClientData, Rows, Split
from fedms.models import stack
from fedms.models.adapters import AdapterSlots
from fedms.models.backbone import Backbone
from fedms.models.gate import ADAPTER, HEAD, gate_shapes, gate_weights, initial_gate
from fedms.models.heads import Head
from fedms.models.meter import peak_bytes
from fedms.models.mixture import class_evidence, evidence
from fedms.models.prefix import Room
from fedms.models.resident import Resident, alone
from fedms.models.settings import Mixing, Training

_PIECE = 1024
"""Rows whose evidence is held at a time."""


@dataclass(frozen=True)
class Prediction:
    """On the CPU: log-probabilities `(rows, classes)`, the global expert's weights `(rows,)`."""

    log_probabilities: Tensor
    gate_weight: Tensor | None


class ModelLearner(Resident):
    """Implements `core.algorithm.Learner` with a transformers model and PEFT adapters.

    Args:
        backbone: the frozen foundation model.
        slots: its adapter slots.
        head: from features to logits.
        training, mixing: see there.
        room: of the prefix cache; None for no cache.
    """

    def __init__(
        self,
        backbone: Backbone,
        slots: AdapterSlots,
        head: Head,
        training: Training,
        mixing: Mixing,
        room: Room | None = None,
    ) -> None:
        super().__init__(backbone, slots, head, mixing, room or Room(0))
        self.training = training
        gate = gate_shapes(backbone.width, mixing.bottleneck)
        self.layout = Layout(
            blocks=slots.groups,
            head=tuple(head.shapes),
            gate_adapter=ADAPTER,
            gate_head=HEAD,
            shapes={**slots.shapes, **slots.mixer_shapes, **head.shapes, **gate},
            pairs=slots.pairs,
            mixers=slots.mixers,
            classes=head.classes,
            width=backbone.width,
        )

    def initial_expert(self, names: frozenset[str], seed: int) -> dict[str, Tensor]:
        return {
            name: self.head.initial(name, seed)
            if name in self.head.shapes
            else self.slots.initial(name, seed)
            for name in sorted(names)
        }

    def initial_gate(self, seed: int) -> dict[str, Tensor]:
        return initial_gate(self.backbone.width, seed, self.mixing.bottleneck)

    def fit(self, fits: Sequence[Fit], pace: int = 0) -> list[View]:
        """See `Learner.fit`. The gate trains whenever the view has one."""
        return stack.train(self, self.training, fits, pace)

    def spent(self) -> Costs:
        """See `Learner.spent`."""
        peak, cache = peak_bytes(self.backbone.device), self.prefixes.bytes
        return replace(self.meter.take(), cache_bytes=cache, peak_device_bytes=peak)

    def score(self, view: View, data: ClientData, split: Split) -> Score:
        """See `Learner.score`."""
        rows = data.split(split)
        if not len(rows):
            return Score()
        labels = torch.from_numpy(rows.labels)
        with self.meter.phase("evaluate"):
            if view.oracle:
                prediction = self._oracle(view, data, rows, labels)
            else:
                prediction = self.predict(view, data, rows)
        chosen = prediction.log_probabilities.gather(1, labels[:, None])
        correct = prediction.log_probabilities.argmax(1) == labels
        weight = prediction.gate_weight
        return Score(
            correct=int(correct.sum()),
            rows=len(rows),
            loss=-float(chosen.sum()),
            gate_weight=float(weight.sum()) if weight is not None else 0.0,
        )

    def routing(self, view: View, data: ClientData) -> Routing:
        """See `Learner.routing`."""
        with self.meter.phase("evaluate"):
            weight = self.predict(view, data, data.test).gate_weight
        assert weight is not None
        return routing(data.test.labels, weight.float().numpy())

    @torch.no_grad()
    def _oracle(self, view: View, data: ClientData, rows: Rows, labels: Tensor) -> Prediction:
        """See `View.oracle`."""
        if view.calibration is not None:
            pieces, _ = self._evidence(view, data, rows)
            only = partial(calibration.one_expert, weights=view.calibration)
            known = [(only(x, name="global"), only(x, name="local")) for x in pieces]
            shared, own = (torch.cat(parts) for parts in zip(*known, strict=True))
        else:
            constants = self.constants(view, data, rows)
            assert constants is not None
            features = self.features(view.expert, rows)[None]
            both = constants.logits, self.logits(features, self.own(view, data))[0]
            shared, own = (F.log_softmax(logits, -1).cpu() for logits in both)
        right = [x.argmax(1) == labels for x in (shared, own)]
        more = shared.gather(1, labels[:, None])[:, 0] > own.gather(1, labels[:, None])[:, 0]
        takes = torch.where(right[0] == right[1], more, right[0])
        return Prediction(torch.where(takes[:, None], shared, own), takes.float())

    @torch.no_grad()
    def predict(self, view: View, data: ClientData, rows: Rows) -> Prediction:
        """Predict `rows` with a client's model; `data` gives the client's class frequencies."""
        if view.calibration is not None:
            pieces, weight = self._evidence(view, data, rows)
            scored = [calibration.log_probabilities(x, view.calibration) for x in pieces]
            return Prediction(torch.cat(scored), weight)
        features = self.features(view.expert, rows)[None]
        constants = self.constants(view, data, rows)
        own = self.own(view, data)
        if constants is None:
            logits = self.logits(features, own)[0]
            return Prediction(F.log_softmax(logits, -1).cpu(), None)
        assert view.gate is not None
        gate = {n: t.to(features.device) for n, t in alone(view.gate).items()}
        mixed, weights = self.mix(features, own, gate, constants.take(None))
        return Prediction(mixed[0].cpu(), weights[0, :, 0].exp().cpu())

    def derivatives(self, view: View, data: ClientData) -> dict[str, Tensor]:
        """See `Learner.derivatives`."""
        assert view.calibration is not None
        with self.meter.phase("evaluate"):
            pieces, _ = self._evidence(view, data, data.val)
            labels = torch.split(torch.from_numpy(data.val.labels), _PIECE)
            sums = [
                calibration.derivatives(x, y, view.calibration)
                for x, y in zip(pieces, labels, strict=True)
            ]
        return {name: torch.stack([one[name] for one in sums]).sum(0) for name in sums[0]}

    @torch.no_grad()
    def _evidence(
        self, view: View, data: ClientData, rows: Rows
    ) -> tuple[Iterator[Tensor], Tensor | None]:
        """`mixture.evidence` of some rows after the others, and the gate's weights of all.

        An expert without a partner is both.
        """
        own = self.logits(self.features(view.expert, rows)[None], self.own(view, data))[0]
        constants = self.constants(view, data, rows)
        shared, weight = own, None
        if constants is not None:
            assert view.gate is not None
            gate = {n: t.to(own.device) for n, t in alone(view.gate).items()}
            shared = constants.logits
            weight = gate_weights(gate, constants.frozen[None])[0, :, 0].exp().cpu()
        even = torch.full((len(rows),), 0.5)
        said = self._by_statistics(view, data, rows)
        known = shared.float().cpu(), own.float().cpu(), even if weight is None else weight, said
        a, b, c, d = (torch.split(each, _PIECE) for each in known)
        parts = zip(a, b, c, d, strict=True)
        counted = class_evidence(data.train.labels, self.head.classes, self.mixing.smoothing)
        return (evidence(*four, counted) for four in parts), weight

    def _by_statistics(self, view: View, data: ClientData, rows: Rows) -> Tensor:
        """`(rows, classes)` scores, see `Discriminant.scores`; zeros without class statistics."""
        if view.statistics is None:
            return torch.zeros(len(rows), self.head.classes)
        features, own = (self.frozen(part).cpu() for part in (rows, data.train))
        labels, prompts = torch.from_numpy(data.train.labels), self.head.prompts
        return view.statistics.scores(
            features, own, labels, None if prompts is None else prompts.cpu()
        )

    @torch.no_grad()
    def statistics(
        self, data: ClientData, names: frozenset[str] = frozenset()
    ) -> dict[str, Tensor]:
        """See `Learner.statistics`."""
        with self.meter.phase("cache"):  # the gate's input too, from now on
            with self.slots.holding({}):
                self.keep(data.train, {}, self.slots.lowest(names))
            features = self.frozen(data.train).cpu()
        labels = torch.from_numpy(data.train.labels)
        return discriminant.sums(features, labels, self.head.classes)
