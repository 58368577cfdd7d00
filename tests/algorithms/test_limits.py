"""Limiting cases, where a method must be another one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
import transformers
from torch.nn import functional as F

from fedms.algorithms import Options, Sal, Server, Stage, fedavg, fedcgs, fedms, finetune, local
from fedms.core import calibration, discriminant
from fedms.core.algorithm import Aggregate, Expert, Score, View
from fedms.core.errors import UserError
from fedms.core.rows import ClientData, Rows, shuffled_batches
from fedms.core.seeds import derive_seed
from fedms.core.tensors import fingerprint, part
from fedms.models import Training
from fedms.runtimes.rounds import run_rounds
from fedms.runtimes.simulator import Simulator
from fedms.store.states import ClientStates

OPTIONS = Options(Stage(2), Stage(2), Sal("all"))


@pytest.fixture
def run(tmp_path):
    """Server states of all rounds, and the simulator with its clients' states."""

    def go(algorithm, learner, clients, seed=0):
        states = ClientStates(tmp_path / str(len(list(tmp_path.iterdir()))))
        (tmp_path / str(len(list(tmp_path.iterdir())))).mkdir()
        simulator = Simulator(algorithm, learner, clients, states)
        start = algorithm.init(learner, seed)
        servers = [state for state, _ in run_rounds(algorithm, simulator, start)]
        return servers or [start], simulator, states

    return go


