"""The summary over clients, against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedms.core.algorithm import Score
from fedms.core.errors import DivergenceError
from fedms.core.metrics import summarise

counts = st.integers(0, 30).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows)))


@given(st.lists(counts, max_size=35))
def test_agrees_with_the_definition(clients):
    result = summarise({f"{i}": Score(c, n) for i, (c, n) in enumerate(clients)})
    having = [(c, n) for c, n in clients if n]
    if not having:
        assert result is None
        return
    accuracy = [c / n for c, n in having]
    tenth = sorted(accuracy)[: -(-len(accuracy) // 10)]
    assert result.mean == pytest.approx(sum(accuracy) / len(accuracy))
    assert result.weighted == pytest.approx(sum(c for c, _ in having) / sum(n for _, n in having))
    assert result.worst_decile == pytest.approx(sum(tenth) / len(tenth))
    assert result.std == pytest.approx(np.std(accuracy))
    assert sorted(result.per_client.values()) == pytest.approx(sorted(accuracy))


def test_by_hand():
    scores = {"b": Score(1, 4), "a": Score(3, 4), "empty": Score(), "c": Score(12, 12)}
    result = summarise(scores)
    assert result.per_client == {"a": 0.75, "b": 0.25, "c": 1.0}
    assert (result.mean, result.weighted, result.worst_decile) == (2 / 3, 0.8, 0.25)
    assert result.std == pytest.approx((((1 / 12) ** 2 + (5 / 12) ** 2 + (4 / 12) ** 2) / 3) ** 0.5)


@pytest.mark.parametrize(("clients", "worst"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_worst_decile_has_at_least_one_client(clients, worst):
    result = summarise({f"{i}": Score(i, 100) for i in range(clients)})
    assert result.worst_decile == pytest.approx(sum(range(worst)) / worst / 100)


def test_scores_add():
    assert Score(1, 2, 0.5, 1.0) + Score(2, 3, 1.0, 0.5) == Score(3, 5, 1.5, 1.5)
    assert Score().accuracy is None
    assert Score(1, 4).accuracy == 0.25


def test_loss_is_the_mean_over_clients_of_their_mean():
    scores = {"a": Score(0, 2, loss=3.0), "b": Score(0, 8, loss=4.0), "empty": Score()}
    assert summarise(scores).loss == pytest.approx((1.5 + 0.5) / 2)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_said_to_be_divergence(loss):
    with pytest.raises(DivergenceError, match="client b"):
        summarise({"a": Score(1, 2, 0.5), "b": Score(1, 2, loss)})
