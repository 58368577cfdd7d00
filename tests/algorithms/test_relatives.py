"""Limiting cases: where two methods must be the same, and steps against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedms.algorithms import (
    METHODS,
    Options,
    Sal,
    Server,
    Stage,
    ditto,
    dual,
    fedadam,
    fedalt,
    fedavg,
    fedms,
    fedper,
    fedprox,
    fedra,
    fedrep,
    finetune,
    local,
)
from fedms.core.aggregation import average
from fedms.core.algorithm import Aggregate, ClientInfo, Expert, Fit, Score, Turn, View
from fedms.core.tensors import fingerprint, part, pick, wire_bytes
from fedms.core.work import perform
from fedms.models import Training, save_expert
from fedms.models.adapters import Factor
from fedms.runtimes.faults import Faults, FaultyClients
from fedms.runtimes.rounds import run_rounds
from fedms.runtimes.simulator import Simulator
from fedms.store.states import ClientStates

OPTIONS = Options(Stage(2), Stage(2), Sal("all"))


@pytest.fixture
def ended(tmp_path, toy, make_toy_client):
    """Fingerprints of the global expert, and of every client's own one, at the end."""

    def run(method, options=OPTIONS, linear=True, hidden=0):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        learner = toy(linear=linear, hidden=hidden)
        clients = [make_toy_client(n, 5 + i, i) for i, n in enumerate("abc")]
        algorithm, states = method(learner.layout, options), ClientStates(folder)
        simulator = Simulator(algorithm, learner, clients, states)
        *_, (last, _) = run_rounds(algorithm, simulator, algorithm.init(learner, 0))
        own = [states.load(c.id) for c in clients]
        return part("global", last.tensors), [s and part("local", s.tensors) for s in own]

    return run


def same(first, second):
    return fingerprint(first) == fingerprint(second)


def test_without_a_pull_fedprox_is_fedavg(ended):
    plain, _ = ended(fedavg)
    assert same(ended(fedprox, replace(OPTIONS, pull=0.0))[0], plain)
    assert not same(ended(fedprox, replace(OPTIONS, pull=1.0))[0], plain)


def test_the_stronger_the_pull_the_nearer(ended):
    start, _ = ended(fedavg, replace(OPTIONS, stage1=Stage(1, epochs=0), stage2=Stage(0)))
    once = replace(OPTIONS, stage1=Stage(1, epochs=3), stage2=Stage(0))

    def distance(pull):
        moved, _ = ended(fedprox, replace(once, pull=pull))
        return sum(float((moved[n] - start[n]).square().sum()) for n in start)

    assert distance(0.0) > distance(0.5) > distance(2.0) > 0


def test_fedra_that_draws_all_blocks_is_fedavg(ended):
    assert same(ended(fedra, replace(OPTIONS, random_blocks=9))[0], ended(fedavg)[0])


def test_stages_make_no_difference_to_fedavg(ended):
    longer = replace(OPTIONS, stage1=Stage(4), stage2=Stage(0))
    assert same(ended(fedavg)[0], ended(fedavg, longer)[0])


def test_fedms_without_stage_2_and_sal_is_fedavg(ended):
    longer = replace(OPTIONS, stage1=Stage(4), stage2=Stage(0))
    assert same(ended(fedms, longer)[0], ended(fedavg)[0])


def test_with_all_blocks_private_fedper_is_local(ended):
    shared, own = ended(fedper, replace(OPTIONS, private_blocks=9))
    assert shared == {}
    for mine, alone in zip(own, ended(local)[1], strict=True):
        assert same(mine, alone)


def test_fine_tuning_of_nothing_is_local(ended):
    """Without stage 1 the local expert starts as the foundation model."""
    _, own = ended(finetune, replace(OPTIONS, stage1=Stage(0), stage2=Stage(4)))
    for mine, alone in zip(own, ended(local)[1], strict=True):
        assert same(mine, alone)


def test_fine_tuning_starts_from_fedavg(ended):
    shared, own = ended(finetune, replace(OPTIONS, stage2=Stage(1, epochs=0)))
    assert same(shared, ended(fedavg, replace(OPTIONS, stage2=Stage(0)))[0])
    assert all(same(mine, shared) for mine in own)


