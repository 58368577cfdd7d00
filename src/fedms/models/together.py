"""Rows of several clients' models in one pass over the foundation model.

What lies below the lowest adapted block of any of them is common to all: it is computed once for
every row. From there on a row is needed under several experts: the foundation model itself (for the
gate), the global expert, and its client's own. All of these are one pass, too: the slots hold the
experts stacked, and each has its rows. So a batch costs about as much for a hundred clients as for
one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedms.core.algorithm import Expert
from fedms.core.rows import Rows, join
from fedms.models.learner import ModelLearner
from fedms.models.resident import FROZEN
from fedms.models.saved import Opinions, SavedModel, Seen

_PASS = 64
"""Rows in a pass, at most; each is in it once for every expert that sees it."""


def predict_together(parts: Sequence[tuple[SavedModel, Rows]]) -> list[Opinions]:
    """What each model says of its rows.

    Models whose experts weigh what lies beneath them (mixers, likeness) are asked one by one.

    Args:
        parts: models over the same foundation model, with one row or more for each.
    """
    said: dict[int, Opinions] = {}
    stacked = [i for i, (model, _) in enumerate(parts) if _is_plain(model)]
    if stacked:
        for i, seen in zip(stacked, _see([parts[i] for i in stacked]), strict=True):
            said[i] = parts[i][0].judge(seen)
    return [said[i] if i in said else model.predict(rows) for i, (model, rows) in enumerate(parts)]


def _is_plain(model: SavedModel) -> bool:
    """Whether its experts are adapters and nothing else that is in the blocks."""
    mixers = model.learner.slots.mixer_shapes.keys()
    experts = [model.expert, *([model.partner] if model.partner else [])]
    return not any(
        x.beneath or x.likeness is not None or x.tensors.keys() & mixers for x in experts
    )


@torch.no_grad()
def _see(parts: Sequence[tuple[SavedModel, Rows]]) -> Iterator[Seen]:
    """The features that each model needs of its rows."""
    learner, rows = parts[0][0].learner, join([rows for _, rows in parts])
    owners = np.repeat(np.arange(len(parts)), [len(part) for _, part in parts])
    wanted = [_experts(model) for model, _ in parts]
    shape = (len(rows), learner.backbone.width)
    found = {role: torch.empty(shape, device=learner.backbone.device) for role in _ROLES}
    for index in learner.backbone.passes(rows, _PASS):
        asked = [wanted[owner] for owner in owners[index]]
        batch = learner.backbone.collate(rows.take(index))
        for role, at, features in _features(learner, batch, asked):
            found[role][torch.from_numpy(index[at]).to(features.device)] = features
    ends = np.cumsum([0, *(len(part) for _, part in parts)])
    for (model, _), begin, end in zip(parts, ends, ends[1:], strict=False):
        own, partner, frozen = (found[role][begin:end] for role in _ROLES)
        yield Seen(
            own, None if model.partner is None else partner, frozen if model.sees_frozen else None
        )


_ROLES = ("own", "partner", "frozen")
"""As in `Seen`."""


def _experts(model: SavedModel) -> dict[str, Expert]:
    """Under which experts a model needs its rows, by role."""
    frozen = FROZEN if model.sees_frozen else None
    roles = zip(_ROLES, (model.expert, model.partner, frozen), strict=True)
    return {role: expert for role, expert in roles if expert is not None}


def _features(
    learner: ModelLearner, batch: Mapping[str, Tensor], asked: Sequence[Mapping[str, Expert]]
) -> Iterator[tuple[str, list[int], Tensor]]:
    """A batch under the experts that its rows ask for: a role, rows, and their features.

    An expert that several roles or clients have in common sees a row once.
    """
    sees: dict[int, dict[int, None]] = {}
    experts: dict[int, Expert] = {}
    for row, roles in enumerate(asked):
        for expert in roles.values():
            experts[id(expert)] = expert
            sees.setdefault(id(expert), {})[row] = None
    features = _one_pass(learner, batch, [(experts[key], [*at]) for key, at in sees.items()])
    where = {
        (key, row): i
        for i, (key, row) in enumerate((key, row) for key, at in sees.items() for row in at)
    }
    for role in _ROLES:
        at = [row for row, roles in enumerate(asked) if role in roles]
        if at:
            yield role, at, features[[where[id(asked[row][role]), row] for row in at]]


def _one_pass(
    learner: ModelLearner, batch: Mapping[str, Tensor], seen: Sequence[tuple[Expert, list[int]]]
) -> Tensor:
    """`(all rows, width)`: the rows that each expert sees, one expert after the other.

    An expert is in the stack as often as its rows fill places of equal size.
    """
    size = math.gcd(*(len(rows) for _, rows in seen))
    adapters = [learner.adapters(expert.tensors) for expert, _ in seen]
    often = [len(rows) // size for _, rows in seen]
    stack = _stacked(
        learner, [own for own, n in zip(adapters, often, strict=True) for _ in range(n)]
    )
    every = torch.tensor([row for _, rows in seen for row in rows], device=learner.backbone.device)
    taken = {name: tensor[every] for name, tensor in batch.items()}
    boundary, split = learner.slots.lowest(stack), learner.prefixes.split
    if boundary == split.blocks:  # nothing is adapted: all see the same
        return learner.backbone.features(batch)[every]
    if boundary == 0:
        with learner.slots.holding(stack):
            return learner.backbone.features(taken)
    states = split.prefix(batch, boundary)[every]
    with learner.slots.holding(stack):
        return split.suffix(taken, states, boundary)


def _stacked(learner: ModelLearner, adapters: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Adapters with a first axis of experts; zeros where one has none, or one of lower rank."""
    slots = learner.slots
    rank = max(
        (t.shape[0] for own in adapters for n, t in own.items() if n in slots.down), default=0
    )
    names = sorted({name for own in adapters for name in own})
    nothing = slots.of_rank({name: torch.zeros(slots.shapes[name]) for name in names}, rank)
    filled = {id(own): {**nothing, **slots.of_rank(own, rank)} for own in adapters}
    device = learner.backbone.device
    return {
        name: torch.stack([filled[id(own)][name] for own in adapters]).to(device) for name in names
    }
