"""Every algorithm through the same invariants, on a toy and on real tiny models.

One run is made for every pair of method and model, and another whose clients work in the opposite
order; the tests read both. A new algorithm or option adds one row to `METHODS`.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from fedms import algorithms
from fedms.algorithms import Options, Sal, Server, Stage, fedavg, fedms, gathering, local
from fedms.core import calibration
from fedms.core.algorithm import ClientInfo, Expert, Turn, View
from fedms.core.errors import UserError
from fedms.core.robust import change
from fedms.core.tensors import fingerprint, part
from fedms.core.work import beginnings, perform
from fedms.runtimes.rounds import run_rounds
from fedms.runtimes.simulator import Simulator
from fedms.store.states import ClientStates

DEFAULT = Options(Stage(2), Stage(2, epochs=2), Sal("schedule", every=1))
METHODS = {
    "fedms": (fedms, DEFAULT),
    "fedms-zero": (fedms, replace(DEFAULT, local_init="zero")),
    "fedms-share-all": (fedms, replace(DEFAULT, share="all")),
    "fedms-share-none": (fedms, replace(DEFAULT, share="none")),
    "fedms-restart-depth": (fedms, replace(DEFAULT, carry_depth=False)),
    "fedms-last": (fedms, replace(DEFAULT, checkpoint="last")),
    "fedms-queue": (fedms, replace(DEFAULT, sal=Sal("queue", queue=2, epsilon=2.0))),
    "fedms-all": (fedms, replace(DEFAULT, sal=Sal("all"))),
    "fedms-no-stage1": (fedms, replace(DEFAULT, stage1=Stage(0))),
    "fedms-momentum": (fedms, replace(DEFAULT, server=Server(momentum=0.5))),
    "fedms-prior": (fedms, replace(DEFAULT, stage1_prior="client", mix_prior="both")),
    "fedms-cohort": (fedms, replace(DEFAULT, stage1=Stage(2, 2), stage2=Stage(2, 0.5))),
    "fedms-even": (fedms, replace(DEFAULT, mixture="even")),
    "fedms-calibrated": (fedms, replace(DEFAULT, calibrate=True, checkpoint="mean")),
    "fedms-learned": (
        fedms,
        replace(DEFAULT, calibrate=True, stage1_prior="learned", mix_prior="learned"),
    ),
    "fedms-statistics": (
        fedms,
        replace(DEFAULT, calibrate=True, statistics="personal", stage1_prior="learned"),
    ),
    "finetune-calibrated": (
        algorithms.finetune,
        replace(DEFAULT, calibrate=True, checkpoint="mean"),
    ),
    "finetune": (algorithms.finetune, DEFAULT),
    "fedavg": (fedavg, DEFAULT),
    "fedprox": (algorithms.fedprox, replace(DEFAULT, pull=0.5)),
    "fedadam": (algorithms.fedadam, DEFAULT),
    "ffa": (algorithms.ffa, DEFAULT),
    "flora": (algorithms.METHODS["flora"], DEFAULT),
    "fedex": (algorithms.METHODS["fedex"], DEFAULT),
    "flexlora": (algorithms.METHODS["flexlora"], DEFAULT),
    "fedra": (algorithms.fedra, replace(DEFAULT, random_blocks=2)),
    "fedcgs": (algorithms.fedcgs, DEFAULT),
    "ditto": (algorithms.ditto, replace(DEFAULT, own_pull=0.5)),
    "fedper": (algorithms.fedper, DEFAULT),
    "fedrep": (algorithms.fedrep, DEFAULT),
    "fedsa": (algorithms.fedsa, DEFAULT),
    "dual": (algorithms.dual, DEFAULT),
    "dual-mlp": (algorithms.dual, DEFAULT),
    "fedalt": (algorithms.fedalt, DEFAULT),
    "feddpa": (algorithms.feddpa, replace(DEFAULT, likeness=1.0)),
    "local": (local, DEFAULT),
    "probe": (algorithms.probe, DEFAULT),
}
ONE_GLOBAL = ("fedavg", "fedprox", "fedadam", "ffa", "flora", "fedex", "flexlora", "fedra")
PRIVATE = ("fedper", "fedrep", "fedsa", "fedalt", "local", "probe")
PROMPTED = tuple(method for method in METHODS if method != "probe")
"""All but the one that needs a linear head."""
ON_TOYS_ONLY = (
    "fedms-zero",
    "fedms-share-all",
    "fedms-prior",
    "fedms-all",
    "fedms-calibrated",
    "fedms-restart-depth",
    "fedms-queue",
    "fedms-share-none",
    "fedms-last",
    "fedms-no-stage1",
    "fedms-momentum",
    "fedms-cohort",
    "fedms-even",
    "fedms-learned",
    "finetune-calibrated",
    "fedprox",
    "fedadam",
    "flexlora",
)
"""Not on the tiny sentence encoder: what a real model would not notice, or sees among images."""
MODELS = {
    "toy": PROMPTED,
    "toy-linear": tuple(METHODS),
    "sentence": tuple(method for method in PROMPTED if method not in ON_TOYS_ONLY),
    "clip": (
        "fedms",
        "fedms-all",
        "fedms-prior",
        "fedms-statistics",
        "fedavg",
        "fedex",
        "dual",
        "dual-mlp",
        "fedalt",
        "feddpa",
        "local",
    ),
    "vit": (
        "fedms",
        "fedms-zero",
        "fedms-momentum",
        "fedms-share-all",
        "fedms-all",
        "fedms-statistics",
        "fedavg",
        "flora",
        "fedra",
        "fedcgs",
        "fedper",
        "fedsa",
        "dual",
        "fedalt",
        "feddpa",
        "local",
        "probe",
    ),
}
ROUNDS = {"fedms-no-stage1": 2, "ditto": 2, "fedrep": 2, "fedms-statistics": 5, "fedcgs": 1}
PAIRS = [(method, model) for model, methods in MODELS.items() for method in methods]
QUICK = ("fedms", "fedms-statistics", "fedavg", "local")
"""On real models too, where the others are slow tests."""
TWO_STAGES = [pair for pair in PAIRS if pair[0].startswith(("fedms", "finetune", "dual", "feddpa"))]


def params(pairs: list[tuple[str, str]]) -> list:
    """Of a test: those that are slow are marked."""
    quick = [method in QUICK or "toy" in model for method, model in pairs]
    marks = [() if each else pytest.mark.slow for each in quick]
    return [pytest.param(*pair, marks=mark) for pair, mark in zip(pairs, marks, strict=True)]


class Backwards(Simulator):
    """The same clients, who work in the opposite order; answers come in cohort order."""

    def train(self, plan, tensors, cohort):
        yield from reversed(list(super().train(plan, tensors, cohort[::-1])))


@dataclass
class Trace:
    """What a run did, and what it left."""

    learner: object
    algorithm: object
    clients: list
    plans: list = field(default_factory=list)
    calls: list = field(default_factory=list)
    states: list = field(default_factory=list)
    records: list = field(default_factory=list)
    kept: dict = field(default_factory=dict)
    frozen: tuple = ()

    def updates(self, stage: int) -> Iterator:
        return ((c[0], c[-1], c[3]) for c in self.calls if c[0].stage == stage)


def weights_of(learner) -> dict:
    """The foundation model without its slots, the prompts and all constants."""
    if hasattr(learner, "backbone"):
        own = learner.backbone.model.state_dict()
        return {n: t.clone() for n, t in own.items() if ".lora_" not in n}
    return {"frozen": learner.frozen.clone(), "classes": learner.classes.clone()}


def surroundings() -> tuple:
    """All that belongs to the process and is none of a learner's business."""
    numbers = np.random.get_state()[1].tobytes()  # noqa: NPY002
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    return random.getstate(), numbers, torch.get_rng_state().numpy().tobytes(), threads, grad


