"""Whole runs with malicious clients: what is screened, and what a robust rule bears."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedms import run as running
from fedms.core.errors import DivergenceError, UserError
from fedms.runtimes.faults import Faults, attackers
from fedms.runtimes.simulator import Simulator

FIVE = ("partition.clients=5", "data.max_rows=200", "gate.calibration=false", "stage2.rounds=1")


@pytest.fixture(scope="module")
def honest(done):
    """The same run without malice, performed before there is any."""
    return done(*FIVE)


@pytest.fixture
def poisoned(monkeypatch):
    """Client 0 sends its tensors many times over, with another sign."""
    answers = Simulator._answer

    def lying(self, sent, client, update, costs):
        answer = answers(self, sent, client, update, costs)
        if client != "0":
            return answer
        tensors = {name: -1e3 * t for name, t in answer.update.tensors.items()}
        return replace(answer, update=replace(answer.update, tensors=tensors))

    monkeypatch.setattr(Simulator, "_answer", lying)


def accuracy(config, path, role="global"):
    """Of a run; 0 if it diverges, as what was let in may make it, from machine to machine."""
    try:
        return running.run(config, path)["test"][role]["mean"]
    except DivergenceError:
        return 0.0


def best(done):
    return done.summary["test"]["global"]["mean"]


def test_a_mean_is_carried_away(honest, poisoned, small, tmp_path):
    assert accuracy(small(*FIVE), tmp_path / "run") < best(honest) - 0.2


@pytest.mark.quick("median")
@pytest.mark.parametrize("rule", ["median", "trimmed", "geometric", "krum", "multikrum"])
def test_a_robust_rule_is_not(honest, poisoned, small, tmp_path, rule):
    got = accuracy(small(*FIVE, f"aggregation.rule={rule}"), tmp_path / "run")
    assert got > best(honest) - 0.05


@pytest.mark.slow
def test_what_changes_too_much_is_left_out_or_told_of(honest, poisoned, small, tmp_path):
    limit = "screen.max_norm_ratio=10"
    assert accuracy(small(*FIVE, limit), tmp_path / "left-out") > best(honest) - 0.05
    accuracy(small(*FIVE, limit, "screen.above=warn"), tmp_path / "told")
    for name, (told, other) in {
        "left-out": ("rejected", "warned"),
        "told": ("warned", "rejected"),
    }.items():
        lines = type(honest)(tmp_path / name, {}).lines("rounds")
        assert [list(line[told]) for line in lines[:2]] == [["0"]] * 2
        assert [line[other] for line in lines[:2]] == [{}] * 2  # then what was let in may diverge
        assert "10 times the median of its cohort" in lines[0][told]["0"]


@pytest.mark.slow
def test_without_anything_odd_screening_changes_nothing(honest, done):
    plain, screened = honest, done(*FIVE, "screen.max_norm_ratio=100")
    assert plain.bytes() == screened.bytes()
    assert plain.bytes("checkpoints") == screened.bytes("checkpoints")


TEN = ("partition.clients=10", "data.max_rows=600", "partition.alpha=2", "stage2.rounds=1")
TEN += ("gate.statistics=personal",)
FALSE = ("faults.attack=labels", "faults.attackers=0.3")


@pytest.mark.slow
def test_class_statistics_that_contradict_the_others_are_left_out(done, small, tmp_path):
    faults = Faults(attack="labels", attackers=0.3)
    liars = sorted(attackers(faults, [str(i) for i in range(10)], 0))
    found = done(*TEN, *FALSE)
    lines = found.lines("rounds")
    assert sorted(lines[0]["rejected"]) == liars
    assert "where others have other classes: agreement " in lines[0]["rejected"][liars[0]]
    assert all(line["rejected"] == {} for line in lines[1:])
    told = done(*TEN, *FALSE, "screen.contradictions=warn").lines("rounds")
    assert (sorted(told[0]["warned"]), told[0]["rejected"]) == (liars, {})
    untold = done(*TEN, *FALSE, "screen.contradictions=off")
    assert untold.lines("rounds")[0]["warned"] == {}
    accuracy = [run.summary["test"]["personal"]["mean"] for run in (found, untold)]
    assert accuracy[0] > accuracy[1] + 0.03


@pytest.mark.slow
def test_without_contradictions_comparing_changes_nothing(done):
    plain, screened = done(*TEN, "screen.contradictions=off"), done(*TEN)
    assert plain.bytes() == screened.bytes()
    assert plain.bytes("checkpoints") == screened.bytes("checkpoints")


@pytest.mark.parametrize(
    ("rule", "methods"),
    [
        ("clip", ("flora", "fedex", "flexlora", "fedalt")),
        ("median", ("flora", "fedex", "fedalt")),
        ("trimmed", ("flora", "fedex", "fedalt")),
        ("geometric", ("fedalt",)),
        ("mean", ()),
    ],
)
def test_rules_that_a_method_cannot_do_with_are_refused(small, rule, methods):
    for method in ("fedms", "fedavg", "flora", "fedex", "flexlora", "fedalt"):
        config = small(f"method={method}", f"aggregation.rule={rule}")
        if method in methods:
            with pytest.raises(UserError, match=f'rule = "{rule}" with method = "{method}"'):
                running.check(config)
        else:
            running.check(config)
