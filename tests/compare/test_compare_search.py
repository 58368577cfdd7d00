"""Which learning rate a method is given: by validation losses alone, in a race over seeds."""

from __future__ import annotations

import math

import pytest

from fedms.compare.search import search
from fedms.core.errors import DivergenceError


def told(loss, asked=None):
    """Summaries of runs whose loss is known; infinite where they diverge."""

    def summary(rate, seed):
        if asked is not None:
            asked.append((rate, seed))
        if loss(rate, seed) == math.inf:
            raise DivergenceError("learning_rate")
        return {"validation": {"personal": {"loss": loss(rate, seed)}}}

    return summary


def found(rates, seeds, summary):
    chosen = search(rates, seeds, summary)
    return chosen.rate, chosen.place


@pytest.mark.parametrize(
    ("rates", "loss", "wanted", "tried"),
    [
        ((1e-3, 1e-2, 3e-3), lambda r: abs(math.log(r / 4e-3)), (3e-3, "inside"), {}),
        ((3e-3, 1e-2), lambda r: abs(math.log(r / 0.02)), (3e-2, "inside"), {3e-2, 1e-1}),
        ((3e-3, 1e-2), lambda r: abs(math.log(r / 1e-3)), (1e-3, "inside"), {1e-3, 3e-4}),
        ((2e-3, 5e-3), lambda r: abs(math.log(r / 1.5e-3)), (2e-3, "inside"), {1e-3}),
        ((0.1, 0.3), lambda r: 2 - r, (1.0, "edge"), {1.0}),
        ((1e-5, 1e-4), lambda r: r, (1e-5, "edge"), {}),
        ((3e-3, 1e-2), lambda r: 1 / r if r < 2e-2 else math.inf, (1e-2, "inside"), {3e-2}),
        ((3e-2, 1e-1), lambda r: r if r < 2e-2 else math.inf, (1e-5, "edge"), None),
        ((3e-3, 1e-2), lambda r: 0.5 + r / 2, (3e-3, "inside"), {}),  # level: not worth a run
        ((3e-3, 1e-2), lambda r: 0.5, (1e-2, "any"), {}),
        ((3e-3,), None, (3e-3, "inside"), {}),
    ],
)
def test_the_search_goes_on_beyond_an_edge(rates, loss, wanted, tried):
    asked = []
    assert found(rates, (0, 1), told(lambda rate, seed: loss(rate), asked)) == wanted
    assert len(set(asked)) == len(asked)
    if tried is not None and loss:
        assert {rate for rate, seed in asked if seed == 0} == set(rates) | set(tried)


def test_rates_that_spoil_the_model_are_searched_below():
    """At 3e-3 and above it is worse than untrained, and level; the best is at 3e-4."""

    def summary(rate, seed):
        loss = 0.7 - rate if rate > 2e-3 else abs(math.log10(rate / 3e-4)) / 10
        return {"validation": {"personal": {"loss": loss}, "zero_shot": {"loss": 0.6}}}

    assert found((3e-3, 1e-2), (0, 1), summary) == (3e-4, "inside")

    def hopeless(rate, seed):
        loss = {"loss": 0.7 - rate / 100}
        return {"validation": {"personal": loss, "zero_shot": {"loss": 0.6}}}

    assert found((3e-3, 1e-2), (0, 1), hopeless)[0] == 1e-2


def test_rates_race_over_seeds_until_they_are_clearly_behind():
    """On the first seed 3e-3 is best by 8 %, over all 1e-2 is; the others drop out on their way."""
    table = {
        1e-3: (1.12, 0.0, 0.0, 0.0),  # more than a tenth behind
        3e-3: (1.0, 1.2, 1.2, 1.2),  # 10 % above 3.08, the lowest on three
        1e-2: (1.08, 1.0, 1.0, 1.0),
        3e-2: (1.09, 1.15, 0.0, 0.0),  # 7.7 % above 2.08, the lowest on two
        1e-1: (1.09, 1.1, 1.1, 0.0),  # 6.8 % above it
    }
    asked = []
    summary = told(lambda rate, seed: table[rate][seed], asked)
    chosen = search(tuple(table), (0, 1, 2, 3), summary)
    assert (chosen.rate, chosen.place) == (1e-2, "inside")
    assert chosen.loss == pytest.approx(1.02)
    ran = {rate: max(seed for of, seed in asked if of == rate) for rate in table}
    assert ran == {1e-3: 0, 3e-3: 2, 1e-2: 3, 3e-2: 1, 1e-1: 2}
    assert len(set(asked)) == len(asked)


def test_what_is_beyond_the_winner_of_a_race_joins_it():
    """3e-3 is ahead on the first seed, 1e-2 over all: then 3e-2 is tried, and wins."""
    table = {
        1e-3: (1.3, 1.3, 1.3),
        3e-3: (1.0, 1.3, 1.3),
        1e-2: (1.05, 1.0, 1.0),
        3e-2: (0.99, 0.9, 0.9),
        1e-1: (3.0, 3.0, 3.0),
    }
    asked = []
    summary = told(lambda rate, seed: table[rate][seed], asked)
    assert found((1e-3, 3e-3, 1e-2), (0, 1, 2), summary) == (3e-2, "inside")
    assert (3e-2, 2) in asked
    assert (1e-1, 1) not in asked
    assert len(set(asked)) == len(asked)


def test_who_won_an_earlier_race_is_not_put_out_by_luck_on_the_first_seed():
    """1e-2 wins, 3e-2 is tried beyond it, and is ahead on the first seed alone."""
    table = {
        1e-3: (1.3, 1.3, 1.3),
        3e-3: (1.0, 1.3, 1.3),
        1e-2: (1.05, 1.0, 1.0),
        3e-2: (0.5, 2.0, 2.0),
        1e-1: (3.0, 3.0, 3.0),
    }
    summary = told(lambda rate, seed: table[rate][seed])
    chosen = search((1e-3, 3e-3, 1e-2), (0, 1, 2), summary)
    assert (chosen.rate, chosen.place) == (1e-2, "inside")
    assert chosen.loss == pytest.approx(3.05 / 3)


def test_a_rate_that_diverges_on_a_later_seed_is_given_up():
    """Though it is far ahead on the first seed: then the next best is compared on all."""
    losses = {1e-3: 0.6, 3e-3: 0.5, 1e-2: 0.1, 3e-2: 0.2, 1e-1: 0.15, 3e-1: 0.05, 1.0: 0.3}

    def loss(rate, seed):
        return math.inf if (rate, seed) == (1e-2, 1) else losses.get(rate, 0.9)

    rates, seeds = (1e-3, 3e-3, 1e-2), (0, 1)
    assert found(rates, seeds, told(loss)) == (3e-1, "inside")  # beyond 3e-2, then at the edge

    def close(rate, seed):
        return math.inf if (rate, seed) == (1e-2, 2) else {3e-3: 1.01, 1e-2: 1.0}.get(rate, 2.0)

    assert found((3e-3, 1e-2), (0, 1, 2), told(close)) == (3e-3, "inside")
    with pytest.raises(DivergenceError):
        search(rates, seeds, told(lambda rate, seed: math.inf if seed else losses.get(rate, 0.9)))
