"""What all methods have alike, so that they can be compared: cohorts, and the number of steps."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from fedms.algorithms import METHODS, Options, Sal, Stage, fedms, finetune
from fedms.runtimes.rounds import run_rounds
from fedms.runtimes.simulator import Simulator
from fedms.store.states import ClientStates

CLIENTS = "abcdefg"
GATHERS = {"calibrate": True, "statistics": "personal"}
ALL = {
    **{name: (method, {}) for name, method in METHODS.items()},
    "fedms+statistics": (fedms, GATHERS),
    "finetune+statistics": (finetune, GATHERS),
}


@pytest.fixture
def federation(tmp_path, toy, make_toy_client):
    """An algorithm, its simulator, the state it begins with, and the learner."""

    def make(name, first, second, clients=CLIENTS):
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        method, choices = ALL[name]
        learner = toy(linear=True)
        data = [make_toy_client(n, 3 + i, i) for i, n in enumerate(clients)]
        options = replace(Options(first, second, Sal("schedule", every=1)), **choices)
        algorithm = method(learner.layout, options)
        simulator = Simulator(algorithm, learner, data, ClientStates(folder))
        return algorithm, simulator, algorithm.init(learner, 3), learner

    return make


SOME = Stage(3, 0.4, epochs=0), Stage(2, 3, epochs=0)
"""Three of seven clients in every round, said in both ways, who do not train, for time's sake."""
HALF = ("ditto", "fedrep")
"""Which pass twice over a client's rows in a round."""


@pytest.mark.parametrize("name", [name for name in ALL if name != "fedavg"])
def test_cohorts_of_all_methods_are_the_same(federation, name):
    """Of the k-th round of training, whatever is gathered before."""
    algorithm, simulator, start, _ = federation("fedavg", *SOME)
    expected = [record.cohort for _, record in run_rounds(algorithm, simulator, start)]
    assert {len(cohort) for cohort in expected} == {3}
    assert len(set(expected)) > 3
    algorithm, simulator, start, _ = federation(name, *SOME)
    records = [record for _, record in run_rounds(algorithm, simulator, start)]
    trained = [record.cohort for record in records if record.stage]
    count = {"fedcgs": 0}.get(name, 2 if name in HALF else 5)
    assert trained == expected[:count]
    gathered = [record for record in records if not record.stage]
    assert len(gathered) == (name == "fedcgs" or name.endswith("+statistics"))
    assert {record.cohort for record in gathered} <= {tuple(CLIENTS)}


@pytest.mark.parametrize("name", ["fedavg", "fedms", "fedms+statistics"])
def test_a_run_that_is_resumed_has_the_cohorts_that_it_would_have_had(federation, name):
    algorithm, simulator, start, _ = federation(name, *SOME)
    states, cohorts = [start], []
    for state, record in run_rounds(algorithm, simulator, start):
        states.append(state)
        cohorts.append(record.cohort)
    for done, state in enumerate(states):
        again = run_rounds(algorithm, simulator, state)
        assert [record.cohort for _, record in again] == cohorts[done:]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("second", [3, 2])
def test_all_methods_take_as_many_local_steps(federation, name, second):
    """Client by client; of an odd number of rounds those that pass twice leave one pass out."""
    sizes = {"a": 3, "b": 4, "c": 5}
    algorithm, simulator, start, learner = federation(name, Stage(5), Stage(second), "abc")
    steps, fit = Counter(), learner.fit

    def counted(fits, pace):
        for one in fits:
            steps[one.data.id] += one.epochs * math.ceil(len(one.data.train) / 4)  # a batch
        return fit(fits, pace)

    learner.fit = counted
    for _ in run_rounds(algorithm, simulator, start):
        pass
    passes = {"fedcgs": 0}.get(name, 5 + second - (5 + second) % 2 * (name in HALF))
    expected = {client: passes * math.ceil(rows / 4) for client, rows in sizes.items()}
    assert steps == Counter({c: count for c, count in expected.items() if count})
