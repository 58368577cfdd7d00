"""FedDPA: two products weighed row by row, by how like a row is to a client's own rows."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedms.algorithms import Options, Sal, Stage, feddpa, finetune
from fedms.core.algorithm import Expert, Fit, Turn, View
from fedms.core.tensors import fingerprint, part, pick, under
from fedms.core.work import perform
from fedms.models import Training, save_expert
from fedms.models.adapters import Factor
from fedms.runtimes.rounds import run_rounds
from fedms.runtimes.simulator import Simulator
from fedms.store.states import ClientStates

OPTIONS = Options(Stage(2), Stage(2), Sal("all"), checkpoint="last", likeness=1.0)
KINDS = ["clip", "vit", "sentence"]


def close(got, expected):
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def same(first, second):
    return fingerprint(first) == fingerprint(second)


def two_experts(learner, depth=3):
    """An expert's own tensors in the last blocks, and pairs to lie beneath them."""
    rng, layout = torch.Generator().manual_seed(0), learner.layout
    names = sorted({n for pair in layout.pairs for n in pair} & layout.expert(depth))
    own, beneath = (
        {n: 0.3 * torch.randn(layout.shapes[n], generator=rng) for n in names} for _ in range(2)
    )
    return {**own, **learner.initial_expert(frozenset(layout.head), 0)}, beneath


def unlike(learner, own, rows):
    """A likeness by which the shares of these rows are spread over 0..1, and those shares."""
    features = learner.features(Expert(own), rows).numpy().astype(np.float64)
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    wanted = np.linspace(-0.1, 1.1, len(rows))
    likeness = torch.from_numpy(np.linalg.pinv(directions) @ wanted).float()
    return likeness, np.clip(directions @ likeness.double().numpy(), 0, 1)


@pytest.mark.parametrize("clients", [1, 2])
def test_shares_weigh_both_products_by_hand(clients):
    rng = np.random.default_rng(0)
    own, other, width, batch, tokens = 2, 3, 5, 4, 6
    weight = rng.normal(size=(clients, own + other, width))
    share, x = rng.random(clients * batch), rng.normal(size=(clients * batch, tokens, width))
    factor = Factor(own)
    factor.weight, factor.share = torch.from_numpy(weight), torch.from_numpy(share)
    got = factor(torch.from_numpy(x)).numpy()
    for row in range(clients * batch):
        z, a = x[row] @ weight[row // batch].T, share[row]
        expected = np.concatenate([a * z[:, :own], (1 - a) * z[:, own:]], 1)
        np.testing.assert_allclose(got[row], expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 3])
