"""Simulations in which clients fail or lie, as `[faults]` says."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
import torch

from fedms.build import build, make_rules
from fedms.clients import simulated
from fedms.config import ConfigError, load_config
from fedms.core.errors import UserError
from fedms.core.tensors import under
from fedms.run import RoundDone, resume, run
from fedms.runtimes.faults import Faults, FaultyClients, attackers, mislabelled
from fedms.runtimes.rounds import Absent, Answer, run_rounds
from fedms.store.run_folder import RunFolder

SIX = ("partition.clients=6", "partition.alpha=10", "data.max_rows=240", "runtime.threads=1")
PLAIN = (*SIX, "method=fedavg", "stage1.server_momentum=0.0")
SOME = ("faults.drop=0.2", "faults.data=0.1", "faults.crash=0.1", "faults.slow=0.2")


@dataclass
class Overheard:
    """Clients whose answers are noted."""

    clients: FaultyClients
    heard: list = field(default_factory=list)

    @property
    def declared(self):
        return self.clients.declared

    def train(self, plan, tensors, cohort):
        for answer in self.clients.train(plan, tensors, cohort):
            self.heard.append((plan.round, answer))
            yield answer


@pytest.fixture
def parts(small, tmp_path):
    """`parts(*words)`: the experiment, its clients with faults, and rules."""
    with ExitStack() as resources:

        def make(*words):
            config = small(*words)
            experiment = build(config)
            clients = simulated(config, experiment, RunFolder(tmp_path / "run"), resources)
            return experiment, Overheard(clients), make_rules(config)

        yield make


def test_a_round_is_the_average_of_those_who_stayed(parts):
    experiment, clients, rules = parts(*PLAIN, *SOME)
    state = experiment.algorithm.init(experiment.learner, 0)
    absent = 0
    for after, record in run_rounds(experiment.algorithm, clients, state, rules):
        said = [answer for number, answer in clients.heard if number == record.round]
        stayed = [answer.update for answer in said if isinstance(answer, Answer)]
        gone = {answer.client: answer.reason for answer in said if isinstance(answer, Absent)}
        assert len(stayed) + len(gone) == 6
        assert record.rejected == gone
        absent += len(gone)
        rows = sum(update.rows for update in stayed)
        for name, tensor in after.tensors.items():
            mean = sum(update.rows * update.tensors[name].double() for update in stayed) / rows
            assert torch.allclose(tensor.double(), mean, atol=1e-6)
        assert record.upload_bytes > 0
    assert absent > 3


@pytest.mark.slow
def test_what_is_late_has_cost_what_it_did_and_what_its_stack_did(parts):
    """The first of a stack answers with the costs of all, and may be the one that is late."""
    flops = {}
    for stack in (1, 6):
        experiment, clients, rules = parts(*PLAIN, "faults.slow=0.5", f"runtime.stack={stack}")
        state = experiment.algorithm.init(experiment.learner, 0)
        rounds = run_rounds(experiment.algorithm, clients, state, rules)
        records = [record for _, record in rounds]
        assert any(record.rejected for record in records)
        flops[stack] = [record.costs.flops for record in records]
    assert flops[6] == pytest.approx(flops[1], rel=1e-3)
    assert min(flops[6]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["drop", "data", "crash", "slow"])
def test_a_run_without_answers_stops_and_can_go_on(small, done, tmp_path, monkeypatch, fault):
    """It ends as one in which nobody ever failed, once nobody does."""
    words = (*PLAIN, "stage1.rounds=2")
    monkeypatch.setattr(FaultyClients, "_fate", lambda self, round, client: fault if round else "")
    with pytest.raises(UserError, match=f"as faults.{fault} says"):
        run(small(*words, f"faults.{fault}=1"), tmp_path / "run")
    with pytest.raises(UserError, match=f"in round 2.*as faults.{fault} says"):
        resume(tmp_path / "run")
    monkeypatch.setattr(FaultyClients, "_fate", lambda self, round, client: "")
    resume(tmp_path / "run")
    expected = done(*words)
    assert type(expected)(tmp_path / "run", {}).bytes() == expected.bytes()


def test_who_is_late_keeps_what_was_learned_and_who_crashes_does_not(small, tmp_path):
    words = (*SIX, "stage1.rounds=0", "stage2.rounds=1", "rounds.attempts=1")
    for fault, kept in (("slow=0.99", 6), ("crash=0.99", 0)):
        path = tmp_path / fault[:4]
        with pytest.raises(UserError):
            run(small(*words, f"faults.{fault}"), path)
        assert len(list((path / "checkpoints" / "clients").rglob("*.safetensors"))) == kept


@pytest.mark.slow
def test_faults_are_the_same_again_and_after_an_interruption(small, done, tmp_path):
    words = (*SIX, *SOME, "faults.attack=sign", "faults.attackers=0.2")
    expected = done(*words)

    class EndError(Exception):
        pass

    def end(event):
        if isinstance(event, RoundDone) and event.record.round == 1:
            raise EndError

    with pytest.raises(EndError):
        run(small(*words), tmp_path / "run", watch=end)
    resume(tmp_path / "run")
    for path in expected.path.rglob("adapters/**/*.safetensors"):
        assert (
            tmp_path / "run" / path.relative_to(expected.path)
        ).read_bytes() == path.read_bytes()
    assert done(*words, "runtime.workers=2").bytes() == expected.bytes()
    rejected = sum(len(line["rejected"]) for line in expected.lines("rounds"))
    assert expected.summary["not_used"] == rejected > 3
    assert f"{rejected} of " in (expected.path / "report.html").read_text()


HALF = ("faults.attackers=0.5",)


def sent(parts, attack):
    """The first round's updates of an attacker and without attack, and what it was sent."""
    experiment, clients, _ = parts(*PLAIN, f"faults.attack={attack}", *HALF)
    (bad,) = {*attackers(Faults(attack=attack, attackers=0.2), clients.declared, 0)} or {None}
    state = experiment.algorithm.init(experiment.learner, 0)
    plan = experiment.algorithm.plan(state)
    (false,) = clients.train(plan, state.tensors, [bad])
    (true,) = clients.clients._clients.train(plan, state.tensors, [bad])
    names = sorted(true.update.tensors)
    vectors = ([update.update.tensors[n] for n in names] for update in (false, true))
    unsent = frozenset(n.removeprefix("global/") for n in names if n not in state.tensors)
    first = {**state.tensors, **under("global", experiment.learner.initial_expert(unsent, 0))}
    start = [first[n] for n in names]
    return *vectors, start


