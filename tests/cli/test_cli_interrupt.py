"""Ctrl-C in the middle of a run leaves a folder that can be read."""

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
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupt_during_training(tmp_path, workers):
    run = tmp_path / "run"
    words = ["run", "data.max_rows=120", "stage1.rounds=5000", "--out", str(run)]
    words += [f"runtime.workers={workers}"]
    process = subprocess.Popen(
        [sys.executable, "-c", START, *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        rounds, states = run / "rounds.jsonl", run / "checkpoints" / "server"
        end = time.monotonic() + 60
        while not list(states.glob("0*.safetensors")):  # a round's last file
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end, "no round within a minute"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
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
    assert list(run.rglob(".*")) == []
