"""The round loop with scripted clients: who counts, who is asked again, what is said."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedms.core.algorithm import (
    ClientInfo,
    ClientUpdate,
    FederatedAlgorithm,
    RoundPlan,
    Score,
    ServerState,
)
from fedms.core.costs import Costs
from fedms.core.errors import DivergenceError, UserError
from fedms.core.robust import Rule
from fedms.core.screening import Screen
from fedms.core.seeds import draw_cohort
from fedms.runtimes.rounds import Absent, Answer, Late, Rules, run_rounds

NAME = "global/a"
INFOS = {c: ClientInfo(c, 10, validation=2) for c in "abcdef"}


def algorithm(rounds=1, cohort=1.0, move=lambda was, average: average):
    def plan(state):
        if state.round == rounds:
            return None
        return RoundPlan(state.round, 1, 1, 0, cohort, 1, broadcast=frozenset({NAME}))

    def server_update(state, plan, aggregate):
        tensors = {n: move(state.tensors[n], t) for n, t in aggregate.tensors.items()}
        return replace(state, round=state.round + 1, tensors=tensors)

    nothing = lambda *args: None  # noqa: E731
    expects = lambda plan, client: {NAME: (1,)}  # noqa: E731
    return FederatedAlgorithm(
        "toy", rounds, nothing, plan, expects, nothing, server_update, nothing
    )


def update(client, value=1.0, round=0, **changes):
    made = ClientUpdate(client, round, 1, {NAME: torch.tensor([value])}, Score(1, 2, 0.5), 1, 1)
    return Answer(replace(made, **changes), Costs())


@dataclass
class Scripted:
    """Clients that answer as a function of (attempt, client) says; None: not at all."""

    say: object
    declared: dict = field(default_factory=lambda: INFOS)
    asked: list = field(default_factory=list)

    def train(self, plan, tensors, cohort):
        self.asked.append(tuple(cohort))
        for client in cohort:
            said = self.say(len(self.asked) - 1, client)
            yield from said if isinstance(said, list) else [said] if said else []


START = ServerState(0, 0, 1, 1, {NAME: torch.zeros(1)})


def perform(clients, rules=None, **how):
    ((state, record),) = run_rounds(algorithm(**how), clients, START, rules or Rules())
    return float(state.tensors[NAME]), record


def test_a_second_answer_is_not_counted():
    """Nor one of who is no client; a replay of another round is rejected by name."""
    twice = [update("b", 1.0), update("b", 100.0)]
    odd = {"b": twice, "c": [update("c"), update("who?", 100.0)], "d": update("d", 100.0, round=7)}
    value, record = perform(Scripted(lambda attempt, client: odd.get(client, update(client))))
    assert value == 1.0
    assert record.late == ("b", "who?")
    assert record.rejected == {"d": "answers round 8; expected round 1"}
    assert record.cohort == tuple("abcdef")
    assert record.validation == 0.5


def test_who_gives_no_answer_counts_for_nothing():
    gone = Absent("b", "is gone", Costs(flops=7))
    said = {"a": update("a", 4.0, rows=3), "b": gone, "c": Late("c")}
    value, record = perform(Scripted(lambda attempt, client: said.get(client)))
    assert value == 4.0
    assert record.costs.flops == 7  # but for what it cost
    assert record.validation == 0.5
    assert record.client_depths == (1,)
    assert record.rejected == {"b": "is gone", **dict.fromkeys("cdef", "gave no answer")}


@pytest.mark.parametrize("kind", ["rows", "validation"])
def test_nobody_counts_for_many_others_if_that_is_asked(kind):
    """Five say 0 with ten rows each, one says 1 and claims a billion; at most three times ten."""
    claimed = {**INFOS, "f": replace(INFOS["f"], **{"rows": 10, kind: 10**9})}
    rows = claimed["f"].rows
    say = lambda attempt, c: update(c, float(c == "f"), rows=rows if c == "f" else 10)  # noqa: E731
    told = {}
    for ratio in (0.0, 3.0):
        screen = Screen(max_rows_ratio=ratio)
        told[ratio], record = perform(Scripted(say, claimed), Rules(screen=screen))
    honest = 1 / 6 if kind == "validation" else 1.0
    assert told[0.0] == pytest.approx(honest)
    if kind == "rows":
        assert told[3.0] == pytest.approx(30 / 80)
        assert record.warned == {"f": "counts as 30 rows of 1000000000: beyond 3 times the median"}
    else:
        assert told[3.0] == pytest.approx(1 / 51)  # six validation rows of its ten rows' sums
    assert record.warned.keys() == {"f"}


def test_a_round_of_too_few_is_tried_again_with_another_cohort():
    """Who had no usable update in an earlier one is told of, unless it had one later."""
    nan = float("nan")
    clients = Scripted(lambda attempt, client: update(client, nan if attempt == 0 else 2.0))
    value, record = perform(clients, Rules(updates=2), cohort=3)
    first, second = clients.asked
    assert clients.asked == [draw_cohort("abcdef", 3, 0, 0, n) for n in (0, 1)]
    assert first != second
    assert value == 2.0
    assert record.rejected.keys() == {*first} - {*second}
    assert record.cohort == tuple(sorted({*first, *second}))


@pytest.mark.parametrize("attempts", [1, 3])
def test_it_is_tried_so_often_and_then_the_run_stops(attempts):
    clients = Scripted(lambda attempt, client: Absent(client, "is gone"))
    said = r"no usable updates in round 1; expected at least 2 \(\d gave no answer, 0 were rejected"
    with pytest.raises(UserError, match=said) as error:
        perform(clients, Rules(updates=2, attempts=attempts), cohort=2)
    assert len(clients.asked) == attempts
    assert "learning_rate" not in str(error.value)
    assert not isinstance(error.value, DivergenceError)
    assert START.tensors[NAME] == 0


@pytest.mark.parametrize(
    ("bad", "diverged"),
    [
        ({"value": float("nan")}, True),
        ({"value": 1e30}, True),
        ({"score": Score(1, 2, float("inf"))}, True),
        ({"rows": 11}, False),
        ({"round": 3}, False),
    ],
)
def test_a_lower_learning_rate_is_advised_to_those_who_diverged(bad, diverged):
    clients = Scripted(lambda attempt, client: update(client, **bad))
    with pytest.raises(UserError) as error:
        perform(clients)
    assert isinstance(error.value, DivergenceError) == diverged
    assert ("learning_rate" in str(error.value)) == diverged
    assert len(clients.asked) == 1  # all would answer the same again


def test_a_server_that_diverges_ends_the_run_before_it_is_kept():
    clients = Scripted(lambda attempt, client: update(client))
    with pytest.raises(DivergenceError, match="global model that is not finite in round 1"):
        perform(clients, move=lambda was, average: average / 0)


RULES = ("mean", "median", "trimmed", "geometric", "krum", "multikrum", "clip")
claims = st.one_of(
    *(
        st.integers(-2, 12),
        st.floats(),
        st.booleans(),
        st.none(),
        st.sampled_from([10**12, 10**400]),
    )
)
scores = st.builds(Score, claims, claims, st.floats(), st.floats())
odd = st.fixed_dictionaries(
    {"rows": st.integers(1, 10) | claims, "score": st.just(Score(1, 2)) | scores},
    optional={"round": claims, "depth": claims, "trained_parameters": claims},
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.floats(width=32), odd), min_size=5, max_size=5),
    st.sampled_from(RULES),
    st.sampled_from([0.0, 10.0]),
    st.sampled_from([0.0, 2.0]),
)
def test_whatever_five_of_six_claim_the_round_is_of_numbers(said, rule, ratio, most):
    """And it ends: nothing that a client claims is an error of the server's."""
    liars = dict(zip("bcdef", said, strict=True))

    def say(attempt, client):
        value, claimed = liars.get(client, (1.0, {}))
        return update(client, value, **claimed)

    value, record = perform(
        Scripted(say), Rules(screen=Screen(ratio, max_rows_ratio=most), aggregation=Rule(rule))
    )
    assert abs(value) <= 1e15
    assert 0 <= (record.validation or 0) <= 1
    assert record.rejected.keys() <= {*"bcdef"} or ratio
    assert record.cohort == tuple("abcdef")
