"""Ctrl-C or SIGTERM in the middle of a run leaves a folder that can be read, and nothing else."""

from __future__ import annotations

import json
import os
import signal
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
    [(1, "SIGINT", False), (2, "SIGINT", False), (2, "SIGTERM", True)],
)
def test_interrupt_during_training(program, tmp_path, workers, name, alone):
    """All processes are told, as a terminal does, or the first alone, as a service manager may."""
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    words = ["run", "data.max_rows=120", "stage1.rounds=5000", "--out", str(run)]
    words += [f"runtime.workers={workers}"]
    said, error = tmp_path / "said", tmp_path / "error"
    env = {**os.environ, "TMPDIR": str(scratch)}
    process = program("-c", START, *words, folder=tmp_path, out=said, err=error, env=env)
    try:
        rounds, states = run / "rounds.jsonl", run / "checkpoints" / "server"
        late = time.monotonic() + 60
        while not list(states.glob("0*.safetensors")):  # a round's last file
            assert process.poll() is None, error.read_text()
            assert time.monotonic() < late, "no round within a minute"
            time.sleep(0.05)
        (os.kill if alone else os.killpg)(process.pid, signal.Signals[name])
        code = process.wait(30)
    finally:
        process.kill()
    assert code == 2
    assert error.read_text() == f"fedms: interrupted; to go on: fedms resume {run}\n"
    assert tomllib.loads((run / "config.toml").read_text())["stage1"]["rounds"] == 5000
    lines = [json.loads(line) for line in rounds.read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(len(lines))) != []
    assert 1 <= len(list(states.glob("0*.safetensors"))) <= 2
    assert not (run / "summary.json").exists()
    assert [*run.rglob(".*"), *scratch.glob("fedms-*")] == []
