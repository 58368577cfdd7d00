"""Training: a step of several clients in one pass through the frozen blocks.

The clients of a stack share the foundation model, and each has adapters, head, gate and optimiser
state of its own. A small step leaves the hardware idle between its small matrices; a stack gives it
larger ones. Every client takes the steps that it would take alone, with the same rows in each; one
that has no batch left rests while the others go on. What it learns is the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core.algorithm import Fit, View
from fedms.core.rows import Index, Rows, join, shuffled_batches
from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors
from fedms.models.prefix import Kept
from fedms.models.resident import Constants, Own, Resident
from fedms.models.settings import Training

_NO_ROW = -100
"""The label of rows that only fill a batch up to the size of its neighbours'."""


def train(resident: Resident, training: Training, fits: Sequence[Fit], pace: int) -> list[View]:
    """What comes of every fit, in order; those that are alike are trained together."""
    with resident.meter.phase("cache"):
        trainees = [Trainee(resident, fit) for fit in fits]
    alike: dict[object, list[Trainee]] = {}
    for trainee in trainees:
        alike.setdefault(trainee.kind, []).append(trainee)
    for stack in alike.values():
        _Stack(resident, training, stack, pace).train()
    return [trainee.trained() for trainee in trainees]


class Trainee:
    """One client's tensors as they train, on the model's device, and its rows."""

    def __init__(self, resident: Resident, fit: Fit) -> None:
        self.fit, self.rows = fit, fit.data.train
        self.lengths = resident.backbone.lengths(self.rows)
        device, view = resident.backbone.device, fit.view
        if view.expert.likeness is not None:
            raise ValueError(
                "got a fit of an expert with likeness, which weighs predictions; "
                "expected one without"
            )
        self.expert = {
            name: tensor.to(device, copy=True).requires_grad_(name in fit.names)
            for name, tensor in sorted(view.expert.tensors.items())
        }
        self.gate = {
            name: tensor.to(device, copy=True).requires_grad_(fit.gate)
            for name, tensor in sorted((view.gate or {}).items())
        }
        anchors = {**view.expert.tensors, **fit.anchor}
        trained = {n: t for n, t in self.expert.items() if t.requires_grad and fit.pull}
        self._pulled = [(t, anchors[n].to(device)) for n, t in trained.items()]
        self._beneath = {n: t.to(device) for n, t in view.expert.beneath.items()}
        self._joined = resident.adapters
        own = {n: t for n, t in self.expert.items() if n in resident.head.shapes}
        self.heads = {**own, **{n: t[0] for n, t in resident.vectors(view, fit.data).items()}}
        self.prior = resident.prior(view.expert, fit.data)
        on_val = resident.mixing.data == "val"
        self.gate_rows = fit.data.val if on_val else self.rows
        self.constants = resident.constants(view, fit.data, self.gate_rows)
        if fit.prior is not None:
            offset = resident.offset(fit.data, fit.prior)
            self.prior = offset if self.prior is None else self.prior + offset
            if self.constants is not None:
                logits = self.constants.logits + offset[0]
                self.constants = replace(self.constants, logits=logits)
        self.features = self._constant(resident)
        """`(rows, width)` where no block trains, and they stand still."""
        self.kept = self.prefix(resident, self.rows)  # last: the cache holds one of these rows
        self.form = (
            self.features is None,
            fit.names,
            tuple((name, *t.shape) for name, t in self.expert.items()),
            tuple((name, *t.shape) for name, t in sorted(self._beneath.items())),
            frozenset(self.gate) if fit.gate else None,
            self.prior is None,
            view.partner is None,
            view.statistics is None,
            self.kept is None,
        )
        """What the cost of a step depends on, beside its sizes."""
        self.kind = (*self.form, fit.epochs, fit.rate)
        """What must be equal in a stack."""

    def _constant(self, resident: Resident) -> Tensor | None:
        if resident.slots.blocks_of(self.fit.names):
            return None
        return resident.features(self.fit.view.expert, self.rows)

    def prefix(self, resident: Resident, rows: Rows) -> Kept | None:
        """What lies below everything that trains, kept for `rows` where there is room."""
        boundary, expert = resident.slots.lowest(self.fit.names), self.fit.view.expert
        with resident.slots.holding(_stacked([self.adapters])):
            below = resident.adapters(expert.tensors, expert.beneath)
            return resident.keep(rows, below, boundary)

    @property
    def adapters(self) -> dict[str, Tensor]:
        """As the slots hold them; made anew where they are joined with pairs beneath them."""
        return self._joined(self.expert, self._beneath)

    def batches(self, rows: Rows, size: int, epoch: int, pace: int) -> Iterator[Index]:
        """An epoch's batches of its training rows, or of others."""
        order = derive_seed(self.fit.seed, "epoch", epoch)
        lengths = self.lengths if rows is self.rows else None
        return shuffled_batches(len(rows), size, order, lengths, pace)

    def pull(self) -> None:
        """Add the gradient of the squared distance from the anchor, times `pull / 2`."""
        for tensor, anchor in self._pulled:
            if tensor.grad is not None:
                tensor.grad.add_(tensor.detach() - anchor, alpha=self.fit.pull)

    def trained(self) -> View:
        """The view with what was trained, as copies on the CPU."""
        view = self.fit.view
        new = {n: _copy(t) for n, t in self.expert.items() if t.requires_grad}
        expert = replace(view.expert, tensors={**view.expert.tensors, **new})
        gate = None if view.gate is None else {n: _copy(t) for n, t in self.gate.items()}
        return replace(view, expert=expert, gate=gate)