def test_every_row_is_the_model_of_its_own_weights(make_learner, make_rows, kind, depth):
    """Against experts whose matrices are scaled by a row's shares, one row at a time."""
    learner = make_learner(kind, cache_bytes=10**7)
    rows = make_rows(learner.backbone, 7)
    own, beneath = two_experts(learner, depth)
    likeness, shares = unlike(learner, own, rows)
    assert (shares == 0).any()
    assert (shares == 1).any()
    assert ((shares > 0.1) & (shares < 0.9)).sum() >= 3
    got = learner.features(Expert(own, beneath=beneath, likeness=likeness), rows)
    for row, share in enumerate(shares):
        scaled, rest = (
            {n: t if n in learner.layout.down else s * t for n, t in pick(part, beneath).items()}
            for s, part in ((share, own), (1 - share, beneath))
        )
        one = learner.features(Expert({**own, **scaled}, beneath=rest), rows)
        close(got[row], one[row].to(got.dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_at_0_it_is_the_one_beneath_and_at_1_its_own(make_learner, make_client, kind):
    learner = make_learner(kind)
    client = make_client(learner.backbone)
    own, beneath = two_experts(learner)
    head = pick(own, learner.layout.head)
    mean = learner.mean_direction(Expert(own), client.test)
    rows = client.test
    none, whole = (Expert(own, beneath=beneath, likeness=s * mean) for s in (0.0, 1e4))
    shared, alone = Expert({**head, **beneath}), Expert(own)
    close(learner.features(none, rows), learner.features(shared, rows))
    close(learner.features(whole, rows), learner.features(alone, rows))
    for mixed, plain in ((none, shared), (whole, alone)):
        got, expected = (learner.score(View(e), client, "test") for e in (mixed, plain))
        assert got.correct == expected.correct
        assert got.loss == pytest.approx(expected.loss, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_like_the_clients_own_has_its_whole_weight(make_learner, make_rows, kind):
    """And one that is unlike them has less."""
    learner = make_learner(kind)
    own, beneath = two_experts(learner)
    some = make_rows(learner.backbone, 6)
    again = some.take(np.array([2, 2, 2]))
    likeness = learner.mean_direction(Expert(own), again)
    assert float(likeness.norm()) == pytest.approx(1, abs=1e-6)
    shares = learner._shares(Expert(own, beneath=beneath, likeness=likeness), some)
    assert float(shares[2]) == pytest.approx(1, abs=1e-5)
    assert shares[[0, 1, 3, 4, 5]].max() < shares[2]
    half = learner._shares(Expert(own, beneath=beneath, likeness=likeness / 2), some)
    assert float(half[2]) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_direction_by_hand(make_learner, make_rows, kind):
    learner = make_learner(kind)
    own, _ = two_experts(learner)
    rows = make_rows(learner.backbone, 5)
    features = learner.features(Expert(own), rows).double().numpy()
    expected = np.mean([f / np.sqrt((f * f).sum()) for f in features], axis=0)
    np.testing.assert_allclose(learner.mean_direction(Expert(own), rows), expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_remembered_of_one_likeness_is_not_found_for_another(
    make_learner, make_client, kind
):
    """Nor is a prefix that was kept while the same adapters trained without any."""
    cached, plain = make_learner(kind, cache_bytes=10**7), make_learner(kind)
    own, beneath = two_experts(plain)
    client = make_client(plain.backbone)
    likeness, _ = unlike(plain, own, client.train)
    top = plain.layout.expert(1)
    cached.fit([Fit(View(Expert(own)), top, client, 1, 0)])
    assert cached.prefixes.bytes > 0
    experts = [
        Expert(own),
        Expert(own, likeness=likeness),
        Expert(own, beneath=beneath),
        Expert(own, beneath=beneath, likeness=likeness),
        Expert(own, beneath=beneath, likeness=likeness / 2),
    ]
    assert len({expert.fingerprint for expert in experts}) == len(experts)
    features = []
    for expert in experts * 2:
        features.append(cached.features(expert, client.train))
        close(features[-1], plain.features(replace(expert), client.train))
    for i in range(len(experts)):
        assert not any(torch.allclose(features[i], features[j]) for j in range(i))
    assert all(factor.share is None for factor in cached.slots._factors.values())


def test_likeness_is_for_predictions_and_needs_all_that_is_beneath(make_learner, make_client):
    learner = make_learner("clip")
    client = make_client(learner.backbone)
    own, beneath = two_experts(learner)
    likeness = torch.ones(learner.backbone.width)
    view = View(Expert(own, beneath=beneath, likeness=likeness))
    fit = Fit(view, learner.layout.expert(1), client, 1, 0)
    with pytest.raises(ValueError, match="weighs predictions"):
        learner.fit([fit])
    with pytest.raises(ValueError, match="expected a tensor of its own"):
        learner.features(Expert({}, beneath=beneath, likeness=likeness), client.test)


def test_an_expert_with_likeness_on_disk(make_learner, tmp_path):
    learner = make_learner("vit")
    own, beneath = two_experts(learner)
    likeness = torch.ones(learner.backbone.width)
    save_expert(tmp_path / "e", learner, Expert(own, beneath=beneath, likeness=likeness), "base")
    files = {path.stem: load_file(path) for path in (tmp_path / "e").glob("*.safetensors")}
    assert files.keys() == {"adapter_model", "head", "likeness", "beneath"}
    assert same(files["adapter_model"], pick(own, beneath))
    assert same(files["beneath"], beneath)
    assert same(files["likeness"], {"likeness": likeness})


@pytest.fixture
def federation(tmp_path, toy, make_toy_client):
    """A finished run on toys: learner, algorithm, last state, clients, and their states."""

    def run(method, options=OPTIONS):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        learner = toy(linear=True)
        clients = [make_toy_client(n, 7 + i, i, cap) for i, (n, cap) in enumerate(CAPS.items())]
        algorithm, states = method(learner.layout, options), ClientStates(folder)
        simulator = Simulator(algorithm, learner, clients, states)
        *_, (last, _) = run_rounds(algorithm, simulator, algorithm.init(learner, 0))
        return learner, algorithm, last, clients, [states.load(c.id) for c in clients]

    return run


CAPS = {"a": None, "b": 1, "c": None}


def test_it_trains_as_fine_tuning_does(federation):
    """Both adapters are those of `finetune`, whose local one starts from the global one."""
    *_, last, _, own = federation(feddpa)
    *_, expected, _, fine_tuned = federation(finetune)
    assert same(part("global", last.tensors), part("global", expected.tensors))
    for mine, other in zip(own, fine_tuned, strict=True):
        assert same(part("local", mine.tensors), part("local", other.tensors))
    *_, zero = federation(feddpa, replace(OPTIONS, local_init="zero"))
    assert [fingerprint(s.tensors) for s in zero] == [fingerprint(s.tensors) for s in own]


def test_without_weight_a_client_has_the_global_adapter(federation):
    """With the head that is its own."""
    learner, algorithm, last, clients, own = federation(feddpa, replace(OPTIONS, likeness=0.0))
    shared = part("global", last.tensors)
    for data, state in zip(clients, own, strict=True):
        view = algorithm.view(last, state, "personal")
        plain = View(Expert({**shared, "top": state.tensors["local/top"]}))
        got, expected = (learner.score(v, data, "test") for v in (view, plain))
        assert got.loss == pytest.approx(expected.loss, rel=1e-5)
        alone = learner.score(algorithm.view(last, state, "local"), data, "test")
        assert got.loss != pytest.approx(alone.loss, rel=1e-4)


def test_a_client_has_both_adapters_and_five_of_its_rows_to_compare_with(federation):
    learner, algorithm, last, clients, own = federation(feddpa)
    for data, state in zip(clients, own, strict=True):
        view = algorithm.view(last, state, "personal").expert
        assert same(view.beneath, pick(part("global", last.tensors), view.beneath))
        assert view.beneath.keys() == {n for pair in learner.layout.pairs for n in pair}
        alone = algorithm.view(last, state, "local").expert
        assert alone.likeness is None
        assert same(alone.tensors, view.tensors)
        rows = [data.train.take(np.array([i])) for i in range(len(data.train))]
        every = torch.stack([learner.mean_direction(alone, row) for row in rows])
        fives = [list(five) for five in itertools.combinations(range(len(rows)), 5)]
        equal = [torch.allclose(every[five].mean(0), view.likeness, atol=1e-6) for five in fives]
        assert sum(equal) == 1


def test_checkpoints_are_chosen_by_the_score_of_both(federation):
    learner, algorithm, last, clients, own = federation(feddpa, replace(OPTIONS, checkpoint="best"))
    for data, state in zip(clients, own, strict=True):
        both, alone = (
            learner.score(algorithm.view(last, state, role), data, "val")
            for role in ("personal", "local")
        )
        assert state.kept == pytest.approx((both.accuracy, -both.loss / both.rows), rel=1e-5)
        assert alone.loss != pytest.approx(both.loss, rel=1e-4)


def test_a_newcomer_has_the_global_adapter_and_then_its_own(federation, make_toy_client, tmp_path):
    learner, algorithm, last, _, _ = federation(feddpa)
    before = algorithm.view(last, None, "personal").expert
    assert same(before.tensors, part("global", last.tensors))
    assert before.likeness is None
    new = make_toy_client("new", 3, 9)  # fewer rows than are drawn
    plan = replace(algorithm.plan(replace(last, round=3)), rate=1.0)
    (tmp_path / "new").mkdir()
    simulator = Simulator(algorithm, learner, [], ClientStates(tmp_path / "new"), [new])
    scores = simulator.newcomers(plan, last, 2, 99)
    assert scores["before"]["new"] == learner.score(View(before), new, "test")
    assert scores["after"]["new"].loss != scores["before"]["new"].loss


def test_a_client_that_diverged_at_once_has_the_global_adapter(toy, make_toy_client):
    learner, data = toy(), make_toy_client("a")
    algorithm = feddpa(learner.layout, replace(OPTIONS, stage1=Stage(0)))
    state = algorithm.init(learner, 0)
    names = learner.layout.expert(3)
    known = under("global", learner.initial_expert(names, 5))
    state = replace(state, tensors={**state.tensors, **known})
    work = algorithm.client_update(Turn(learner, algorithm.plan(state), known, None, data, 0))
    fit = next(work)
    broken = {n: t * float("nan") for n, t in fit.view.expert.tensors.items()}
    with pytest.raises(StopIteration) as end:
        work.send(View(Expert(broken)))
    update = end.value.value
    assert not np.isfinite(update.score.loss)
    assert update.state is None
    view = algorithm.view(state, update.state, "personal")
    assert same(view.expert.tensors, part("global", known))
    assert view.expert.likeness is None
    assert not view.expert.beneath


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_a_stack_learns_what_its_clients_learn_alone(make_learner, make_client, kind):
    learner = make_learner(kind, training=Training(batch_size=4), cache_bytes=10**7)
    algorithm = feddpa(learner.layout, OPTIONS)
    clients = [make_client(learner.backbone, n, 6, i) for i, n in enumerate("abc")]
    state = replace(algorithm.init(learner, 0), stage=2, round=2)
    known = under("global", two_experts(learner)[1])
    state = replace(state, tensors={**state.tensors, **known})
    plan = algorithm.plan(state)

    def updates(some):
        turns = [Turn(learner, plan, known, None, c, 0) for c in some]
        return perform([algorithm.client_update(turn) for turn in turns], learner, 0)

    alone = [updates([c])[0] for c in clients]
    for one, other in zip(updates(clients), alone, strict=True):
        assert one.score.loss == pytest.approx(other.score.loss, rel=1e-3)
        assert one.state.tensors.keys() == other.state.tensors.keys()
        for name, tensor in one.state.tensors.items():
            torch.testing.assert_close(tensor, other.state.tensors[name], atol=1e-4, rtol=1e-3)
