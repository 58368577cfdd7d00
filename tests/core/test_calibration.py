"""Weights of evidence: derivatives against autograd, rounds of them against SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls
from torch.nn import functional as F

from fedms.core import calibration

CLASSES = 4


def client(seed, rows, scale=2.0):
    """Evidence of which the second column is best, and labels."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (rows,), generator=rng)
    evidence = torch.randn(rows, CLASSES, 6, generator=rng)
    evidence[torch.arange(rows), labels, 1] += scale
    return evidence, labels


def test_at_first_it_is_the_mixture_of_logits():
    rng = torch.Generator().manual_seed(0)
    shared, own = (F.log_softmax(torch.randn(3, CLASSES, generator=rng), -1) for _ in range(2))
    weight = torch.rand(3, 1, generator=rng)
    nothing, zeros = torch.randn(3, CLASSES, generator=rng), torch.zeros(3, CLASSES)
    evidence = torch.stack(
        [shared, own, weight * shared + (1 - weight) * own, nothing, nothing, zeros], -1
    )
    got = calibration.log_probabilities(evidence, calibration.initial())
    torch.testing.assert_close(got, F.log_softmax(weight * shared + (1 - weight) * own, -1))


@given(st.integers(0, 99), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_derivatives_are_autograds(seed, rows):
    evidence, labels = client(seed, rows)
    at = torch.randn(6, generator=torch.Generator().manual_seed(seed))

    def loss(weights):
        return F.cross_entropy(evidence.double() @ weights, labels, reduction="sum")

    got = calibration.derivatives(evidence, labels, at)
    at = at.double()
    gradient = torch.autograd.functional.jacobian(loss, at)
    curvature = torch.autograd.functional.hessian(loss, at)
    assert {name: tuple(t.shape) for name, t in got.items()} == calibration.SHAPES
    torch.testing.assert_close(got["calibration/gradient"], gradient)
    torch.testing.assert_close(got["calibration/curvature"], curvature)


def test_no_rows_say_nothing():
    evidence, labels = client(0, 0)
    got = calibration.derivatives(evidence, labels, calibration.initial())
    assert all(not t.any() for t in got.values())


def rounds(clients, number):
    """The server's tensors after so many rounds in which the clients' rows stay the same."""
    state = {calibration.WEIGHTS: calibration.initial()}
    total = sum(3 * len(labels) for _, labels in clients)
    for _ in range(number):
        average = dict.fromkeys(calibration.SHAPES, 0.0)
        for evidence, labels in clients:  # three times as many training rows
            sums = calibration.derivatives(evidence, labels, state[calibration.WEIGHTS])
            for name, t in sums.items():
                share = 3 * len(labels) / total
                average[name] = average[name] + share * t / (3 * max(1, len(labels)))
        state = calibration.move(state, average, total, CLASSES)
    return state


def test_rounds_find_the_weights_that_fit_all_clients_together():
    clients = [client(1, 40, 0.8), client(2, 15, 1.2), client(3, 0)]
    evidence = torch.cat([e for e, _ in clients]).double()
    labels = torch.cat([y for _, y in clients])
    first = calibration.initial().double().numpy()

    def loss(weights, rounds):
        logits, change = evidence @ torch.from_numpy(weights), weights - first
        nats = evidence @ torch.from_numpy(change)
        ridge = 0.5 * float((nats - nats.mean(1, keepdim=True)).square().mean())
        ridge += 0.05 * (change**2).sum()
        return rounds * float(F.cross_entropy(logits, labels, reduction="sum")) + ridge

    state = rounds(clients, 25)
    # earlier rounds count half as much each: twice the rows, in the end
    bounds = [(0 if i in calibration.OPINIONS else None, None) for i in range(6)]
    best = minimize(loss, first, args=(2.0,), bounds=bounds, options={"gtol": 1e-8}).x
    assert (best == 0).any()  # a bound holds
    np.testing.assert_allclose(state[calibration.WEIGHTS].numpy(), best, atol=2e-3)
    after_one = rounds(clients, 3)[calibration.WEIGHTS].double().numpy()
    assert loss(after_one, 2.0) - loss(best, 2.0) < 0.02 * (loss(first, 2.0) - loss(best, 2.0))


@given(st.integers(0, 999), st.lists(st.integers(0, 5), unique=True, max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_lowest_that_is_allowed_is_scipys(seed, opinions):
    """Against non-negative least squares, where a free weight is the difference of two."""
    rng = np.random.default_rng(seed)
    root, pull = rng.normal(size=(9, 6)), rng.normal(size=6)
    got = calibration.lowest(torch.from_numpy(root.T @ root), torch.from_numpy(pull), opinions)
    free = [i for i in range(6) if i not in opinions]
    wide = np.concatenate([root, -root[:, free]], 1)
    target = np.linalg.lstsq(root.T, pull, rcond=None)[0]  # root' target = pull
    both, _ = nnls(wide, target)
    expected = both[:6].copy()
    expected[free] -= both[6:]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-8)


def test_no_opinion_is_taken_out_of_another():
    """Rows of which the second expert's errors tell the label would give it a negative weight."""
    evidence, labels = client(5, 200, -2.0)
    state = rounds([(evidence, labels)], 6)
    weights = state[calibration.WEIGHTS]
    assert weights[list(calibration.OPINIONS)].min() >= 0
    assert weights[calibration.EVIDENCE.index("local")] == 0
    free = torch.zeros(6, dtype=torch.double)
    for _ in range(20):  # Newton's method without bounds
        sums = calibration.derivatives(evidence, labels, free)
        curvature = sums["calibration/curvature"] + torch.eye(6).double()
        free = free - torch.linalg.solve(curvature, sums["calibration/gradient"] + free)
    assert free[calibration.EVIDENCE.index("local")] < -0.5


def test_the_ridge_is_in_nats_so_that_units_of_evidence_do_not_matter(monkeypatch):
    evidence, labels = client(1, 30)
    monkeypatch.setattr(calibration, "FLOOR", 1e-6)  # is in weights
    first, moves = calibration.initial(), []
    for units in (torch.ones(6), torch.tensor([10.0, 10.0, 30.0, 10.0, 20.0, 100.0])):
        monkeypatch.setattr(calibration, "initial", lambda units=units: first / units)
        sums = calibration.derivatives(evidence * units, labels, first / units)
        state = {calibration.WEIGHTS: first / units}
        moved = calibration.move(state, {n: t / 30 for n, t in sums.items()}, 30, CLASSES)
        moves.append(moved[calibration.WEIGHTS] * units - first)
    assert float(moves[0].abs().max()) > 0.3
    torch.testing.assert_close(*moves)


def test_a_round_without_validation_rows_moves_nothing():
    state = {calibration.WEIGHTS: calibration.initial()}
    zeros = {name: torch.zeros(shape) for name, shape in calibration.SHAPES.items()}
    moved = calibration.move(state, zeros, 12, CLASSES)
    torch.testing.assert_close(moved[calibration.WEIGHTS], calibration.initial())


@given(st.integers(0, 999), st.sampled_from([1.0, 10.0, 60.0]))
@settings(max_examples=60, deadline=None)
def test_no_round_makes_it_worse(seed, sure):
    """Where evidence is far too sure, and nearly always right, a whole Newton step often would."""
    evidence, labels = client(seed, 60, 1.5)
    evidence = evidence * sure
    state = {calibration.WEIGHTS: calibration.initial()}

    def loss(weights):
        log_p = calibration.log_probabilities(evidence.double(), weights)
        return float(F.nll_loss(log_p, labels)) + 1e-3

    losses = [loss(state[calibration.WEIGHTS])]
    for _ in range(6):
        sums = calibration.derivatives(evidence, labels, state[calibration.WEIGHTS])
        state = {calibration.WEIGHTS: state[calibration.WEIGHTS]}  # nothing remembered
        state = calibration.move(state, {n: t / 60 for n, t in sums.items()}, 60, CLASSES)
        losses.append(loss(state[calibration.WEIGHTS]))
    assert all(after < before * 1.02 for before, after in itertools.pairwise(losses))


def test_steps_are_shortened_by_how_far_they_reach():
    spread = torch.diag(torch.tensor([4.0, 1, 1, 1, 1, 1])).double()
    first = torch.eye(6).double()[0]
    for length in (1e-6, 0.5, 20.0):
        got = calibration.damped(length * first, spread)
        reach = 4 * length  # two roots of a mean square of 4
        torch.testing.assert_close(got, length * first * np.log1p(reach) / reach)
    assert not calibration.damped(torch.zeros(6).double(), spread).any()


def test_the_prior_to_train_with():
    weights = torch.tensor([0.5, 0.4, 1.0, 0.8, 2.0, 0.1])
    assert calibration.prior(weights) == pytest.approx((0.8, 2.0))
