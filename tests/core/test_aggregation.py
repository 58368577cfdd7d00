"""The average of updates, against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedms.core.aggregation import Averager, average
from fedms.core.algorithm import ClientUpdate, Score

KEYS = ("global/a", "global/b", "gate/c")
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
tensors = st.dictionaries(st.sampled_from(KEYS), st.lists(finite, min_size=3, max_size=3))
cohorts = st.lists(st.tuples(tensors, st.integers(1, 10**6)), min_size=1, max_size=6)


def update(client: str, rows: int, values: dict, score: Score | None = None) -> ClientUpdate:
    held = {k: torch.tensor(v, dtype=torch.float32) for k, v in values.items()}
    return ClientUpdate(client, 0, rows, held, score or Score(), 1, 0)


def updates_of(cohort) -> list[ClientUpdate]:
    return [update(f"c{i}", rows, values) for i, (values, rows) in enumerate(cohort)]


def reference(cohort) -> dict[str, np.ndarray]:
    """Per key: sum of rows times value over those who have it, through their rows."""
    means = {}
    for key in KEYS:
        sent = [(rows, np.array(v[key], np.float64)) for v, rows in cohort if key in v]
        if sent:
            total = sum(rows for rows, _ in sent)
            means[key] = sum(v * (rows / total) for rows, v in sent)
    return means


def bits(result) -> dict[str, bytes]:
    return {k: t.numpy().tobytes() for k, t in sorted(result.tensors.items())}


@settings(deadline=None, max_examples=150)
@given(cohorts)
def test_agrees_with_numpy_key_by_key(cohort):
    got, expected = average(updates_of(cohort)).tensors, reference(cohort)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        largest = max(np.abs(v[key]).max() for v, _ in cohort if key in v)
        assert got[key].dtype == torch.float32
        np.testing.assert_allclose(got[key].numpy(), value, rtol=2e-7, atol=1e-12 * largest + 1e-45)


@settings(deadline=None, max_examples=100)
@given(cohorts, st.randoms(use_true_random=False))
def test_any_order_gives_the_same_bits(cohort, random):
    updates = updates_of(cohort)
    shuffled = list(updates)
    random.shuffle(shuffled)
    assert bits(average(shuffled)) == bits(average(updates))


@settings(deadline=None, max_examples=100)
@given(cohorts)
def test_finite_in_finite_out_and_within_the_range_of_what_was_sent(cohort):
    for key, mean in average(updates_of(cohort)).tensors.items():
        sent = np.array([v[key] for v, _ in cohort if key in v], dtype=np.float32)
        assert np.isfinite(mean.numpy()).all()
        assert (mean.numpy() >= sent.min(0)).all()
        assert (mean.numpy() <= sent.max(0)).all()


@settings(deadline=None, max_examples=100)
@given(tensors, st.integers(1, 10**6))
def test_one_client_is_the_identity(values, rows):
    one = update("c", rows, values)
    assert bits(average([one])) == bits(one)


def test_weights_are_rows_and_missing_keys_do_not_count():
    result = average(
        [
            update("b", 3, {"global/a": [4.0], "global/b": [1.0]}, Score(1, 2, 0.5, 0.25)),
            update("a", 1, {"global/a": [0.0], "gate/c": [7.0]}, Score(2, 4, 1.5, 0.5)),
        ]
    )
    assert {k: t.tolist() for k, t in result.tensors.items()} == {
        "global/a": [3.0],
        "global/b": [1.0],
        "gate/c": [7.0],
    }
    assert (result.rows, result.clients, result.score) == (4, 2, Score(3, 6, 2.0, 0.75))


def test_what_was_sent_is_not_changed():
    first, second = update("a", 2, {"gate/c": [1.0]}), update("b", 2, {"gate/c": [3.0]})
    average([first, second])
    assert (first.tensors["gate/c"].item(), second.tensors["gate/c"].item()) == (1.0, 3.0)


def test_nobody_gives_nothing():
    result = Averager().result()
    assert (dict(result.tensors), result.rows, result.clients) == ({}, 0, 0)


@pytest.mark.parametrize("count", [2, 50])
def test_small_values_survive_large_sums(count):
    """Summed in float32, the small client would vanish."""
    cohort = [({"gate/c": [1e8]}, 1), ({"gate/c": [-1e8]}, 1), ({"gate/c": [1.0]}, count)]
    expected = count / (count + 2)
    assert average(updates_of(cohort)).tensors["gate/c"].item() == pytest.approx(expected, rel=1e-6)
