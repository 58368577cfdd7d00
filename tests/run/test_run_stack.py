"""Stacked clients in whole runs: the same models but for rounding, whoever trains with whom.

One fit is the same within 1e-5 (`tests/models/test_stack.py`); over rounds, rounding adds up.
"""

from __future__ import annotations

import json

import pytest
import torch

from fedms.run import RoundDone, run

COMMON = ("runtime.threads=1", "partition.clients=5", "stage1.cohort=4", "training.batch_size=8")


@pytest.fixture(scope="module")
def alone(done):
    return done(*COMMON, "training.learning_rate=1e-3")


def close(got, expected):
    """Rounding may turn steps of the optimiser, each of them at most the learning rate.

    One step on the CPU; several on a GPU, whose convolutions are in TF32 (0.0054 on an H100).
    """
    assert got.keys() == expected.keys()
    apart = [(got[name] - tensor).abs().flatten() for name, tensor in expected.items()]
    if torch.cuda.is_available():
        assert float(torch.cat(apart).mean()) < 2e-4
        assert float(torch.cat(apart).max()) < 1e-2
    else:
        assert max(float(each.mean()) for each in apart) < 1e-5
        assert max(float(each.max()) for each in apart) <= 1e-3


@pytest.mark.parametrize("more", [["runtime.stack=2"], ["runtime.stack=9"]])
def test_the_same_models_and_records(done, alone, more):
    stacked = done(*COMMON, "training.learning_rate=1e-3", *more)
    close(stacked.tensors(), alone.tensors())
    for one, other in zip(alone.lines("rounds"), stacked.lines("rounds"), strict=True):
        same = ("cohort", "depth", "client_depths", "rejected", "upload_bytes", "download_bytes")
        assert {key: other[key] for key in same} == {key: one[key] for key in same}
    assert stacked.summary["test"]["personal"]["mean"] == pytest.approx(
        alone.summary["test"]["personal"]["mean"], abs=0.02
    )


@pytest.mark.slow
def test_workers_have_stacks_of_their_own(done, alone):
    words = ("training.learning_rate=1e-3", "runtime.workers=2", "runtime.stack=2")
    close(done(*COMMON, *words).tensors(), alone.tensors())


def test_what_a_client_costs_does_not_depend_on_its_stack(done, alone):
    stacked = done(*COMMON, "training.learning_rate=1e-3", "runtime.stack=9")
    one, other = (run.summary["cost"] for run in (alone, stacked))
    assert other["train_flops"] == pytest.approx(one["train_flops"], rel=0.01)
    assert other["peak_activation_bytes"] == pytest.approx(one["peak_activation_bytes"], rel=0.1)


def test_what_auto_came_to_is_recorded(done, alone):
    facts = json.loads((alone.path / "environment.json").read_text())
    assert facts["device"].split(":")[0] in ("cpu", "cuda", "mps")
    assert facts["precision"] == "float32"  # glyphclip is narrow
    assert facts["threads"] == 1


def test_rounds_are_reported_as_they_end(small, tmp_path):
    seen = []
    run(small("runtime.stack=3"), tmp_path / "run", watch=seen.append)
    rounds = [event.record for event in seen if isinstance(event, RoundDone)]
    assert [record.round for record in rounds] == [0, 1, 2, 3]
    assert all(record.costs.flops > 0 for record in rounds)