@pytest.mark.parametrize(("attack", "times"), [("sign", -1.0), ("scale", 10.0)])
def test_attackers_change_their_change(parts, attack, times):
    for false, true, start in zip(*sent(parts, attack), strict=True):
        assert torch.allclose(false - start, times * (true - start), atol=1e-5)


@pytest.mark.quick("sign")
@pytest.mark.parametrize("attack", ["sign", "random"])
def test_attackers_of_lower_rank_send_what_they_can_hold(parts, attack):
    ranks = 'lora.ranks={"0"=1,"1"=2,"*"=3}'
    experiment, clients, _ = parts(
        *PLAIN, "method=flexlora", ranks, f"faults.attack={attack}", *HALF
    )
    state = experiment.algorithm.init(experiment.learner, 0)
    for _, record in run_rounds(experiment.algorithm, clients, state):
        assert not record.rejected


def test_noise_is_as_large_as_it_says(parts):
    for false, true, start in zip(*sent(parts, "random"), strict=True):
        if true.numel() > 100:
            size, honest = (float((x - start).square().mean().sqrt()) for x in (false, true))
            assert size == pytest.approx(10 * honest, rel=0.2)


@pytest.mark.slow
def test_what_is_no_number_is_rejected(done):
    record = done(*PLAIN, "faults.attack=invalid", "faults.attackers=0.34").lines("rounds")[0]
    assert len(record["rejected"]) == 2
    assert all("not finite" in reason for reason in record["rejected"].values())


def test_false_labels_are_those_of_attackers_alone(small):
    experiment = build(small(*SIX))
    client = experiment.clients[0]
    false = mislabelled(client, 10)
    assert ((false.train.labels - client.train.labels) % 10 == 1).all()
    assert (false.test.labels == client.test.labels).all()
    some = Faults(attack="labels", attackers=0.34)
    assert len(attackers(some, [c.id for c in experiment.clients], 0)) == 2
    assert attackers(Faults(attackers=0.5), "abc", 0) == frozenset()


@pytest.mark.slow
def test_lying_with_labels_costs_the_mean(done):
    honest = done(*PLAIN, "stage1.rounds=4", "stage2.rounds=0").summary["test"]["global"]["mean"]
    words = ("faults.attack=labels", "faults.attackers=0.67")
    lied = done(*PLAIN, "stage1.rounds=4", "stage2.rounds=0", *words)
    assert lied.summary["test"]["global"]["mean"] < honest - 0.1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("faults.drop=0.6", "faults.slow=0.6"), "add up to more than 1"),
        (("faults.attack=sign",), "go together"),
        (("faults.attackers=0.2",), "go together"),
    ],
)
def test_faults_that_cannot_be(words, said):
    with pytest.raises(ConfigError, match=said):
        load_config(None, words)
