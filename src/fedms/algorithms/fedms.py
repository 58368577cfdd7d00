"""FedMS: a shared global expert, then a private local expert per client, joined by a gate.

Source: arXiv 2312.15926 (journal version FedFMSL, IEEE TMC 2024), of which only the abstract is at
hand. It says: two stages; a global expert, then a local expert for personalisation, joined as a
mixture of foundation models; a gate with an inserted gate adapter that joins the aggregation in
every round of stage two; low-rank matrices activated progressively. All else is reconstructed and
therefore an option.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from fedms.algorithms import gathering
from fedms.algorithms.checkpoint import DIVERGED, chosen, remember
from fedms.algorithms.options import Options, Share
from fedms.algorithms.sal import Sal
from fedms.algorithms.server import Server
from fedms.core import calibration, discriminant
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
from fedms.core.discriminant import Discriminant
from fedms.core.errors import UserError
from fedms.core.layout import Layout, Shapes
from fedms.core.rows import ClientData
from fedms.core.tensors import Tensors, all_finite, part, pick, under


def fedms(layout: Layout, options: Options, name: str = "fedms") -> FederatedAlgorithm:
    """Both stages over a model of this layout."""
    method = _FedMS(layout, options)
    return FederatedAlgorithm(
        name=name,
        rounds=options.rounds + method.gathering,
        init=partial(_init, method),
        plan=partial(_plan, method),
        expects=partial(_expects, method),
        client_update=partial(_client_update, method),
        server_update=partial(_server_update, method),
        view=partial(_view, method),
    )


def finetune(layout: Layout, options: Options) -> FederatedAlgorithm:
    """Federated averaging of all blocks, then local fine-tuning of all blocks, without a mixture.

    A strong and cheap baseline of personalised federated learning (arXiv 2002.04758, 2108.07313,
    2205.13692).
    """
    return fedms(layout, replace(options, sal=Sal("all"), mixture="none"), "finetune")


@dataclass(frozen=True)
class _FedMS:
    """Layout and options, and what follows from both."""

    layout: Layout
    options: Options

    @property
    def blocks(self) -> int:
        return len(self.layout.blocks)

    @property
    def gathering(self) -> int:
        """Rounds before stage 1: that in which class statistics are gathered, if they are."""
        return int(self.options.gathers)

    @property
    def stages(self) -> list[int]:
        """Those that it has rounds of; 0: that in which class statistics are gathered."""
        rounds = (self.gathering, self.options.stage1.rounds, self.options.stage2.rounds)
        return [stage for stage, count in enumerate(rounds) if count]

    @property
    def shared_gate(self) -> frozenset[str]:
        """Names of the gate's tensors that are averaged."""
        if self.options.mixture != "gate":
            return frozenset()
        names: dict[Share, tuple[str, ...]] = {
            "adapter": self.layout.gate_adapter,
            "all": self.layout.gate_adapter + self.layout.gate_head,
            "none": (),
        }
        return frozenset(f"gate/{name}" for name in names[self.options.share])

    @property
    def fitted(self) -> frozenset[str]:
        """Names of what clients send so that calibration is fitted."""
        return frozenset(calibration.SHAPES if self.options.calibrate else ())

    def trains_with(self, prior: str, broadcast: Tensors) -> tuple[float, float] | None:
        """What is added to logits in training (`Fit.prior`), where the prior is learned."""
        if prior != "learned" or calibration.WEIGHTS not in broadcast:
            return None
        return calibration.prior(broadcast[calibration.WEIGHTS])

    def informed(self, view: View, broadcast: Tensors) -> View:
        """The view with what class statistics say."""
        personal = self.options.statistics == "personal"
        return replace(view, statistics=Discriminant.of(broadcast, personal=personal))

    def calibrated(self, view: View, broadcast: Tensors) -> View:
        """The view as it predicts, with the weights of evidence that the server has now."""
        view = self.informed(view, broadcast)
        return replace(view, calibration=broadcast.get(calibration.WEIGHTS))

    def for_anyone(self, view: View, tensors: Tensors) -> View:
        """The view with what class statistics say, weighed, and nothing of any client's."""
        statistics = Discriminant.of(tensors, personal=False)
        if statistics is None:
            return view
        weights = calibration.impersonal(tensors[calibration.WEIGHTS])
        return replace(view, calibration=weights, statistics=statistics)

    def first_stage(self) -> int:
        """The stage after class statistics are gathered."""
        return 1 if self.options.stage1.rounds else 2

    def next(self, data: ClientData) -> frozenset[str]:
        """What a client trains after class statistics are gathered, where all train then."""
        stage = self.options.stage1 if self.first_stage() == 1 else self.options.stage2
        every = isinstance(stage.cohort, float) and stage.cohort == 1.0
        depth = data.depth(self.options.sal.first_depth(self.blocks))
        return self.layout.expert(depth) if every else frozenset()

    def fit(self, turn: Turn, view: View) -> dict[str, Tensor]:
        """What a client sends so that the weights of evidence fit its view too."""
        if not self.options.calibrate:
            return {}
        sums = turn.learner.derivatives(view, turn.data)
        return {name: (t / len(turn.data.train)).float() for name, t in sums.items()}

    def mixture(self, own: Tensors, shared: Tensors, gate: Tensors) -> View:
        """A client's model in stage 2; its local expert alone where nothing is mixed."""
        expert = Expert(own, self.options.mix_prior == "both")
        if self.options.mixture == "none":
            return View(expert)
        return View(expert, Expert(shared, self.options.counted), gate)


