"""The resident model under any expert: features, logits and mixtures, of one client or a stack.

There is one foundation model in memory. Adapters are put into its slots; whatever stays constant
while an expert trains (the prefix, the frozen feature that the gate sees, and the global expert's
feature) is computed once per example and kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core.algorithm import Expert, View
from fedms.core.rows import ClientData, Index, Rows
from fedms.core.tensors import Tensors, fingerprint, pick
from fedms.models.adapters import AdapterSlots
from fedms.models.backbone import Backbone
from fedms.models.gate import gate_weights
from fedms.models.heads import VECTORS, Head
from fedms.models.meter import Meter, sizes
from fedms.models.mixture import class_evidence, log_prior, mix_linear, mix_probabilities
from fedms.models.prefix import Kept, PrefixCache, Room, take
from fedms.models.settings import Mixing

PREDICT_BATCH = 128
_NONE: Tensors = {}
FROZEN = Expert({})


@dataclass(frozen=True)
class Own:
    """The experts that train or predict, one of each client, as their logits need them.

    Args:
        heads: tensors of linear heads, and class vectors, `(clients, *shape)`; empty for frozen
            heads at their prompts.
        prior: what is added to logits, `(clients, 1, classes)`, or None.
    """

    heads: Tensors
    prior: Tensor | None


@dataclass(frozen=True)
class Constants:
    """What stands still in a mixture, for every example.

    Args:
        frozen, features: the gate's input and the global expert's features, `(…, rows, width)`.
        logits: the global expert's, with its class prior where it has one.
    """

    frozen: Tensor
    features: Tensor
    logits: Tensor

    def take(self, index: Tensor | None) -> Constants:
        """Of some rows, shaped as the index; None: of all, with a first axis of one client."""
        return Constants(self.frozen[index], self.features[index], self.logits[index])

    @staticmethod
    def join(parts: Sequence[Constants]) -> Constants:
        """Rows of several, one after the other."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*((p.frozen, p.features, p.logits) for p in parts), strict=True)
        return Constants(*(torch.cat(column) for column in columns))


