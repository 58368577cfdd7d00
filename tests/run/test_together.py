"""Rows of several clients' models in one pass: each model says what it says alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from fedms import data
from fedms.core.algorithm import Expert
from fedms.core.rows import Rows
from fedms.models import predict_together
from fedms.models.prefix import SplitForward
from fedms.use import NEW, Models

COMMON = ("runtime.threads=1", "partition.unseen_clients=1")
WAYS = {
    "all that is ours": ("gate.statistics=personal",),
    "features": ("gate.calibration=false", "gate.mix=features"),
    "a linear head": ("model.head=linear",),
    "two experts in every layer": ("method=dual",),
    "an MLP that weighs both": ("method=dual", "baselines.gate_hidden=4"),
    "ranks of their own": ("method=flexlora", "lora.ranks.0=2"),
    "learned prompts": ("method=promptfl",),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys(), scope="module")
def models(request, done):
    return Models(done(*COMMON, *request.param).path)


def rows(models: Models, start: int, count: int) -> Rows:
    found = load_digits().images[start : start + count]
    return models.encoded(data.Table("image", [np.uint8(x * 15) for x in found], [""] * count))


def alike(found, expected):
    for name in ("personal", "shared", "own", "gate_weight"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert torch.allclose(a, b, atol=2e-5), (name, (a - b).abs().max())


@pytest.mark.parametrize("counts", [(4, 4, 4), (3, 1, 2)])
def test_a_mixed_batch_says_what_each_model_says_alone(models, counts):
    clients = [*(models.clients or ["0", "1"])[:2], NEW]  # or all have the shared one
    parts = [
        (models.model(who), rows(models, 20 * i, n))
        for i, (who, n) in enumerate(zip(clients, counts, strict=True))
    ]
    found = predict_together(parts)
    assert len(found) == 3
    for (model, part), said in zip(parts, found, strict=True):
        alike(said, model.predict(part))
    if models.config.method == "fedms":
        swapped = predict_together([(parts[1][0], parts[0][1]), (parts[0][0], parts[0][1])])
        assert not torch.allclose(swapped[0].personal, found[0].personal, atol=1e-3)


def test_what_lies_below_all_adapters_runs_once_a_row(done, monkeypatch):
    models = Models(done(*COMMON, *WAYS["all that is ours"]).path)
    seen = []
    prefix = SplitForward.prefix

    def count(self, batch, boundary):
        seen.append((len(next(iter(batch.values()))), boundary))
        return prefix(self, batch, boundary)

    monkeypatch.setattr(SplitForward, "prefix", count)
    parts = [(models.model(who), rows(models, 9 * i, 5)) for i, who in enumerate(models.clients)]
    predict_together(parts)
    lowest = min(
        models.learner.slots.lowest(x.tensors) for m, _ in parts for x in (m.expert, m.partner)
    )
    assert seen == [(5 * len(parts), lowest)]
    assert 0 < lowest < models.learner.prefixes.split.blocks


def test_models_of_unequal_depth_share_a_pass(done):
    models = Models(done(*COMMON, *WAYS["all that is ours"]).path)
    first, second = (models.model(who) for who in models.clients[:2])
    slots = models.learner.slots
    deep = {n: slots.initial(n, 7) for n in slots.groups[0]}
    deep = {n: t if n in slots.down else torch.full_like(t, 0.05) for n, t in deep.items()}
    second = replace(second, expert=Expert({**second.expert.tensors, **deep}))
    bare = replace(first, expert=Expert({}))
    parts = [(first, rows(models, 0, 3)), (second, rows(models, 10, 2)), (bare, rows(models, 5, 1))]
    for (model, part), said in zip(parts, predict_together(parts), strict=True):
        alike(said, model.predict(part))


def test_models_are_kept_up_to_a_number_of_bytes(done):
    path = done(*COMMON, *WAYS["all that is ours"]).path
    small, large = Models(path, room=1), Models(path)
    for models in (small, large):
        first = models.model(models.clients[0])
        models.model(models.clients[1])
        again = models.model(models.clients[0])
        assert (again is first) == (models is large)
        assert again.partner is models.common.expert  # the global expert is in memory once
    assert first.bytes == sum(
        t.nbytes
        for f in (path / "adapters" / "clients" / large.clients[0]).rglob("*.safetensors")
        for t in load_file(f).values()
    )