def test_ditto_shares_what_fedavg_shares(ended):
    """In half as many rounds, each with two passes."""
    shared, _ = ended(ditto, replace(OPTIONS, own_pull=0.5))
    assert same(shared, ended(fedavg, replace(OPTIONS, stage1=Stage(2), stage2=Stage(0)))[0])


STAGES = [
    # of two clients; the last number is what is left out of an odd number of rounds
    (Stage(3), Stage(3), 0),
    (Stage(4), Stage(2, epochs=3), 0),
    (Stage(2), Stage(4, cohort=1), 0),
    (Stage(0), Stage(2, epochs=2), 0),
    (Stage(2, epochs=2), Stage(0), 0),
    (Stage(1), Stage(4, epochs=2), 2 * 1),
    (Stage(5, epochs=2), Stage(6, epochs=3, cohort=1), 2 * 2),
]


@pytest.mark.parametrize(("first", "second", "left_out"), STAGES)
@pytest.mark.parametrize("method", [ditto, fedrep])
def test_two_passes_a_round_are_as_many_steps_as_others_take(
    toy, make_toy_client, tmp_path, method, first, second, left_out
):
    passes = {}
    for which in (fedavg, method):
        learner, folder = toy(), tmp_path / which.__name__
        folder.mkdir()
        original, done = learner._fit, []
        learner._fit = lambda fit, to=done, by=original: to.append(fit.epochs) or by(fit)
        clients = [make_toy_client(n, 4, i) for i, n in enumerate("ab")]
        algorithm = which(learner.layout, replace(OPTIONS, stage1=first, stage2=second))
        simulator = Simulator(algorithm, learner, clients, ClientStates(folder))
        rounds = list(run_rounds(algorithm, simulator, algorithm.init(learner, 0)))
        assert len(rounds) == algorithm.rounds
        passes[which] = sum(done)
    assert passes[method] == passes[fedavg] - left_out


def test_a_single_round_is_not_halved():
    for first, second in ((1, 0), (0, 1)):
        halved = replace(OPTIONS, stage1=Stage(first), stage2=Stage(second)).halved()
        assert (halved.stage1.rounds, halved.stage2.rounds) == (first, second)


def test_a_pull_keeps_dittos_experts_near_the_global_one(ended):
    def distance(pull):
        shared, own = ended(ditto, replace(OPTIONS, own_pull=pull, checkpoint="last"))
        return sum(float((t - shared[n]).square().sum()) for mine in own for n, t in mine.items())

    assert distance(0.0) > distance(1.0)


def test_fedrep_trains_the_private_part_first(toy, make_toy_client):
    learner, client = toy(linear=True), make_toy_client("a")
    algorithm = fedrep(learner.layout, OPTIONS)
    plan = algorithm.plan(algorithm.init(learner, 0))
    work = algorithm.client_update(Turn(learner, plan, {}, None, client, 0))
    first = next(work)
    second = work.send(learner.fit([first], 0)[0])
    assert first.names == learner.layout.expert(1)
    assert second.names == learner.layout.expert(3) - first.names
    assert algorithm.rounds == 2


@pytest.mark.parametrize("linear", [True, False])
def test_an_even_mixture_has_even_weights_and_no_gate_to_share(
    tmp_path, toy, make_toy_client, linear
):
    learner, client = toy(linear=linear), make_toy_client("a")
    algorithm = fedms(learner.layout, replace(OPTIONS, mixture="even"))
    states = ClientStates(tmp_path)
    simulator = Simulator(algorithm, learner, [client], states)
    *_, (last, record) = run_rounds(algorithm, simulator, algorithm.init(learner, 0))
    score = learner.score(algorithm.view(last, states.load("a"), "personal"), client, "test")
    assert score.gate_weight == pytest.approx(score.rows / 2)
    assert record.upload_bytes == 0


