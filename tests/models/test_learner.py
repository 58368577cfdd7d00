"""The resident model under views: mixtures by hand, the gate at its ends, training."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedms.core import discriminant
from fedms.core.algorithm import Expert, Fit, View
from fedms.core.discriminant import COUNTS, SUMS, Discriminant
from fedms.core.tensors import fingerprint
from fedms.models import Mixing, Training
from fedms.models.mixture import log_prior
from fedms.models.resident import FROZEN

MIXES = ["probabilities", "logits", "features"]


def random_tensors(shapes, seed, scale=0.3):
    rng = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(shapes[n], generator=rng) for n in sorted(shapes)}


def random_view(learner, depth=2, own=False, shared=False):
    """Two experts and a gate, all different and none of them new."""
    shapes = learner.layout.shapes
    names = learner.layout.expert(depth)
    one, two = (random_tensors({n: shapes[n] for n in names}, seed) for seed in (1, 2))
    gate = {n: tuple(t.shape) for n, t in learner.initial_gate(0).items()}
    return View(Expert(one, own), Expert(two, shared), random_tensors(gate, 3))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(learner, view, data, rows):
    """Probabilities and gate weights from the three features, in NumPy."""
    frozen, shared, own = (
        learner.features(e, rows).double().numpy() for e in (Expert({}), view.partner, view.expert)
    )
    mixing = learner.mixing
    prior = log_prior(data.train.labels, 3, mixing.smoothing).double().numpy()
    prior_shared = prior if view.partner.prior else 0
    prior_own = prior if view.expert.prior else 0

    def logits(features, expert):
        if learner.layout.head:
            weight, bias = sorted(
                (expert.tensors[n] for n in learner.layout.head), key=lambda t: -t.ndim
            )
            return features @ weight.double().numpy().T + bias.double().numpy()
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        return 5.0 * unit @ learner.head.prompts.double().numpy().T

    gate = {n: t.double() for n, t in view.gate.items()}
    h = torch.from_numpy(frozen / np.linalg.norm(frozen, axis=1, keepdims=True))
    h = h * frozen.shape[1] ** 0.5
    inner = h @ gate["down.weight"].T + gate["down.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    h = h + inner @ gate["up.weight"].T + gate["up.bias"]
    *_, weight, bias = (gate[n] for n in sorted(gate, key=lambda n: ("head" in n, "bias" in n)))
    w = softmax((h @ weight.T + bias).numpy())[:, :1]
    one = logits(shared, view.partner) + prior_shared
    two = logits(own, view.expert) + prior_own
    if mixing.mix == "probabilities":
        return w * softmax(one) + (1 - w) * softmax(two), w[:, 0]
    if mixing.mix == "logits":
        return softmax(w * one + (1 - w) * two), w[:, 0]
    return softmax(logits(w * shared + (1 - w) * own, view.expert) + prior_own), w[:, 0]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("smoothing", [0.1, 2.0])
@pytest.mark.parametrize("kind", ["clip", "sentence", "vit"])
def test_a_mixture_by_hand(make_learner, make_client, kind, mix, smoothing):
    learner = make_learner(kind, mixing=Mixing(mix, smoothing), cache_bytes=10**7)
    client = make_client(learner.backbone, rows=7)
    for own, shared in itertools.product((True, False), repeat=2):
        view = random_view(learner, own=own, shared=shared)
        expected, weights = by_hand(learner, view, client, client.test)
        got = learner.predict(view, client, client.test)
        np.testing.assert_allclose(got.log_probabilities.exp().numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(got.gate_weight.numpy(), weights, atol=1e-5)
        score = learner.score(view, client, "test")
        right = expected[np.arange(4), client.test.labels]
        assert score.correct == (expected.argmax(1) == client.test.labels).sum()
        assert score.loss == pytest.approx(-np.log(right).sum(), rel=1e-4)
        assert score.gate_weight == pytest.approx(weights.sum(), rel=1e-4)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_a_gate_at_its_ends_is_one_expert(make_learner, make_client, kind, mix):
    learner = make_learner(kind, mixing=Mixing(mix))
    client = make_client(learner.backbone)
    view = random_view(learner)
    for bias, expert in (([50.0, -50.0], view.partner), ([-50.0, 50.0], view.expert)):
        gate = {**learner.initial_gate(0), "head.bias": torch.tensor(bias)}
        got = learner.predict(replace(view, gate=gate), client, client.test)
        alone = learner.predict(View(expert), client, client.test)
        torch.testing.assert_close(
            got.log_probabilities, alone.log_probabilities, atol=1e-5, rtol=1e-5
        )
        assert alone.gate_weight is None


@pytest.mark.parametrize("mix", MIXES)
def test_a_flat_prior_is_no_prior(make_learner, make_client, mix):
    """Smoothing drowns the counts, or every class is as often as the others."""
    plain = make_learner("clip", mixing=Mixing(mix))
    client = make_client(plain.backbone, rows=9)
    skewed = replace(client, train=client.train.take(np.array([0, 0, 0, 3, 1])))
    expected = plain.predict(random_view(plain), client, client.test).log_probabilities
    view = random_view(plain, own=True, shared=True)
    for data, smoothing in ((client, 0.5), (skewed, 1e7)):
        learner = make_learner("clip", mixing=Mixing(mix, smoothing))
        got = learner.predict(view, data, client.test).log_probabilities
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("kind", ["clip", "sentence", "vit"])
def test_a_gate_that_learns_on_val_leaves_local_training_alone(
    make_learner, make_client, kind, prior
):
    learner = make_learner(kind, mixing=Mixing(data="val"))
    client = make_client(learner.backbone)
    view, names = random_view(learner, own=prior, shared=prior), learner.layout.expert(2)
    mixed = learner.fit([Fit(view, names, client, 3, 2)])[0]
    alone = learner.fit([Fit(View(view.expert), names, client, 3, 2)])[0]
    assert fingerprint(mixed.expert.tensors) == fingerprint(alone.expert.tensors)
    assert fingerprint(mixed.gate) != fingerprint(view.gate)


def test_a_gate_that_learns_on_val_sees_no_training_rows(make_learner, make_client):
    learner = make_learner("clip", mixing=Mixing(data="val"))
    client = make_client(learner.backbone)
    none = client.val.take(np.array([], dtype=np.int64))
    view, names = random_view(learner), learner.layout.expert(1)
    after = learner.fit([Fit(view, names, replace(client, val=none), 1, 0)])[0]
    assert fingerprint(after.gate) == fingerprint(view.gate)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("mixing", [Mixing(), Mixing(local_loss=0.5), Mixing("features")])
def test_first_step_follows_the_gradient_of_the_loss(make_learner, make_client, mixing, prior):
    """AdamW's first step is the sign of the gradient, here by finite differences."""
    rate = 1e-2
    learner = make_learner("vit", mixing=mixing, training=Training(99, rate, rate))
    client = make_client(learner.backbone, rows=6)
    client = replace(client, train=client.train.take(np.array([0, 0, 0, 3, 1, 2])))
    view = random_view(learner, depth=1, own=prior, shared=prior)
    names = learner.layout.expert(1)
    after = learner.fit([Fit(view, names, client, 1, 0)])[0]

    def loss(expert, gate):
        own = Expert(expert, prior)
        both = learner.score(View(own, view.partner, gate), client, "train").loss
        alone = learner.score(View(own), client, "train").loss
        return both + mixing.local_loss * alone

    def slope(tensors, name, at, put):
        values = []
        for step in (1e-2, -1e-2):
            moved = tensors[name].clone()
            moved.view(-1)[at] += step
            values.append(put({**tensors, name: moved}))
        return (values[0] - values[1]) / 2e-2

    sides = (
        (view.expert.tensors, after.expert.tensors, sorted(names), lambda t: loss(t, view.gate)),
        (view.gate, after.gate, sorted(view.gate), lambda t: loss(view.expert.tensors, t)),
    )
    checked = 0
    for before, moved, group, put in sides:
        for name in group:
            gradient = slope(before, name, 0, put)
            if abs(gradient) > 0.02:
                step = (moved[name] - before[name]).view(-1)[0].item()
                assert step == pytest.approx(-rate * np.sign(gradient), rel=0.02)
                checked += 1
    assert checked >= 5


