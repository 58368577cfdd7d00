"""Who has classes where others have other classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedms.core.agreement import agreements
from fedms.core.discriminant import sums

CLASSES, WIDTH = 6, 12


def clients(seed, *, number=10, rows=60, noise=1.0, alpha=0.5, liars=0):
    """Skewed clients' rows around class means; the first so many have every label false."""
    draw = np.random.default_rng(seed)
    means = draw.normal(size=(CLASSES, WIDTH))
    found = []
    for i in range(number):
        labels = draw.choice(CLASSES, rows, p=draw.dirichlet([alpha] * CLASSES))
        features = means[labels] + noise * draw.normal(size=(rows, WIDTH))
        claimed = (labels + 1) % CLASSES if i < liars else labels
        found.append((torch.from_numpy(features), torch.from_numpy(claimed)))
    return found


def judged(found):
    sent = []
    for features, labels in found:
        sent.append({n: t / len(labels) for n, t in sums(features, labels, CLASSES).items()})
    return agreements(sent, [len(labels) for _, labels in found])


def contradicting(found):
    return [i for i, one in enumerate(judged(found)) if one.contradicts]


SEEDS = range(40)


@pytest.mark.parametrize("noise", [0.3, 1.0])
@pytest.mark.parametrize("liars", [0, 1, 2, 3])
def test_liars_are_found_and_nobody_else(liars, noise):
    for seed in SEEDS:
        found = clients(seed, liars=liars, noise=noise, alpha=2.0)
        assert contradicting(found) == [*range(liars)], seed


@pytest.mark.parametrize("number", [1, 2, 5, 12])
@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_however_skewed_nobody_honest_contradicts(alpha, number):
    for seed in SEEDS:
        assert contradicting(clients(seed, alpha=alpha, number=number)) == [], seed


@pytest.mark.slow
def test_features_that_tell_nothing_accuse_hardly_anybody():
    accused = sum(len(contradicting(clients(s, noise=1e3, alpha=10.0))) for s in range(200))
    assert accused <= 8  # of 2,000


@given(st.permutations(range(8)))
def test_the_order_of_clients_does_not_matter(order):
    found = clients(3, number=8, liars=2)
    expected = judged(found)
    got = judged([found[i] for i in order])
    for i, one in zip(order, got, strict=True):
        assert one.value == pytest.approx(expected[i].value, abs=1e-9)
        assert one.contradicts == expected[i].contradicts


def test_what_nobody_else_has_cannot_be_compared():
    found = []
    for i in range(CLASSES):
        (features, labels), *_ = clients(i, number=1)
        found.append((features, torch.full_like(labels, i)))
    assert [(a.value, a.contradicts) for a in judged(found)] == [(None, False)] * CLASSES
    assert [a.value for a in judged(clients(0, number=1))] == [None]
    assert agreements([], []) == []


def test_few_rows_are_not_enough_to_accuse():
    found = clients(1, liars=1)
    features, labels = found[0]
    assert contradicting(found) == [0]
    assert contradicting([(features[:5], labels[:5]), *found[1:]]) == []


def test_by_hand():
    """Row by row, for three clients of whom the last is least like the others."""
    found = clients(5, number=3, rows=40, liars=0)
    unit = [(np.asarray(f / f.norm(dim=1, keepdim=True)), np.asarray(y)) for f, y in found]
    left_out = min(range(3), key=lambda i: _by_hand(unit, i, {*range(3)} - {i}))
    for i, one in enumerate(judged(found)):
        expected = _by_hand(unit, i, {*range(3)} - {i, left_out})
        assert one.value == pytest.approx(expected, abs=1e-9)


def _by_hand(unit, client, others):
    theirs = np.concatenate([unit[i][0] for i in sorted(others)])
    labels = np.concatenate([unit[i][1] for i in sorted(others)])
    overall = theirs.mean(0)
    means = {}
    for c in sorted(set(labels.tolist())):
        rows = theirs[labels == c] - overall
        means[c] = rows.sum(0) / (len(rows) + 1)
    got = most = 0.0
    for c in means:
        mine = unit[client][0][unit[client][1] == c] - overall
        if len(mine):
            rest = np.mean([mean for other, mean in means.items() if other != c], axis=0)
            got += mine.sum(0) @ (means[c] - rest)
            most += np.linalg.norm(mine.sum(0)) * np.linalg.norm(means[c])
    return got / most
