"""Clients on several processes: the same files to the byte, and a clear end when one dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch

from fedms.build import WorkerParts, build
from fedms.core.errors import UserError
from fedms.run import RoundDone, run
from fedms.runtimes.workers import Workers, share

UNTIMED = ("seconds", "hash", "train_seconds", "wall_seconds", "phase_seconds")


def untimed(record):
    """Without what a clock said, and what depends on how many models there are."""
    if isinstance(record, list):
        return [untimed(entry) for entry in record]
    if not isinstance(record, dict):
        return record
    drop = (*UNTIMED, "cache_bytes", "peak_device_bytes")
    return {key: untimed(value) for key, value in record.items() if key not in drop}


@pytest.fixture(scope="module")
def pair(done):
    """The same run in this process and on two others, each on one thread."""
    common = ("runtime.threads=1", "partition.clients=4", "partition.unseen_clients=1")
    return done(*common), done(*common, "runtime.workers=2")


@pytest.mark.slow
def test_the_same_models_for_every_number_of_workers(pair):
    one, two = pair
    assert one.bytes() == two.bytes() != {}
    assert one.bytes("checkpoints") == two.bytes("checkpoints") != {}


@pytest.mark.slow
def test_the_same_records_for_every_number_of_workers(pair):
    one, two = pair
    assert untimed(one.summary) == untimed(two.summary)
    assert one.summary["test"]["unseen"] is not None
    for name in ("rounds", "clients", "labels", "gates"):
        assert untimed(one.lines(name)) == untimed(two.lines(name))


@pytest.mark.slow
def test_work_is_counted_wherever_it_is_done(pair):
    for finished in pair:
        cost = finished.summary["cost"]
        assert cost["train_flops"] > 0
        assert {"cache", "train", "evaluate", "aggregate"} <= cost["phase_seconds"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_no_process_and_no_thread_setting_is_left(small, tmp_path, workers):
    threads = torch.get_num_threads()
    words = (f"runtime.threads={threads + 1}", f"runtime.workers={workers}", "stage2.rounds=0")
    run(small(*words), tmp_path / "run")
    assert torch.get_num_threads() == threads
    assert multiprocessing.active_children() == []


def test_rows_are_shared_out_evenly(small):
    clients = build(small("partition.clients=7", "partition.alpha=0.5")).clients
    at = share(clients, 3)
    load = [sum(len(c.train) for c in clients if at[c.id] == k) for k in range(3)]
    assert max(load) - min(load) <= max(len(c.train) for c in clients)
    assert share(clients[::-1], 3) == at


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_in_one_line(small, tmp_path):
    config = small("runtime.workers=2", "stage2.rounds=6")

    def kill(event):
        if isinstance(event, RoundDone) and event.record.round == 1:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(UserError, match=r"runtime\.workers"):
        run(config, tmp_path / "run", watch=kill)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_what_the_user_must_mend_is_said_by_workers_too(small, tmp_path):
    config = small("runtime.workers=2", "training.learning_rate=1e20")
    with pytest.raises(UserError, match=r"training\.learning_rate"):
        run(config, tmp_path / "run")


@pytest.mark.slow
def test_an_error_in_a_worker_is_the_same_error_here(small, tmp_path):
    experiment = build(small())
    parts = WorkerParts(small("model.name=./no-such-folder"), ("a", "b"), tmp_path, 2)
    with pytest.raises(UserError, match="no-such-folder"):
        Workers(parts, experiment.clients, None, workers=2).__enter__()
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    """A worker imports the script again; that must not start the run anew, and wipe its folder."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from fedms.config import load_config\n"
        "from fedms.run import run\n"
        "words = ['data.max_rows=120', 'runtime.workers=2']\n"
        "run(load_config(None, words), Path('run'), force=True)\n"
    )
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "__main__" in done.stderr
    assert (tmp_path / "run" / "config.toml").exists()
