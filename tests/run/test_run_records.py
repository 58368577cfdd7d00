"""What a run leaves behind, and that its numbers follow from its records."""

from __future__ import annotations

import math
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import pytest

from fedms.build import build
from fedms.config import load_config
from fedms.run import run

ROLES = ("zero_shot", "global", "local", "personal", "oracle", "unseen", "unseen_adapted")
COSTS = {
    "upload_bytes",
    "download_bytes",
    "train_flops",
    "train_seconds",
    "phase_seconds",
    "wall_seconds",
    "peak_activation_bytes",
    "peak_device_bytes",
    "cache_bytes",
    "trainable_parameters",
    "total_parameters",
}


def test_folder_has_exactly_these_files(done):
    path = done().path
    found = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    expert = ("adapter_config.json", "adapter_model.safetensors")
    gate = ("gate.json", "gate.safetensors")
    expected = {"config.toml", "environment.json", "rounds.jsonl", "clients.jsonl", "summary.json"}
    expected |= {f"adapters/{n}.json" for n in ("head", "prior", "files")} | {"partition.json"}
    expected |= {"classes.json", "labels.jsonl", "gates.jsonl", "report.html"}
    expected |= {f"checkpoints/server/{n:06}.safetensors" for n in (3, 4)}
    expected |= {f"checkpoints/newest/{n:06}.json" for n in (3, 4)}
    expected |= {f"adapters/global/{n}" for n in expert} | {f"adapters/gate/{n}" for n in gate}
    for client in "012":
        expected |= {f"checkpoints/clients/{client}/{n:06}.safetensors" for n in (2, 3)}
        expected |= {f"adapters/clients/{client}/{n}" for n in ("prior.json", "files.json")}
        expected |= {f"adapters/clients/{client}/local/{n}" for n in expert}
        expected |= {f"adapters/clients/{client}/gate/{n}" for n in gate}
    assert found == expected


