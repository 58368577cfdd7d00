"""The resident model at work: predict and train under a view, for one client after another.

There is one foundation model in memory. Adapters are copied into its slots; whatever stays constant
while an expert trains (the frozen feature that the gate sees, and the global expert's feature) is
computed once per example and kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core.algorithm import Expert, Layout, Score, View
from fedms.core.costs import Costs
from fedms.core.rows import ClientData, Index, Rows, Split, shuffled_batches
from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors, fingerprint, pick
from fedms.models.adapters import AdapterSlots
from fedms.models.backbone import Backbone
from fedms.models.gate import ADAPTER, HEAD, Gate, initial_gate
from fedms.models.heads import Head
from fedms.models.meter import Meter, peak_bytes, shapes
from fedms.models.mixture import log_prior, mix_linear, mix_probabilities
from fedms.models.prefix import Kept, PrefixCache, Room
from fedms.models.settings import Mixing, Training

_PREDICT_BATCH = 128
_FUSED = ("cuda",)
"""Where torch updates all tensors in one pass."""
FROZEN = Expert({})


@dataclass(frozen=True)
class Prediction:
    """On the CPU: log-probabilities `(rows, classes)`, the global expert's weights `(rows,)`."""

    log_probabilities: Tensor
    gate_weight: Tensor | None


