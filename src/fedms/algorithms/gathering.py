"""The round in which class statistics are gathered (`core.discriminant`); nothing is trained."""

from __future__ import annotations

from fedms.core import discriminant
from fedms.core.algorithm import Aggregate, ClientUpdate, ClientWork, RoundPlan, Score, Turn
from fedms.core.layout import Layout, Shapes
from fedms.core.tensors import Tensors


def plan(round: int, seed: int) -> RoundPlan:
    """All clients send their sums, and are sent nothing."""
    names = frozenset(discriminant.shapes(0, 0))
    return RoundPlan(round, 0, 0, seed, cohort=1.0, epochs=0, upload=names)


def expects(layout: Layout) -> Shapes:
    """What each client sends."""
    return discriminant.shapes(layout.classes, layout.width)


def client_update(turn: Turn, names: frozenset[str] = frozenset()) -> ClientWork:
    """A client's part: its sums, divided by its rows, which are its weight in the average.

    `names`: see `Learner.statistics`.
    """
    rows = len(turn.data.train)
    sums = turn.learner.statistics(turn.data, names)
    tensors = {name: (t / rows).float() for name, t in sums.items()}
    return ClientUpdate(turn.data.id, turn.plan.round, rows, tensors, Score(), 0, 0, turn.state)
    yield  # a client's work is a generator, also where nothing is trained


def total(aggregate: Aggregate) -> Tensors:
    """The sums over all clients' rows, float64."""
    return {name: t.double() * aggregate.rows for name, t in aggregate.tensors.items()}
