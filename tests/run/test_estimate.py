"""What `fedms estimate` says before a run, beside what the run says it cost."""

from __future__ import annotations

import csv
import json

import pytest

from fedms import run as running
from fedms.config import load_config
from fedms.estimate import FIGURES, estimate
from fedms.run import run

SMALL = (
    *("data.max_rows=120", "partition.clients=3", "stage1.rounds=2", "stage2.rounds=2"),
    *("evaluate_every=0", "sal.queue=2"),
)
EXACT = ["upload_bytes", "download_bytes", "trainable_parameters"]
CLOSE = ["train_flops", "peak_activation_bytes", "cache_bytes"]


@pytest.fixture
def tiny(model_folder):
    """A model of three blocks, which takes less time than the embedded one."""
    return f"model.name={model_folder('clip')}"


def beside(tmp_path, *settings):
    """What was said, what a run cost, and the bytes that it left."""
    config = load_config(None, [*SMALL, *settings])
    said = estimate(config, 0.0)
    path = tmp_path / "run"
    cost = run(config, path)["cost"]
    return said, cost, sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


CASES = {
    "schedule, and cohorts": (
        *("sal.trigger=schedule", "sal.every=1", "stage1.cohort=2", "stage2.cohort=1"),
        "sal.caps.0=2",
    ),
    "little cache, gate on validation rows": (
        *("sal.trigger=schedule", "gate.data=val", "runtime.cache_bytes=20kB"),
        *("runtime.cache_disk_bytes=10kB", "partition.unseen_clients=1"),
    ),
    "fedavg": ("method=fedavg", "runtime.stack=2"),
    "local": ("method=local", "runtime.cache_bytes=0B", "stage2.checkpoint=last"),
    "ditto": ("method=ditto", "stage1.epochs=2", "stage2.checkpoint=last"),
    "flora": ("method=flora",),
    "two experts in every layer": ("method=dual", "baselines.gate_hidden=4"),
}


@pytest.mark.quick("fedavg", "local")
@pytest.mark.parametrize("case", CASES)
def test_estimate_is_what_the_run_costs(tmp_path, tiny, case):
    """Each performs a run and rehearses it, which takes 2 s.

    Without best rounds, which a folder keeps beside the last where validation has it so.
    """
    said, cost, written = beside(tmp_path, tiny, *CASES[case])
    assert said["exact"]
    assert said["cache_full"] == ("little cache" in case)
    assert said["least"] == said["most"]
    found = said["most"]
    assert {n: found[n] for n in EXACT} == {n: cost[n] for n in EXACT}
    for name in CLOSE:
        assert found[name] == pytest.approx(cost[name], rel=0.1), name
    assert found["run_folder_bytes"] == pytest.approx(written, rel=0.1)


@pytest.mark.slow
def test_a_capability_queue_gives_a_range(tmp_path):
    """What a run costs lies within, and both ends are those of runs."""
    said, cost, _ = beside(tmp_path, "stage1.rounds=3")
    assert not said["exact"]
    assert said["deepest"][0] == 1 < said["deepest"][1]
    for name in FIGURES:
        assert said["least"][name] <= cost[name] <= said["most"][name], name
    assert said["least"]["train_flops"] < said["most"]["train_flops"]
    fast = estimate(load_config(None, [*SMALL, "stage1.rounds=3", "sal.epsilon=1"]), 0.0)
    assert fast["most"]["train_flops"] == said["most"]["train_flops"]


@pytest.mark.slow
def test_texts(tmp_path, model_folder):
    """Batches of texts are padded to their longest, which prices follow."""
    path = tmp_path / "texts.csv"
    words = ["red", "cat", "green", "dog", "pay", "my", "card"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(90):
            writer.writerow([" ".join(words[(i + j) % 7] for j in range(1 + i % 9)), "ab"[i % 2]])
    said, cost, _ = beside(
        tmp_path,
        *("data.source=csv", f"data.path={path}", f"model.name={model_folder('sentence')}"),
        *("sal.trigger=schedule", "sal.every=1", "training.batch_size=8"),
    )
    assert {n: said["most"][n] for n in EXACT} == {n: cost[n] for n in EXACT}
    for name in CLOSE:
        assert said["most"][name] == pytest.approx(cost[name], rel=0.1), name


@pytest.mark.slow
def test_depths_are_told_of(monkeypatch):
    """Depth by depth: more is trained, sent and computed; at full depth nothing is kept.

    And no tracker is told of it.
    """
    told, tracked = [], running.tracked

    def watched(config, *rest):
        told.append(config.tracking.to)
        return tracked(config, *rest)

    monkeypatch.setattr(running, "tracked", watched)
    said = estimate(load_config(None, [*SMALL, "sal.trigger=all", "tracking.to=mlflow"]), 0.0)
    assert told == [load_config(None, []).tracking.to]
    depths = said["depths"]
    assert [row["depth"] for row in depths] == [1, 2, 3, 4, 5, 6]
    for name in ("parameters", "upload_bytes", "step_flops", "activation_bytes"):
        values = [row[name] for row in depths]
        assert values == sorted(set(values)), name
    assert depths[0]["parameters"] == 4 * 8 * 128  # A and B of q and v, rank 8, width 128
    assert depths[-1]["cache_bytes"] == 0 < depths[0]["cache_bytes"]
    assert said["rounds"] == 5  # one gathers class statistics


@pytest.mark.slow
def test_time_is_measured(tiny):
    """Of steps that were really taken; more rounds take more."""
    short, long = (
        estimate(load_config(None, [*SMALL, tiny, "sal.trigger=all", f"stage1.rounds={n}"]), 2.0)
        for n in (2, 12)
    )
    assert 0 < short["most"]["seconds"] < long["most"]["seconds"]
    json.dumps(long, allow_nan=False)