def test_adam_of_the_server_against_numpy(toy):
    learner = toy()
    server = Server(momentum=0.8, rate=0.05, decay=0.9, floor=1e-2)
    algorithm = fedadam(learner.layout, replace(OPTIONS, server=server))
    state = algorithm.init(learner, 5)
    start = learner.initial_expert(learner.layout.expert(3), 5)
    x = {n: t.numpy().astype(np.float64) for n, t in start.items()}
    m = {n: np.zeros_like(a) for n, a in x.items()}
    v = {n: np.full_like(a, 1e-4) for n, a in x.items()}
    rng = np.random.default_rng(0)
    for _ in range(3):
        average = {n: rng.normal(size=a.shape) for n, a in x.items()}
        for n, a in average.items():
            d = a - x[n]
            m[n] = 0.8 * m[n] + 0.2 * d
            v[n] = 0.9 * v[n] + 0.1 * d**2
            x[n] = x[n] + 0.05 * m[n] / (np.sqrt(v[n]) + 1e-2)
        tensors = {f"global/{n}": torch.from_numpy(a).float() for n, a in average.items()}
        plan = algorithm.plan(state)
        state = algorithm.server_update(state, plan, Aggregate(tensors, 9, 2, Score(1, 2)))
        got = part("global", state.tensors)
        for n in x:
            np.testing.assert_allclose(got[n].numpy(), x[n], atol=1e-5)
    plan = algorithm.plan(state)
    assert {n.split("/")[0] for n in plan.broadcast} == {"global"}


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_a_pull_is_the_gradient_of_the_squared_distance(make_learner, make_client, kind):
    """One step of the learner with a pull, against torch's own derivative of the whole loss."""
    learner = make_learner(kind)
    client = make_client(learner.backbone, rows=6)
    names = learner.layout.expert(2)
    rng = torch.Generator().manual_seed(0)
    start = {n: 0.1 * torch.randn(learner.layout.shapes[n], generator=rng) for n in sorted(names)}
    anchor = {n: t + 0.1 * torch.randn(t.shape, generator=rng) for n, t in start.items()}
    seen = {}
    view = View(Expert(start))

    class Spy(torch.optim.AdamW):
        def step(self, closure=None):
            seen.setdefault("grads", []).append([p.grad.clone() for p in self._all()])
            return super().step(closure)

        def _all(self):
            return [p for group in self.param_groups for p in group["params"]]

    before = torch.optim.AdamW
    try:
        torch.optim.AdamW = Spy
        for pull in (0.0, 2.0):
            learner.fit([Fit(view, names, client, 1, 0, pull=pull, anchor=anchor)])
    finally:
        torch.optim.AdamW = before
    half = len(seen["grads"]) // 2
    plain, pulled = seen["grads"][0], seen["grads"][half]
    for name, without, with_pull in zip(sorted(names), plain, pulled, strict=True):
        expected = 2.0 * (start[name] - anchor[name])
        torch.testing.assert_close(with_pull - without, expected, atol=1e-5, rtol=1e-4)


def test_a_gate_that_is_to_stand_still_does(make_learner, make_client):
    learner = make_learner("clip")
    client = make_client(learner.backbone)
    names = learner.layout.expert(1)
    expert = Expert(learner.initial_expert(names, 0))
    view = View(expert, expert, learner.initial_gate(0))
    after = learner.fit([Fit(view, names, client, 2, 0, gate=False)])[0]
    assert same(after.gate, view.gate)
    assert not same(pick(after.expert.tensors, names), pick(expert.tensors, names))


def merged_sum(learner, state):
    """A1 B1 + A2 B2 + … of all rounds, by projection, in float64."""
    total = {}
    for name, b in state.tensors.items():
        if name.startswith("merged/") and name.endswith("B"):
            a = state.tensors[name[:-1] + "A"]
            key = name.split("/", 2)[2]
            total[key] = total.get(key, 0) + b.double() @ a.double()
    return total