class Resident:
    """One foundation model with adapter slots, a head, and what is kept for them.

    Args:
        backbone: the frozen foundation model.
        slots: its adapter slots.
        head: from features to logits.
        mixing: how two experts are joined.
        room: of the prefix cache.
    """

    def __init__(
        self, backbone: Backbone, slots: AdapterSlots, head: Head, mixing: Mixing, room: Room
    ) -> None:
        self.backbone, self.slots, self.head, self.mixing = backbone, slots, head, mixing
        self.meter = Meter(lambda: [*backbone.model.parameters(), *slots.held()], backbone.device)
        self.prefixes = PrefixCache(backbone, slots, room, self.meter)
        self._last: tuple[Rows, str, Tensor] | None = None
        self._known: weakref.WeakKeyDictionary[Rows, dict[str, Tensor]] = (
            weakref.WeakKeyDictionary()
        )

    def adapters(self, tensors: Tensors, beneath: Tensors = _NONE) -> dict[str, Tensor]:
        """Those of an expert's tensors that are adapters, joined with the pairs beneath them.

        Joined, a pair `[A; A']` and `[B B']` has the sum of both products.
        """
        own = {name: t for name, t in tensors.items() if name not in self.head.shapes}
        both = own.keys() & beneath.keys()
        joined = {
            n: torch.cat([own[n], beneath[n].to(own[n].device)], 0 if n in self.slots.down else 1)
            for n in both
        }
        return {**beneath, **own, **joined}

    def own(self, view: View, data: ClientData, *, partner: bool = False) -> Own:
        """One client's expert, or its partner, for logits."""
        expert = view.partner if partner and view.partner else view.expert
        heads = {
            name: t[None].to(self.backbone.device)
            for name, t in expert.tensors.items()
            if name in self.head.shapes
        }
        return Own({**heads, **self.vectors(view, data)}, self.prior(expert, data))

    def vectors(self, view: View, data: ClientData | None = None) -> dict[str, Tensor]:
        """Class vectors of a view's experts, `(1, classes, width)`, if they have any.

        See `Discriminant.vectors`. `data`: of the client whose view it is; None: for anyone.
        """
        said, prompts = view.statistics, self.head.prompts
        if said is None or not self.mixing.grounded:
            return {}
        own = labels = None
        if data is not None and said.lacks(torch.from_numpy(data.train.labels)):
            own, labels = self.frozen(data.train).cpu(), torch.from_numpy(data.train.labels)
        vectors = said.vectors(None if prompts is None else prompts.cpu(), own, labels)
        return {VECTORS: vectors[None].to(self.backbone.device)}

    def prior(self, expert: Expert, data: ClientData) -> Tensor | None:
        """`(1, 1, classes)`: what is added to the expert's logits; None: nothing."""
        if not expert.prior:
            return None
        prior = log_prior(data.train.labels, self.head.classes, self.mixing.smoothing)
        return prior[None, None].to(self.backbone.device)

    def offset(self, data: ClientData, weights: tuple[float, float]) -> Tensor:
        """`(1, 1, classes)`: see `Fit.prior`."""
        counted = class_evidence(data.train.labels, self.head.classes, self.mixing.smoothing)
        return (torch.tensor(weights) @ counted)[None, None].to(self.backbone.device)

    def features(self, expert: Expert, rows: Rows) -> Tensor:
        """`(rows, width)` features under an expert.

        Those of constant experts are remembered, and the last ones: a client's models have its
        experts in common and are scored one after the other.
        """
        known, key = self._known.get(rows, {}), self._key(expert)
        if key in known:
            return known[key]
        if self._last and self._last[0] is rows and self._last[1] == key:
            return self._last[2]
        adapters = self.adapters(expert.tensors, expert.beneath)
        shares = self._shares(expert, rows)
        with torch.no_grad(), self.slots.holding(alone(adapters)):
            kept = None if shares is not None else self.prefixes.find(rows, self._below(adapters))
            if kept is None and adapters:
                kept = self.keep(rows, adapters, self.slots.lowest(adapters))
            features = self.forward(rows, kept, shares)
        if key == FROZEN.fingerprint:  # the foundation model's are asked for again
            self._known[rows] = {**known, key: features}
        self._last = (rows, key, features)
        return features

    def _key(self, expert: Expert) -> str:
        """Of what makes an expert's features: all but its head."""
        own = {n: t for n, t in expert.tensors.items() if n not in self.head.shapes}
        if len(own) == len(expert.tensors):
            return expert.fingerprint  # made once
        return replace(expert, tensors=own).fingerprint

    def frozen(self, rows: Rows) -> Tensor:
        """`(rows, width)` features under the foundation model, which are remembered."""
        last, features = self._last, self.features(FROZEN, rows)
        self._last = last  # it is asked for again before this one, which is remembered
        return features

    def _shares(self, expert: Expert, rows: Rows) -> Tensor | None:
        """`(rows,)` weights of an expert's own products, see `Expert.likeness`; None: no weights.

        Raises:
            ValueError: if something is beneath for which the expert has no tensor of its own.
        """
        if expert.likeness is None:
            return None
        missing = expert.beneath.keys() - expert.tensors.keys()
        if missing:
            raise ValueError(
                f"got an expert with likeness and without {min(missing)!r}; "
                "expected a tensor of its own for all that lies beneath it"
            )
        directions = F.normalize(self.features(Expert(expert.tensors), rows), dim=-1)
        return (directions @ expert.likeness.to(directions.device)).clamp(0, 1)

    def mean_direction(self, expert: Expert, rows: Rows) -> Tensor:
        """See `Learner.mean_direction`."""
        with self.meter.phase("evaluate"):
            return F.normalize(self.features(expert, rows), dim=-1).mean(0).cpu()

    def keep(self, rows: Rows, adapters: Tensors, boundary: int) -> Kept | None:
        """What lies below a boundary, under adapters that the slots hold now."""
        return self.prefixes.keep(rows, boundary, self._below(adapters)(boundary))

    def _below(self, adapters: Tensors) -> Callable[[int], str]:
        """The hash of the adapters below a boundary."""

        def hashed(boundary: int) -> str:
            groups = (*self.slots.groups[:boundary], *self.slots.mixers[:boundary])
            names = [n for group in groups for n in group if n in adapters]
            return fingerprint(pick(adapters, names))

        return hashed

    def forward(self, rows: Rows, kept: Kept | None, shares: Tensor | None = None) -> Tensor:
        """`(rows, width)` features under the adapters now in the slots.

        `shares`: `(rows,)`, by which the slots weigh an expert's own products, or None.
        """
        out = torch.empty(len(rows), self.backbone.width, device=self.backbone.device)
        for index in self.backbone.passes(rows, PREDICT_BATCH):
            batch = self.backbone.collate(rows.take(index))
            if shares is not None:
                self.slots.weigh(shares[torch.from_numpy(index).to(shares.device)])
            with self.metered("features", kept, batch):
                features = self.batch(batch, [index], [kept] if kept else None)
            out[torch.from_numpy(index).to(out.device)] = features
        return out

    def batch(
        self, batch: Mapping[str, Tensor], index: Sequence[Index], kept: Sequence[Kept] | None
    ) -> Tensor:
        """`(batch, width)` features of some rows of each client, from what is kept of them."""
        if not kept:
            return self.backbone.features(batch)
        states = take(kept, index, sizes(batch)[1], self.backbone.device)
        return self.prefixes.split.suffix(batch, states, kept[0].boundary)

    def metered(
        self,
        kind: Hashable,
        kept: Kept | None,
        batch: Mapping[str, Tensor],
        clients: int = 1,
        real: float = 1.0,
    ) -> AbstractContextManager[None]:
        """Counts a step; what tells its cost is the kind, what is computed, and its sizes."""
        computed = (kind, kept and kept.boundary, self.slots.active, *batch)
        return self.meter.step(computed, clients, *sizes(batch), clients=clients, real=real)

    def _remembered(self, partner: Expert, rows: Rows) -> Tensor:
        """Features of a constant expert. For every rows object only its and the frozen model's are
        kept: one of an earlier global expert is never asked for again.
        """
        last, features = self._last, self.features(partner, rows)
        self._last = last  # as in `frozen`
        known = self._known.get(rows, {})
        kept = {k: v for k, v in known.items() if k == FROZEN.fingerprint}
        self._known[rows] = {**kept, self._key(partner): features}
        return features

    def constants(self, view: View, data: ClientData, rows: Rows) -> Constants | None:
        """What the global expert and the gate's input are for `rows`; None without a mixture."""
        if view.partner is None or view.gate is None or not len(rows):
            return None
        features, frozen = self._remembered(view.partner, rows), self.frozen(rows)
        logits = self.logits(features[None], self.own(view, data, partner=True))[0]
        return Constants(frozen, features, logits)

    def logits(self, features: Tensor, own: Own) -> Tensor:
        """`(clients, batch, classes)` logits of `(clients, batch, width)` features."""
        logits = self.head(features, own.heads)
        return logits if own.prior is None else logits + own.prior

    def mix(
        self, features: Tensor, own: Own, gate: Tensors, constants: Constants
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of mixtures, `(clients, batch, classes)`, and gates' log weights.

        Args:
            features: of the clients' own experts, `(clients, batch, width)`.
            own: those experts.
            gate: their gates' tensors, each with a first axis of clients.
            constants: shaped as the features.
        """
        weights = gate_weights(gate, constants.frozen)
        if self.mixing.mix == "features":
            mixed = self.logits(mix_linear(weights, constants.features, features), own)
            return F.log_softmax(mixed, -1), weights
        logits = self.logits(features, own)
        if self.mixing.mix == "logits":
            return F.log_softmax(mix_linear(weights, constants.logits, logits), -1), weights
        return mix_probabilities(weights, constants.logits, logits), weights


def alone(tensors: Tensors) -> dict[str, Tensor]:
    """One client's tensors with a first axis of clients."""
    return {name: tensor[None] for name, tensor in tensors.items()}
