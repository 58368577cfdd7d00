"""Local-only LoRA: every client trains an expert alone and sends nothing."""

from __future__ import annotations

from fedms.algorithms.checkpoint import DIVERGED, chosen, remember
from fedms.algorithms.fedms import Options, Stage
from fedms.core.algorithm import (
    Aggregate,
    ClientState,
    ClientUpdate,
    ClientWork,
    Expert,
    FederatedAlgorithm,
    Fit,
    Layout,
    Learner,
    Role,
    RoundPlan,
    ServerState,
    Shapes,
    View,
)
from fedms.core.rows import ClientData
from fedms.core.tensors import Tensors, all_finite, part, pick, under


def local(layout: Layout, options: Options) -> FederatedAlgorithm:
    """Plain LoRA in all blocks (as many as a client's cap allows) on each client's own rows.

    It takes part in the rounds of both stages, so that it trains as many local epochs as a
    federated method with the same options; nothing is broadcast or uploaded.
    """
    blocks = len(layout.blocks)
    prior = options.mix_prior == "both"

    def stage(round: int) -> Stage:
        return options.stage1 if round < options.stage1.rounds else options.stage2

    def init(learner: Learner, seed: int) -> ServerState:
        return ServerState(seed, round=0, stage=2, depth=blocks, tensors={})

    def plan(state: ServerState) -> RoundPlan | None:
        rounds = options.stage1.rounds + options.stage2.rounds
        if state.round >= rounds:
            return None
        now, rate = stage(state.round), options.rate(state.round, rounds)
        return RoundPlan(state.round, state.stage, blocks, state.seed, now.cohort, now.epochs, rate)

    def expects(plan: RoundPlan, cap: int | None) -> Shapes:
        return {}

    def client_update(
        learner: Learner,
        plan: RoundPlan,
        broadcast: Tensors,
        state: ClientState | None,
        data: ClientData,
        seed: int,
    ) -> ClientWork:
        depth = data.depth(blocks)
        state = state or ClientState({}, depth)
        names = layout.expert(depth)
        start = {**learner.initial_expert(names, plan.seed), **part("local", state.tensors)}
        expert = Expert(start, prior)
        view = yield Fit(View(expert), names, data, plan.epochs, seed, plan.rate)
        tensors = under("local", pick(view.expert.tensors, names))
        score = learner.score(view, data, "val") if all_finite(tensors) else DIVERGED
        after = remember(state, tensors, score, depth=depth, keep_best=options.keep_best)
        size = layout.size(names)
        return ClientUpdate(data.id, plan.round, len(data.train), {}, score, depth, size, after)

    def server_update(state: ServerState, plan: RoundPlan, aggregate: Aggregate) -> ServerState:
        return ServerState(state.seed, state.round + 1, 2, blocks, state.tensors)

    def view(state: ServerState, client: ClientState | None, role: Role) -> View | None:
        if role == "global":
            return None
        if client is None:
            return View(Expert({}, prior)) if role == "personal" else None
        return View(Expert(part("local", chosen(client)), prior))

    return FederatedAlgorithm("local", init, plan, expects, client_update, server_update, view)