@pytest.fixture(scope="module")
def world(toy, make_toy_client, make_learner, make_client):
    """A learner and three clients: one alone, one with a cap of one block, one of other size."""
    sizes = {"a": (9, None), "b": (6, 1), "c": (5, None)}

    def make(model: str, method: str = ""):
        hidden = 3 if method == "dual-mlp" else 0  # is the model's
        if model.startswith("toy"):
            clients = [make_toy_client(n, r, ord(n), c) for n, (r, c) in sizes.items()]
            return toy(linear=model == "toy-linear", hidden=hidden), clients
        learner = make_learner(model, cache_bytes=10**7, gate_hidden=hidden)
        return learner, [
            make_client(learner.backbone, n, r, ord(n), c) for n, (r, c) in sizes.items()
        ]

    return make


@pytest.fixture(scope="module")
def trace(world, tmp_path_factory):
    done: dict = {}

    def run(method: str, model: str, runtime=Simulator) -> Trace:
        key = (method, model, runtime)
        if key not in done:
            learner, clients = world(model, method)
            done[key] = record(method, learner, clients, runtime, tmp_path_factory.mktemp("run"))
        return done[key]

    return run


def made(method, learner):
    """The algorithm; with real models, which take their time, of one epoch a round."""
    maker, options = METHODS[method]
    if hasattr(learner, "backbone"):
        options = replace(options, stage2=replace(options.stage2, epochs=1))
    return maker(learner.layout, options)


