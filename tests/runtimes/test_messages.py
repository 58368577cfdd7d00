"""Messages: what is written is read again to the bit; what does not fit is refused by name."""

from __future__ import annotations

import contextlib
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedms.core.algorithm import ClientUpdate, Expert, RoundPlan, Score, ServerState, View
from fedms.core.costs import Costs
from fedms.core.tensors import serialise
from fedms.runtimes import service
from fedms.runtimes.messages import Message, MessageError, decode, encode
from fedms.runtimes.rounds import Answer
from fedms.runtimes.simulator import Sent

words = st.text(max_size=12)
names = st.frozensets(words, max_size=4)
numbers = st.integers(0, 2**63 - 1)
tensors = st.dictionaries(
    words.filter(lambda name: name != "__metadata__"),
    st.lists(st.floats(width=32), max_size=5).map(torch.tensor),
    max_size=4,
)
plans = st.builds(
    RoundPlan,
    *[numbers] * 4,
    st.floats(0.01, 1) | st.integers(1, 9),
    numbers,
    st.floats(0.1, 1),
    names,
    names,
    names,
)
scores = st.builds(Score, numbers, numbers, st.floats(), st.floats(0, 1))
costs = st.builds(
    Costs,
    *[numbers] * 3,
    st.none() | numbers,
    st.dictionaries(st.sampled_from(["train", "cache", "evaluate", "aggregate"]), st.floats(0, 9)),
)


def over_the_wire(message):
    return decode(encode(message))


def same(a, b):
    """Equal to the bit, NaN too."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].numpy().tobytes() == b[name].numpy().tobytes()


def equal(a, b):
    return repr(a) == repr(b)  # NaN is NaN


@given(plans, tensors, st.lists(words, max_size=3))
@settings(max_examples=60, deadline=None)
def test_a_round_arrives_as_it_was_sent(plan, sent, clients):
    asked = over_the_wire(service.ask_train(Sent(plan, sent), clients))
    assert asked.fact("plan", RoundPlan) == plan
    assert type(asked.fact("plan", RoundPlan).cohort) is type(plan.cohort)
    assert asked.fact("clients", list[str]) == clients
    same(asked.tensors, sent)


@given(words, st.tuples(*[numbers] * 4), scores, tensors, costs)
@settings(max_examples=60, deadline=None)
def test_an_update_arrives_as_it_was_sent(client, counts, score, sent, cost):
    round_, rows, depth, trained = counts
    update = ClientUpdate(client, round_, rows, sent, score, depth, trained)
    answer = Answer(update, cost)
    got = service.read_answer(over_the_wire(service.of_answer(answer)))
    same(got.update.tensors, sent)
    facts = ("client", "round", "rows", "score", "depth", "trained_parameters", "state")
    for name in facts:
        assert equal(getattr(got.update, name), getattr(update, name))
    assert equal(got.costs, cost)


@given(st.tuples(*[numbers] * 4), st.lists(st.floats(0, 1), max_size=3), tensors)
@settings(max_examples=30, deadline=None)
def test_a_state_arrives_as_it_was_sent(counts, queue, sent):
    state = ServerState(*counts, sent, tuple(queue))
    asked = over_the_wire(service.ask_evaluate(state))
    got = service.read_state(asked)
    same(got.tensors, sent)
    assert (got.seed, got.round, got.stage, got.depth, got.queue) == (*counts, tuple(queue))


def test_private_state_is_not_sent():
    """Even if a runtime forgot to take it out."""
    secret = ServerState(0, 0, 0, 0, {"local/secret": torch.ones(1)})
    update = ClientUpdate("a", 0, 1, {}, Score(), 1, 1, state=secret)
    assert b"secret" not in encode(service.of_answer(Answer(update, Costs())))


GOOD = encode(Message("update", {"client": "a"}, {"x": torch.arange(3.0)}))


@given(st.integers(0, len(GOOD) - 1))
def test_what_is_cut_short_is_refused(length):
    with pytest.raises(MessageError):
        decode(GOOD[:length])


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
@settings(max_examples=300)
def test_what_was_changed_is_refused_or_read_but_never_an_error_of_another_kind(at, by):
    data = bytearray(GOOD)
    data[at] ^= by
    with contextlib.suppress(MessageError):
        decode(bytes(data))


@given(st.binary(max_size=64))
def test_noise_is_refused(data):
    with pytest.raises(MessageError):
        decode(data)


def test_a_header_that_claims_to_be_huge_is_not_read():
    with pytest.raises(MessageError, match="header"):
        decode(struct.pack("<Q", 2**60) + b"{}")


def test_facts_nested_without_end_are_refused():
    words = {"schema": "1", "kind": "update", "facts": "[" * 200_000}
    with pytest.raises(MessageError, match="no message"):
        decode(serialise({}, words))


def test_another_schema_is_refused():
    data = GOOD.replace(b'"schema":"1"', b'"schema":"2"')
    assert data != GOOD
    with pytest.raises(MessageError, match="schema '2'; expected 1"):
        decode(data)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rows": "12"}, "rows"),
        ({"rows": 12.5}, "rows"),
        ({"rows": True}, "rows"),
        ({"score": {"correct": 1}}, None),  # the rest has defaults
        ({"score": {"correct": None}}, "score.correct"),
        ({"costs": {"seconds": {"idle": 1.0}}}, "costs.seconds"),
        ({"client": ["a"]}, "client"),
    ],
)
def test_facts_of_another_type_are_named(change, what):
    good = service.of_answer(Answer(ClientUpdate("a", 0, 1, {}, Score(), 1, 1), Costs()))
    bad = over_the_wire(Message("update", {**good.facts, **change}))
    if what is None:
        service.read_answer(bad)
        return
    with pytest.raises(MessageError, match=f"got {what}.* of a message 'update'"):
        service.read_answer(bad)


def test_missing_facts_and_wrong_kinds_are_named():
    with pytest.raises(MessageError, match="'update' without client"):
        service.read_answer(Message("update"))
    with pytest.raises(MessageError, match="'scores'; expected 'update'"):
        service.read_answer(Message("scores"))
    with pytest.raises(MessageError, match="'update'; expected 'scores'"):
        service.read_scores(Message("update"))
    with pytest.raises(MessageError, match="'format my disk'"):
        list(service.Service(None).answers(Message("format my disk")))


def test_a_loss_that_is_no_number_arrives_so_that_screening_sees_it():
    update = ClientUpdate("a", 0, 1, {}, Score(0, 1, math.nan), 1, 1)
    got = service.read_answer(over_the_wire(service.of_answer(Answer(update, Costs()))))
    assert math.isnan(got.update.score.loss)


def test_an_expert_is_scored_by_its_tensors_alone():
    expert = Expert({"a": torch.ones(2)}, prior=True)
    asked = over_the_wire(service.ask_score_all(View(expert)))
    same(asked.tensors, expert.tensors)
    assert asked.fact("prior", bool) is True
