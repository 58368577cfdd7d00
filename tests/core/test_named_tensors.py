"""Roles, picks and fingerprints of named tensors."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load

from fedms.core.tensors import all_finite, elements, fingerprint, part, pick, serialise, under

ONE = {"b": torch.ones(2), "a": torch.zeros(2, 3)}


def test_roles():
    named = under("global", ONE)
    assert set(named) == {"global/a", "global/b"}
    both = {**named, "globalist/a": torch.ones(1), "gate/a": torch.ones(4)}
    assert {k: tuple(t.shape) for k, t in part("global", both).items()} == {"b": (2,), "a": (2, 3)}


def test_pick_sorts_and_insists():
    assert list(pick(ONE, ["b", "a"])) == ["a", "b"]
    with pytest.raises(KeyError):
        pick(ONE, ["c"])


def test_fingerprint_ignores_order_and_strides_only():
    same = {"a": torch.zeros(3, 2).T, "b": torch.ones(2)}
    assert fingerprint(same) == fingerprint(ONE)
    others = [
        {},
        {**ONE, "b": torch.ones(2) + 1e-7},
        {**ONE, "b": torch.ones(2, dtype=torch.float64)},
        {**ONE, "b": torch.ones(1, 2)},
        {"a": ONE["a"], "c": ONE["b"]},
        {"a": ONE["a"]},
    ]
    assert len({fingerprint(o) for o in [*others, ONE]}) == len(others) + 1


def test_bytes_are_safetensors():
    read = load(serialise(ONE, {"k": "v"}))
    assert {k: t.tolist() for k, t in read.items()} == {k: t.tolist() for k, t in ONE.items()}
    assert elements(ONE) == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_all_finite(bad):
    assert all_finite(ONE)
    assert not all_finite({**ONE, "c": torch.tensor([1.0, bad])})