def record(method, learner, clients, runtime, folder) -> Trace:
    algorithm = made(method, learner)
    trace = Trace(learner, algorithm, clients)

    def plan(state):
        trace.plans.append(algorithm.plan(state))
        return trace.plans[-1]

    def client_update(turn):
        broadcast, state = turn.broadcast, turn.state
        arrived = (
            dict(broadcast),
            fingerprint(broadcast),
            fingerprint(state.tensors if state else {}),
        )
        update = yield from algorithm.client_update(turn)
        left = dict(broadcast), fingerprint(broadcast), fingerprint(state.tensors if state else {})
        trace.calls.append((turn.plan, arrived, left, turn.data, state, turn.seed, update))
        return update

    states = ClientStates(folder)
    spied = replace(algorithm, plan=plan, client_update=client_update)
    simulator = runtime(spied, learner, clients[::-1], states)
    weights, before = fingerprint(weights_of(learner)), surroundings()
    trace.states.append(algorithm.init(learner, 3))
    for state, line in run_rounds(spied, simulator, trace.states[0]):
        if line.round == 1:  # between the stages, where it could disturb most
            simulator.evaluate(state)
        trace.states.append(state)
        trace.records.append(line)
    trace.kept = {c.id: states.load(c.id) for c in clients}
    trace.frozen = (weights, before), (fingerprint(weights_of(learner)), surroundings())
    return trace


def info(data) -> ClientInfo:
    return ClientInfo(data.id, len(data.train), data.cap)


def hashes(trace: Trace) -> tuple:
    """The server after every round, and every client's state."""
    server = [(fingerprint(s.tensors), s.round, s.depth, s.queue) for s in trace.states]
    own = {
        c: s and (fingerprint(s.tensors), s.depth, s.queue, s.rounds, s.kept)
        for c, s in trace.kept.items()
    }
    return server, own


@pytest.mark.parametrize(("method", "model"), params(PAIRS))
def test_rounds_end_and_nobody_is_rejected(trace, method, model):
    run = trace(method, model)
    rounds = ROUNDS.get(method, 4)
    assert [p and p.round for p in run.plans] == [*range(rounds), None]
    assert [r.rejected for r in run.records] == [{}] * rounds
    assert all(t.isfinite().all() for s in run.states for t in s.tensors.values())