class ModelLearner:
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
        self.backbone, self.slots, self.head = backbone, slots, head
        self.training, self.mixing = training, mixing
        with torch.random.fork_rng(devices=[]):
            self._gate = Gate(backbone.width).to(backbone.device)
        gate = {name: tuple(p.shape) for name, p in self._gate.named_parameters()}
        self.layout = Layout(
            blocks=slots.groups,
            head=tuple(head.shapes),
            gate_adapter=ADAPTER,
            gate_head=HEAD,
            shapes={**slots.shapes, **head.shapes, **gate},
        )
        assert len(self.layout.shapes) == len(slots.shapes) + len(head.shapes) + len(gate)
        self.meter = Meter(backbone.model.parameters, backbone.device)
        self.prefixes = PrefixCache(backbone, slots, room or Room(0), self.meter)
        self._known: weakref.WeakKeyDictionary[Rows, dict[str, Tensor]] = (
            weakref.WeakKeyDictionary()
        )

    def initial_expert(self, names: frozenset[str], seed: int) -> dict[str, Tensor]:
        return {
            name: torch.zeros(self.head.shapes[name])
            if name in self.head.shapes
            else self.slots.initial(name, seed)
            for name in sorted(names)
        }

    def initial_gate(self, seed: int) -> dict[str, Tensor]:
        return initial_gate(self.backbone.width, seed)

    def fit(
        self, view: View, names: frozenset[str], data: ClientData, *, epochs: int, seed: int
    ) -> View:
        """See `Learner.fit`. The gate trains whenever the view has one."""
        on_val = self.mixing.data == "val"
        with self.meter.phase("cache"):
            train = None if on_val else self._constants(view, data, data.train)
            val = self._constants(view, data, data.val) if on_val else None
        with _Trainee(self, view, names, data) as trainee:
            for epoch in range(epochs):
                order = derive_seed(seed, "epoch", epoch)
                self._epoch(trainee, data.train, train, order)
                if val is not None:
                    self._gate_epoch(trainee, data.val, val, order)
            return trainee.view()

    def spent(self) -> Costs:
        """See `Learner.spent`."""
        peak = peak_bytes(self.backbone.device)
        return replace(self.meter.take(), cache_bytes=self.prefixes.bytes, peak_device_bytes=peak)

    def score(self, view: View, data: ClientData, split: Split) -> Score:
        """See `Learner.score`."""
        rows = data.split(split)
        if not len(rows):
            return Score()
        with self.meter.phase("evaluate"):
            prediction = self.predict(view, data, rows)
        labels = torch.from_numpy(rows.labels)
        chosen = prediction.log_probabilities.gather(1, labels[:, None])
        correct = prediction.log_probabilities.argmax(1) == labels
        weight = prediction.gate_weight
        return Score(
            correct=int(correct.sum()),
            rows=len(rows),
            loss=-float(chosen.sum()),
            gate_weight=float(weight.sum()) if weight is not None else 0.0,
        )

    @torch.no_grad()
    def predict(self, view: View, data: ClientData, rows: Rows) -> Prediction:
        """Predict `rows` with a client's model; `data` gives the client's class frequencies."""
        features = self.features(view.expert, rows)
        constants = self._constants(view, data, rows)
        own = _Own(view.expert.tensors, self._prior(view.expert, data))
        if constants is None:
            return Prediction(F.log_softmax(self._logits(features, own), -1).cpu(), None)
        assert view.gate is not None
        self._gate.load_state_dict(dict(view.gate))
        mixed, weights = self._mix(features, own, constants)
        return Prediction(mixed.cpu(), weights[:, 0].exp().cpu())

    def features(self, expert: Expert, rows: Rows) -> Tensor:
        """`(rows, width)` features under an expert; remembered for constant experts only."""
        known = self._known.get(rows, {})
        if expert.fingerprint in known:
            return known[expert.fingerprint]
        adapters = self._adapters(expert.tensors)
        with torch.no_grad(), self.slots.holding(adapters):
            below = self._below(adapters)
            kept = self.prefixes.find(rows, below)
            if kept is None and adapters:
                lowest = self.slots.lowest(adapters)
                kept = self.prefixes.keep(rows, lowest, below(lowest))
            features = self._forward(rows, kept)
        if not expert.tensors:  # the foundation model's are asked for again
            self._known[rows] = {**known, expert.fingerprint: features}
        return features

    def _below(self, adapters: Tensors) -> Callable[[int], str]:
        """The hash of the adapters below a boundary."""

        def hashed(boundary: int) -> str:
            names = [n for group in self.slots.groups[:boundary] for n in group if n in adapters]
            return fingerprint(pick(adapters, names))

        return hashed

    def _forward(self, rows: Rows, kept: Kept | None) -> Tensor:
        """Features of all rows under the adapters now in the model, shortest rows first."""
        lengths = self.backbone.lengths(rows)
        order = np.arange(len(rows)) if lengths is None else np.argsort(lengths, kind="stable")
        out = torch.empty(len(rows), self.backbone.width, device=self.backbone.device)
        for start in range(0, len(rows), _PREDICT_BATCH):
            index = order[start : start + _PREDICT_BATCH]
            batch = self.backbone.collate(rows.take(index))
            with self._metered("features", kept, batch):
                features = self._batch(batch, index, kept)
            out[torch.from_numpy(index).to(out.device)] = features
        return out

    def _batch(self, batch: Mapping[str, Tensor], index: Index, kept: Kept | None) -> Tensor:
        """`(batch, width)` features of some rows, from the kept prefix where there is one."""
        if kept is None:
            return self.backbone.features(batch)
        return self.prefixes.split.suffix(batch, kept.take(index), kept.boundary)

    def _metered(
        self, kind: Hashable, kept: Kept | None, batch: Mapping[str, Tensor]
    ) -> AbstractContextManager[None]:
        """Counts a step; what tells its cost is the kind, what is computed, and the batch."""
        return self.meter.step((kind, kept and kept.boundary, self.slots.active, *shapes(batch)))

    def _remembered(self, expert: Expert, partner: Expert, rows: Rows) -> Tensor:
        """Features of a constant expert. For every rows object only `partner`'s and the frozen
        model's are kept: one of an earlier global expert is never asked for again.
        """
        features = self.features(expert, rows)
        keep = {FROZEN.fingerprint, partner.fingerprint}
        known = {k: v for k, v in self._known.get(rows, {}).items() if k in keep}
        self._known[rows] = {**known, expert.fingerprint: features}
        return features

    def _constants(self, view: View, data: ClientData, rows: Rows) -> _Constants | None:
        """What the global expert and the gate's input are for `rows`; None without a mixture."""
        if view.partner is None or view.gate is None or not len(rows):
            return None
        features = self._remembered(view.partner, view.partner, rows)
        frozen = self._remembered(FROZEN, view.partner, rows)
        logits = self.head(features, view.partner.tensors)
        prior = self._prior(view.partner, data)
        return _Constants(frozen, features, logits if prior is None else logits + prior)

    def _prior(self, expert: Expert, data: ClientData) -> Tensor | None:
        """`(classes,)`: what is added to the expert's logits; None: nothing."""
        if not expert.prior:
            return None
        prior = log_prior(data.train.labels, self.head.classes, self.mixing.smoothing)
        return prior.to(self.backbone.device)

    def _logits(self, features: Tensor, own: _Own) -> Tensor:
        """Logits of the expert that trains or predicts, with its class prior where it has one."""
        logits = self.head(features, own.tensors)
        return logits if own.prior is None else logits + own.prior

    def _mix(self, features: Tensor, own: _Own, constants: _Constants) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the mixture, and the gate's `(batch, 2)` log weights."""
        weights = self._gate(constants.frozen)
        if self.mixing.mix == "features":
            mixed = self._logits(mix_linear(weights, constants.features, features), own)
            return F.log_softmax(mixed, -1), weights
        logits = self._logits(features, own)
        if self.mixing.mix == "logits":
            return F.log_softmax(mix_linear(weights, constants.logits, logits), -1), weights
        return mix_probabilities(weights, constants.logits, logits), weights

    def _epoch(
        self, trainee: _Trainee, rows: Rows, constants: _Constants | None, seed: int
    ) -> None:
        """One pass of the expert over `rows`, with the gate where there are constants."""
        size, lengths = self.training.batch_size, self.backbone.lengths(rows)
        with self.meter.phase("cache"):
            kept = trainee.prefix(rows)
        with self.meter.phase("train"):
            for index in shuffled_batches(len(rows), size, seed, lengths):
                labels = torch.from_numpy(rows.labels[index]).to(self.backbone.device)
                batch = self.backbone.collate(rows.take(index))
                with self._metered(trainee.kind, kept, batch):
                    features = self._batch(batch, index, kept)
                    trainee.step(self._loss(features, trainee.own, constants, index, labels))

    def _loss(
        self,
        features: Tensor,
        own: _Own,
        constants: _Constants | None,
        index: Index,
        labels: Tensor,
    ) -> Tensor:
        if constants is None:
            return F.cross_entropy(self._logits(features, own), labels)
        mixed, _ = self._mix(features, own, constants.take(index))
        loss = F.nll_loss(mixed, labels)
        if self.mixing.local_loss:
            alone = F.cross_entropy(self._logits(features, own), labels)
            loss = loss + self.mixing.local_loss * alone
        return loss

    def _gate_epoch(self, trainee: _Trainee, rows: Rows, constants: _Constants, seed: int) -> None:
        """One pass of the gate alone over `rows`; both experts stand still."""
        with torch.no_grad(), self.meter.phase("cache"):
            features = self._forward(rows, trainee.prefix(rows))
        heads = {name: t.detach() for name, t in trainee.own.tensors.items()}
        own = _Own(heads, trainee.own.prior)
        with self.meter.phase("train"):
            for index in shuffled_batches(len(rows), self.training.batch_size, seed):
                labels = torch.from_numpy(rows.labels[index]).to(self.backbone.device)
                with self.meter.step(("gate", len(index))):
                    at = torch.from_numpy(index)
                    mixed, _ = self._mix(features[at], own, constants.take(index))
                    trainee.step(F.nll_loss(mixed, labels))

    def _adapters(self, tensors: Tensors) -> dict[str, Tensor]:
        return {name: t for name, t in tensors.items() if name not in self.head.shapes}


