"""Two experts joined inside the layers: each projection weighs both products, token by token.

What is frozen lies beneath a client's own adapters (`Expert.beneath`); mixers, one a projection,
train with them and never leave. FedMS joins whole models once an example instead.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedms.algorithms.checkpoint import DIVERGED, chosen, remember
from fedms.algorithms.fedms import finetune
from fedms.algorithms.keygroups import fedavg
from fedms.algorithms.options import Options
from fedms.core.algorithm import (
    Aggregate,
    ClientInfo,
    ClientState,
    ClientUpdate,
    ClientWork,
    Expert,
    FederatedAlgorithm,
    Learner,
    Role,
    RoundPlan,
    ServerState,
    Turn,
    View,
)
from fedms.core.layout import Layout, Shapes
from fedms.core.tensors import Tensors, all_finite, part, pick, under

_ROWS, _ROUND, _TOOK = "rest/rows", "rest/round", "took/round"


def dual(layout: Layout, options: Options) -> FederatedAlgorithm:
    """A comparator: federated averaging in stage 1, then a second, private LoRA and mixers.

    The second LoRA starts from the shared one, or from zero (`options.local_init`); every
    projection has a linear gate with softmax (as in FedALT, arXiv 2503.11880).
    """
    first = finetune(layout, options)
    blocks = len(layout.blocks)
    prior = options.mix_prior == "both"

    def client_update(turn: Turn) -> ClientWork:
        if turn.plan.stage == 1:
            update = yield from first.client_update(turn)
            return update
        depth = turn.data.depth(blocks)
        names = layout.expert(depth) | layout.mixing(depth)
        shared = part("global", turn.broadcast)
        inherited = shared if options.local_init == "global" else {}
        fresh = turn.learner.initial_expert(names, turn.plan.seed)
        start = pick({**fresh, **inherited, **_own(turn.state)}, names)
        expert = Expert(start, prior, _pairs(layout, shared))
        return (yield from _own_round(turn, expert, {}, options))

    def view(state: ServerState, client: ClientState | None, role: Role) -> View | None:
        if role == "global" or client is None:
            return first.view(state, None, role)
        own = part("local", chosen(client))
        return View(Expert(own, prior, _pairs(layout, part("global", state.tensors))))

    return replace(first, name="dual", client_update=client_update, view=view)


def fedalt(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FedALT (arXiv 2503.11880): each client's own LoRA beside the average of all others'.

    A client goes on with its own LoRA, which the average never replaces; what lies beneath is the
    rest of the world's. The server sends the average of all and the rows behind it, and a client
    that took part in it takes its own share out, so that nobody is sent anything of its own.
    (With caps, that share is of the rows of all, also for blocks which fewer clients sent.)
    """
    plain = fedavg(layout, options)
    blocks = len(layout.blocks)
    prior = options.mix_prior == "both"
    adapters = frozenset(name for pair in layout.pairs for name in pair)

    def init(learner: Learner, seed: int) -> ServerState:
        return ServerState(seed, round=0, stage=2, depth=blocks, tensors={})

    def plan(state: ServerState) -> RoundPlan | None:
        planned = plain.plan(state)
        if planned is None:
            return None
        upload = frozenset(f"global/{name}" for name in adapters)
        return replace(planned, broadcast=frozenset(state.tensors), upload=upload)

    def expects(plan: RoundPlan, client: ClientInfo) -> Shapes:
        every = plain.expects(plan, client)
        return {n: shape for n, shape in every.items() if n.removeprefix("global/") in adapters}

    def client_update(turn: Turn) -> ClientWork:
        depth = turn.data.depth(blocks)
        names = layout.expert(depth) | layout.mixing(depth)
        fresh = turn.learner.initial_expert(names, turn.plan.seed)
        start = {**fresh, **_own(turn.state)}
        expert = Expert(start, prior, _pairs(layout, _rest(turn)))
        upload = under("global", pick(start, names & adapters))
        return (yield from _own_round(turn, expert, upload, options))

    def server_update(state: ServerState, plan: RoundPlan, aggregate: Aggregate) -> ServerState:
        facts = {_ROWS: _number(aggregate.rows), _ROUND: _number(plan.round)}
        tensors = {**state.tensors, **aggregate.tensors, **facts}
        return replace(state, round=state.round + 1, tensors=tensors)

    def view(state: ServerState, client: ClientState | None, role: Role) -> View | None:
        if role == "global" or (role == "local" and client is None):
            return None
        shared = part("global", state.tensors)
        if client is None:
            return View(Expert(shared, prior))
        kept = chosen(client)
        return View(Expert(part("local", kept), prior, _pairs(layout, part("rest", kept))))

    return FederatedAlgorithm(
        name="fedalt",
        rounds=plain.rounds,
        init=init,
        plan=plan,
        expects=expects,
        client_update=client_update,
        server_update=server_update,
        view=view,
    )


def _own_round(turn: Turn, expert: Expert, upload: Tensors, options: Options) -> ClientWork:
    """A client's round with an expert of its own over frozen pairs.

    What was beneath is kept with the expert, which learned beside it. `upload` names what is sent
    of it, as `global/…`.
    """
    learner, plan, data, names = turn.learner, turn.plan, turn.data, frozenset(expert.tensors)
    view = yield turn.fit(View(expert), names)
    trained = view.expert.tensors
    score = learner.score(view, data, "val") if all_finite(trained) else DIVERGED
    depth = data.depth(len(learner.layout.blocks))
    tensors = {
        **under("local", trained),
        **under("rest", expert.beneath),
        _TOOK: _number(plan.round),
    }
    before, keep_best = turn.state or ClientState({}, depth), options.keep_best
    after = remember(before, tensors, score, depth=depth, keep_best=keep_best)
    sent = {name: trained[name.removeprefix("global/")] for name in sorted(upload)}
    size = learner.layout.size(names)
    return ClientUpdate(data.id, plan.round, len(data.train), sent, score, depth, size, after)


def _pairs(layout: Layout, tensors: Tensors) -> dict[str, Tensor]:
    """Those that are adapter tensors, of pairs that are complete."""
    found = [(a, b) for a, b in layout.pairs if a in tensors and b in tensors]
    return {name: tensors[name] for pair in found for name in pair}


def _own(state: ClientState | None) -> dict[str, Tensor]:
    """What a client goes on with."""
    return part("local", state.tensors) if state else {}


def _rest(turn: Turn) -> dict[str, Tensor]:
    """The average of the others' adapters; empty where there are no others (yet)."""
    broadcast, state, rows = turn.broadcast, turn.state, len(turn.data.train)
    average = part("global", broadcast)
    if not average or state is None or _TOOK not in state.tensors:
        return average
    if float(state.tensors[_TOOK]) != float(broadcast[_ROUND]):
        return average  # it took no part in this average
    total = float(broadcast[_ROWS])
    if total <= rows:
        return {}
    own = part("local", state.tensors)
    return {
        name: (total * tensor - rows * own[name]) / (total - rows) if name in own else tensor
        for name, tensor in average.items()
    }


def _number(value: int) -> Tensor:
    return torch.tensor([float(value)])
