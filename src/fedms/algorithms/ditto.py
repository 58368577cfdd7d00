"""Ditto (arXiv 2012.04221): a private model a client, pulled towards the global one."""

from __future__ import annotations

from dataclasses import replace

from fedms.algorithms.checkpoint import DIVERGED, chosen, remember
from fedms.algorithms.keygroups import fedavg
from fedms.algorithms.options import Options
from fedms.core.algorithm import (
    ClientState,
    ClientWork,
    Expert,
    FederatedAlgorithm,
    Role,
    ServerState,
    Turn,
    View,
)
from fedms.core.layout import Layout
from fedms.core.seeds import derive_seed
from fedms.core.tensors import all_finite, part, under


def ditto(layout: Layout, options: Options) -> FederatedAlgorithm:
    """Federated averaging, and beside it every client trains an expert of its own.

    The own expert starts from the first global one that the client receives, and pays
    `options.own_pull / 2` times its squared distance from the global expert of the round. Two
    passes over a client's rows a round, and so half as many rounds (`Options.halved`).
    """
    shared = fedavg(layout, options.halved())
    prior = options.mix_prior == "both"

    def client_update(turn: Turn) -> ClientWork:
        update = yield from shared.client_update(replace(turn, state=None))
        learner, state, names = turn.learner, turn.state, layout.expert(update.depth)
        fresh = learner.initial_expert(names, turn.plan.seed)
        start = {**fresh, **part("global", turn.broadcast)}
        own = {**start, **part("local", state.tensors if state else {})}
        fit = replace(turn, seed=derive_seed(turn.seed, "own")).fit(View(Expert(own, prior)), names)
        view = yield replace(fit, pull=options.own_pull, anchor=start)
        tensors = under("local", view.expert.tensors)
        score = learner.score(view, turn.data, "val") if all_finite(tensors) else DIVERGED
        before = state or ClientState({}, update.depth)
        keep_best = options.keep_best
        after = remember(before, tensors, score, depth=update.depth, keep_best=keep_best)
        size = update.trained_parameters + layout.size(names)
        return replace(update, state=after, trained_parameters=size)

    def view(state: ServerState, client: ClientState | None, role: Role) -> View | None:
        if role == "global" or client is None:
            return shared.view(state, None, role)
        return View(Expert(part("local", chosen(client)), prior))

    return replace(shared, name="ditto", client_update=client_update, view=view)