@dataclass(frozen=True)
class _Own:
    """The expert that trains or predicts, as its logits need it: head tensors, class prior."""

    tensors: Tensors
    prior: Tensor | None


@dataclass(frozen=True)
class _Constants:
    """Per example, for a mixture: gate input and global feature `(rows, width)`, global logits."""

    frozen: Tensor
    features: Tensor
    logits: Tensor

    def take(self, index: Index) -> _Constants:
        where = torch.from_numpy(index).to(self.frozen.device)
        return _Constants(self.frozen[where], self.features[where], self.logits[where])


class _Trainee:
    """One client's trainable tensors while they are in the resident model, and their optimiser.

    A context manager: on leaving, the slots are switched off and nothing requires a gradient.
    """

    def __init__(
        self, learner: ModelLearner, view: View, names: frozenset[str], data: ClientData
    ) -> None:
        self._data = data
        self._learner, self._view, self._names = learner, view, names
        self.kind = (names, view.partner is None)
        """What its steps cost depends on, beside the batch."""
        self._holding = learner.slots.holding(learner._adapters(view.expert.tensors))

    def __enter__(self) -> _Trainee:
        learner, view = self._learner, self._view
        if view.gate is not None:
            learner._gate.load_state_dict(dict(view.gate))
        self._holding.__enter__()
        device = learner.backbone.device
        self._heads: dict[str, Tensor] = {
            name: tensor.to(device, copy=True)
            for name, tensor in view.expert.tensors.items()
            if name in learner.head.shapes
        }
        self.own = _Own(self._heads, learner._prior(view.expert, self._data))
        heads = [self._heads[n].requires_grad_() for n in sorted(self._heads) if n in self._names]
        slots = [learner.slots.parameters[n] for n in sorted(self._names) if n not in self._heads]
        gate = list(learner._gate.parameters()) if view.gate is not None else []
        for parameter in (*slots, *gate):
            parameter.requires_grad_(True)
        self._optimiser = _optimiser(learner.training, [*slots, *heads], gate)
        return self

    def __exit__(self, *error: object) -> None:
        self._learner._gate.requires_grad_(False)
        self._learner._gate.zero_grad(set_to_none=True)
        for parameter in self._learner.slots.parameters.values():
            parameter.grad = None
        self._holding.__exit__(*error)  # type: ignore[arg-type]

    def prefix(self, rows: Rows) -> Kept | None:
        """What lies below everything that trains, kept for `rows` where there is room."""
        learner = self._learner
        boundary = learner.slots.lowest(self._names)
        below = learner._below(learner._adapters(self._view.expert.tensors))
        return learner.prefixes.keep(rows, boundary, below(boundary))

    def step(self, loss: Tensor) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()

    def view(self) -> View:
        """The view with what was trained, as copies on the CPU."""
        heads = {n: t.detach().to("cpu", copy=True) for n, t in self._heads.items()}
        slots = self._learner.slots.read(self._names - self._heads.keys())
        tensors = {**self._view.expert.tensors, **heads, **slots}
        expert = replace(self._view.expert, tensors=tensors)
        gate = None
        if self._view.gate is not None:
            state = self._learner._gate.state_dict()
            gate = {name: t.detach().to("cpu", copy=True) for name, t in state.items()}
        return replace(self._view, expert=expert, gate=gate)


def _optimiser(
    training: Training, expert: Sequence[Tensor], gate: Sequence[Tensor]
) -> torch.optim.Optimizer:
    groups = [
        {"params": list(expert), "lr": training.learning_rate},
        {"params": list(gate), "lr": training.gate_learning_rate},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        weight_decay=training.weight_decay,
        fused=all(t.device.type in _FUSED for t in (*expert, *gate)),
    )