def _init(method: _FedMS, learner: Learner, seed: int) -> ServerState:
    gated = method.options.stage2.rounds and method.options.mixture != "none"
    tensors = under("gate", learner.initial_gate(seed) if gated else {})
    names = method.layout.expert(method.blocks)
    tensors |= method.options.server.start(learner, names, seed)
    if method.options.calibrate:
        tensors[calibration.WEIGHTS] = calibration.initial()
    return ServerState(
        seed=seed,
        round=0,
        stage=0 if method.gathering else method.first_stage(),
        depth=method.options.sal.first_depth(method.blocks),
        tensors=tensors,
    )


def _plan(method: _FedMS, state: ServerState) -> RoundPlan | None:
    stages = {1: method.options.stage1, 2: method.options.stage2}
    if state.round >= method.options.rounds + method.gathering:
        return None
    if state.stage == 0:
        return gathering.plan(state.round, state.seed)
    expert = frozenset(name for name in state.tensors if name.startswith("global/"))
    gate = frozenset(name for name in state.tensors if name.startswith("gate/"))
    stage = stages[state.stage]
    before = method.gathering + (0 if state.stage == 1 else method.options.stage1.rounds)
    rate = method.options.rate(state.round - before, stage.rounds)
    cohort, epochs = stage.cohort, stage.epochs
    plan = RoundPlan(state.round, state.stage, state.depth, state.seed, cohort, epochs, rate)
    plan = replace(plan, gathered=method.gathering)
    weights, fitted = frozenset({calibration.WEIGHTS} & state.tensors.keys()), method.fitted
    known = frozenset(name for name in state.tensors if name.startswith("statistics/"))
    if state.stage == 1:
        active = frozenset(f"global/{n}" for n in method.layout.expert(state.depth))
        sent = expert | weights
        return replace(plan, broadcast=sent, constant=known, upload=active | fitted)
    shared = method.shared_gate
    return replace(
        plan,
        broadcast=shared | weights,
        constant=known | expert | (gate - shared),
        upload=shared | fitted,
    )


def _expects(method: _FedMS, plan: RoundPlan, client: ClientInfo) -> Shapes:
    if plan.stage == 0:
        return gathering.expects(method.layout)
    names = plan.upload
    if plan.stage == 1 and client.cap is not None:
        depth = min(plan.depth, client.cap)
        names = frozenset(f"global/{n}" for n in method.layout.expert(depth)) | method.fitted
    sums = calibration.SHAPES
    return {n: sums.get(n) or method.layout.shapes[n.split("/", 1)[1]] for n in sorted(names)}


def _client_update(method: _FedMS, turn: Turn) -> ClientWork:
    """A client's round, of a stage that its own configuration has: whoever asks for another is sent
    nothing.
    """
    if turn.plan.stage not in method.stages:
        expected = ", ".join(map(str, method.stages))
        raise UserError(
            f"got a round of stage {turn.plan.stage}; expected one of the client's configuration "
            f"({expected})"
        )
    if turn.plan.stage == 0:
        return gathering.client_update(turn, method.next(turn.data))
    update = _train_global if turn.plan.stage == 1 else _train_local
    return update(method, turn)


def _train_global(method: _FedMS, turn: Turn) -> ClientWork:
    """Stage 1: score what arrived on validation rows, then train its active blocks."""
    learner, plan, data = turn.learner, turn.plan, turn.data
    received = part("global", turn.broadcast)
    arrived = method.informed(View(Expert(received)), turn.broadcast)
    score = learner.score(arrived, data, "val")
    fitted = method.fit(turn, method.calibrated(arrived, turn.broadcast))
    depth = data.depth(plan.depth)
    names = method.layout.expert(depth)
    start = {**learner.initial_expert(names, plan.seed), **received}
    expert = Expert(start, prior=method.options.stage1_prior == "client")
    prior = method.trains_with(method.options.stage1_prior, turn.broadcast)
    view = yield replace(turn.fit(replace(arrived, expert=expert), names), prior=prior)
    tensors = {**under("global", pick(view.expert.tensors, names)), **fitted}
    size = method.layout.size(names)
    rows = len(data.train)
    return ClientUpdate(data.id, plan.round, rows, tensors, score, depth, size, turn.state)