@pytest.mark.parametrize(("method", "model"), params(PAIRS))
def test_uploads_are_exactly_what_is_expected(trace, method, model):
    run = trace(method, model)
    for plan, *_, data, _, _, update in run.calls:
        expected = run.algorithm.expects(plan, info(data))
        assert {n: tuple(t.shape) for n, t in update.tensors.items()} == dict(expected)
        assert update.tensors.keys() <= plan.upload
        assert update.tensors.keys() == plan.upload or data.cap == 1 or method == "fedra"


@pytest.mark.parametrize(("method", "model"), params(TWO_STAGES))
def test_what_leaves_a_client(trace, method, model):
    """Stage 1: active blocks and the expert's head. Stage 2: what is shared of the gate."""
    run = trace(method, model)
    layout = run.learner.layout
    options = METHODS[method][1]
    gated = method.startswith("fedms") and options.mixture == "gate"
    fitted = set(calibration.SHAPES) if options.calibrate else set()
    share = options.share if gated else "none"
    gate = {"adapter": layout.gate_adapter, "none": ()}.get(
        share, layout.gate_adapter + layout.gate_head
    )
    for plan, update, data in run.updates(stage=1):
        depth = min(plan.depth, data.cap or plan.depth)
        active = [name for block in layout.blocks[3 - depth :] for name in block]
        assert set(update.tensors) == {f"global/{n}" for n in [*active, *layout.head]} | fitted
        assert update.depth == depth
        assert update.state is None
    for _, update, _ in run.updates(stage=2):
        assert set(update.tensors) == {f"gate/{n}" for n in gate} | fitted
        assert update.state is not None


@pytest.mark.parametrize(("method", "model"), params([p for p in PAIRS if p[1] == "toy"]))
def test_what_is_sent_is_the_clients_own_choice(trace, method, model):
    """A server that asks for what is private, or for all there is, is sent no more than others."""
    run = trace(method, model)
    plan, (broadcast, *_), _, data, state, seed, update = run.calls[-1]
    private = update.state.tensors if update.state else {}
    more = frozenset(private) | frozenset(
        f"{role}/{n}" for role in ("local", "mean") for n in plan.upload
    )
    if plan.stage == 1:
        more = frozenset(n for n in more if not n.startswith("global/"))
    turn = Turn(run.learner, replace(plan, upload=plan.upload | more), broadcast, state, data, seed)
    (again,) = perform([run.algorithm.client_update(turn)], run.learner, 0)
    assert again.tensors.keys() == update.tensors.keys()


@pytest.mark.parametrize(("method", "model"), params([p for p in PAIRS if p[1] == "toy"]))
def test_class_statistics_are_sent_where_the_configuration_gathers_them(trace, method, model):
    """A server that asks for them all the same, in a round of their own, is not sent them."""
    run = trace(method, model)
    plan, (broadcast, *_), _, data, state, seed, _ = run.calls[-1]
    asked = replace(plan, stage=0, upload=gathering.plan(plan.round, plan.seed).upload)
    turn = Turn(run.learner, asked, broadcast, state, data, seed)
    if method.startswith(("fedms", "finetune")) and method != "fedms-statistics":
        with pytest.raises(UserError, match="got a round of stage 0; expected one of the client's"):
            perform([run.algorithm.client_update(turn)], run.learner, 0)
        return
    (update,) = perform([run.algorithm.client_update(turn)], run.learner, 0)
    sent = any(name.startswith("statistics/") for name in update.tensors)
    assert sent == (method in ("fedms-statistics", "fedcgs"))


ORDERS = [(method, model) for method, model in PAIRS if "toy" in model or method == "fedms"]
ORDERS += [(method, "sentence") for method in ("flora", "ditto", "fedrep", "dual-mlp", "feddpa")]
"""Toys show it of every method, real models of what has a loop of its own; for time's sake."""


