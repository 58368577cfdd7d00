"""Two experts joined inside the layers: each projection weighs both products.

What is frozen lies beneath a client's own adapters (`Expert.beneath`). Weights are those of mixers,
token by token: one a projection, or one a layer with hidden units; they train with the adapters and
never leave. Or they follow from how like a row is to the client's own (`Expert.likeness`). FedMS
joins whole models once an example instead.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
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
from fedms.core.rows import Rows
from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors, all_finite, part, pick, under

_ROWS, _PART, _TOOK = "rest/rows", "rest/part", "took/part"
_MARKS = 1 << 24
"""That a float32 tells apart."""
_LIKENESS = "likeness/direction"
_INSTANCES = 5
"""Of a client's rows, those that others are compared with."""


def dual(layout: Layout, options: Options) -> FederatedAlgorithm:
    """A comparator: federated averaging in stage 1, then a second, private LoRA and mixers.

    The second LoRA starts from the shared one, or from zero (`options.local_init`). Every adapted
    projection has a gate of its own, linear with softmax (as in FedALT, arXiv 2503.11880). Gates of
    others are fewer or larger: in CoMiGS (arXiv 2409.13931) one a layer, in pFedMoE (arXiv
    2402.01350) one network, which is not linear, for the whole model.

    With `baselines.gate_hidden` the model has other gates (`layout.mixers`), and FedALT has not: an
    MLP of one hidden layer (ReLU) with softmax, which q, k and v of a layer share; the projection
    after attention, which sees something else, has one of its own.
    """
    first = finetune(layout, replace(options, calibrate=False))
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


def feddpa(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FedDPA-F (arXiv 2403.19211): a local adapter beside the global one, weighed by likeness.

    Known of the paper, whose abstract alone is at hand, by what others write of it: a global
    adapter is learned by federated averaging; then a local one starts from it, is fine-tuned and
    stays. To predict, both products are added in every layer, by weights of each instance's own.
    Read off its authors' public code: the local one weighs `a`, the global one `1 - a`, and `a` is
    a factor (0.5, `options.likeness`) times the mean cosine between the instance's representation
    and those of 5 random training instances, all under the local adapter.

    Reconstructed: the local adapter trains without the global one beside it; the representation is
    the feature that classes are scored by (theirs: the last token's); the 5 are drawn once a
    client, not once an instance, so that predictions repeat; `a` is held within 0..1; a linear head
    is the client's own; of a client's rounds the best is kept by the score of both together. Not
    here: FedDPA-T, which trains both in turn every round.
    """
    first = finetune(layout, replace(options, local_init="global", calibrate=False))

    def client_update(turn: Turn) -> ClientWork:
        if turn.plan.stage == 1:
            update = yield from first.client_update(turn)
            return update
        names = layout.expert(turn.data.depth(len(layout.blocks)))
        shared = part("global", turn.broadcast)
        fresh = turn.learner.initial_expert(names, turn.plan.seed)
        expert = Expert({**fresh, **shared, **_own(turn.state)}, options.mix_prior == "both")
        own = (yield turn.fit(View(expert), names)).expert
        likeness = options.likeness * turn.learner.mean_direction(own, _drawn(turn))
        both = replace(own, beneath=_pairs(layout, shared), likeness=likeness)
        tensors = {**under("local", pick(own.tensors, names)), _LIKENESS: likeness}
        return _ended(turn, View(both), tensors, {}, names, options)

    def view(state: ServerState, client: ClientState | None, role: Role) -> View | None:
        found = first.view(state, client, role)
        likeness = chosen(client).get(_LIKENESS) if client and role == "personal" else None
        if found is None or likeness is None:
            return found
        beneath = _pairs(layout, part("global", state.tensors))
        return View(replace(found.expert, beneath=beneath, likeness=likeness))

    return replace(first, name="feddpa", client_update=client_update, view=view)


def fedalt(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FedALT (arXiv 2503.11880): each client's own LoRA beside the average of all others'.

    A client goes on with its own LoRA, which the average never replaces; what lies beneath is the
    rest of the world's. The server sends the average of all and the rows behind it, and a client
    that took part in it takes its own share out, so that nobody is sent anything of its own. Whose
    updates were averaged the server says by marks, so that a client whose own was late or refused
    takes nothing out. (With caps, that share is of the rows of all, also for blocks which fewer
    clients sent.)

    Otherwise than in its authors' public code: the others' average is weighted by rows, where
    theirs is the plain mean; and mixers start even, where theirs start at random.
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
        marks = torch.cat([_mark(plan.round, client) for client in aggregate.took])
        facts = {_ROWS: _number(aggregate.rows), _PART: marks}
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
    names = frozenset(expert.tensors)
    view = yield turn.fit(View(expert), names)
    trained = view.expert.tensors
    tensors = {
        **under("local", trained),
        **under("rest", expert.beneath),
        _TOOK: _mark(turn.plan.round, turn.data.id),
    }
    sent = {name: trained[name.removeprefix("global/")] for name in sorted(upload)}
    return _ended(turn, view, tensors, sent, names, options)


def _ended(
    turn: Turn,
    view: View,
    tensors: Tensors,
    sent: Tensors,
    names: frozenset[str],
    options: Options,
) -> ClientUpdate:
    """The end of a client's round: its model is scored, and `tensors` are what it remembers."""
    learner, data = turn.learner, turn.data
    score = learner.score(view, data, "val") if all_finite(tensors) else DIVERGED
    depth, size = data.depth(len(learner.layout.blocks)), learner.layout.size(names)
    before, rows = turn.state or ClientState({}, depth), len(data.train)
    after = remember(before, tensors, score, depth=depth, keep_best=options.keep_best)
    return ClientUpdate(data.id, turn.plan.round, rows, sent, score, depth, size, after)


def _drawn(turn: Turn) -> Rows:
    """The training rows that others are compared with, the same in every round."""
    train = turn.data.train
    rng = np.random.default_rng(derive_seed(turn.plan.seed, "likeness", turn.data.id))
    return train.take(rng.permutation(len(train))[:_INSTANCES])


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
    if not bool((broadcast[_PART] == state.tensors[_TOOK]).any()):
        return average  # it has no part in this average
    total = float(broadcast[_ROWS])
    if total <= rows:
        return {}
    own = part("local", state.tensors)
    return {
        name: (total * tensor - rows * own[name]) / (total - rows) if name in own else tensor
        for name, tensor in average.items()
    }


def _mark(number: int, client: str) -> Tensor:
    """By which a client knows that its update of a round was averaged."""
    return _number(derive_seed(number, "took", client) % _MARKS)


def _number(value: int) -> Tensor:
    return torch.tensor([float(value)])