@pytest.mark.parametrize("who", ["ab", "abc"])
@pytest.mark.parametrize("method", ["flora", "fedex"])
def test_the_global_model_is_the_average_of_the_clients_models(toy, make_toy_client, method, who):
    """Whatever lies beneath, after every round the effective weights are the clients' mean.

    Of two clients what FedEx-LoRA's averages miss has the rank of one, which is half of all here.
    """
    learner = toy(linear=True)
    clients = [make_toy_client(n, 5 + i, i) for i, n in enumerate(who)]
    algorithm = METHODS[method](learner.layout, replace(OPTIONS, server=Server(momentum=0.5)))
    state = algorithm.init(learner, 0)
    for _ in range(3):
        plan = algorithm.plan(state)
        names = plan.broadcast | plan.constant
        sent = {n: t for n, t in state.tensors.items() if n in names}
        works = [
            algorithm.client_update(Turn(learner, plan, sent, None, c, i))
            for i, c in enumerate(clients)
        ]
        updates = perform(works, learner, 0)
        assert len({tuple(sorted(u.tensors)) for u in updates}) == 1
        before = merged_sum(learner, state)
        rows = sum(u.rows for u in updates)
        expected = {
            b: before.get(b, 0)
            + sum(
                u.rows
                / rows
                * u.tensors[f"global/{b}"].double()
                @ u.tensors[f"global/{a}"].double()
                for u in updates
            )
            for a, b in learner.layout.pairs
        }
        lifted = [replace(u, tensors=algorithm.lift(u.tensors)) for u in updates]
        state = algorithm.server_update(state, plan, average(lifted))
        view = algorithm.view(state, None, "global").expert
        for a, b in learner.layout.pairs:
            got = view.beneath[b].double() @ view.beneath[a].double()
            if b in view.tensors:
                got = got + view.tensors[b].double() @ view.tensors[a].double()
            torch.testing.assert_close(got, expected[b], atol=1e-6, rtol=1e-5)
        if method == "flora":
            assert view.tensors.keys() == {"top"}
        a, _ = learner.layout.pairs[0]
        terms = len(who) - (method == "fedex")
        whole = min(4, terms * learner.layout.shapes[a][0])
        assert view.beneath[a].shape[0] == whole * state.round