@pytest.mark.parametrize(("method", "model"), params(ORDERS))
def test_order_of_work_changes_nothing(trace, method, model):
    """To the bit, in a process of its own: so also the same seed gives the same run twice."""
    assert hashes(trace(method, model)) == hashes(trace(method, model, Backwards))


OWN = (
    "fedms",
    "fedms-even",
    "fedms-calibrated",
    "finetune",
    "ditto",
    *PRIVATE[:-1],
    "dual",
    "feddpa",
)
"""Methods with models of clients' own, whose best is kept."""


@pytest.mark.parametrize("method", OWN)
def test_a_client_that_diverges_at_once_is_as_one_that_never_took_part(
    toy, make_toy_client, tmp_path, monkeypatch, method
):
    """In all that it trains of its own; it is rejected, and served as newcomers are."""
    maker, options = METHODS[method]
    learner = toy()
    clients = [make_toy_client(n, 8, ord(n)) for n in "ab"]
    algorithm, states = maker(learner.layout, options), ClientStates(tmp_path)
    fit = learner._fit

    def diverges(asked):
        view = fit(asked)
        if asked.data.id == "a" or (state.stage == 1 and method != "ditto"):
            return view
        broken = {n: t * float("nan") for n, t in view.expert.tensors.items()}
        return replace(view, expert=replace(view.expert, tensors=broken))

    monkeypatch.setattr(learner, "_fit", diverges)
    simulator = Simulator(algorithm, learner, clients, states, [replace(clients[1], id="new")])
    state = algorithm.init(learner, 0)
    while (plan := algorithm.plan(state)) is not None:
        last, (state, record) = plan, next(run_rounds(algorithm, simulator, state))
    assert "b" in record.rejected
    assert states.load("b") is None
    new = algorithm.view(state, None, "personal").expert.fingerprint
    assert algorithm.view(state, states.load("b"), "personal").expert.fingerprint == new
    assert set(simulator.evaluate(state)["test"]["personal"]) == {"a", "b"}
    scores = simulator.newcomers(last, state, 2, 9)
    assert scores["after"] == scores["before"]


class Stacked(Simulator):
    """Two clients at a time; the toy trains them as it trains one."""

    def __init__(self, *words) -> None:
        super().__init__(*words, stack=2)


@pytest.mark.parametrize(("method", "model"), params([pair for pair in PAIRS if "toy" in pair[1]]))
def test_stacks_change_nothing(trace, method, model):
    assert hashes(trace(method, model)) == hashes(trace(method, model, Stacked))


@pytest.mark.parametrize("stack", [1, 2, 3, 9])
def test_answers_come_in_cohort_order_and_private_states_stay(
    toy, make_toy_client, tmp_path, stack
):
    """Whatever clients' sizes; also where there are more than one pool of stacks."""
    clients = [make_toy_client(str(i), rows=2 + i * 5 % 7, seed=i) for i in range(12)]
    states, learner = ClientStates(tmp_path), toy()
    algorithm = local(learner.layout, DEFAULT)
    state = algorithm.init(learner, 0)
    simulator = Simulator(algorithm, learner, clients, states, stack=stack)
    cohort = [str(i) for i in (3, 0, 11, 5, 7, 1, 2, 10, 9, 8)]
    answers = list(simulator.train(algorithm.plan(state), {}, cohort))
    assert [answer.update.client for answer in answers] == cohort
    assert [answer.update.rows for answer in answers] == [2 + int(c) * 5 % 7 for c in cohort]
    assert all(answer.update.state is None for answer in answers)
    assert all((states.load(client.id) is not None) == (client.id in cohort) for client in clients)


@pytest.mark.parametrize(("method", "model"), params(PAIRS))
def test_nothing_is_left_behind_and_nothing_that_arrived_is_changed(trace, method, model):
    run = trace(method, model)
    before, after = run.frozen
    assert after == before
    for _, arrived, left, *_ in run.calls:
        assert left[1:] == arrived[1:]
        assert all(left[0][n] is t for n, t in arrived[0].items())
    if hasattr(run.learner, "slots"):
        model_ = run.learner.backbone.model
        assert not any(p.requires_grad or p.grad is not None for p in model_.parameters())
        assert all(layer.disable_adapters for b in run.learner.slots._layers for layer in b)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["fedms", "fedms-share-none", "fedavg", "local"])