def test_nothing_is_written_outside(tmp_path, monkeypatch, small):
    for name in ("home", "temporary", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")
    run(small("stage1.rounds=1", "stage2.rounds=1"))
    written = {p.relative_to(tmp_path).parts[:3] for p in tmp_path.rglob("*") if p.is_file()}
    assert written == {("work", "runs", "digits-fedms-seed0")}


def test_every_file_is_written_aside(tmp_path, small, monkeypatch):
    """By a name that is not its own yet, or in a folder that has none."""
    written = []

    def noting(write):
        return lambda path, *given, **how: (written.append(path), write(path, *given, **how))[1]

    for name in ("write_bytes", "write_text"):
        monkeypatch.setattr(Path, name, noting(getattr(Path, name)))
    words = ("stage1.rounds=1", "stage2.rounds=1", "gate.statistics=personal")
    run(small(*words), tmp_path / "run")
    assert (tmp_path / "run/adapters/statistics.safetensors").is_file()
    assert (tmp_path / "run/adapters/prior.json").is_file()
    in_place = {p for p in written if not any(part.endswith(".aside") for part in p.parts)}
    assert in_place == set()


@pytest.mark.slow
def test_own_config_gives_the_same_run(done, tmp_path):
    first = done()
    run(load_config(first.path / "config.toml"), tmp_path / "again")
    again = type(first)(tmp_path / "again", {})
    for folder in ("adapters", "checkpoints"):
        assert again.bytes(folder) == first.bytes(folder)
    assert len(first.bytes("checkpoints")) == 10  # two of the server and of every client, and lists
    assert again.lines("clients") == first.lines("clients")
    without = [{**r.summary, "cost": _without_seconds(r.summary["cost"])} for r in (first, again)]
    assert without[0] == without[1]
    rounds = [[_without_seconds(line) for line in r.lines("rounds")] for r in (first, again)]
    assert rounds[0] == rounds[1]
    assert (again.path / "config.toml").read_text() == (first.path / "config.toml").read_text()


def _without_seconds(costs):
    timed = ("seconds", "train_seconds", "wall_seconds", "phase_seconds", "hash")
    rest = {name: value for name, value in costs.items() if name not in timed}
    return {**rest, "costs": _without_seconds(rest["costs"])} if "costs" in rest else rest


def test_config_is_resolved(done, small):
    config = tomllib.loads((done().path / "config.toml").read_text())
    assert config["stage1"] == small().stage1.model_dump()
    assert config["lora"]["rank"] == small().lora.rank  # a default, written out


def test_summary_has_these_keys(done):
    summary = done().summary
    assert summary == done().returned
    assert [summary[k] for k in ("method", "seed", "clients", "rounds")] == ["fedms", 0, 3, 4]
    assert tuple(summary["test"]) == ROLES
    assert summary["test"]["unseen"] is None  # no client was kept out
    assert summary["test"]["unseen_adapted"] is None
    for role in ROLES[:-2]:
        scores = summary["test"][role]
        assert set(scores) == {"mean", "weighted", "worst_decile", "std", "loss", "per_client"}
        assert set(scores["per_client"]) == {"0", "1", "2"}
        assert scores["loss"] > 0
        numbers = [v for k, v in scores.items() if k not in ("loss", "per_client")]
        assert all(0 <= number <= 1 for number in [*numbers, *scores["per_client"].values()])


def test_costs_are_measured(done):
    cost = done().summary["cost"]
    assert set(cost) == COSTS
    assert cost["peak_device_bytes"] is None or cost["peak_device_bytes"] > 0
    others = {"phase_seconds", "peak_device_bytes"}
    assert all(value > 0 for name, value in cost.items() if name not in others)
    lines = done().lines("rounds")
    assert cost["train_flops"] == sum(line["costs"]["flops"] for line in lines)
    peaks = [line["costs"]["peak_activation_bytes"] for line in lines]
    assert cost["peak_activation_bytes"] == max(peaks)
    assert set(cost["phase_seconds"]) == {"cache", "train", "evaluate", "aggregate"}
    assert sum(cost["phase_seconds"].values()) < cost["wall_seconds"]
    for name in ("upload_bytes", "download_bytes"):
        assert cost[name] == sum(line[name] for line in lines)
    assert cost["train_seconds"] == pytest.approx(sum(line["seconds"] for line in lines))
    assert cost["train_seconds"] < cost["wall_seconds"]
    assert cost["trainable_parameters"] == max(line["trainable_parameters"] for line in lines)


def test_total_parameters_are_those_of_the_plain_model(done):
    from transformers import CLIPModel

    from fedms.models.names import EMBEDDED

    plain = CLIPModel.from_pretrained(EMBEDDED)
    assert done().summary["cost"]["total_parameters"] == sum(p.numel() for p in plain.parameters())


GROWING = ("sal.trigger=schedule", "sal.every=1", "sal.caps.0=2")
ACCURACIES = [
    GROWING,
    ("method=fedavg", "partition.clients=12", "stage1.rounds=1", "stage2.rounds=0"),
]


@pytest.mark.parametrize("overrides", ACCURACIES, ids=["fedms", "fedavg, 12 clients"])
def test_summary_follows_from_the_clients_lines(done, small, overrides):
    finished = done(*overrides)
    sizes = {c.id: c.test for c in build(small(*overrides)).partition}
    lines = finished.lines("clients")
    last = [line for line in lines if line["round"] == finished.summary["rounds"]]
    assert sorted(line["id"] for line in last) == sorted(sizes)
    checked = 0
    for split, key in (("test", "test"), ("validation", "validation")):
        for role in ("global", "local", "personal"):
            scores = finished.summary[split][role]
            by_client = {line["id"]: line[key].get(role) for line in last}
            known = {c: a for c, a in by_client.items() if a is not None}
            if scores is None:
                assert known == {}
                continue
            accuracy = np.array(list(known.values()))
            assert scores["per_client"] == known
            assert scores["mean"] == pytest.approx(accuracy.mean())
            assert scores["std"] == pytest.approx(
                np.sqrt(((accuracy - accuracy.mean()) ** 2).mean())
            )
            worst = sorted(known.values())[: math.ceil(0.1 * len(known))]
            assert scores["worst_decile"] == pytest.approx(sum(worst) / len(worst))
            if split == "test":
                weights = np.array([sizes[c] for c in known])
                assert scores["weighted"] == pytest.approx(
                    (accuracy * weights).sum() / weights.sum()
                )
            checked += 1
    assert checked >= 4


def test_accuracies_differ_enough_to_tell_the_numbers_apart(done):
    """Guards the test above: with equal scores it could not see a role or a weight mixed up."""
    test = done(*GROWING).summary["test"]
    assert len({test[role]["mean"] for role in ROLES[:4]}) == 4
    assert test["personal"]["mean"] != test["personal"]["weighted"]


def test_clients_lines_have_sizes_depth_and_gate_weight(done, small):
    partition = {c.id: c for c in build(small()).partition}
    lines = done().lines("clients")
    for line in lines:
        mine = partition[line["id"]]
        sizes = line.get("rows", line)
        assert [sizes[n] for n in ("train", "val", "test")] == [mine.train, mine.val, mine.test]
        assert line["classes"] == mine.classes
    stages = {(line["round"], line["stage"]) for line in lines}
    assert stages == {(2, 1), (4, 2)}  # the ends of both stages
    for line in lines:
        first = line["stage"] == 1
        assert (line["depth"] is None) == (line["gate_weight"] is None) == first
        assert first or (line["depth"] >= 1 and 0 < line["gate_weight"] < 1)


def test_without_a_mixture_there_is_no_gate_weight(done):
    lines = done("method=local").lines("clients")
    assert {line["gate_weight"] for line in lines} == {None}


EVALUATED = [(0, [2, 4]), (1, [1, 2, 3, 4]), (3, [2, 3, 4])]


@pytest.mark.parametrize(("every", "rounds"), EVALUATED)
def test_evaluate_every(done, every, rounds):
    finished = done(f"evaluate_every={every}")
    lines = finished.lines("clients")
    assert [line["round"] for line in lines] == [r for r in rounds for _ in range(3)]
    usual = {k: v for k, v in finished.summary.items() if k != "cost"}
    assert usual == {k: v for k, v in done().summary.items() if k != "cost"}
    assert finished.bytes() == done().bytes()  # looking changes nothing


def test_what_cannot_be_measured_is_null(done):
    linear = done("model.head=linear", "stage1.rounds=1", "stage2.rounds=1")
    assert linear.summary["test"]["zero_shot"] is None  # an untrained head has no opinion
    assert 0 < linear.summary["test"]["personal"]["mean"] < 1
    files = {p.relative_to(linear.path).parent.as_posix() for p in linear.path.rglob("head.s*")}
    assert files == {"adapters/global", *(f"adapters/clients/{c}/local" for c in "012")}


def test_without_test_or_validation_rows(done):
    finished = done("partition.test_fraction=0.0", "partition.val_fraction=0.0")
    for split in ("test", "validation"):
        assert set(finished.summary[split].values()) == {None}
    assert [line["validation"] for line in finished.lines("rounds")] == [None] * 4
    assert finished.bytes().keys() == done().bytes().keys()
