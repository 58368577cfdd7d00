"""Costs of training against numbers by hand, and what is not counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fedms.core.algorithm import Expert, Fit, View
from fedms.core.costs import Costs
from fedms.models import Training
from fedms.models import meter as meter_module
from fedms.models.meter import Meter


def test_a_linear_step_by_hand():
    weight = torch.randn(16, 32)
    x = torch.randn(8, 16, requires_grad=True)
    meter = Meter(lambda: [weight])
    for _ in range(3):
        with meter.step("linear"):
            F.gelu(x @ weight).sum().backward()
    costs = meter.take()
    assert costs.flops == 3 * 2 * (2 * 8 * 16 * 32)  # forward, and the gradient of x
    assert costs.peak_activation_bytes == 8 * 32 * 4  # what gelu saw; the weight is no activation
    assert meter.take() == Costs()


def test_attention_is_counted_on_this_machine():
    batch, heads, tokens, width = 2, 4, 10, 8
    q, k, v = (torch.randn(batch, heads, tokens, width, requires_grad=True) for _ in range(3))
    meter = Meter(list)
    with meter.step("attention"):
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    product = 2 * batch * heads * tokens * tokens * width
    # two products forward; backward those of four gradients, and the scores once more
    assert meter.take().flops == 2 * product + 5 * product


@pytest.mark.parametrize("kind", ["bert", "distilbert", "vit", "dinov2"])
@pytest.mark.parametrize("inference", [False, True])
def test_as_torchs_own_counter_has_it(model_folder, kind, inference):
    """That one keeps a table of modules, which takes longer than a small step."""
    model = transformers.AutoModel.from_pretrained(model_folder(kind), attn_implementation="eager")
    image = kind in ("vit", "dinov2")
    batch = torch.randn(3, 3, 16, 16) if image else torch.randint(20, (3, 7))

    def step():
        with torch.inference_mode(inference):
            said = model(batch).last_hidden_state
            if not inference:
                said.sum().backward()

    meter = Meter(list)
    with meter.step("a"):
        step()
    with FlopCounterMode(display=False) as torchs:
        step()
    assert meter.take().flops == torchs.get_total_flops() > 10_000


def test_only_the_first_step_of_a_kind_is_looked_at():
    meter = Meter(list)
    x = torch.randn(4, 4)
    with meter.step("a"):
        x @ x
    with meter.step("a"):
        pass
    with meter.step("b"):
        pass
    assert meter.take().flops == 2 * (2 * 4 * 4 * 4)


def test_what_follows_from_earlier_counts_is_not_counted():
    """Steps with products of sizes linear in clients and rows, quadratic in tokens."""

    def step(meter, clients, rows, tokens, look=True):
        with meter.step("a", clients, rows, tokens):
            if look:
                x = torch.randn(rows, tokens, 4, requires_grad=True)
                torch.tanh(x @ x.mT).sum().backward()
                torch.randn(clients, 3) @ torch.randn(3, 2)

    meter = Meter(list)
    some = [(1, 2, 3), (1, 2, 5), (1, 4, 3), (1, 3, 7), (1, 4, 5), (1, 7, 9), (1, 2, 4), (1, 5, 6)]
    for sizes in some:
        step(meter, *sizes)
    meter.take()
    step(meter, 1, 50, 40, look=False)
    costs = meter.take()
    assert costs.flops == 3 * 2 * 50 * 40 * 40 * 4 + 2 * 3 * 2
    assert costs.peak_activation_bytes == 4 * (50 * 40 * 4 + 50 * 40 * 40)
    step(meter, 2, 50, 40)  # one client so far: nothing is known of two
    assert meter.take().flops == 3 * 2 * 50 * 40 * 40 * 4 + 2 * 2 * 3 * 2


def test_what_follows_no_law_is_counted():
    meter = Meter(list)
    for n in range(1, 30):
        with meter.step("cubic", n):
            torch.randn(n, n) @ torch.randn(n, n)
        assert meter.take().flops == 2 * n**3


@pytest.mark.slow
def test_a_run_over_texts_costs_what_counting_every_step_says(
    make_learner, make_client, monkeypatch
):
    def spent(laws):
        learner = make_learner("sentence", training=Training(batch_size=2))
        client = make_client(learner.backbone, rows=60)
        with monkeypatch.context() as patch:
            if not laws:
                patch.setattr(meter_module._Law, "cost", lambda law, sizes: None)
            counted = []
            original = Meter._count
            patch.setattr(Meter, "_count", lambda self: counted.append(1) or original(self))
            names = learner.layout.expert(2)
            fit = Fit(View(Expert(learner.initial_expert(names, 0))), names, client, 3, 0)
            learner.fit([fit])
            learner.score(fit.view, client, "val")
        return replace(learner.spent(), seconds={}), len(counted)

    costs, counted = spent(laws=True)
    all_costs, steps = spent(laws=False)
    assert costs == all_costs
    assert 0 < counted < steps / 3


def test_a_step_that_fails_is_not_known():
    meter = Meter(list)
    for _ in range(2):
        try:
            with meter.step("a"):
                raise ValueError
        except ValueError:
            pass
    assert meter.take() == Costs()


def test_evaluation_costs_seconds_alone():
    meter = Meter(list)
    x = torch.randn(4, 4)
    with meter.phase("train"), meter.phase("evaluate"), meter.step("a"):
        x @ x
    with meter.phase("train"), meter.step("a"):
        x @ x
    costs = meter.take()
    assert costs.flops == 2 * 4 * 4 * 4
    assert set(costs.seconds) == {"train", "evaluate"}


def step_by_hand(config, rank, classes, rows, tokens, depth):
    """FLOPs of a training step of a sentence encoder, forward in all blocks, backward in `depth`.

    A product of sizes m, k and n costs 2·m·k·n. Backward, what is frozen costs its size once for
    the gradient of its input; the lowest active block needs no gradient of its own input.
    """
    width, inner, all_tokens = config.hidden_size, config.intermediate_size, rows * tokens
    square, mlp = 2 * all_tokens * width * width, 2 * all_tokens * width * inner
    attention = 2 * rows * tokens * tokens * width  # one of the two products, over all heads
    low = 2 * all_tokens * width * rank  # A or B of one projection
    score = 2 * rows * width * classes
    forward = config.num_hidden_layers * (4 * square + 2 * mlp + 2 * attention)
    forward += depth * 2 * 2 * low + score
    lowest = square + 2 * mlp + 5 * attention + 2 * 3 * low  # A, B and what comes to A's output
    above = lowest + 3 * square + 2 * low  # and the gradient of the input
    return forward + lowest + (depth - 1) * above + score


@pytest.mark.parametrize("depth", [1, 2])
def test_one_step_of_a_sentence_encoder_by_hand(make_learner, make_client, depth):
    learner = make_learner("sentence", training=Training(batch_size=99))
    client = make_client(learner.backbone, rows=6)
    words = client.train.columns["input_ids"]
    same = np.flatnonzero([len(row) == len(words[0]) for row in words])
    client = replace(client, train=client.train.take(same))
    names = learner.layout.expert(depth)
    rank = learner.slots.shapes[sorted(names)[0]][0]
    learner.spent()
    learner.fit([Fit(View(Expert(learner.initial_expert(names, 0))), names, client, 1, 0)])
    config = learner.backbone.model.config
    expected = step_by_hand(config, rank, learner.head.classes, len(same), len(words[0]), depth)
    assert learner.spent().flops == expected


def test_costs_of_fit_add_up_over_epochs(make_learner, make_client):
    learner = make_learner("clip")
    client = make_client(learner.backbone)
    names = learner.layout.expert(1)
    view = View(Expert(learner.initial_expert(names, 0)))
    learner.spent()
    learner.fit([Fit(view, names, client, 1, 0)])
    once = learner.spent()
    learner.fit([Fit(view, names, client, 3, 0)])
    thrice = learner.spent()
    assert thrice.flops == 3 * once.flops > 0
    assert thrice.peak_activation_bytes == once.peak_activation_bytes > 0
    learner.score(view, client, "test")
    assert learner.spent().flops == 0


def test_what_a_step_costs_is_known_whatever_the_learning_rate(make_learner, make_client):
    learner = make_learner("clip")
    client, names = make_client(learner.backbone), learner.layout.expert(1)
    spent, known = [], []
    for rate in (1.0, 0.5, 0.25):
        view = View(Expert(learner.initial_expert(names, 0)))
        learner.fit([Fit(view, names, client, 2, 0, rate)])
        spent.append(learner.spent().flops)
        known.append(len(learner.meter._laws))
    assert spent[1] == spent[2] > 0
    assert len(set(known)) == 1


def test_costs_do_not_depend_on_who_was_first(make_learner, make_client):
    """A step with more adapters below the trained ones costs more, whichever comes first."""
    spent = []
    for depths in ((1, 3), (3, 1)):
        learner = make_learner("clip")
        client = make_client(learner.backbone)
        names = learner.layout.expert(1)
        costs = {}
        for depth in depths:
            expert = Expert(learner.initial_expert(learner.layout.expert(depth), 0))
            learner.fit([Fit(View(expert), names, client, 1, 0)])
            costs[depth] = learner.spent().flops
        spent.append(costs)
    assert spent[0] == spent[1]
    assert spent[0][3] > spent[0][1]