def test_an_update_alone_equals_the_update_after_others(world, method, model):
    maker, options = METHODS[method]
    learner, (a, b, c) = world(model)
    algorithm = maker(learner.layout, replace(options, stage1=Stage(method == "fedavg")))
    state = algorithm.init(learner, 0)
    plan = algorithm.plan(state)
    broadcast = {n: state.tensors[n] for n in plan.broadcast | plan.constant}

    def update(data, seed):
        work = algorithm.client_update(Turn(learner, plan, broadcast, None, data, seed))
        return perform([work], learner, 0)[0]

    def facts(update):
        private = fingerprint(update.state.tensors) if update.state else None
        return fingerprint(update.tensors), private, update.score, update.rows

    alone = facts(update(a, 1))
    update(b, 2), update(c, 3)
    assert facts(update(a, 1)) == alone


KEY_GROUPS = [pair for pair in PAIRS if pair[0] in (*ONE_GLOBAL, *PRIVATE, "ditto")]


@pytest.mark.parametrize(("method", "model"), params(KEY_GROUPS))
def test_which_tensors_leave_and_which_are_kept(trace, method, model):
    """By hand: which of a client's tensors are shared, and which are its own."""
    run = trace(method, model)
    layout = run.learner.layout
    for plan, *_, data, _, _, update in run.calls:
        active = layout.expert(data.cap or 3)
        down = {n for n in active if n.endswith("A") or ".lora_A." in n}
        last = layout.expert(1)
        shared = {
            "ffa": active - down,
            "fedsa": down,
            "fedper": active - last,
            "fedrep": active - last,
            "fedalt": active - set(layout.head),
            "local": set(),
            "probe": set(),
        }.get(method, active)
        sent = {n.removeprefix("global/") for n in update.tensors}
        if method == "fedra":
            blocks = [i for i, block in enumerate(layout.blocks) if sent & set(block)]
            assert len(blocks) == min(2, data.cap or 3)
            shared = {n for i in blocks for n in layout.blocks[i]} | set(layout.head)
        assert sent == shared
        if method in ONE_GLOBAL:
            assert update.state is None
        else:
            whole = set(layout.head) if method == "probe" else active
            assert whole <= part("local", update.state.tensors).keys()
        assert plan.stage == (2 if method in PRIVATE else 1)


@pytest.mark.parametrize("model", ["toy-linear", "sentence"])
@pytest.mark.parametrize("method", ["fedper", "fedrep", "fedsa"])
def test_what_is_private_stays_and_what_is_shared_arrives(trace, method, model):
    """A client's second round starts from its own private tensors and the average of the others."""
    run = trace(method, model)
    fits = []
    original = run.learner.fit
    calls = [c for c in run.calls if c[0].round == 1 and c[3].id == "a"]
    plan, arrived, _, data, state, seed, _ = calls[0]
    run.learner.fit = lambda some, pace: fits.extend(some) or original(some, pace)
    try:
        turn = Turn(run.learner, plan, arrived[0], state, data, seed)
        work = run.algorithm.client_update(turn)
        perform([work], run.learner, 0)
    finally:
        del run.learner.fit
    start, received = fits[0].view.expert.tensors, part("global", arrived[0])
    own = part("local", state.tensors)
    assert received
    assert own.keys() - received.keys()
    for name, tensor in start.items():
        assert torch.equal(tensor, received[name] if name in received else own[name])


class Untaught:
    """A learner that trains nothing."""

    def __init__(self, learner):
        self._learner = learner

    def __getattr__(self, name):
        return getattr(self._learner, name)

    def fit(self, fits, pace):
        return [copy.deepcopy(fit.view) for fit in fits]


