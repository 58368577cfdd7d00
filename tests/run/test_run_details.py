"""Classes of clients' rows, and where gates send them, as runs write them down."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedms.build import build


def labels(done):
    return {line["id"]: line for line in done.lines("labels")}


def test_labels_are_those_that_were_dealt(done, small):
    experiment = build(small("partition.unseen_clients=1"))
    finished = done("partition.unseen_clients=1")
    classes = json.loads((finished.path / "classes.json").read_text())
    assert classes == list(experiment.federation.classes)
    everyone = (*experiment.clients, *experiment.unseen)
    assert [*labels(finished)] == [client.id for client in everyone]
    for client in everyone:
        for split in ("train", "val", "test"):
            counted = np.bincount(client.split(split).labels, minlength=len(classes))
            expected = [[k, int(n)] for k, n in enumerate(counted) if n]
            assert labels(finished)[client.id][split] == expected


def test_false_labels_of_attackers_are_not_told(done):
    """What is on record is who holds what, not what is done to it."""
    attacked = done("faults.attack=labels", "faults.attackers=0.3")
    assert labels(attacked) == labels(done())


def test_gates_are_counted_on_all_test_rows(done):
    finished = done()
    held, gates = labels(finished), finished.lines("gates")
    last = {c["id"]: c for c in finished.lines("clients") if c["round"] == 4}
    assert [line["id"] for line in gates] == ["0", "1", "2"]
    for line in gates:
        by_class = {k: 0 for k, _, _ in line["counts"]}
        for k, _, rows in line["counts"]:
            by_class[k] += rows
        assert [*map(list, by_class.items())] == held[line["id"]]["test"]
        rows = sum(by_class.values())
        mean = sum(weight for _, weight in line["weights"]) / rows
        assert mean == pytest.approx(last[line["id"]]["gate_weight"], rel=1e-6)
        low = sum(k * n for _, k, n in line["counts"]) / 10 / rows
        assert low <= mean <= low + 0.1


def test_without_a_gate_there_is_no_record_of_one(done):
    words = ("method=fedavg", "partition.clients=12", "stage1.rounds=1", "stage2.rounds=0")
    assert not (done(*words).path / "gates.jsonl").exists()
    assert (done(*words).path / "labels.jsonl").exists()