@pytest.mark.parametrize("kind", ["vit", "bert", "clip", "sentence"])
def test_training_learns(make_learner, make_client, kind):
    """Colours and first words tell the class; a head of zeros must find that out."""
    training = Training(batch_size=4, learning_rate=0.02)
    learner = make_learner(kind, linear=kind != "clip", cache_bytes=10**7, training=training)
    client = make_client(learner.backbone, rows=24)
    names = learner.layout.expert(1)
    start = View(Expert(learner.initial_expert(names, 0)))
    after = learner.fit([Fit(start, names, client, 20, 0)])[0]
    before, now = (learner.score(v, client, "train") for v in (start, after))
    assert now.loss < 0.8 * before.loss
    assert now.correct > before.correct
    assert all(after.expert.tensors[n].any() for n in learner.layout.head)


@pytest.mark.parametrize("kind", ["clip", "sentence", "vit"])
def test_fit_changes_nothing_it_was_given(make_learner, make_client, kind):
    learner = make_learner(kind, cache_bytes=10**7)
    client = make_client(learner.backbone)
    view = random_view(learner)
    before = [fingerprint(t) for t in (view.expert.tensors, view.partner.tensors, view.gate)]
    after = learner.fit([Fit(view, learner.layout.expert(1), client, 2, 0)])[0]
    assert before == [
        fingerprint(t) for t in (view.expert.tensors, view.partner.tensors, view.gate)
    ]
    assert after.partner is view.partner
    held = {*after.expert.tensors.values(), *after.gate.values()}
    assert not any(t.requires_grad for t in held)
    kept = fingerprint(after.expert.tensors)
    learner.fit([Fit(view, learner.layout.expert(2), client, 1, 9)])
    assert fingerprint(after.expert.tensors) == kept


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_seeds_decide_the_batches(make_learner, make_client, kind):
    learner = make_learner(kind)
    client, names = make_client(learner.backbone), learner.layout.expert(1)
    start = View(Expert(learner.initial_expert(names, 0)))

    def fitted(seed):
        return fingerprint(learner.fit([Fit(start, names, client, 1, seed)])[0].expert.tensors)

    assert fitted(0) == fitted(0) != fitted(1)