@pytest.mark.parametrize("method", METHODS)
def test_who_trains_nothing_changes_nothing(world, method, tmp_path):
    """Also in its first round with a block: what it began with is known to the server."""
    (maker, options), (learner, clients) = METHODS[method], world("toy-linear", method)
    algorithm, untaught = maker(learner.layout, options), Untaught(learner)
    simulator, sent, heard = Simulator(algorithm, untaught, clients, ClientStates(tmp_path)), [], []

    def train(plan, tensors, cohort):
        for answer in Simulator.train(simulator, plan, tensors, cohort):
            before = beginnings(algorithm, untaught, plan, tensors)
            heard.append(change(answer.update, before))
            sent.append(change(answer.update, tensors))
            yield answer

    simulator.train = train
    for _ in run_rounds(algorithm, simulator, algorithm.init(untaught, 3)):
        pass
    assert heard == pytest.approx([0.0] * len(heard), abs=1e-5)
    assert max(sent, default=1) > 0.1 or method in KNOWN


KNOWN = ("fedms-no-stage1", "ffa", "fedcgs", "local", "probe")
"""Whose clients send back what they were sent, zeros, or nothing."""


@pytest.mark.parametrize("model", ["toy", "sentence"])
def test_blocks_of_fedra_are_drawn_anew(trace, model):
    """Not the same blocks for every client, nor for one client in every round."""
    drawn = {}
    for plan, *_, data, _, _, update in trace("fedra", model).calls:
        drawn[data.id, plan.round] = frozenset(update.tensors)
    for client in "ac":
        assert len({drawn[client, r] for r in range(4)}) > 1
    assert any(drawn["a", r] != drawn["c", r] for r in range(4))


@pytest.mark.parametrize("model", ["toy", "sentence"])
def test_ffa_averages_products_exactly(trace, model):
    """All clients have the same A, so the average of B is that of the products."""
    run = trace("ffa", model)
    frozen = part("global", run.states[0].tensors)
    assert frozen.keys() == run.learner.layout.down
    last = part("global", run.states[-1].tensors)
    assert all(torch.equal(last[n], frozen[n]) for n in frozen)
    assert all(f"global/{n}" in run.plans[0].constant for n in frozen)


@pytest.mark.parametrize(("method", "model"), params(TWO_STAGES))
def test_the_global_expert_stands_still_in_stage_2(trace, method, model):
    run = trace(method, model)
    second = [fingerprint(part("global", s.tensors)) for s in run.states if s.stage == 2]
    assert len(set(second)) == 1
    heads = {f"gate/{n}" for n in run.learner.layout.gate_head}
    if METHODS[method][1].share != "all" and method.startswith("fedms"):
        assert all(not run.states[-1].tensors[n].any() for n in heads)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["fedms", "fedms-all"])
def test_average_is_over_those_who_sent_the_key(trace, method, model):
    """Client b can train one block only, so deeper keys are averaged over a and c."""
    run = trace(method, model)
    for number, after in enumerate(run.states[1:]):
        updates = [c[-1] for c in run.calls if c[0].round == number]
        for name in {n for u in updates for n in u.tensors}:
            sent = [
                (u.rows, u.tensors[name].double().numpy()) for u in updates if name in u.tensors
            ]
            mean = sum(rows * value for rows, value in sent) / sum(rows for rows, _ in sent)
            np.testing.assert_allclose(after.tensors[name].numpy(), mean, rtol=1e-6, atol=1e-9)
    depths = [r.client_depths for r in run.records if r.stage == 1]
    assert depths == ([(3, 1, 3)] * 2 if method == "fedms-all" else [(1, 1, 1), (2, 1, 2)])


