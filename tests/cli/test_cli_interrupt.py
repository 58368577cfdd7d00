"""Ctrl-C or SIGTERM in the middle of a run leaves a folder that can be read, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib

import pytest

# a shell's background jobs ignore the signal, and their children inherit that
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from fedms.cli import main; main()"
)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
@pytest.mark.parametrize(
    ("workers", "name", "alone"),
    [(1, "SIGINT", False), (2, "SIGINT", False), (2, "SIGTERM", False), (2, "SIGTERM", True)],
)
def test_interrupt_during_training(tmp_path, workers, name, alone):
    """All processes are told, as a terminal does, or the first alone, as a service manager may."""
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    words = ["run", "data.max_rows=120", "stage1.rounds=5000", "--out", str(run)]
    words += [f"runtime.workers={workers}"]
    process = subprocess.Popen(
        [sys.executable, "-c", START, *words],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        rounds, states = run / "rounds.jsonl", run / "checkpoints" / "server"
        late = time.monotonic() + 60
        while not list(states.glob("0*.safetensors")):  # a round's last file
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < late, "no round within a minute"
            time.sleep(0.05)
        (os.kill if alone else os.killpg)(process.pid, signal.Signals[name])
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 2
    assert error == f"fedms: interrupted; to go on: fedms resume {run}\n"
    assert tomllib.loads((run / "config.toml").read_text())["stage1"]["rounds"] == 5000
    lines = [json.loads(line) for line in rounds.read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(len(lines))) != []
    assert 1 <= len(list(states.glob("0*.safetensors"))) <= 2
    assert not (run / "summary.json").exists()
    assert [*run.rglob(".*"), *scratch.glob("fedms-*")] == []