def _train_local(method: _FedMS, turn: Turn) -> ClientWork:
    """Stage 2: train local expert and gate together; the global expert stays frozen."""
    learner, plan, broadcast, data = turn.learner, turn.plan, turn.broadcast, turn.data
    state = turn.state or _new_client(method, plan)
    depth = data.depth(state.depth)
    names = method.layout.expert(depth)
    own = part("local", state.tensors)
    start = {**learner.initial_expert(names, plan.seed), **_inherited(method, broadcast), **own}
    received = part("gate", pick(broadcast, plan.broadcast))
    gate = {**part("gate", broadcast), **part("gate", state.tensors), **received}
    mixture = method.informed(method.mixture(start, part("global", broadcast), gate), broadcast)
    gated = method.options.mixture == "gate"
    prior = method.trains_with(method.options.mix_prior, broadcast)
    view = yield replace(turn.fit(mixture, names), gate=gated, prior=prior)
    trained = pick(view.expert.tensors, names | own.keys())
    mean = _mean(state, start, trained) if method.options.checkpoint == "mean" else {}
    tensors = {**under("local", trained), **under("mean", mean), **under("gate", view.gate or {})}
    expert = replace(view.expert, tensors={**view.expert.tensors, **mean})
    view = method.calibrated(replace(view, expert=expert), broadcast)
    score = learner.score(view, data, "val") if all_finite(tensors) else DIVERGED
    depth_after, queue = method.options.sal.grow(
        state.depth,
        state.queue,
        score.accuracy,
        rounds=state.rounds + 1,
        blocks=data.depth(method.blocks),
    )
    after = remember(
        state,
        tensors,
        score,
        depth=depth_after,
        queue=queue,
        keep_best=method.options.checkpoint == "best",
    )
    upload = {**pick(tensors, plan.upload & method.shared_gate), **method.fit(turn, view)}
    size = method.layout.size([*names, *(gate if gated else ())])
    return ClientUpdate(data.id, plan.round, len(data.train), upload, score, depth, size, after)


def _mean(state: ClientState, start: Tensors, trained: Tensors) -> dict[str, Tensor]:
    """The mean of what all rounds of a client left; before a block trained, it was as at first."""
    before, rounds = {**start, **part("mean", state.tensors)}, state.rounds + 1
    return {name: before[name] + (t - before[name]) / rounds for name, t in trained.items()}


def _new_client(method: _FedMS, plan: RoundPlan) -> ClientState:
    first = method.options.sal.first_depth(method.blocks)
    return ClientState({}, depth=plan.depth if method.options.carry_depth else first)


def _inherited(method: _FedMS, broadcast: Tensors) -> Tensors:
    """What the local expert takes over where it has nothing of its own."""
    return part("global", broadcast) if method.options.local_init == "global" else {}


def _server_update(
    method: _FedMS, state: ServerState, plan: RoundPlan, aggregate: Aggregate
) -> ServerState:
    rounds = state.round + 1
    if state.stage == 0:
        made = discriminant.discriminant(gathering.total(aggregate))
        tensors = {**state.tensors, **made}
        return replace(state, round=rounds, tensors=tensors, stage=method.first_stage())
    if method.options.calibrate:
        rows, classes = aggregate.rows, method.layout.classes
        moved = calibration.move(state.tensors, aggregate.tensors, rows, classes)
        state = replace(state, tensors=moved)
    if state.stage == 2:
        arrived = {n: t for n, t in aggregate.tensors.items() if n not in method.fitted}
        return replace(state, round=rounds, tensors={**state.tensors, **arrived})
    depth, queue = method.options.sal.grow(
        state.depth,
        state.queue,
        aggregate.score.accuracy,
        rounds=rounds - method.gathering,
        blocks=method.blocks,
    )
    stage = 1 if rounds < method.options.stage1.rounds + method.gathering else 2
    tensors = method.options.server.move(state.tensors, part("global", aggregate.tensors))
    if stage == 2:
        over = (*Server.MEMORY, calibration.MEMORY)  # evidence is of other experts from now on
        tensors = {n: t for n, t in tensors.items() if not n.startswith(over)}
    return replace(state, round=rounds, tensors=tensors, stage=stage, depth=depth, queue=queue)


def _view(
    method: _FedMS, state: ServerState, client: ClientState | None, role: Role
) -> View | None:
    """Models of a client: the global expert, its local expert alone, the mixture of both.

    The global expert is scored as anyone would use it: alone, or with what class statistics say
    where they are gathered. The others are as their client uses them: calibrated. A client that has
    no local expert (yet) has the global expert, with its class prior where mixtures have that, as
    its personal model.
    """
    shared = part("global", state.tensors)
    if role == "global":
        return method.for_anyone(View(Expert(shared)), state.tensors)
    if client is None:
        alone = method.calibrated(View(Expert(shared, method.options.counted)), state.tensors)
        return alone if role == "personal" else None
    own = chosen(client)
    expert = {**_inherited(method, state.tensors), **part("local", own), **part("mean", own)}
    mixture = method.mixture(expert, shared, part("gate", own))
    model = View(mixture.expert) if role == "local" else mixture
    return method.calibrated(model, state.tensors)