def test_a_fit_at_half_the_rate_is_training_with_half_the_rates(make_learner, make_client):
    def fitted(training, rate):
        learner = make_learner("clip", training=training)
        client, view = make_client(learner.backbone), random_view(learner)
        fit = Fit(view, learner.layout.expert(2), client, 2, 0, rate)
        after = learner.fit([fit])[0]
        return fingerprint(after.expert.tensors), fingerprint(after.gate)

    half = fitted(Training(4, 1e-3, 5e-4), 1.0)
    assert fitted(Training(4, 2e-3, 1e-3), 0.5) == half
    assert all(a != b for a, b in zip(fitted(Training(4, 2e-3, 1e-3), 1.0), half, strict=True))


def test_weight_decay_and_learning_rates_reach_what_they_name(make_learner, make_client):
    names = {}
    for key, training in {
        "plain": Training(4, 1e-3, 1e-3),
        "decay": Training(4, 1e-3, 1e-3, weight_decay=5.0),
        "gate": Training(4, 1e-3, 1e-2),
        "still": Training(4, 0.0, 0.0),
    }.items():
        learner = make_learner("clip", training=training)
        client, view = make_client(learner.backbone), random_view(learner)
        after = learner.fit([Fit(view, learner.layout.expert(2), client, 1, 0)])[0]
        moves = [
            sum(float((a[n] - b[n]).abs().sum()) for n in b)
            for a, b in ((after.expert.tensors, view.expert.tensors), (after.gate, view.gate))
        ]
        names[key] = moves
    assert names["still"] == [0.0, 0.0]
    assert names["gate"][1] > 5 * names["plain"][1]
    assert names["gate"][0] == pytest.approx(names["plain"][0], rel=0.5)
    assert all(d != p for d, p in zip(names["decay"], names["plain"], strict=True))


