"""Limiting cases of methods with models of clients' own: what they are with nobody, or nothing."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from fedms.algorithms import Options, Sal, Stage, ditto, fedavg, fedrep, fedsa, local
from fedms.core.algorithm import Expert, Fit, View
from fedms.core.seeds import derive_seed
from fedms.core.tensors import fingerprint, part
from fedms.runtimes.rounds import run_rounds
from fedms.runtimes.simulator import Simulator
from fedms.store.states import ClientStates

OPTIONS = Options(Stage(2), Stage(2, epochs=2), Sal("all"))


@pytest.fixture
def ended(tmp_path, toy, make_toy_client):
    """The global expert at the end, and what every client has kept to itself."""

    def run(method, options=OPTIONS, clients="abc", linear=True):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        learner, states = toy(linear=linear), ClientStates(folder)
        data = [make_toy_client(n, 5 + i, i) for i, n in enumerate(clients)]
        algorithm = method(learner.layout, options)
        simulator = Simulator(algorithm, learner, data, states)
        *_, (last, _) = run_rounds(algorithm, simulator, algorithm.init(learner, 0))
        return part("global", last.tensors), [facts(states.load(c)) for c in clients]

    return run


def facts(state):
    """All of a client's state, which can be compared: its best round too."""
    if state is None:
        return None
    return {
        field.name: fingerprint(state.tensors)
        if field.name == "tensors"
        else getattr(state, field.name)
        for field in fields(state)
    }


def halved(method):
    """A method in the rounds of those that pass twice over a client's rows."""
    return lambda layout, options: method(layout, options.halved())


@pytest.mark.parametrize("linear", [True, False])
def test_fedsa_of_a_single_client_is_local_training(ended, linear):
    """The average of one A is its own. Others' A make another model of it."""
    shared, own = ended(fedsa, clients="a", linear=linear)
    _, alone = ended(local, clients="a", linear=linear)
    assert own == alone
    assert shared
    assert ended(fedsa, linear=linear)[1][0] != alone[0]


def alone_beside_others(layout, options):
    """Local training that draws its rows as Ditto's own models do."""
    plain = local(layout, options.halved())

    def client_update(turn):
        return plain.client_update(replace(turn, seed=derive_seed(turn.seed, "own")))

    return replace(plain, client_update=client_update)


def test_ditto_without_a_pull_is_fedavg_and_local_training_side_by_side(ended):
    """Each in half of the rounds: own models know nothing of the global one."""
    without, with_pull = (replace(OPTIONS, own_pull=pull) for pull in (0.0, 1.0))
    shared, own = ended(ditto, without)
    _, alone = ended(alone_beside_others)
    assert fingerprint(shared) == fingerprint(ended(halved(fedavg))[0])
    assert own == alone
    assert [state["rounds"] for state in own] == [2, 2, 2]
    pulled, others = ended(ditto, with_pull)
    assert fingerprint(pulled) == fingerprint(shared)
    assert all(mine != other for mine, other in zip(own, others, strict=True))


def test_fedrep_that_shares_nothing_is_local_training(ended):
    """Of half of the rounds, with a single pass in each: the shared part's is over nothing."""
    shared, own = ended(fedrep, replace(OPTIONS, private_blocks=9))
    assert shared == {}
    assert own == ended(halved(local))[1]


def test_fedrep_that_keeps_nothing_is_fedavg(ended):
    """Without a head of the client's own and private blocks there is one pass, over all."""
    shared, own = ended(fedrep, replace(OPTIONS, private_blocks=0), linear=False)
    assert fingerprint(shared) == fingerprint(ended(halved(fedavg), linear=False)[0])
    assert own == [None, None, None]


def test_fedrep_of_a_single_client_trains_both_parts_in_turn(ended, toy, make_toy_client):
    """By hand: in each of two rounds head and last block, then what is below, over all its rows."""
    learner, client = toy(linear=True), make_toy_client("a", 5, 0)
    every = learner.layout.expert(3)
    private = learner.layout.expert(1)
    tensors = learner.initial_expert(every, 0)
    for number, epochs in enumerate((1, 2)):
        seed = derive_seed(0, "client", number, "a")
        for names in (private, every - private):
            fit = Fit(View(Expert(tensors)), names, client, epochs, seed)
            tensors = learner.fit([fit], 0)[0].expert.tensors
    shared, (own,) = ended(fedrep, replace(OPTIONS, checkpoint="last"), clients="a")
    assert fingerprint(shared) == fingerprint({n: tensors[n] for n in every - private})
    assert own["tensors"] == fingerprint({f"local/{n}": t for n, t in tensors.items()})
