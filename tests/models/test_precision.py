"""Computing in bfloat16: the frozen model alone, and close to what float32 gives."""

from __future__ import annotations

import pytest
import torch

from fedms.build import pick_precision
from fedms.core.algorithm import Expert, View

MODELS = ["clip", "sentence", "vit", "roberta", "dinov2"]


@pytest.fixture
def pair(make_learner):
    """The same learner in float32 and in bfloat16."""

    def make(kind, **options):
        exact, half = make_learner(kind, **options), make_learner(kind, **options)
        half.backbone.compute_in(torch.bfloat16)
        for parameter in half.slots.parameters.values():
            parameter.data = parameter.data.float()
        return exact, half

    return make


@pytest.mark.parametrize("kind", MODELS)
def test_features_are_close_and_float32(pair, make_rows, kind):
    exact, half = pair(kind)
    rows = make_rows(exact.backbone, 8)
    expected, got = (learner.features(Expert({}), rows) for learner in (exact, half))
    assert half.backbone.dtype == torch.bfloat16
    assert got.dtype == torch.float32
    assert torch.cosine_similarity(got, expected).min() > 0.99
    assert not torch.equal(got, expected)


@pytest.mark.parametrize("kind", MODELS)
def test_adapters_are_float32_and_learn(pair, make_client, kind):
    _, half = pair(kind, cache_bytes=10**7)
    client = make_client(half.backbone)
    names = half.layout.expert(1)
    view = View(Expert(half.initial_expert(names, 0)))
    after = half.fit(view, names, client, epochs=8, seed=0)
    assert {t.dtype for t in after.expert.tensors.values()} == {torch.float32}
    assert half.score(after, client, "train").loss < half.score(view, client, "train").loss
    assert {kept.states.dtype for kept in half.prefixes._kept.values()} == {torch.bfloat16}


def test_half_of_the_bytes_are_kept_and_saved_for_the_backward_pass(pair, make_client):
    spent = []
    for learner in pair("clip", cache_bytes=10**7):
        client = make_client(learner.backbone)
        names = learner.layout.expert(2)
        view = View(Expert(learner.initial_expert(names, 0)))
        learner.fit(view, names, client, epochs=1, seed=0)
        spent.append(learner.spent())
    exact, half = spent
    assert half.cache_bytes * 2 == exact.cache_bytes
    assert half.peak_activation_bytes < 0.75 * exact.peak_activation_bytes


def test_auto_is_bfloat16_only_where_the_hardware_has_it(monkeypatch):
    wide = type("Wide", (), {"device": torch.device("cpu"), "width": 512})
    narrow = type("Narrow", (), {"device": torch.device("cpu"), "width": 64})
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=has: has)
        assert pick_precision("auto", wide) == expected
        assert pick_precision("auto", narrow) == torch.float32
        assert pick_precision("float32", wide) == torch.float32
        assert pick_precision("bfloat16", narrow) == torch.bfloat16
