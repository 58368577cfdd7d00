"""Clients as virtual nodes of Flower's simulation: the simulator's run, with Ray's workers."""

from __future__ import annotations

import importlib
import logging
import os
import sys

import pytest

from fedms.core.errors import UserError
from fedms.run import RoundDone, run
from fedms.runtimes.flower.quiet import quiet

COMMON = ("runtime.threads=1", "partition.clients=3", "partition.unseen_clients=1")
WHERE = ("train_flops", "cache_bytes", "peak_activation_bytes")
"""Of costs: what every worker does again that is asked for a client first."""
TIMES = ("train_seconds", "wall_seconds", "phase_seconds")


@pytest.fixture
def ray():
    found = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedms[ray]'")
    with quiet():
        importlib.import_module("flwr.simulation")  # which sets its own logger
    return found


def without_costs(summary):
    kept = {k: v for k, v in summary["cost"].items() if k not in (*WHERE, *TIMES)}
    return {**summary, "cost": kept}


@pytest.mark.loopback
def test_two_virtual_clients_give_what_the_simulator_gives(ray, done):
    ours = done(*COMMON)  # which imports what has settings of its own
    before = dict(os.environ), logging.getLogger("flwr").level
    theirs = done(*COMMON, "runtime.name=ray", "runtime.workers=2")
    assert (dict(os.environ), logging.getLogger("flwr").level) == before
    assert not ray.is_initialized()
    assert len(ours.bytes("checkpoints/clients")) > 2
    for part in ("adapters", "checkpoints"):
        assert theirs.bytes(part) == ours.bytes(part) != {}
    assert without_costs(theirs.summary) == without_costs(ours.summary)
    assert ours.summary["test"]["unseen"] is not None


@pytest.mark.e2e
def test_a_client_that_fails_ends_the_run_in_one_line(ray, small, tmp_path):
    """Its private state is damaged while the run is on."""

    def damage(event):
        if isinstance(event, RoundDone) and event.record.stage == 2:
            for state in (tmp_path / "run" / "checkpoints" / "clients").rglob("*.safetensors"):
                state.write_bytes(b"nothing")

    with pytest.raises(UserError, match="which is damaged"):
        run(small(*COMMON, "runtime.name=ray"), tmp_path / "run", watch=damage)
    assert not ray.is_initialized()


@pytest.mark.loopback
def test_a_process_that_uses_ray_is_left_alone(ray, small, tmp_path):
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(UserError, match="uses Ray already"):
            run(small(*COMMON, "runtime.name=ray"), tmp_path / "run")
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_without_ray_it_is_said_what_to_install(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "fedms.runtimes.flower.virtual", raising=False)
    with pytest.raises(UserError, match=r"without ray; try pip install .fedms\[ray\]"):
        run(small(*COMMON, "runtime.name=ray"), tmp_path / "run")


def test_virtual_clients_are_not_stacked(small, tmp_path):
    with pytest.raises(UserError, match=r"runtime.stack = 2 .* one by one"):
        run(small(*COMMON, "runtime.name=ray", "runtime.stack=2"), tmp_path / "run")