@pytest.mark.parametrize(("method", "model"), params(PAIRS))
def test_training_moves_every_tensor_of_the_expert(trace, method, model):
    run = trace(method, model)
    for _, arrived, _, data, _, _, update in run.calls:
        moved = {**update.tensors, **(update.state.tensors if update.state else {})}
        active = run.learner.layout.expert(data.cap or 3)
        for name in (n for n in moved if n.split("/", 1)[1] in active and n[:5] != "gate/"):
            got = arrived[0].get(name, torch.zeros_like(moved[name]))
            assert not torch.equal(moved[name], got)


@pytest.mark.parametrize(
    ("method", "model"),
    [
        *itertools.product(["fedms", "fedms-all", "local"], ["toy", "sentence", "clip"]),
        *itertools.product(
            [
                "fedadam",
                "fedra",
                "ditto",
                "fedrep",
                "fedsa",
                "dual",
                "dual-mlp",
                "fedalt",
                "feddpa",
            ],
            ["toy", "sentence"],
        ),
    ],
)
def test_a_run_goes_on_from_its_states_in_a_new_process(world, trace, method, model, tmp_path):
    """To the bit, although what the first process had cached is gone."""
    whole = trace(method, model)
    stop = ROUNDS.get(method, 4) - 1
    learner, clients = world(model, method)
    algorithm = made(method, learner)
    states = ClientStates(tmp_path)
    for plan, *_, data, _, _, update in whole.calls:
        if plan.round < stop and update.state is not None:
            states.save(data.id, update.state, plan.round)
    simulator = Simulator(algorithm, learner, clients, states)
    *_, (last, _) = run_rounds(algorithm, simulator, whole.states[stop])
    assert fingerprint(last.tensors) == fingerprint(whole.states[-1].tensors)
    for client, state in whole.kept.items():
        again = states.load(client)
        assert (again and fingerprint(again.tensors)) == (state and fingerprint(state.tensors))


@pytest.mark.parametrize(
    ("method", "model"), [(m, k) for k in ("toy", "sentence") for m in MODELS[k]]
)
def test_views(trace, method, model):
    """A client without a state is served by what the method shares."""
    run = trace(method, model)
    view, last = run.algorithm.view, run.states[-1]
    shared, own = view(last, None, "global"), view(last, run.kept["a"], "personal")
    assert view(last, None, "local") is None
    new = view(last, None, "personal").expert
    if method in PRIVATE:
        assert shared is None
        assert own.partner is None
        known = part("global", last.tensors)
        assert {n: t for n, t in new.tensors.items() if n in known}.keys() == known.keys()
        assert all(not new.tensors[n].any() for n in new.tensors.keys() - known.keys())
        return
    assert fingerprint(shared.expert.tensors) == fingerprint(part("global", last.tensors))
    assert new.fingerprint == shared.expert.fingerprint
    mixture = method.startswith("fedms") and run.kept["a"] is not None
    assert (own.partner is not None) == (own.gate is not None) == mixture
    assert isinstance(own, View)
    assert isinstance(own.expert, Expert)


@pytest.mark.parametrize("model", ["toy", "sentence"])
def test_depth_of_clients_in_stage_2(trace, model):
    """Carried: from the depth of stage 1 on. Restarted: from one block. Capped: one."""
    carried, again = trace("fedms", model), trace("fedms-restart-depth", model)
    assert [u.depth for _, u, d in carried.updates(2) if d.id == "a"] == [3, 3]
    assert [u.depth for _, u, d in again.updates(2) if d.id == "a"] == [1, 2]
    for run in (carried, again):
        assert [u.depth for _, u, d in run.updates(2) if d.id == "b"] == [1, 1]


@pytest.mark.parametrize("model", ["toy", "sentence"])
def test_inactive_blocks_are_in_no_upload(trace, model):
    run = trace("fedms-queue", model)
    inactive = set(run.learner.layout.blocks[0])
    sent = [set(part("global", u.tensors)) for _, u, _ in run.updates(1)]
    assert sent
    assert not any(names & inactive for names in sent)
