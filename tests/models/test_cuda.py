"""Training steps on a GPU: what the CPU learns within 1e-5, and stacks, prefixes and bfloat16.

`make cuda` runs them; CI has no GPU.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedms.bench.steps import Case, fit_of, learner_of
from fedms.core.algorithm import Expert, View
from fedms.machine import pick_device, pick_precision
from fedms.models import Room

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
RATE, STEPS = 3e-3, 16
"""The learning rate, and the steps of the longest fit."""
CASES = {
    "images": Case("small", 8),
    "texts": Case("text", 8, 16),
    "texts of mixed lengths": Case("text", 4),
}


def made(case, precision, device=CUDA):
    """A learner, of the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return learner_of(case, precision, device)


def started(learner, case, depth, clients=1):
    """Fits from experts that are no zeros, the same on every device."""
    fits = []
    for client in range(clients):
        fit = fit_of(learner, case, depth, client)
        rng = torch.Generator().manual_seed(client)
        shapes = learner.layout.shapes
        expert = {n: 0.05 * torch.randn(shapes[n], generator=rng) for n in sorted(fit.names)}
        fits.append(replace(fit, view=View(Expert(expert)), epochs=2))
    return fits


def learned(learner, fits):
    return [view.expert.tensors for view in learner.fit(fits)]


def close(got, expected, atol):
    """But for one element in a thousand: where a gradient is all but zero, AdamW takes its sign."""
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(tensor.device.type == "cpu" for tensor in one.values())
        apart = torch.cat([(one[name] - other[name]).abs().flatten() for name in one])
        assert float(apart.quantile(0.999)) <= atol
        assert float(apart.max()) <= (4 * STEPS * RATE if atol else 0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("depth", [1, 3, 6])
def test_a_fit_is_that_of_the_cpu(name, depth):
    case = CASES[name]
    here, there = (made(case, "float32", d) for d in (torch.device("cpu"), CUDA))
    expected = learned(here, started(here, case, depth))
    close(learned(there, started(there, case, depth)), expected, 1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_a_kept_prefix_changes_nothing(name, precision):
    case = CASES[name]
    learner = made(case, precision)
    kept = learned(learner, started(learner, case, 2))
    learner.prefixes._room = Room(0)
    computed = learned(learner, started(learner, case, 2))
    close(kept, computed, 1e-5 if precision == "float32" else 1e-2)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("depth", [1, 6])
def test_a_stack_learns_what_its_clients_learn_alone(name, depth):
    case = CASES[name]
    learner = made(case, "float32")
    fits = started(learner, case, depth, clients=4)
    alone = [tensors for fit in fits for tensors in learned(learner, [fit])]
    close(learned(learner, fits), alone, 1e-5)


def test_the_same_fit_gives_the_same_bits():
    case = CASES["texts of mixed lengths"]
    learner = made(case, "float32")
    close(*(learned(learner, started(learner, case, 3)) for _ in range(2)), 0.0)


def test_a_full_device_is_gone_on_without(tmp_path, monkeypatch):
    """The budget is more than the device has: what has no room there goes to files."""
    case = CASES["images"]
    learner = made(case, "float32")
    expected = learned(learner, started(learner, case, 1))
    full = made(case, "float32")
    full.prefixes._room = Room(10**15, 10**9, tmp_path)
    full.prefixes._disk = 10**9
    _, most = torch.cuda.mem_get_info()

    def in_memory(shape, dtype):
        return torch.empty(2 * most, dtype=torch.uint8, device=CUDA)

    monkeypatch.setattr(full.prefixes, "_in_memory", in_memory)
    fits = started(full, case, 1)
    close(learned(full, fits), expected, 1e-6)
    assert full.prefixes.disk_bytes > 0


def test_auto_takes_the_gpu_and_bfloat16_where_it_is_wide_enough():
    assert pick_device("auto") == "cuda:0"
    wide = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float32
    assert pick_precision("auto", CUDA, 384) == wide
    assert pick_precision("auto", CUDA, 128) == torch.float32


def test_experts_of_bfloat16_are_near_those_of_float32():
    case = CASES["texts"]
    exact, half = (made(case, p) for p in ("float32", "bfloat16"))
    one, other = (learned(x, started(x, case, 3))[0] for x in (exact, half))
    before = started(exact, case, 3)[0].view.expert.tensors
    moved = sum(float((one[n] - before[n]).norm()) for n in one)
    apart = sum(float((one[n] - other[n]).norm()) for n in one)
    assert 0 < apart < 0.5 * moved
