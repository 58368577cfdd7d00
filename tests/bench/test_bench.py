"""`fedms bench`: figures and ratios from one run, rows a program can read."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedms import bench
from fedms.bench import MEASURES, Row
from fedms.bench import kernels as bench_kernels
from fedms.bench import rounds as bench_rounds
from fedms.bench import rows as bench_rows
from fedms.bench import steps as bench_steps
from fedms.cli import app

FIELDS = ["measure", "ours", "peer", "peer_name", "ratio", "unit", "repeats"]


def test_rows_have_their_ratio():
    row = Row.of("m", 2.0, "s", 3, ("other", 8.0))
    assert (row.ours, row.peer, row.peer_name, row.ratio) == (2.0, 8.0, "other", 0.25)
    alone = Row.of("m", 2.0, "s", 3)
    assert (alone.peer, alone.peer_name, alone.ratio) == (None, None, None)


def test_works_take_turns_and_medians_count(monkeypatch):
    clock = itertools.chain([0, 1, 0, 10], [0, 3, 0, 20], [0, 2, 0, 90])
    monkeypatch.setattr(bench_rows.time, "perf_counter", lambda: next(clock))
    done = []
    works = {"a": lambda: done.append("a"), "b": lambda: done.append("b")}
    assert bench_rows.alternate(works, 3) == {"a": 2, "b": 20}
    assert done == ["a", "a", "b", "b"] + ["a", "b"] * 3


def test_a_step_is_measured_beside_the_peer_on_the_same_rows(monkeypatch):
    """With a tiny case: shallower is cheaper in saved activations, and below the peer's."""
    case = bench_steps.Case("small", 4, 0, (1, 3, 6), 1)
    monkeypatch.setitem(bench_steps.CASES, "tiny", case)
    rows = {row.measure: row for row in bench_steps.step_rows("tiny", device=torch.device("cpu"))}
    saved = [rows[f"activations tiny depth {d}/6 float32"] for d in case.depths]
    assert saved[0].ours < saved[1].ours < saved[2].ours
    assert all(row.ratio == row.ours / row.peer for row in saved)
    for row, depth in zip(saved, case.depths, strict=True):
        assert row.ratio <= 1.1 * depth / 6
    assert all(rows[f"step tiny depth {d}/6 float32"].ours > 0 for d in case.depths)


def test_the_peer_learns_what_ours_learns():
    """The peer's step is a real one: its loss falls on the batch it repeats."""
    case = bench_steps.Case("small", 4)
    step, _ = bench_steps._peer(case)
    losses = [float(step().detach()) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_texts_of_mixed_lengths_make_eight_batches():
    rows = bench_steps._rows(bench_steps.Case("text", 4), seed=1)
    lengths = [len(ids) for ids in rows.columns["input_ids"]]
    assert len(rows) == 32
    assert 4 <= min(lengths) < 12 < max(lengths) <= 60
    other = bench_steps._rows(bench_steps.Case("text", 4), seed=2)
    assert [len(ids) for ids in other.columns["input_ids"]] != lengths


def test_idle_rounds_send_what_real_rounds_send():
    start, seconds = bench_rounds.idle_rounds(4, 2, 3, stage=1)
    assert len(seconds) == 3
    assert 0 < start < 60
    layout = bench_rounds.Idle().layout
    count = layout.size(layout.expert(6))
    assert len(layout.expert(6)) == 24
    assert count * 4 == pytest.approx(0.6e6, rel=0.02)


@pytest.mark.parametrize("has", [True, False])
def test_products_that_the_cpu_lacks_are_measured_beside_those_of_torch(monkeypatch, has):
    monkeypatch.setattr(bench_kernels, "cpu_has_products", lambda: has)
    monkeypatch.setattr(bench_kernels, "_ROWS", 8)
    monkeypatch.setattr(bench_kernels, "_HEADS", (1, 2, 4, 8))
    monkeypatch.setattr(bench_kernels, "_REPEATS", 1)
    rows = {r.measure: r for r in bench_kernels.kernel_rows(device=torch.device("cpu"))}
    found = [row for name, row in rows.items() if name.endswith("in float32 and rounded")]
    assert len(found) == (not has)
    for row in found:
        assert row.peer == rows["matrix product 8 × 384 × 1536, bfloat16"].ours


def test_json_is_a_list_of_rows_with_the_machine(monkeypatch):
    monkeypatch.setattr(bench_rounds, "idle_rounds", lambda *args, **kwargs: (3.0, [1.0, 0.5, 0.5]))
    done = CliRunner().invoke(app, ["bench", "--only", "overhead", "--json"])
    assert done.exit_code == 0
    rows = json.loads(done.stdout)
    assert len(rows) == 2
    for row in rows:
        assert list(row) == [*FIELDS, "machine"]
        assert row["ours"] == 10.0
        assert row["machine"]["cores"] >= 1


def test_the_table_shows_every_row(monkeypatch):
    rows = [Row.of("fast thing", 0.002, "s", 3, ("slow thing", 0.5)), Row.of("alone", 3, "ms", 1)]
    monkeypatch.setattr(bench, "measure", lambda names, device: iter(rows))
    done = CliRunner().invoke(app, ["bench"], env={"COLUMNS": "120"})
    assert done.exit_code == 0
    for words in (
        "fast thing",
        "2.0 ms",
        "500.0 ms",
        "0.00",
        "peer: slow thing",
        "3.00 ms",
        "cores",
    ):
        assert words in done.stdout


def test_an_unknown_measure_is_an_error_in_one_line():
    done = CliRunner().invoke(app, ["bench", "--only", "tetx"])
    assert done.exit_code == 2
    assert "tetx" in done.stderr
    assert all(name in done.stderr for name in MEASURES)


@pytest.mark.slow
def test_memory_is_of_the_process_and_not_of_its_parent():
    """Linux gives a child its parent's peak; the parent here held 600 MB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc")
    child = "from fedms.bench.rounds import _peak_bytes; print(_peak_bytes())"
    parent = (
        "import subprocess, sys; held = b'x' * 600_000_000; del held; "
        f"sys.exit(subprocess.run([sys.executable, '-c', {child!r}]).returncode)"
    )
    command = [sys.executable, "-c", parent]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 50e6 < int(done.stdout) < 550e6