@dataclass(frozen=True, eq=False)
class _Batch:
    """A batch of each client that still has one, filled up to the size of the largest.

    Args:
        clients: their places in the stack.
        index: of every client's rows, `(batch,)` each.
        labels: `(clients, batch)`, `_NO_ROW` for rows that only fill up.
        at: where the rows are among the rows of all clients, `(clients, batch)`.
        real: the share of rows that do not only fill up.
    """

    clients: list[int]
    index: list[Index]
    labels: Tensor
    at: Tensor
    real: float

    @classmethod
    def of(
        cls, rows: Sequence[Rows], batches: Sequence[Index | None], device: torch.device
    ) -> _Batch:
        """From every client's rows and its next batch, None where it has no more."""
        starts = np.cumsum([0, *(len(part) for part in rows)])
        there = {i: index for i, index in enumerate(batches) if index is not None}
        size = max(len(index) for index in there.values())
        filled = {i: np.resize(index, size) for i, index in there.items()}
        labels = np.stack([rows[i].labels[index] for i, index in filled.items()])
        for row, index in zip(labels, there.values(), strict=True):
            row[len(index) :] = _NO_ROW
        at = np.stack([starts[i] + index for i, index in filled.items()])
        labels_on, at_on = (
            torch.from_numpy(array).to(device, non_blocking=True) for array in (labels, at)
        )
        real = sum(map(len, there.values())) / labels.size
        return cls(list(filled), list(filled.values()), labels_on, at_on, real)


