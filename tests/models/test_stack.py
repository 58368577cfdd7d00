"""Stacked clients: each learns what it would learn alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedms.core.algorithm import Expert, Fit, View
from fedms.models import Mixing, Training
from fedms.models.adapters import Factor

PLENTY = 10**7
TRAINING = Training(batch_size=4)
ROWS = (11, 5, 3, 12)
"""Training rows of the clients: three, two, one and three batches, some of them smaller."""


def random_expert(learner, depth, seed):
    rng = torch.Generator().manual_seed(seed)
    names = sorted(learner.layout.expert(depth))
    return {n: 0.3 * torch.randn(learner.layout.shapes[n], generator=rng) for n in names}


def make_fits(learner, make_client, *, depths=(1, 1, 1, 1), mixture=False, prior=False, epochs=2):
    """A client of each size, with an expert of its own."""
    shared = Expert(random_expert(learner, 3, 99), prior)
    fits = []
    for i, (rows, depth) in enumerate(zip(ROWS, depths, strict=True)):
        own = Expert(random_expert(learner, depth, i), prior)
        gate = learner.initial_gate(i)
        gate["head.weight"] = 0.1 * torch.ones_like(gate["head.weight"]) * torch.tensor([[1], [-1]])
        view = View(own, shared, gate) if mixture else View(own)
        data = make_client(learner.backbone, str(i), rows, seed=i)
        fits.append(Fit(view, learner.layout.expert(depth), data, epochs, i))
    return fits


def assert_as_alone(learner, fits):
    alone = [learner.fit([fit])[0] for fit in fits]
    together = learner.fit(fits)
    for fit, one, view in zip(fits, alone, together, strict=True):
        assert view.partner is fit.view.partner
        expected = {**one.expert.tensors, **(one.gate or {})}
        got = {**view.expert.tensors, **(view.gate or {})}
        assert got.keys() == expected.keys()
        for name, tensor in expected.items():
            # 1e-5 but for one element of 32, with transformers 5.0
            torch.testing.assert_close(got[name], tensor, atol=5e-5, rtol=0)
        before = {**fit.view.expert.tensors, **(fit.view.gate or {})}
        moved = {n for n in got if not torch.equal(got[n], before[n])}
        assert fit.names <= moved <= fit.names | (one.gate or {}).keys()
        assert not any(t.requires_grad for t in got.values())
    return together


@pytest.mark.parametrize("kind", ["clip", "sentence", "vit", "bert"])
@pytest.mark.parametrize("budget", [0, PLENTY])
def test_clients_of_all_sizes(make_learner, make_client, kind, budget):
    learner = make_learner(kind, training=TRAINING, cache_bytes=budget)
    assert_as_alone(learner, make_fits(learner, make_client))


@pytest.mark.quick("mixing0-val", "mixing1-train", "mixing2-val-vit")
@pytest.mark.parametrize("kind", ["clip", "sentence", "vit"])
@pytest.mark.parametrize("data", ["train", "val"])
@pytest.mark.parametrize(
    "mixing", [Mixing(), Mixing("logits", bottleneck=2), Mixing("features", local_loss=0.5)]
)
def test_mixtures_with_their_gates_and_priors(make_learner, make_client, kind, data, mixing):
    mixing = replace(mixing, data=data)
    learner = make_learner(kind, training=TRAINING, mixing=mixing, cache_bytes=PLENTY)
    fits = make_fits(learner, make_client, mixture=True, prior=kind != "sentence")
    views = assert_as_alone(learner, fits)
    assert all(view.gate["head.weight"].any() for view in views)


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_clients_that_differ_are_trained_apart(make_learner, make_client, kind):
    """In depth, in having a mixture, and in which of their blocks train."""
    learner = make_learner(kind, training=TRAINING, cache_bytes=PLENTY)
    fits = make_fits(learner, make_client, depths=(1, 2, 2, 2))
    fits[2] = make_fits(learner, make_client, depths=(1, 2, 2, 2), mixture=True)[2]
    fits[3] = replace(fits[3], names=learner.layout.expert(1))
    assert_as_alone(learner, fits)


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_room_for_some_of_the_clients_only(make_learner, make_client, kind):
    plenty = make_learner(kind, training=TRAINING, cache_bytes=PLENTY)
    fits = make_fits(plenty, make_client)
    plenty.fit(fits)
    budget = plenty.prefixes.bytes - 1
    crowded = make_learner(kind, training=TRAINING, cache_bytes=budget)
    assert_as_alone(crowded, fits)
    assert 0 < crowded.prefixes.bytes <= budget


def test_a_client_without_validation_rows_has_no_part_in_gates_learning(make_learner, make_client):
    learner = make_learner("clip", training=TRAINING, mixing=Mixing(data="val"))
    fits = make_fits(learner, make_client, mixture=True)
    none = fits[1].data.val.take(np.array([], dtype=np.int64))
    fits[1] = replace(fits[1], data=replace(fits[1].data, val=none))
    views = assert_as_alone(learner, fits)
    assert all(torch.equal(views[1].gate[n], t) for n, t in fits[1].view.gate.items())


def test_on_validation_rows_a_gate_that_stands_still_has_nothing_to_learn(
    make_learner, make_client
):
    learner = make_learner("clip", training=TRAINING, mixing=Mixing(data="val"))
    fits = [replace(f, gate=False) for f in make_fits(learner, make_client, mixture=True)]
    for fit, view in zip(fits, assert_as_alone(learner, fits), strict=True):
        assert all(torch.equal(view.gate[n], t) for n, t in fit.view.gate.items())


def test_one_client_more_changes_nothing_for_the_others(make_learner, make_client):
    """Rows that fill a batch up count for nothing, whatever they are."""
    learner = make_learner("clip", training=TRAINING, cache_bytes=PLENTY)
    fits = make_fits(learner, make_client)
    small, large = fits[2], fits[3]
    for others in ([large], [large, *fits[:2]], fits[:2]):
        got = learner.fit([small, *others])[0].expert.tensors
        for name, tensor in learner.fit([small])[0].expert.tensors.items():
            torch.testing.assert_close(got[name], tensor, atol=1e-5, rtol=0)


def test_steps_are_taken_together(make_learner, make_client, monkeypatch):
    learner = make_learner("clip", training=TRAINING, cache_bytes=PLENTY)
    fits, stacked = make_fits(learner, make_client, epochs=1), []
    learner.fit(fits)  # fills the cache
    forward = Factor.forward
    monkeypatch.setattr(
        Factor, "forward", lambda self, x: stacked.append(len(self.weight)) or forward(self, x)
    )
    learner.fit(fits)
    assert stacked == [4] * 4 + [3] * 4 + [2] * 4  # q and v, A and B, of one block


@pytest.mark.parametrize("rows", [(8, 8, 8), (8, 5, 1)])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_stack_costs_what_its_clients_cost(make_learner, make_client, rows, depth):
    """FLOPs add up, without those of rows that fill batches up; activations are those of one."""
    learner = make_learner("clip", training=TRAINING, cache_bytes=PLENTY, linear=True)
    names = learner.layout.expert(depth)
    expert = Expert(random_expert(learner, depth, 0))
    clients = [make_client(learner.backbone, str(i), r, seed=i) for i, r in enumerate(rows)]
    fits = [Fit(View(expert), names, client, 1, 0) for client in clients]
    learner.fit(fits)
    alone = []
    for fit in fits:
        learner.spent()
        learner.fit([fit])
        alone.append(learner.spent())
    learner.fit(fits)
    together = learner.spent()
    assert together.flops == pytest.approx(sum(one.flops for one in alone), rel=0.01)
    peak = max(one.peak_activation_bytes for one in alone)
    assert together.peak_activation_bytes == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("together", [True, False])
def test_what_a_fit_kept_is_there_for_the_next(make_learner, make_client, together):
    """The partner's prefix lies elsewhere: it must not push the local expert's out of the cache."""
    learner = make_learner("clip", training=TRAINING, cache_bytes=PLENTY)
    fits = make_fits(learner, make_client, mixture=True)
    for group in [fits] if together else [[fit] for fit in fits]:
        learner.fit(group)
    kept = [learner.prefixes._kept[fit.data.train] for fit in fits]
    assert [one.boundary for one in kept] == [2] * len(fits)
    learner.fit(fits)
    assert [learner.prefixes._kept[fit.data.train] for fit in fits] == kept


def test_nothing_to_fit_is_no_error(make_learner):
    assert make_learner("clip").fit([]) == []
