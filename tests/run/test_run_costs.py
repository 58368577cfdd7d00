"""Bytes and parameters against an independent count; cohorts, caps and clients kept out."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save

from fedms.build import build
from fedms.core import calibration
from fedms.core.errors import UserError
from fedms.run import run
from fedms.runtimes.simulator import Simulator

FIT = {name: torch.zeros(shape) for name, shape in calibration.SHAPES.items()}
WEIGHTS = {calibration.WEIGHTS: calibration.initial()}


def wire(tensors) -> int:
    """Bytes of a message with these float32 tensors."""
    return len(save({name: torch.zeros(t.shape) for name, t in tensors.items()}))


def role(finished, name, role):
    return {f"{role}/{k}": t for k, t in load_file(finished.path / "adapters" / name).items()}


@pytest.fixture(scope="module")
def parts(done):
    """What crosses the wire in the default run: global expert, gate adapter, gate head."""
    expert = role(done(), "global/adapter_model.safetensors", "global")
    gate = role(done(), "gate/gate.safetensors", "gate")
    head = {name: t for name, t in gate.items() if t.shape[0] == 2}  # one row an expert
    adapter = {name: t for name, t in gate.items() if name not in head}
    assert (len(expert), len(head), len(adapter)) == (4, 2, 4)  # one block: A and B of q and v
    return expert, adapter, head


def test_one_line_a_round(done):
    lines = done().lines("rounds")
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    assert [line["stage"] for line in lines] == [1, 1, 2, 2]
    for line in lines:
        assert line["cohort"] == ["0", "1", "2"]
        assert line["depth"] == 1
        assert line["client_depths"] == [1, 1, 1]
        assert line["rejected"] == {}
        assert 0 <= line["validation"] <= 1
        assert line["seconds"] > 0


def test_stage_1_bytes(done, parts):
    expert, _, _ = parts
    lines = done().lines("rounds")[:2]
    assert [line["upload_bytes"] for line in lines] == [3 * wire({**expert, **FIT})] * 2
    # no expert is sent before anything was trained
    sent = [3 * wire(WEIGHTS), 3 * wire({**expert, **WEIGHTS})]
    assert [line["download_bytes"] for line in lines] == sent
    count = sum(t.numel() for t in expert.values())
    assert {line["trainable_parameters"] for line in lines} == {count}


def test_stage_2_sends_the_global_expert_once_a_client(done, parts):
    expert, adapter, head = parts
    lines = done().lines("rounds")[2:]
    assert [line["upload_bytes"] for line in lines] == [3 * wire({**adapter, **FIT})] * 2
    once, every = 3 * wire({**expert, **head}), 3 * wire({**adapter, **WEIGHTS})
    assert [line["download_bytes"] for line in lines] == [every + once, every]
    count = sum(t.numel() for part in parts for t in part.values())
    assert {line["trainable_parameters"] for line in lines} == {count}


@pytest.mark.slow
def test_with_cohorts_the_global_expert_is_still_sent_once_a_client(done, parts):
    expert, adapter, head = parts
    lines = done("stage2.cohort=1", "stage2.rounds=6").lines("rounds")[2:]
    seen: set[str] = set()
    for line in lines:
        (client,) = line["cohort"]
        once = 0 if client in seen else wire({**expert, **head})
        seen.add(client)
        assert line["download_bytes"] == wire({**adapter, **WEIGHTS}) + once
    assert 1 < len(seen) < len(lines)


SHARED = {"adapter": (1,), "all": (1, 2), "none": ()}  # of the parts


@pytest.mark.parametrize("share", SHARED)
def test_what_of_the_gate_is_uploaded(done, parts, share):
    finished = done(f"gate.share={share}")
    sent = {name: t for index in SHARED[share] for name, t in parts[index].items()}
    expected = 3 * wire({**sent, **FIT})
    assert [line["upload_bytes"] for line in finished.lines("rounds")[2:]] == [expected] * 2


COHORTS = [("0.5", 2), ("0.1", 1), ("2", 2), ("9", 3)]


@pytest.mark.parametrize(("cohort", "size"), COHORTS)
def test_partial_cohorts(done, parts, cohort, size):
    rounds = ("stage1.rounds=3", "stage2.rounds=0", f"stage1.cohort={cohort}")
    finished = done("method=fedms", *rounds)
    lines = finished.lines("rounds")
    assert [len(set(line["cohort"])) for line in lines] == [size] * 3
    assert {line["upload_bytes"] for line in lines} == {size * wire({**parts[0], **FIT})}
    assert len({tuple(line["cohort"]) for line in lines}) > (0 if size == 3 else 1)


def test_methods_are_compared_on_the_same_cohorts(done):
    options = ("stage1.rounds=3", "stage1.cohort=2")
    first, second = (
        done(f"method={method}", *options).lines("rounds") for method in ("fedavg", "local")
    )
    assert [line["cohort"] for line in first] == [line["cohort"] for line in second]


def test_client_outside_every_cohort_has_the_global_expert(done):
    finished = done("stage2.rounds=1", "stage2.cohort=1", "gate.calibration=false")
    (client,) = finished.lines("rounds")[-1]["cohort"]
    others = {"0", "1", "2"} - {client}
    assert [p.name for p in (finished.path / "adapters" / "clients").iterdir()] == [client]
    test = finished.summary["test"]
    assert set(test["personal"]["per_client"]) == {"0", "1", "2"}
    assert set(test["local"]["per_client"]) == {client}
    for other in others:
        assert test["personal"]["per_client"][other] == test["global"]["per_client"][other]


ALL = ("sal.trigger=all", "stage1.rounds=1", "stage2.rounds=1")
BLOCK = 4 * 8 * 128 * 4  # bytes: A and B of q and v, rank 8, width 128, float32
CAPS = [
    (("sal.caps.0=1",), [1, 6, 6]),
    (("sal.caps.*=3", "sal.caps.1=6"), [3, 6, 3]),
    ((f"sal.caps.2={2 * BLOCK}B",), [6, 6, 2]),
    ((f"sal.caps.2={2 * BLOCK - 1}B",), [6, 6, 1]),
    (("sal.caps.*=50kB", "sal.caps.0=1 GB"), [6, 3, 3]),
]


@pytest.mark.quick("caps4")
@pytest.mark.parametrize(("caps", "depths"), CAPS)
def test_caps(done, caps, depths):
    finished = done(*ALL, *caps)
    for line in finished.lines("rounds"):
        assert line["client_depths"] == depths
        assert line["rejected"] == {}


@pytest.mark.slow
def test_capped_clients_upload_less(done):
    whole, capped = (done(*ALL, *caps).lines("rounds")[0] for caps in ((), ("sal.caps.0=1",)))
    difference = whole["upload_bytes"] - capped["upload_bytes"]
    assert 5 * BLOCK < difference < 5 * BLOCK * 1.2  # five blocks and their names


def test_cap_below_one_block_is_refused(small):
    with pytest.raises(UserError, match=rf"at least {BLOCK}B"):
        build(small(f"sal.caps.0={BLOCK - 1}B"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["lora.ranks.0=2"], "flexlora"),
        (["method=flexlora", "lora.ranks.0=9"], "at most lora.rank = 8"),
        (["method=flexlora", "lora.ranks.nobody=1"], "'nobody'"),
        (["method=probe"], "linear head"),
        (["method=promptfl", "model.head=linear"], "class prompts"),
        (["method=fedclip", "model.head=linear"], "class prompts"),
    ],
)
def test_what_a_method_cannot_do_is_refused(small, settings, said):
    with pytest.raises(UserError, match=said):
        build(small(*settings))


def test_unseen_clients_take_no_part_and_are_scored_at_the_end(done):
    clients = 2
    finished = done("partition.clients=4", f"partition.unseen_clients={clients}")
    summary = finished.summary
    unseen = set(summary["test"]["unseen"]["per_client"])
    seen = {client for line in finished.lines("rounds") for client in line["cohort"]}
    assert (len(unseen), summary["clients"]) == (clients, 4 - clients)
    assert seen == {"0", "1", "2", "3"} - unseen
    assert set(summary["test"]["personal"]["per_client"]) == seen
    kept = {p.stem for p in (finished.path / "checkpoints" / "clients").iterdir()}
    assert kept == seen
    assert {line["id"] for line in finished.lines("clients")} == seen


def test_newcomers_of_a_single_round_have_what_it_left(small, tmp_path, monkeypatch):
    """And are capped as others are."""
    seen = []
    original = Simulator.newcomers

    def spied(simulator, plan, state, *rest):
        seen.append(({*plan.broadcast, *plan.constant}, {*state.tensors}, simulator._unseen[0].cap))
        return original(simulator, plan, state, *rest)

    monkeypatch.setattr(Simulator, "newcomers", spied)
    kept_out = ("partition.clients=3", "partition.unseen_clients=1", "sal.caps.*=2")
    run(small("method=ditto", "stage1.rounds=1", "stage2.rounds=0", *kept_out), tmp_path / "run")
    ((sent, known, cap),) = seen
    assert sent == known != set()
    assert cap == 2


@pytest.mark.slow
def test_unseen_clients_adapt_with_few_rows(done):
    """What a method has for its clients it gives to newcomers, who change nothing for others."""
    kept_out = ("partition.clients=4", "partition.unseen_clients=2")
    rounds = "partition.unseen_rounds=12"
    tests = {
        method: done(*kept_out, rounds, f"method={method}").summary["test"]
        for method in ("fedms", "fedavg", "local")
    }
    for method, test in tests.items():
        before, after = test["unseen"], test["unseen_adapted"]
        assert before["per_client"].keys() == after["per_client"].keys()
        if method == "fedavg":
            assert before == after  # there is nothing of a client's own
        else:
            assert after["loss"] != before["loss"]
    still = done(*kept_out, "partition.unseen_rounds=0").summary["test"]
    assert still["unseen"] == still["unseen_adapted"] == tests["fedms"]["unseen"]
    assert still["personal"] == tests["fedms"]["personal"]
    fewer = done(*kept_out, rounds, "partition.unseen_rows=2").summary["test"]
    assert fewer["unseen_adapted"] != tests["fedms"]["unseen_adapted"]