class _Stack:
    """Clients whose steps are taken together."""

    def __init__(
        self, resident: Resident, training: Training, trainees: Sequence[Trainee], pace: int
    ) -> None:
        self._pace = pace
        self._resident, self._size, self._trainees = resident, training.batch_size, trainees
        experts = [t for one in trainees for t in one.expert.values() if t.requires_grad]
        gates = [t for one in trainees for t in one.gate.values() if t.requires_grad]
        rate = trainees[0].fit.rate
        groups = [
            {"params": experts, "lr": training.learning_rate * rate},
            {"params": gates, "lr": training.gate_learning_rate * rate},
        ]
        self._optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            weight_decay=training.weight_decay,
            fused=_fused(resident.backbone.device, len(trainees)),
        )

    def train(self) -> None:
        """All epochs. The gate learns on training rows with its expert, or on validation rows."""
        on_val = self._resident.mixing.data == "val"
        there = [one.constants for one in self._trainees if one.constants]
        constants = Constants.join(there) if there else None  # one client's rows after another's
        for epoch in range(self._trainees[0].fit.epochs):
            self._expert_epoch(epoch, None if on_val else constants)
            if on_val and constants and self._trainees[0].fit.gate:
                self._gate_epoch(epoch, constants)

    def _batches(self, rows: Sequence[Rows], epoch: int) -> Iterator[_Batch]:
        """An epoch of all clients, each in its own order."""
        pace = derive_seed(self._pace, "epoch", epoch)
        every = [
            one.batches(part, self._size, epoch, pace)
            for one, part in zip(self._trainees, rows, strict=True)
        ]
        for batches in zip_longest(*every):
            yield _Batch.of(rows, batches, self._resident.backbone.device)

    def _expert_epoch(self, epoch: int, constants: Constants | None) -> None:
        """One pass over training rows, of the gate too where there are constants."""
        resident, rows = self._resident, [one.rows for one in self._trainees]
        adapters = _stacked([one.adapters for one in self._trainees])
        with resident.meter.phase("train"), resident.slots.holding(adapters):
            for batch in self._batches(rows, epoch):
                on = [self._trainees[i] for i in batch.clients]
                resident.slots.put(_stacked([one.adapters for one in on]))
                parts = list(zip(on, batch.index, strict=True))
                still = [one.features[at] for one, at in parts if one.features is not None]
                if still:
                    with self._metered((on[0].form, "head"), batch):
                        self._step(batch, torch.stack(still), constants)
                    continue
                inputs = resident.backbone.collate(join([one.rows.take(i) for one, i in parts]))
                kept = [one.kept for one in on if one.kept]
                with resident.metered(on[0].form, on[0].kept, inputs, len(on), batch.real):
                    features = resident.batch(inputs, batch.index, kept)
                    self._step(batch, features.view(*batch.labels.shape, -1), constants)

    def _gate_epoch(self, epoch: int, constants: Constants) -> None:
        """One pass of the gates alone; both experts stand still."""
        resident, rows = self._resident, [one.gate_rows for one in self._trainees]
        with resident.meter.phase("cache"), torch.no_grad():
            parts = zip(self._trainees, rows, strict=True)
            features = torch.cat([self._features(one, part) for one, part in parts])
        with resident.meter.phase("train"):
            for batch in self._batches(rows, epoch):
                with self._metered("gate", batch):
                    self._step(batch, features[batch.at], constants, gate_only=True)

    def _metered(self, kind: Hashable, batch: _Batch) -> AbstractContextManager[None]:
        """Counts a step of clients whose features are there already."""
        clients, rows = batch.labels.shape
        return self._resident.meter.step(kind, clients, rows, clients=clients, real=batch.real)

    def _features(self, one: Trainee, rows: Rows) -> Tensor:
        """`(rows, width)` under a client's expert as it is now."""
        kept = one.prefix(self._resident, rows)
        with self._resident.slots.holding(_stacked([one.adapters])):
            return self._resident.forward(rows, kept)

    def _step(
        self,
        batch: _Batch,
        features: Tensor,
        constants: Constants | None,
        *,
        gate_only: bool = False,
    ) -> None:
        """A step of every client that has rows.

        Args:
            batch: the rows.
            features: of the clients' own experts, `(clients, batch, width)`.
            constants: of all rows.
            gate_only: whether experts stand still.
        """
        resident, on = self._resident, [self._trainees[i] for i in batch.clients]
        heads = _stacked([one.heads for one in on])
        if gate_only:
            heads = {name: tensor.detach() for name, tensor in heads.items()}
        priors = [one.prior for one in on if one.prior is not None]
        own = Own(heads, torch.cat(priors) if priors else None)
        local = 0.0 if gate_only else resident.mixing.local_loss
        loss = torch.zeros((), device=features.device)
        if constants:
            gate = _stacked([one.gate for one in on])
            mixed, _ = resident.mix(features, own, gate, constants.take(batch.at))
            loss = _loss(mixed, batch.labels)
        if local or not constants:
            alone = F.log_softmax(resident.logits(features, own), -1)
            loss = loss + (local if constants else 1.0) * _loss(alone, batch.labels)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if not gate_only:
            for one in on:
                one.pull()
        self._optimiser.step()


def _fused(device: torch.device, clients: int) -> bool:
    """Whether to update all tensors in one pass, which torch can do on CUDA and on the CPU.

    On the CPU its rounding depends on where tensors lie in memory, so that one client alone, whose
    result is the same to the bit every time, does without.
    """
    return device.type == "cuda" or (device.type == "cpu" and clients > 1)


def _loss(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood: mean over each client's rows, summed over clients.

    Args:
        log_probabilities: `(clients, batch, classes)`.
        labels: `(clients, batch)`.
    """
    each = F.nll_loss(
        log_probabilities.flatten(0, 1), labels.flatten(), ignore_index=_NO_ROW, reduction="none"
    )
    return (each.view(labels.shape).sum(1) / (labels != _NO_ROW).sum(1)).sum()


def _stacked(tensors: Sequence[Tensors]) -> dict[str, Tensor]:
    """Tensors of several clients with a first axis of clients."""
    if len(tensors) == 1:
        return {name: tensor[None] for name, tensor in tensors[0].items()}
    return {name: torch.stack([one[name] for one in tensors]) for name in tensors[0]}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
