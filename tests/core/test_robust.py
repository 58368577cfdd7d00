"""Robust rules against independent references, what they bear, and updates of unequal tensors."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from fedms.core.aggregation import average
from fedms.core.algorithm import ClientUpdate, Score
from fedms.core.robust import Rule, aggregator, change, clipped, combine
from fedms.core.screening import too_long

RULES = ("median", "trimmed", "geometric", "krum", "multikrum", "clip")
SHAPES = {"global/a": (3, 2), "global/b": (4,)}


def values(clients, seed, shapes=SHAPES):
    random = torch.Generator().manual_seed(seed)
    return {
        n: [torch.randn(s, generator=random) for _ in range(clients)] for n, s in shapes.items()
    }


def flat(sent):
    """`(clients, numbers)` in float64."""
    clients = len(next(iter(sent.values())))
    rows = [torch.cat([sent[n][i].flatten() for n in sorted(sent)]) for i in range(clients)]
    return torch.stack(rows).double().numpy()


def vector(tensors):
    return torch.cat([tensors[n].flatten() for n in sorted(tensors)]).double().numpy()


def updates(sent, rows=None):
    clients = len(next(iter(sent.values())))
    return [
        ClientUpdate(
            str(i),
            0,
            rows[i] if rows else 1,
            {n: each[i] for n, each in sent.items()},
            Score(),
            1,
            1,
        )
        for i in range(clients)
    ]


def aggregate(rule, all_of_them, received=None):
    found = aggregator(rule, received or {})
    for update in all_of_them:
        found.add(update)
    assert found.clients == len(all_of_them)
    return found.result()


def krum(points, bad, count):
    """By the definition, with loops."""
    scores = []
    for i, one in enumerate(points):
        others = sorted(np.sum((one - o) ** 2) for j, o in enumerate(points) if j != i)
        scores.append(sum(others[: max(1, len(points) - bad - 2)]))
    best = sorted(range(len(points)), key=lambda i: (scores[i], i))[:count]
    return points[best].mean(0)


def reference(name, points, share):
    bad = int(share * len(points))
    if name == "median":
        return np.median(points, axis=0)
    if name == "trimmed":
        return stats.trim_mean(points, bad / len(points) + 1e-9, axis=0)
    if name == "geometric":
        start = np.median(points, axis=0)
        total = lambda x: np.linalg.norm(points - x, axis=1).sum()  # noqa: E731
        found = optimize.minimize(total, start, method="BFGS", options={"gtol": 1e-9})
        return found.x
    return krum(points, bad, 1 if name == "krum" else len(points) - bad)


ANSWERS = [
    (name, clients)
    for name in RULES[:-1]
    for clients in (1, 2, 3, 5, 8, 11)
    if clients != 2 or name not in ("geometric", "krum")  # of two, either is as good an answer
]


@pytest.mark.parametrize(("name", "clients"), ANSWERS)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.4])
def test_rules_against_references(name, clients, share):
    sent = values(clients, seed=clients)
    got = combine(Rule(name, share), sent)
    close = 1e-4 if name == "geometric" else 1e-6
    np.testing.assert_allclose(vector(got), reference(name, flat(sent), share), atol=close)
    assert {n: tuple(t.shape) for n, t in got.items()} == SHAPES
    assert all(t.dtype == torch.float32 for t in got.values())


@pytest.mark.parametrize("name", RULES)
def test_what_all_agree_on_is_what_comes_of_it(name):
    one = {n: each[0] for n, each in values(1, seed=0).items()}
    same = updates({n: [t] * 7 for n, t in one.items()})
    got = aggregate(Rule(name, 0.2), same)
    for n, t in one.items():
        torch.testing.assert_close(got.tensors[n], t)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("evil", [1e6, -1e6, 3e38])
def test_two_of_ten_who_send_anything_move_little(name, evil):
    """Within what honest clients sent; the mean is carried away."""
    sent = values(10, seed=1)
    honest = flat({n: each[2:] for n, each in sent.items()})
    for each in sent.values():
        each[0], each[1] = (torch.full_like(each[0], evil) for _ in range(2))
    got = vector(aggregate(Rule(name, 0.2), updates(sent)).tensors)
    slack = 3.0 if name in ("clip", "geometric") else 1e-6
    assert (got <= honest.max(0) + slack).all()
    assert (got >= honest.min(0) - slack).all()
    far = vector(average(updates(sent)).tensors)
    assert (np.abs(far) > 1e4).all()


@given(st.integers(1, 9), st.integers(0, 99), st.sampled_from(RULES[:-1]), st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_order_of_clients_means_nothing(clients, seed, name, random):
    sent = values(clients, seed)
    order = list(range(clients))
    random.shuffle(order)
    mixed = {n: [each[i] for i in order] for n, each in sent.items()}
    assume(clients > 4 or "krum" not in name)  # of few, two are each other's only neighbours
    first, second = (combine(Rule(name, 0.2), s) for s in (sent, mixed))
    for n in SHAPES:
        torch.testing.assert_close(first[n], second[n], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_clients_of_unequal_depth(name):
    """Each group of tensors is made of those who sent it."""
    sent = values(6, seed=2)
    all_of_them = updates(sent)
    shallow = [ClientUpdate("s", 0, 1, {"global/a": sent["global/a"][0]}, Score(), 1, 1)]
    got = aggregate(Rule(name, 0.2), [*all_of_them, *shallow])
    assert got.tensors.keys() == SHAPES.keys()
    assert (got.clients, got.rows) == (7, 7)
    if name != "clip":
        apart = combine(Rule(name, 0.2), {"global/b": sent["global/b"]})
        torch.testing.assert_close(got.tensors["global/b"], apart["global/b"])


WHOLE = {"global/a": (3, 2), "global/b": (4,), "global/c": (2, 2), "gate/d": (5,)}
DEPTHS = (4, 2, 4, 3, 2, 4, 1, 3, 4)
"""How many of these tensors each client sends: the first ones."""


def unequal(seed):
    sent = values(len(DEPTHS), seed, WHOLE)
    every = updates(sent, rows=[3, 1, 4, 1, 5, 9, 2, 6, 5])
    return [
        replace(u, tensors={n: u.tensors[n] for n in list(WHOLE)[:depth]})
        for u, depth in zip(every, DEPTHS, strict=True)
    ]


def clipped_by_hand(all_of_them, received):
    """Changes over all that a client sends, no longer than the median; then weighted means."""
    moved = [
        {n: t.double().numpy() - received.get(n, np.zeros(t.shape)) for n, t in u.tensors.items()}
        for u in all_of_them
    ]
    lengths = [np.sqrt(sum(np.sum(d**2) for d in each.values())) for each in moved]
    most, found = np.median(lengths), {}
    for name in WHOLE:
        total = weight = 0.0
        for update, each, length in zip(all_of_them, moved, lengths, strict=True):
            if name in each:
                short = each[name] * min(1.0, most / length)
                total = total + update.rows * (received.get(name, 0.0) + short)
                weight += update.rows
        found[name] = total / weight
    return found


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.4])
def test_unequal_tensors_against_references(name, share):
    """Distances are over all tensors that the same clients sent."""
    all_of_them = unequal(seed=7)
    before = torch.arange(6.0).reshape(3, 2)
    got = aggregate(Rule(name, share), all_of_them, {"global/a": before}).tensors
    assert got.keys() == WHOLE.keys()
    if name == "clip":
        for n, expected in clipped_by_hand(all_of_them, {"global/a": before.numpy()}).items():
            np.testing.assert_allclose(got[n].numpy(), expected, atol=1e-6)
        return
    close = 1e-4 if name == "geometric" else 1e-6
    for number, n in enumerate(WHOLE):  # no two have the same senders
        points = [vector({n: u.tensors[n]}) for u in all_of_them if len(u.tensors) > number]
        expected = reference(name, np.stack(points), share)
        np.testing.assert_allclose(vector({n: got[n]}), expected, atol=close)


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.floats(-(2.0**49), 2.0**49, width=32)),
        min_size=1,
        max_size=7,
    ),
    st.integers(0, 99),
    st.sampled_from(["mean", *RULES]),
)
@settings(max_examples=100, deadline=None)
def test_of_finite_numbers_come_finite_ones_within_those_sent(clients, seed, name):
    """Whoever sends which tensors, of whatever size that screening accepts."""
    sent = values(len(clients), seed, WHOLE)
    all_of_them = [
        replace(u, tensors={n: u.tensors[n] * size for n in list(WHOLE)[:depth]})
        for u, (depth, size) in zip(updates(sent), clients, strict=True)
    ]
    got = aggregate(Rule(name, 0.2), all_of_them).tensors
    assert got.keys() == {n for u in all_of_them for n in u.tensors}
    for n, tensor in got.items():
        each = torch.stack([u.tensors[n] for u in all_of_them if n in u.tensors])
        slack = 1e-5 * float(each.abs().max()) + 1e-30
        assert tensor.isfinite().all()
        low, high = each.amin(0), each.amax(0)
        if name == "clip":  # towards what was received
            low, high = low.clamp(max=0), high.clamp(min=0)
        assert (tensor >= low - slack).all()
        assert (tensor <= high + slack).all()


@pytest.mark.parametrize("name", RULES)
def test_sums_over_rows_are_added_up_by_every_rule(name):
    shapes = {**SHAPES, "statistics/counts": (3,), "calibration/rows": (1,)}
    all_of_them = updates(values(5, seed=3, shapes=shapes), rows=[1, 2, 3, 4, 5])
    got, plain = aggregate(Rule(name, 0.2), all_of_them), average(all_of_them)
    for n in ("statistics/counts", "calibration/rows"):
        assert torch.equal(got.tensors[n], plain.tensors[n])
    assert got.rows == plain.rows


def test_changes_are_clipped_to_the_median_length():
    received = {"global/a": torch.ones(3, 2)}
    sent = values(5, seed=4)
    all_of_them = updates(sent, rows=[1, 1, 1, 1, 9])
    lengths = [change(u, received) for u in all_of_them]
    for update, length in zip(all_of_them, lengths, strict=True):
        moved = {n: t - received.get(n, torch.zeros(t.shape)) for n, t in update.tensors.items()}
        assert length == pytest.approx(np.linalg.norm(vector(moved)), rel=1e-6)
    short = [change(u, received) for u in clipped(all_of_them, received)]
    middle = sorted(lengths)[2]
    assert short == pytest.approx([min(length, middle) for length in lengths], rel=1e-5)
    got = aggregate(Rule("clip"), all_of_them, received)
    expected = average(clipped(all_of_them, received))
    for n in SHAPES:
        assert torch.equal(got.tensors[n], expected.tensors[n])


def test_of_a_lower_rank_what_was_received_is_cut_too():
    received = {"global/a": torch.arange(12.0).reshape(4, 3)}
    update = ClientUpdate("s", 0, 1, {"global/a": received["global/a"][:2] + 1}, Score(), 1, 1)
    assert change(update, received) == pytest.approx(6**0.5)


def test_changes_that_are_too_long_are_told_of():
    changes = {"a": 1.0, "b": 1.1, "c": 0.9, "d": 30.0, "e": 3.1}
    found = too_long(changes, 3.0)
    assert list(found) == ["d"]
    assert found["d"].startswith("changes parameters by 30; expected at most 3.3, 3 times")
    assert too_long(changes, 100.0) == too_long({}, 3.0) == {}


def test_of_even_numbers_the_median_is_between():
    pairs = itertools.pairwise([1.0, 2.0, 4.0, 9.0])
    for low, high in pairs:
        got = combine(Rule("median"), {"global/a": [torch.tensor([low]), torch.tensor([high])]})
        assert float(got["global/a"]) == (low + high) / 2