def test_of_one_client_fedex_is_fedavg(tmp_path, toy, make_toy_client):
    """The average of one product is its own: there is nothing to merge."""
    learner, client = toy(), make_toy_client("a")
    last = {}
    for name in ("fedex", "fedavg"):
        folder = tmp_path / name
        folder.mkdir()
        algorithm = METHODS[name](learner.layout, OPTIONS)
        simulator = Simulator(algorithm, learner, [client], ClientStates(folder))
        *_, (state, _) = run_rounds(algorithm, simulator, algorithm.init(learner, 0))
        last[name] = part("global", state.tensors)
        if name == "fedex":
            assert all(float(t.abs().max()) < 1e-6 for t in merged_sum(learner, state).values())
    for name, tensor in last["fedavg"].items():
        torch.testing.assert_close(last["fedex"][name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", ["flora", "fedex"])
def test_what_was_merged_is_sent_to_a_client_once(tmp_path, toy, make_toy_client, method):
    learner = toy()
    clients = [make_toy_client(n, 5, i) for i, n in enumerate("ab")]
    algorithm = METHODS[method](learner.layout, OPTIONS)
    simulator = Simulator(algorithm, learner, clients, ClientStates(tmp_path))
    down, states = [], [algorithm.init(learner, 0)]
    for state, record in run_rounds(algorithm, simulator, states[0]):
        states.append(state)
        down.append(record.download_bytes)
    for number, bytes_down in enumerate(down[1:], start=1):
        before = states[number].tensors
        new = {n: t for n, t in before.items() if n.startswith(f"merged/{number - 1}/")}
        every = {n: t for n, t in before.items() if n.startswith("global/")}
        assert new
        assert bytes_down == 2 * (wire_bytes(new) + wire_bytes(every))


@pytest.mark.parametrize("kind", ["clip", "vit", "sentence"])
def test_pairs_beneath_add_their_product(make_learner, make_client, kind):
    """To features, in training and in what is kept: as one pair of higher rank, by hand."""
    learner = make_learner(kind, training=Training(batch_size=99), cache_bytes=10**7)
    client = make_client(learner.backbone)
    rng = torch.Generator().manual_seed(0)
    shapes = learner.layout.shapes

    def pairs(rank, blocks):
        names = {n for block in learner.layout.blocks[-blocks:] for n in block}
        found = {}
        for a, b in learner.layout.pairs:
            if a in names:
                found[a] = 0.2 * torch.randn(rank, shapes[a][1], generator=rng)
                found[b] = 0.2 * torch.randn(shapes[b][0], rank, generator=rng)
        return found

    heads = {n: torch.zeros(shapes[n]) for n in learner.layout.head}
    own, beneath = pairs(shapes[learner.layout.pairs[0][0]][0], 1), pairs(3, 3)
    down = learner.layout.down
    wide = {
        n: torch.cat([own[n], t], 0 if n in down else 1) if n in own else t
        for n, t in beneath.items()
    }
    joined, split = Expert({**heads, **wide}), Expert({**heads, **own}, beneath=beneath)
    rows = client.train
    torch.testing.assert_close(learner.features(split, rows), learner.features(joined, rows))
    names = frozenset(own) | frozenset(heads)
    plain = learner.features(Expert({**heads, **own}), rows)
    assert not torch.allclose(plain, learner.features(split, rows))
    after = learner.fit([Fit(View(split), names, client, 2, 0)])[0].expert
    assert same(after.beneath, beneath)
    assert all(not torch.equal(after.tensors[n], split.tensors[n]) for n in names)
    gradient = {}
    for expert, mine in ((split, names), (joined, frozenset(own) | frozenset(heads))):
        once = learner.fit([Fit(View(expert), mine, client, 1, 0)])[0].expert.tensors
        gradient[expert is split] = once
    for a, b in learner.layout.pairs:
        if a in own:
            rank = own[a].shape[0]
            torch.testing.assert_close(
                gradient[True][a], gradient[False][a][:rank], atol=1e-5, rtol=1e-4
            )
            torch.testing.assert_close(
                gradient[True][b], gradient[False][b][:, :rank], atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize("late", [0.0, 0.4])
def test_the_rest_of_the_world_is_everybody_else(tmp_path, toy, make_toy_client, late):
    """What lies beneath a client's own adapters, by hand: the others' average of last round.

    Who came too late is in no average, and takes nothing out of it.
    """
    learner = toy(linear=True)
    clients = [make_toy_client(n, 5 + i, i) for i, n in enumerate("abc")]
    algorithm, states = fedalt(learner.layout, OPTIONS), ClientStates(tmp_path)
    uploads, seen, lost = {}, {}, 0
    original = algorithm.client_update

    def spied(turn):
        plan, data, work = turn.plan, turn.data, original(turn)
        fit = next(work)
        seen[plan.round, data.id] = fit.view.expert.beneath
        try:
            work.send((yield fit))
        except StopIteration as end:
            uploads[plan.round, data.id] = end.value.tensors
            return end.value

    cohorts = replace(OPTIONS, stage1=Stage(3, 2), stage2=Stage(6, 1.0))
    algorithm = replace(fedalt(learner.layout, cohorts), client_update=spied)
    simulator = Simulator(algorithm, learner, clients, states)
    simulator = FaultyClients(simulator, Faults(slow=late), 0, lambda plan, sent: sent)
    rows = {c.id: len(c.train) for c in clients}
    last = {}
    for _, record in run_rounds(algorithm, simulator, algorithm.init(learner, 0)):
        for client in record.cohort:
            others = {c: t for c, t in last.items() if c != client}
            beneath = seen[record.round, client]
            assert (beneath == {}) == (not others)
            total = sum(rows[c] for c in others)
            for name, tensor in beneath.items():
                expected = sum(rows[c] / total * t[f"global/{name}"] for c, t in others.items())
                torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-4)
        there = [c for c in record.cohort if c not in record.rejected]
        last, lost = {c: uploads[record.round, c] for c in there}, lost + len(record.rejected)
        assert {n for t in last.values() for n in t} == {
            f"global/{n}" for pair in learner.layout.pairs for n in pair
        }
    assert (lost > 2) == (late > 0)


def test_a_newcomer_has_no_share_in_the_rest_of_the_world(tmp_path, toy, make_toy_client):
    """What lies beneath an unseen client's adapters is the average it had no part in, each time."""
    learner = toy()
    plain, seen = fedalt(learner.layout, OPTIONS), []

    def spied(turn):
        work = plain.client_update(turn)
        fit = next(work)
        if turn.data.id == "new":
            seen.append(fit.view.expert.beneath)
        try:
            work.send((yield fit))
        except StopIteration as end:
            return end.value

    algorithm, states = replace(plain, client_update=spied), ClientStates(tmp_path)
    clients = [make_toy_client(n, 5 + i, i) for i, n in enumerate("ab")]
    newcomer = [make_toy_client("new", 40, 3)]  # more rows than stand behind the average
    simulator = Simulator(algorithm, learner, clients, states, newcomer)
    first = algorithm.init(learner, 0)
    *_, before, last = (state for state, _ in run_rounds(algorithm, simulator, first))
    simulator.newcomers(algorithm.plan(before), last, 3, 40)
    average = part("global", last.tensors)
    assert [same(beneath, average) for beneath in seen] == [True] * 3


@pytest.mark.parametrize("hidden", [0, 3])
def test_both_of_dual_start_as_the_shared_one(ended, hidden):
    """With equal weights of two equal products, stage 2 begins where stage 1 ended."""
    shared, own = ended(dual, replace(OPTIONS, stage2=Stage(1, epochs=0)), hidden=hidden)
    for mine in own:
        assert same({n: t for n, t in mine.items() if "mixer" not in n}, shared)
        assert not any(t.any() for n, t in mine.items() if n[1:] == ".mixer")
    assert same(shared, ended(finetune, replace(OPTIONS, stage2=Stage(1)))[0])


@pytest.mark.parametrize("clients", [1, 2])
def test_mixers_weigh_both_products_by_hand(clients):
    rng = np.random.default_rng(0)
    own, other, width, batch, tokens = 2, 3, 5, 4, 6
    weight = rng.normal(size=(clients, own + other, width))
    mixer = rng.normal(size=(clients, 2, width))
    x = rng.normal(size=(clients * batch, tokens, width))
    factor = Factor(own)
    factor.weight, factor.mixer = torch.from_numpy(weight), torch.from_numpy(mixer)
    got = factor(torch.from_numpy(x)).numpy()
    for row in range(clients * batch):
        client = row // batch
        e = np.exp(x[row] @ mixer[client].T)
        share = e / e.sum(1, keepdims=True)
        z = x[row] @ weight[client].T
        expected = np.concatenate([z[:, :own] * share[:, :1], z[:, own:] * share[:, 1:]], 1)
        np.testing.assert_allclose(got[row], expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["clip", "vit", "sentence"])
@pytest.mark.parametrize("hidden", [0, 5])
def test_new_mixers_halve_both_products_and_learn(
    make_learner, make_client, kind, hidden, tmp_path
):
    training = Training(batch_size=99, learning_rate=0.02)
    learner = make_learner(kind, training=training, gate_hidden=hidden)
    client = make_client(learner.backbone)
    rng = torch.Generator().manual_seed(0)
    shapes, layout = learner.layout.shapes, learner.layout
    pairs = [
        {n: 0.3 * torch.randn(shapes[n], generator=rng) for p in layout.pairs for n in p}
        for _ in range(2)
    ]
    heads = learner.initial_expert(frozenset(layout.head), 0)
    mixers = learner.initial_expert(layout.mixing(3), 0)
    own = {**heads, **pairs[0]}
    mixed = Expert({**own, **mixers}, beneath=pairs[1])
    half = [{n: t if n in layout.down else t / 2 for n, t in p.items()} for p in pairs]
    plain = Expert({**heads, **half[0]}, beneath=half[1])
    rows = client.train
    torch.testing.assert_close(
        learner.features(mixed, rows), learner.features(plain, rows), atol=1e-5, rtol=1e-4
    )
    names = frozenset(mixed.tensors)
    after = learner.fit([Fit(View(mixed), names, client, 8, 0)])[0]
    assert all(after.expert.tensors[n].any() for n in mixers)
    before = learner.score(View(mixed), client, "train").loss
    assert learner.score(after, client, "train").loss < before
    fits = [Fit(View(mixed), names, c, 2, 0) for c in (client, make_client(learner.backbone, "z"))]
    together, alone = learner.fit(fits), [learner.fit([fit])[0] for fit in fits]
    for one, other in zip(together, alone, strict=True):
        for n, tensor in one.expert.tensors.items():
            torch.testing.assert_close(tensor, other.expert.tensors[n], atol=1e-4, rtol=1e-3)
    save_expert(tmp_path / "e", learner, after.expert, "base")
    kept = load_file(tmp_path / "e" / "mixers.safetensors")
    assert same(kept, pick(after.expert.tensors, mixers))
    assert same(load_file(tmp_path / "e" / "beneath.safetensors"), pairs[1])
    assert same(
        load_file(tmp_path / "e" / "adapter_model.safetensors"),
        pick(after.expert.tensors, pairs[0]),
    )


def test_flexlora_shares_the_best_part_of_the_average_product(toy, make_toy_client, tmp_path):
    """Of clients of ranks 1 and 2, against NumPy's decomposition; each receives its own rank."""
    learner = toy(linear=True)
    clients = [
        replace(make_toy_client(n, 5 + i, i), rank=rank)
        for i, (n, rank) in enumerate({"a": 1, "b": None, "c": 2}.items())
    ]
    algorithm = METHODS["flexlora"](learner.layout, OPTIONS)
    state = algorithm.init(learner, 0)
    for _ in range(3):
        plan = algorithm.plan(state)
        works = [
            algorithm.client_update(Turn(learner, plan, state.tensors, None, c, i))
            for i, c in enumerate(clients)
        ]
        updates = perform(works, learner, 0)
        for client, update in zip(clients, updates, strict=True):
            who = ClientInfo(client.id, len(client.train), client.cap, client.rank)
            shapes = {n: tuple(t.shape) for n, t in update.tensors.items()}
            assert shapes == dict(algorithm.expects(plan, who))
            assert shapes["global/0.A"] == (client.rank or 2, 4)
        rows = sum(u.rows for u in updates)
        lifted = [replace(u, tensors=algorithm.lift(u.tensors)) for u in updates]
        state = algorithm.server_update(state, plan, average(lifted))
        shared = part("global", state.tensors)
        for a, b in learner.layout.pairs:
            product = sum(
                u.rows
                / rows
                * (u.tensors[f"global/{b}"].double() @ u.tensors[f"global/{a}"].double())
                for u in updates
            ).numpy()
            u, s, v = np.linalg.svd(product)
            best = (u[:, :2] * s[:2]) @ v[:2]
            got = shared[b].double().numpy() @ shared[a].double().numpy()
            np.testing.assert_allclose(got, best, atol=1e-6)
            first = shared[b][:, :1].double().numpy() @ shared[a][:1].double().numpy()
            np.testing.assert_allclose(first, s[0] * np.outer(u[:, 0], v[0]), atol=1e-6)


def test_stacks_of_unequal_ranks_are_trained_apart(make_learner, make_client):
    learner = make_learner("clip", training=Training(batch_size=4))
    algorithm = METHODS["flexlora"](learner.layout, OPTIONS)
    clients = [
        replace(make_client(learner.backbone, n, 6, i), rank=rank)
        for i, (n, rank) in enumerate({"a": 1, "b": 2, "c": 1}.items())
    ]
    plan = algorithm.plan(algorithm.init(learner, 0))

    def updates(some):
        works = [algorithm.client_update(Turn(learner, plan, {}, None, c, 0)) for c in some]
        return perform(works, learner, 0)

    alone = [updates([c])[0] for c in clients]
    for one, other in zip(updates(clients), alone, strict=True):
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(tensor, other.tensors[name], atol=1e-5, rtol=1e-4)
