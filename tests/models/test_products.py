"""Products of bfloat16 on CPUs without instructions for them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fedms.core.algorithm import Expert, Fit, View
from fedms.models import Training, products
from fedms.models.products import products_of

CPU_DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture
def without(monkeypatch):
    """A CPU that has none."""
    monkeypatch.setattr(products, "cpu_has_products", lambda: False)


def tensors(*shapes):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=rng).bfloat16() for shape in shapes]


PRODUCTS = {
    "mm": (torch.mm, (5, 33), (33, 7)),
    "addmm": (torch.addmm, (7,), (5, 33), (33, 7)),
    "bmm": (torch.bmm, (2, 5, 33), (2, 33, 7)),
    "baddbmm": (torch.baddbmm, (2, 5, 7), (2, 5, 33), (2, 33, 7)),
    "linear": (F.linear, (2, 5, 33), (7, 33), (7,)),
    "matmul": (torch.matmul, (2, 3, 5, 33), (2, 3, 33, 7)),
    "conv2d": (F.conv2d, (2, 3, 8, 8), (4, 3, 4, 4), (4,)),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("inference", [True, False])
def test_a_product_and_its_gradients_are_those_of_float32_rounded(without, name, inference):
    call, *shapes = PRODUCTS[name]
    given = tensors(*shapes)
    exact = call(*(x.float() for x in given))
    with torch.inference_mode(inference), products_of(given[0]):
        assert torch.equal(call(*given), exact.bfloat16())
    if inference:
        return
    for x in given:
        x.requires_grad_(True)
    wide = [x.detach().float().requires_grad_(True) for x in given]
    with products_of(given[0]):
        out = call(*given)
        got = torch.autograd.grad(out, given, torch.ones_like(out))
    out = call(*wide)
    expected = torch.autograd.grad(out, wide, torch.ones_like(out))
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, rtol=2**-7, atol=2**-7)


def test_float32_and_cpus_that_have_them_are_left_alone(monkeypatch):
    ours, theirs = (torch.ones(2, 2, dtype=dtype) for dtype in CPU_DTYPES)
    for has in (True, False):
        monkeypatch.setattr(products, "cpu_has_products", lambda has=has: has)
        for weight in (ours, theirs):
            on = not has and weight is theirs
            assert isinstance(products_of(weight), products._InFloat32) == on


@pytest.mark.parametrize("kind", ["clip", "sentence", "vit"])
def test_training_and_costs_are_those_of_a_cpu_that_has_them(
    make_learner, make_client, monkeypatch, kind
):
    """Sums are in another order at most; what is counted is the same, and so is what is kept."""
    found = []
    for has in (True, False):
        monkeypatch.setattr(products, "cpu_has_products", lambda has=has: has)
        training = Training(batch_size=4, learning_rate=0.01)
        learner = make_learner(kind, dtype=torch.bfloat16, training=training, cache_bytes=10**7)
        client, names = make_client(learner.backbone), learner.layout.expert(2)
        view = View(Expert(learner.initial_expert(names, 0)))
        (after,) = learner.fit([Fit(view, names, client, 3, 0)])
        found.append((after.expert.tensors, learner.score(after, client, "train"), learner.spent()))
    (native, score, spent), (ours, other, cost) = found
    for name, tensor in native.items():
        assert not torch.equal(tensor, view.expert.tensors[name])
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0.03)
    assert other.loss == pytest.approx(score.loss, rel=0.02)
    assert cost.flops == spent.flops > 0
    assert cost.peak_activation_bytes == spent.peak_activation_bytes > 0
    assert cost.cache_bytes == spent.cache_bytes > 0
