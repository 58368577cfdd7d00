"""States come back from disk bit for bit, and the same state is the same file."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest
import torch

from fedms.core.algorithm import ClientState, ServerState
from fedms.store.states import ClientStates, load_client_state, load_server_state, save_state


def tensors(*names: str) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    made = {name: torch.randn(3, 4, generator=rng) for name in names}
    # values that do not survive text or a change of type
    made["global/odd"] = torch.tensor([1e-45, -0.0, 3.4e38, 1 / 3, torch.pi])
    made["global/empty"] = torch.zeros(0, 2)
    return made


SERVER = [
    ServerState(seed=2**63 - 1, round=0, stage=1, depth=1, tensors={}),
    ServerState(
        seed=7,
        round=3,
        stage=2,
        depth=4,
        tensors=tensors("global/a", "gate/b"),
        queue=(0.1 + 0.2, 1 / 3),
    ),
]
CLIENT = [
    ClientState(tensors("local/a"), depth=2),
    ClientState({}, depth=1, queue=(1.0,), rounds=9),
    ClientState(
        tensors("local/a", "kept/local/a", "gate/x"),
        depth=6,
        queue=(0.7, 0.1 + 0.2),
        rounds=4,
        kept=(2 / 3, -0.30000000000000004),
    ),
]


def same(first, second) -> bool:
    facts = [f.name for f in dataclasses.fields(first) if f.name != "tensors"]
    bits = [
        {k: (t.dtype, tuple(t.shape), t.numpy().tobytes()) for k, t in s.tensors.items()}
        for s in (first, second)
    ]
    values = [[(type(getattr(s, f)), getattr(s, f)) for f in facts] for s in (first, second)]
    return bits[0] == bits[1] and values[0] == values[1]


@pytest.mark.parametrize("state", SERVER, ids=["first", "later"])
def test_server_state_round_trip(tmp_path, state):
    save_state(tmp_path / "s", state)
    assert same(load_server_state(tmp_path / "s")[0], state)


@pytest.mark.parametrize("state", CLIENT, ids=["kept none", "no tensors", "kept"])
def test_client_state_round_trip(tmp_path, state):
    save_state(tmp_path / "s", state)
    assert same(load_client_state(tmp_path / "s"), state)


def test_wrong_kind_is_refused(tmp_path):
    save_state(tmp_path / "server", SERVER[1])
    save_state(tmp_path / "client", CLIENT[1])
    with pytest.raises(ValueError, match="holds no ClientState"):
        load_client_state(tmp_path / "server")
    with pytest.raises(ValueError, match="holds no ServerState"):
        load_server_state(tmp_path / "client")


@pytest.mark.parametrize("state", [SERVER[1], CLIENT[2]], ids=["server", "client"])
def test_same_state_same_bytes(tmp_path, state):
    copies = {name: t.clone() for name, t in reversed(state.tensors.items())}
    save_state(tmp_path / "a", state)
    save_state(tmp_path / "b", dataclasses.replace(state, tensors=copies))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    save_state(tmp_path / "c", dataclasses.replace(state, queue=(0.5,)))
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_failing_save_keeps_the_earlier_state(tmp_path, monkeypatch):
    save_state(tmp_path / "s", CLIENT[0])
    before = hashlib.sha256((tmp_path / "s").read_bytes()).digest()

    def broken(*args: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        save_state(tmp_path / "s", CLIENT[2])
    assert hashlib.sha256((tmp_path / "s").read_bytes()).digest() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_client_states_are_apart_and_stay_in_their_folder(tmp_path):
    states = ClientStates(tmp_path / "clients")
    ids = ["a", "A/b", "..", "../a", "a.safetensors", ".", "ü", "a b"]
    assert [states.load(name) for name in ids] == [None] * len(ids)
    for number, name in enumerate(ids):
        states.save(name, ClientState({"local/x": torch.tensor([float(number)])}, depth=1), 0)
    assert [float(states.load(name).tensors["local/x"]) for name in ids] == list(range(len(ids)))
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.parent.parent for p in files} == {tmp_path / "clients"}
    assert len({p.parent for p in files}) == len(ids) == len(files)


def test_client_states_survive_a_restart(tmp_path):
    ClientStates(tmp_path).save("7", CLIENT[2], 3)
    assert same(ClientStates(Path(str(tmp_path))).load("7"), CLIENT[2])


def _of(number):
    return ClientState({"local/x": torch.tensor([float(number)])}, depth=1)


def test_a_round_that_is_done_again_starts_from_the_state_before_it(tmp_path):
    states = ClientStates(tmp_path)
    for round_ in (2, 3, 7):
        states.save("a", _of(round_), round_)
    assert float(states.load("a").tensors["local/x"]) == 7
    assert float(states.load("a", 8).tensors["local/x"]) == 7
    assert float(states.load("a", 7).tensors["local/x"]) == 3
    assert states.load("a", 3) is None  # older ones are not kept
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "000003.safetensors",
        "000007.safetensors",
    ]
    states.save("a", _of(5), 5)  # the server went on from an earlier checkpoint
    assert float(states.load("a").tensors["local/x"]) == 5
    assert float(states.load("a", 5).tensors["local/x"]) == 3


def test_rounds_are_ordered_as_numbers(tmp_path):
    states = ClientStates(tmp_path)
    for round_ in (999_999, 1_000_000):
        states.save("a", _of(round_), round_)
    assert float(states.load("a").tensors["local/x"]) == 1_000_000