def plain_round(folder, learner, classes, clients, texts, training, seed):
    """One round of FedAvg with transformers, PEFT and torch alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def pooled(model, texts):
        batch = tokenizer(list(texts), padding=True, return_tensors="pt")
        batch = {k: batch[k] for k in ("input_ids", "attention_mask")}
        mask = batch["attention_mask"][..., None]
        return (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)

    base = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        prompts = F.normalize(pooled(base, classes), dim=-1)
    lora = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"], lora_dropout=0.0)
    model = peft.get_peft_model(base, lora).eval()
    slots = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    start = learner.initial_expert(frozenset(slots), seed)
    rows, sums = 0, {n: np.zeros(p.shape) for n, p in slots.items()}
    for client in clients:
        with torch.no_grad():
            for name, parameter in slots.items():
                parameter.copy_(start[name])
        optimiser = torch.optim.AdamW(slots.values(), lr=training.learning_rate, weight_decay=0.0)
        count, order = len(client.train), derive_seed(seed, "client", 0, client.id)
        lengths = np.array([len(t.split()) for t in texts[client.id]])
        size = training.batch_size
        pace = derive_seed(derive_seed(seed, "pace", 0), "epoch", 0)
        for index in shuffled_batches(count, size, derive_seed(order, "epoch", 0), lengths, pace):
            features = pooled(model, [texts[client.id][i] for i in index])
            scores = 5.0 * F.normalize(features, dim=-1) @ prompts.T
            optimiser.zero_grad()
            F.cross_entropy(scores, torch.from_numpy(client.train.labels[index])).backward()
            optimiser.step()
        rows += count
        for name, parameter in slots.items():
            sums[name] += count * parameter.detach().numpy().astype(np.float64)
    return {name: total / rows for name, total in sums.items()}


def test_with_all_blocks_it_is_plain_lora_fedavg(run, make_learner, model_folder, inputs):
    training = Training(batch_size=4, learning_rate=0.01)
    learner = make_learner("sentence", training=training, cache_bytes=10**7)
    empty = Rows({}, np.array([], dtype=np.int64))
    clients, texts = [], {}
    for name, count in {"a": 9, "b": 5}.items():
        labels = np.arange(count) % 3
        texts[name] = inputs("text", labels.tolist(), ord(name))
        columns = learner.backbone.encode(texts[name])
        clients.append(ClientData(name, Rows(columns, labels), empty, empty))
    algorithm = fedavg(learner.layout, replace(OPTIONS, stage1=Stage(1), stage2=Stage(0)))
    got = part("global", run(algorithm, learner, clients)[0][-1].tensors)
    classes = ("red cat", "green dog", "blue bird")
    expected = plain_round(
        model_folder("sentence"), learner, classes, clients, texts, training, seed=0
    )
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name].numpy(), value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("model", ["toy", "clip"])
def test_fedavg_of_one_client_and_round_is_its_local_training(
    run, toy, make_learner, make_client, make_toy_client, model
):
    learner = toy() if model == "toy" else make_learner(model)
    client = make_toy_client("a") if model == "toy" else make_client(learner.backbone)
    one = replace(OPTIONS, stage1=Stage(1, epochs=2), stage2=Stage(0), checkpoint="last")
    shared = run(fedavg(learner.layout, one), learner, [client])[0][-1]
    own = run(local(learner.layout, one), learner, [client])[2].load("a")
    assert fingerprint(part("global", shared.tensors)) == fingerprint(part("local", own.tensors))


@pytest.mark.parametrize("model", ["toy", "sentence", "clip"])
def test_without_epochs_of_stage_2_everybody_has_the_global_expert(
    run, toy, make_learner, make_client, make_toy_client, model
):
    learner = toy() if model == "toy" else make_learner(model)
    clients = [
        make_toy_client(n, seed=ord(n)) if model == "toy" else make_client(learner.backbone, n)
        for n in "ab"
    ]
    algorithm = fedms(learner.layout, replace(OPTIONS, stage2=Stage(1, epochs=0)))
    servers, simulator, _ = run(algorithm, learner, clients)
    scores = simulator.evaluate(servers[-1])["test"]
    for client in "ab":
        shared, own = scores["global"][client], scores["personal"][client]
        assert scores["local"][client] == shared
        assert (own.correct, own.rows) == (shared.correct, shared.rows)
        assert own.loss == pytest.approx(shared.loss, rel=1e-5)
        assert own.gate_weight == pytest.approx(own.rows / 2)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("init", ["global", "zero"])
def test_what_a_local_expert_starts_from(run, toy, make_toy_client, init, linear):
    """Capped at one block: the others come from the global expert, or are not there."""
    learner, clients = toy(linear), [make_toy_client("a", cap=1), make_toy_client("b")]
    options = replace(OPTIONS, stage2=Stage(1, epochs=0), local_init=init)
    algorithm = fedms(learner.layout, options)
    servers, _, states = run(algorithm, learner, clients, seed=4)
    shared = part("global", servers[-1].tensors)
    for client, depth in (("a", 1), ("b", 3)):
        names = learner.layout.expert(depth)
        fresh = learner.initial_expert(names, 4)
        own = part("local", states.load(client).tensors)
        start = {n: shared[n] for n in names} if init == "global" else fresh
        assert fingerprint(own) == fingerprint(start)
        view = algorithm.view(servers[-1], states.load(client), "local")
        whole = {**shared, **own} if init == "global" else own
        assert fingerprint(view.expert.tensors) == fingerprint(whole)


def test_without_stage_1_the_partner_is_the_foundation_model(run, toy, make_toy_client):
    learner, clients = toy(), [make_toy_client("a")]
    algorithm = fedms(learner.layout, replace(OPTIONS, stage1=Stage(0)))
    servers, _, states = run(algorithm, learner, clients)
    assert dict(part("global", servers[-1].tensors)) == {}
    view = algorithm.view(servers[-1], states.load("a"), "personal")
    assert dict(view.partner.tensors) == {}


@pytest.mark.parametrize("epochs", [1, 3])
def test_local_trains_as_many_epochs_as_both_stages(run, toy, make_toy_client, epochs):
    """One client: stage 1 of FedAvg with all rounds is the same training."""
    learner, clients = toy(), [make_toy_client("a")]
    both = replace(OPTIONS, stage1=Stage(2, epochs=epochs), stage2=Stage(1, epochs=epochs))
    own = run(local(learner.layout, replace(both, checkpoint="last")), learner, clients)[2].load(
        "a"
    )
    shared = run(fedavg(learner.layout, both), learner, clients)[0][-1]
    assert own.rounds == 3
    assert fingerprint(part("local", own.tensors)) == fingerprint(part("global", shared.tensors))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (fedms, [1.0, 0.5, 1.0, 0.75, 0.25]),
        (fedavg, [(1 + np.cos(np.pi * r / 5)) / 2 for r in range(5)]),
        (local, [(1 + np.cos(np.pi * r / 5)) / 2 for r in range(5)]),
    ],
)
def test_learning_rates_fall_over_the_rounds_of_a_stage(
    run, toy, make_toy_client, monkeypatch, method, expected
):
    options = replace(OPTIONS, stage2=Stage(3), rate_schedule="cosine")
    learner, rates = toy(), []
    fit = learner.fit

    def watched(fits, pace):
        rates.extend(one.rate for one in fits)
        return fit(fits, pace)

    monkeypatch.setattr(learner, "fit", watched)
    run(method(learner.layout, options), learner, [make_toy_client("a")])
    assert rates == pytest.approx(expected)
    assert {replace(options, rate_schedule="constant").rate(r, 5) for r in range(5)} == {1.0}


@pytest.mark.parametrize("method", [fedms, fedavg, local])
def test_training_that_diverges_is_the_users_error(run, make_learner, make_client, method):
    """NaN weights must end in the line that says what to try, whether or not they are uploaded."""
    learner = make_learner("clip", training=Training(batch_size=4, learning_rate=1e30))
    options = replace(OPTIONS, stage1=Stage(0 if method is fedms else 1))
    with pytest.raises(UserError, match=r"training\.learning_rate"):
        run(method(learner.layout, options), learner, [make_client(learner.backbone)])


@pytest.mark.parametrize("stage1_prior", ["client", "none"])
@pytest.mark.parametrize("mix_prior", ["none", "client", "both"])
def test_who_gets_the_class_prior(run, toy, make_toy_client, monkeypatch, stage1_prior, mix_prior):
    seen = []
    learner = toy()
    fit = learner.fit

    def spy(fits, pace):
        seen.extend((f.view.expert.prior, f.view.partner and f.view.partner.prior) for f in fits)
        return fit(fits, pace)

    monkeypatch.setattr(learner, "fit", spy)
    options = replace(
        OPTIONS,
        stage1=Stage(1),
        stage2=Stage(1),
        stage1_prior=stage1_prior,
        mix_prior=mix_prior,
    )
    own, shared = mix_prior == "both", mix_prior != "none"
    algorithm = fedms(learner.layout, options)
    servers, _, states = run(algorithm, learner, [make_toy_client("a")])
    assert seen == [(stage1_prior == "client", None), (own, shared)]
    views = {
        role: algorithm.view(servers[-1], states.load("a"), role)
        for role in ("global", "local", "personal")
    }
    assert not views["global"].expert.prior  # as anyone would use it
    assert views["local"].expert.prior == views["personal"].expert.prior == own
    assert views["personal"].partner.prior == shared
    assert algorithm.view(servers[-1], None, "personal").expert.prior == shared
    seen.clear()
    alone = local(learner.layout, options)
    servers, _, states = run(alone, learner, [make_toy_client("a")])
    assert set(seen) == {(own, None)}
    assert alone.view(servers[-1], states.load("a"), "personal").expert.prior == own


def test_server_momentum_is_heavy_ball_over_the_averages(toy):
    """Against NumPy: FedAvgM over keys of which some arrive later than others."""
    learner, momentum = toy(), 0.7
    options = replace(OPTIONS, stage1=Stage(4), server=Server(momentum=momentum))
    algorithm = fedms(learner.layout, options)
    state = algorithm.init(learner, 5)
    start = learner.initial_expert(learner.layout.expert(3), 5)
    x = {n: t.numpy().astype(np.float64) for n, t in start.items()}
    v = {n: np.zeros_like(a) for n, a in x.items()}
    rng = np.random.default_rng(0)
    for depth in (1, 1, 3):
        plan = algorithm.plan(state)
        assert {n.split("/")[0] for n in plan.broadcast} <= {"global"}
        average = {n: rng.normal(size=x[n].shape) for n in sorted(learner.layout.expert(depth))}
        for name, a in average.items():
            v[name] = momentum * v[name] + (a - x[name])
            x[name] = x[name] + v[name]
        tensors = {f"global/{n}": torch.from_numpy(a).float() for n, a in average.items()}
        state = algorithm.server_update(state, plan, Aggregate(tensors, 9, 2, Score(1, 2)))
        got = part("global", state.tensors)
        for name in average:
            np.testing.assert_allclose(got[name].numpy(), x[name], atol=1e-5)
    assert {n.split("/")[0] for n in state.tensors} == {"start", "velocity", "global", "gate"}
    plan = algorithm.plan(state)
    state = algorithm.server_update(state, plan, Aggregate({}, 9, 2, Score(1, 2)))
    assert state.stage == 2
    assert {n.split("/")[0] for n in state.tensors} == {"global", "gate"}


def test_what_stage_1_remembers_of_evidence_ends_with_it(run, toy, make_toy_client):
    """In stage 2 evidence is of other experts. The weights themselves go on."""
    learner, client = toy(), make_toy_client("a")
    algorithm = fedms(learner.layout, replace(OPTIONS, calibrate=True))
    servers = run(algorithm, learner, [client])[0]
    remembers = [any(n.startswith("fitted/") for n in state.tensors) for state in servers]
    assert list(zip((s.stage for s in servers), remembers, strict=True)) == [
        (1, True),
        (2, False),
        (2, True),
        (2, True),
    ]
    assert all("calibration/weights" in state.tensors for state in servers)


def test_a_still_average_stays_where_it_is_under_momentum(run, toy, make_toy_client):
    """Without epochs nobody moves, and a first round is the same with and without momentum."""
    learner, client = toy(), make_toy_client("a")
    still = replace(
        OPTIONS, stage1=Stage(3, epochs=0), stage2=Stage(0), server=Server(momentum=0.9)
    )
    servers = run(fedms(learner.layout, still), learner, [client])[0]
    start = learner.initial_expert(learner.layout.expert(3), 0)
    assert fingerprint(part("global", servers[-1].tensors)) == fingerprint(start)
    first = replace(OPTIONS, stage1=Stage(1), stage2=Stage(0))
    plain, moved = (
        part("global", run(fedms(learner.layout, o), learner, [client])[0][-1].tensors)
        for o in (first, replace(first, server=Server(momentum=0.9)))
    )
    for name, value in plain.items():
        torch.testing.assert_close(moved[name], value)


def test_a_local_expert_can_be_the_mean_of_its_rounds(run, toy, make_toy_client):
    learner, options = toy(), replace(OPTIONS, stage2=Stage(3), checkpoint="last")
    client, trained, fit = make_toy_client("a"), [], learner.fit

    def spy(fits, pace):
        views = fit(fits, pace)
        trained.extend(view.expert.tensors for view in views)
        return views

    learner.fit = spy
    algorithm = fedms(learner.layout, replace(options, checkpoint="mean"))
    servers, _, states = run(algorithm, learner, [client])
    view = algorithm.view(servers[-1], states.load("a"), "personal")
    for name, tensor in view.expert.tensors.items():
        mean = torch.stack([one[name] for one in trained[-3:]]).mean(0)
        torch.testing.assert_close(tensor, mean)
    local = algorithm.view(servers[-1], states.load("a"), "local")
    assert local.expert.fingerprint == view.expert.fingerprint
    plain = fedms(learner.layout, options)
    servers, _, states = run(plain, learner, [client])
    last = plain.view(servers[-1], states.load("a"), "personal").expert.tensors
    for name, tensor in trained[-1].items():  # each round went on from the last one, not the mean
        torch.testing.assert_close(last[name], tensor)


def test_training_learns_which_prior_to_use(run, toy, make_toy_client):
    """Nothing in the first round; then what calibration found, which stage 2 goes on with."""
    learner, fit, seen = toy(), toy().fit, []

    def spy(fits, pace):
        seen.extend(one.prior for one in fits)
        return fit(fits, pace)

    learner.fit = spy
    options = replace(OPTIONS, calibrate=True, stage1_prior="learned", mix_prior="learned")
    algorithm = fedms(learner.layout, options)
    servers, _, _ = run(algorithm, learner, [make_toy_client("a", rows=12)])
    weights = [calibration.initial(), *(s.tensors[calibration.WEIGHTS] for s in servers)]
    assert seen == [calibration.prior(w) for w in weights[:4]]
    assert seen[0] == (0.0, 0.0)
    assert len(set(seen)) == 4


@pytest.mark.parametrize("deal", [[12], [5, 7], [1, 1, 10], [3, 3, 3, 3]])
def test_class_statistics_do_not_know_who_had_which_rows(run, toy, make_toy_client, deal):
    """Sorted by class, so that clients have one or two: the most skew there can be."""
    learner, everyone = toy(), make_toy_client("a", rows=12)
    order, first = np.argsort(everyone.train.labels), 0
    clients = []
    for number, size in enumerate(deal):
        mine = everyone.train.take(order[first : first + size])
        clients.append(replace(everyone, id=str(number), train=mine))
        first += size
    pooled = run(fedcgs(learner.layout, OPTIONS), learner, [everyone])[0][-1]
    dealt = run(fedcgs(learner.layout, OPTIONS), learner, clients)[0][-1]
    assert discriminant.WHITENING in pooled.tensors
    for name, tensor in pooled.tensors.items():
        torch.testing.assert_close(dealt.tensors[name], tensor, rtol=1e-3, atol=1e-3)


def test_class_statistics_alone_are_fedcgs_for_everyone(run, toy, make_toy_client):
    """The same model for all roles and clients, who have nothing of their own."""
    learner = toy()
    clients = [make_toy_client(n, 8, ord(n)) for n in "ab"]
    algorithm = fedcgs(learner.layout, OPTIONS)
    servers, simulator, states = run(algorithm, learner, clients)
    assert len(servers) == 1
    scores = simulator.evaluate(servers[-1])["test"]
    assert scores["global"] == scores["personal"]
    assert "local" not in scores
    assert [states.load(client) for client in "ab"] == [None, None]
    frozen = learner.score(View(Expert({})), clients[0], "test")
    assert scores["global"]["a"].loss != frozen.loss


@pytest.mark.parametrize("method", [fedms, finetune])
def test_all_that_trains_and_is_scored_knows_class_statistics(run, toy, make_toy_client, method):
    """Experts look for classes where they say; after the round that gathers them."""
    learner, seen = toy(), {"fit": [], "score": [], "derivatives": []}
    fit, score, derivatives = learner.fit, learner.score, learner.derivatives

    def spy_fit(fits, pace):
        seen["fit"] += [one.view.statistics for one in fits]
        return fit(fits, pace)

    def spy_score(view, data, split):
        seen["score"].append(view.statistics)
        return score(view, data, split)

    def spy_derivatives(view, data):
        seen["derivatives"].append(view.statistics)
        return derivatives(view, data)

    learner.fit, learner.score, learner.derivatives = spy_fit, spy_score, spy_derivatives
    options = replace(OPTIONS, calibrate=True, statistics="personal")
    clients = [make_toy_client(n, 8, ord(n)) for n in "ab"]
    run(method(learner.layout, options), learner, clients)
    for who, found in seen.items():
        assert len(found) >= 8, who
        assert None not in found, who


def test_a_federation_without_calibration_gathers_nothing(run, toy, make_toy_client):
    learner, client = toy(), make_toy_client("a")
    wanted = replace(OPTIONS, statistics="personal")
    one, two = (run(fedms(learner.layout, o), learner, [client])[0] for o in (OPTIONS, wanted))
    assert [fingerprint(s.tensors) for s in one] == [fingerprint(s.tensors) for s in two]
