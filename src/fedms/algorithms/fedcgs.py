"""FedCGS: a classifier from class statistics, in one round and without training.

Source: arXiv 2503.06962, its one global model. As in the authors' code, covariance and frequencies
of classes are those of all rows. What else `core.discriminant` does is done here too: features have
unit length, a ridge is in place of the pseudo-inverse, and a row of the overall mean beside each
class's own, which classes with few rows need.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from fedms.algorithms import gathering
from fedms.algorithms.options import Options
from fedms.core import calibration, discriminant
from fedms.core.algorithm import (
    Aggregate,
    ClientState,
    Expert,
    FederatedAlgorithm,
    Learner,
    Role,
    RoundPlan,
    ServerState,
    View,
)
from fedms.core.discriminant import Discriminant
from fedms.core.layout import Layout
from fedms.core.tensors import part, under


def fedcgs(layout: Layout, options: Options) -> FederatedAlgorithm:
    """One round, of all clients; nothing in the options concerns it."""
    del options
    return FederatedAlgorithm(
        name="fedcgs",
        rounds=1,
        init=partial(_init, layout),
        plan=lambda state: gathering.plan(state.round, state.seed) if not state.round else None,
        expects=lambda plan, client: gathering.expects(layout),
        client_update=gathering.client_update,
        server_update=_server_update,
        view=_view,
    )


def _init(layout: Layout, learner: Learner, seed: int) -> ServerState:
    head = learner.initial_expert(frozenset(layout.head), seed)
    return ServerState(seed=seed, round=0, stage=0, depth=0, tensors=under("global", head))


def _server_update(state: ServerState, plan: RoundPlan, aggregate: Aggregate) -> ServerState:
    made = discriminant.discriminant(gathering.total(aggregate), whole=True)
    return replace(state, round=1, tensors={**state.tensors, **made})


def _view(state: ServerState, client: ClientState | None, role: Role) -> View | None:
    if role == "local":
        return None
    weights = torch.tensor([float(name == "statistics") for name in calibration.EVIDENCE])
    said = Discriminant.of(state.tensors, personal=False, whole=True)
    return View(Expert(part("global", state.tensors)), calibration=weights, statistics=said)