@pytest.mark.parametrize("kind", ["clip", "vit"])
@pytest.mark.parametrize("mix", ["probabilities", "logits"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_oracle_gives_each_example_to_the_better_expert(
    make_learner, make_client, monkeypatch, kind, mix, calibrated
):
    """A calibrated model's oracle is the model with a gate that is all for one expert."""
    monkeypatch.setattr("fedms.models.learner._PIECE", 7)  # of thirty rows
    learner = make_learner(kind, mixing=Mixing(mix))
    client, view = make_client(learner.backbone, rows=30), random_view(learner, own=True)
    if calibrated:
        view = replace(view, calibration=torch.tensor([0.3, 0.2, 0.9, 0.6, 1.5, 0.0]))
        still = {name: torch.zeros_like(tensor) for name, tensor in view.gate.items()}
        sides = torch.tensor([1e4, -1e4])
        views = [replace(view, gate={**still, "head.bias": bias}) for bias in (sides, -sides)]
    else:
        views = [View(view.partner), View(view.expert)]
    shared, own = (
        learner.predict(one, client, client.train).log_probabilities.numpy() for one in views
    )
    labels = client.train.labels
    rows = np.arange(len(labels))
    right = (shared.argmax(1) == labels) | (own.argmax(1) == labels)
    best = np.maximum(shared[rows, labels], own[rows, labels])
    score = learner.score(replace(view, oracle=True), client, "train")
    assert score.correct == right.sum()
    one = (shared.argmax(1) == labels) == (own.argmax(1) == labels)
    picked = np.where(shared.argmax(1) == labels, shared[rows, labels], own[rows, labels])
    expected = np.where(one, best, picked)
    assert score.loss == pytest.approx(-expected.sum(), rel=1e-5)


@pytest.mark.parametrize("partner", [True, False])
@pytest.mark.parametrize("kind", ["sentence", "vit"])
def test_evidence_by_hand(make_learner, make_client, monkeypatch, kind, partner):
    """What a client knows, weighed: against NumPy, and its derivatives against differences."""
    monkeypatch.setattr("fedms.models.learner._PIECE", 3)  # of four rows
    learner = make_learner(kind, mixing=Mixing("logits", 0.7))
    client = make_client(learner.backbone, rows=7)
    view = random_view(learner)
    if not partner:
        view = View(view.expert)
    weights = torch.tensor([0.3, 0.9, -0.4, 0.6, 1.5, 0.2])
    total = learner.statistics(make_client(learner.backbone, "other", rows=11))
    statistics = Discriminant.of(discriminant.discriminant(total), personal=True)

    def log_probabilities(view, rows):
        return learner.predict(view, client, rows).log_probabilities.double().numpy()

    def expected(rows, weights):
        experts = (view.partner or view.expert, view.expert)
        shared, own = (log_probabilities(View(e, statistics=statistics), rows) for e in experts)
        weight = np.full(len(rows), 0.5)
        if partner:
            weight = learner.predict(view, client, rows).gate_weight.double().numpy()
        counts = np.bincount(client.train.labels, minlength=3)
        prior = np.log((counts + 0.7) / (counts + 0.7).sum())
        a, b, c, d, e, f = weights.double().numpy()
        mean = weight[:, None] * shared + (1 - weight[:, None]) * own
        frozen = (learner.features(FROZEN, part) for part in (rows, client.train))
        seen, prompts = torch.from_numpy(client.train.labels), learner.head.prompts
        s = statistics.scores(*frozen, seen, prompts).double().numpy()
        known = a * shared + b * own + c * mean + d * prior + e * (counts == 0) + f * s
        return np.log(softmax(known))

    calibrated = replace(view, calibration=weights, statistics=statistics)
    got = log_probabilities(calibrated, client.test)
    np.testing.assert_allclose(got, expected(client.test, weights), rtol=1e-6, atol=1e-5)

    def loss(weights):
        return -expected(client.val, weights)[np.arange(len(client.val)), client.val.labels].sum()

    gradient = learner.derivatives(calibrated, client)["calibration/gradient"]
    step = 1e-3 * torch.eye(6)
    differences = [(loss(weights + s) - loss(weights - s)) / 2e-3 for s in step]
    np.testing.assert_allclose(gradient.numpy(), differences, atol=2e-2)


@pytest.mark.parametrize("grounded", [True, False])
@pytest.mark.parametrize("mix", ["probabilities", "logits", "features"])
def test_experts_look_for_classes_where_statistics_say(make_learner, make_client, grounded, mix):
    """Predictions and training are those of a model whose prompts are there; or of its own."""
    learner = make_learner("sentence", mixing=Mixing(mix, grounded=grounded))
    client, names = make_client(learner.backbone, rows=9), learner.layout.expert(2)
    total = learner.statistics(make_client(learner.backbone, "other", rows=11))
    statistics = Discriminant.of(discriminant.discriminant(total), personal=True)
    plain = random_view(learner)
    known = replace(plain, statistics=statistics)
    fits = [Fit(view, names, client, 1, 5) for view in (known, plain)]
    said = learner.predict(known, client, client.test).log_probabilities
    (trained,) = learner.fit(fits[:1])
    assert trained.statistics is statistics
    if grounded:
        learner.head.prompts = statistics.vectors(learner.head.prompts)
    (expected,) = learner.fit(fits[1:])
    log_probabilities = learner.predict(plain, client, client.test).log_probabilities
    torch.testing.assert_close(said, log_probabilities)
    for name, tensor in expected.expert.tensors.items():
        torch.testing.assert_close(trained.expert.tensors[name], tensor)
    for name, tensor in expected.gate.items():
        torch.testing.assert_close(trained.gate[name], tensor)


def test_clients_of_a_stack_have_class_vectors_of_their_own(make_learner, make_client):
    """One of two federations each, in one stack, and as they would be alone."""
    learner = make_learner("sentence")
    names, fits = learner.layout.expert(2), []
    for seed, other in enumerate(("x", "y")):
        total = learner.statistics(make_client(learner.backbone, other, rows=11))
        statistics = Discriminant.of(discriminant.discriminant(total), personal=True)
        view = replace(random_view(learner), statistics=statistics)
        client = make_client(learner.backbone, other * 2, rows=9)
        fits.append(Fit(view, names, client, 1, seed))
    together, alone = learner.fit(fits), [learner.fit([fit])[0] for fit in fits]
    for one, other in zip(together, alone, strict=True):
        for name, tensor in other.expert.tensors.items():
            torch.testing.assert_close(one.expert.tensors[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sentence", "vit"])
def test_a_newcomers_rows_make_the_vectors_of_classes_that_nobody_had(
    make_learner, make_client, kind
):
    learner = make_learner(kind)
    client = make_client(learner.backbone, rows=9)
    total = learner.statistics(client)
    new = int(client.train.labels[0])
    for name in (COUNTS, SUMS):
        total[name][new] = 0
    said = Discriminant.of(discriminant.discriminant(total), personal=True)
    view = replace(View(random_view(learner).expert), statistics=said)
    (mine,) = learner.vectors(view, client).values()
    (anyone,) = learner.vectors(view).values()
    others = [c for c in range(3) if c != new]
    torch.testing.assert_close(mine[0, others], anyone[0, others])
    z = F.normalize(learner.frozen(client.train), dim=-1)[client.train.labels == new]
    assert float(mine[0, new] @ z.mean(0)) > float(anyone[0, new] @ z.mean(0))
    own = learner.own(view, client).heads["classes.vectors"]
    assert torch.equal(own, mine)


def test_linear_heads_start_at_class_vectors(make_learner, make_client):
    """By hand: 20 times the cosine to them, beside what the head says itself."""
    learner = make_learner("vit")
    client = make_client(learner.backbone)
    total = discriminant.discriminant(learner.statistics(client))
    view = View(random_view(learner).expert)
    known = replace(view, statistics=Discriminant.of(total, personal=False))
    z = learner.features(view.expert, client.test).double().numpy()
    weight, bias = (
        view.expert.tensors[f"classifier.{name}"].double().numpy() for name in ("weight", "bias")
    )
    sums, counts = (total[name].double().numpy() for name in (SUMS, COUNTS))
    vectors = sums + sums.sum(0) / counts.sum()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    expected = np.log(softmax(z @ weight.T + bias + 20 * unit @ vectors.T))
    got = learner.predict(known, client, client.test).log_probabilities
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)
    (trained,) = learner.fit([Fit(known, learner.layout.expert(1), client, 3, 0)])
    before, after = (learner.score(v, client, "train").loss for v in (known, trained))
    assert after < before


@pytest.mark.parametrize("mixture", [True, False])
def test_training_with_a_prior_is_training_towards_its_residual(make_learner, make_client, mixture):
    """Weights of (1, 0) are the class prior in every expert, and not in what comes back."""
    learner = make_learner("sentence")
    client, names = make_client(learner.backbone, rows=9), learner.layout.expert(2)
    plain, priors = random_view(learner), random_view(learner, own=True, shared=True)
    if not mixture:
        plain, priors = View(plain.expert), View(priors.expert)
    (one,) = learner.fit([Fit(plain, names, client, 1, 5, prior=(1.0, 0.0))])
    (other,) = learner.fit([Fit(priors, names, client, 1, 5)])
    assert not one.expert.prior
    for name, tensor in other.expert.tensors.items():
        torch.testing.assert_close(one.expert.tensors[name], tensor, atol=1e-6, rtol=1e-5)


def test_an_error_in_the_middle_of_training_leaves_nothing_behind(
    make_learner, make_client, monkeypatch
):
    """A client that crashes is no matter for the next one."""
    learner, fresh = make_learner("sentence"), make_learner("sentence")
    client = make_client(learner.backbone)
    names = learner.layout.expert(2)
    asked = Fit(View(Expert(learner.initial_expert(names, 0))), names, client, 1, 0)
    calls, backward = itertools.count(), torch.Tensor.backward

    def crashing(self, *args, **kwargs):
        if next(calls) == 1:
            raise MemoryError
        backward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", crashing)
        with pytest.raises(MemoryError):
            learner.fit([asked], 0)
    model = learner.backbone.model
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    (got,), (expected,) = (one.fit([asked], 0) for one in (learner, fresh))
    assert got.expert.fingerprint == expected.expert.fingerprint


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_the_pass_for_statistics_leaves_what_training_needs(make_learner, make_client, kind):
    """The first fit costs no more than one whose prefix is kept, and sums are the same."""
    plain, learner = (make_learner(kind, cache_bytes=size) for size in (0, 10**7))
    client = make_client(learner.backbone, rows=7)
    names = learner.layout.expert(2)
    for name, tensor in plain.statistics(client).items():
        torch.testing.assert_close(learner.statistics(client, names)[name], tensor)
    expert = Expert(learner.initial_expert(names, 0))
    spent = []
    for _ in range(2):
        learner.spent()
        learner.fit([Fit(View(expert), names, client, 1, 0)])
        spent.append(learner.spent().flops)
    assert spent[0] == spent[1]
    other = make_client(learner.backbone, "other", rows=7)
    learner.fit([Fit(View(expert), names, other, 1, 0)])
    assert learner.spent().flops > spent[0]
