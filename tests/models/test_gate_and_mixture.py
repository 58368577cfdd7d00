"""The gate, the three mixtures and the class prior, against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedms.models.gate import gate_weights, initial_gate
from fedms.models.mixture import (
    class_evidence,
    log_prior,
    mix_linear,
    mix_probabilities,
    novelty,
)
from fedms.models.resident import alone

WIDTH, ROWS, CLASSES = 8, 5, 4


def numbers(*shape, low=-20.0, high=20.0):
    return arrays.arrays(np.float64, shape, elements=st.floats(low, high))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x):
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def gelu(x):
    return np.array([0.5 * v * (1 + math.erf(v / 2**0.5)) for v in x.ravel()]).reshape(x.shape)


def gate_by_hand(t, h):
    t = {name: value.double().numpy() for name, value in t.items()}
    h = h / np.linalg.norm(h, axis=-1, keepdims=True) * h.shape[-1] ** 0.5
    inner = gelu(h @ t["down.weight"].T + t["down.bias"])
    h = h + inner @ t["up.weight"].T + t["up.bias"]
    return log_softmax(h @ t["head.weight"].T + t["head.bias"])


def random_gate(seed, width=WIDTH):
    rng = torch.Generator().manual_seed(seed)
    shapes = {n: t.shape for n, t in initial_gate(width, 0, 2).items()}
    return {n: torch.randn(shape, generator=rng) for n, shape in shapes.items()}


def tensor(x):
    return torch.from_numpy(np.ascontiguousarray(x)).float()


@pytest.mark.parametrize("seed", range(4))
def test_gate_by_hand(seed):
    """Two clients at once, each with its own gate and features."""
    gates = [random_gate(seed), random_gate(seed + 10)]
    both = {name: torch.stack([gate[name] for gate in gates]) for name in gates[0]}
    features = np.random.default_rng(seed).normal(size=(2, ROWS, WIDTH)) * 10.0**seed
    expected = [gate_by_hand(*pair) for pair in zip(gates, features, strict=True)]
    np.testing.assert_allclose(gate_weights(both, tensor(features)).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("inner", [1, 2, 5])
@pytest.mark.parametrize("width", [1, 3, 4, 16])
def test_a_new_gate_is_even_and_its_adapter_the_identity(width, inner):
    tensors = initial_gate(width, 3, inner)
    assert tensors["down.weight"].shape == (inner, width)
    features = torch.linspace(-2, 3, 2 * width).reshape(2, width)

    def weights():
        return gate_weights(alone(tensors), features[None])[0].numpy()

    np.testing.assert_allclose(weights(), math.log(0.5), atol=1e-6)
    tensors["head.weight"] = torch.eye(2, width)
    plain = {**tensors, "down.weight": torch.zeros_like(tensors["down.weight"])}
    by_hand = gate_by_hand(plain, features.double().numpy())
    np.testing.assert_allclose(weights(), by_hand, atol=1e-5)
    assert tensors["down.weight"].abs().max() <= width**-0.5


def test_a_new_gate_depends_on_the_seed_alone():
    first, again, other = initial_gate(8, 1, 2), initial_gate(8, 1, 2), initial_gate(8, 2, 2)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["down.weight"], other["down.weight"])


@settings(deadline=None, max_examples=60)
@given(numbers(ROWS, 2), numbers(ROWS, CLASSES), numbers(ROWS, CLASSES))
def test_mixture_of_probabilities(weights, one, two):
    w = softmax(weights)
    expected = w[:, :1] * softmax(one) + w[:, 1:] * softmax(two)
    got = mix_probabilities(tensor(log_softmax(weights)), tensor(one), tensor(two)).numpy()
    np.testing.assert_allclose(np.exp(got), expected, atol=1e-5)
    np.testing.assert_allclose(np.exp(got).sum(1), 1, atol=1e-5)


def test_mixture_of_probabilities_stays_finite_where_floats_end():
    weights = torch.tensor([[0.0, -200.0], [-200.0, 0.0]])
    one, two = torch.tensor([[300.0, -300.0]] * 2), torch.tensor([[-300.0, 300.0]] * 2)
    got = mix_probabilities(weights, one, two)
    torch.testing.assert_close(got, torch.tensor([[0.0, -200.0], [-200.0, 0.0]]))


@settings(deadline=None, max_examples=60)
@given(numbers(ROWS, 2), numbers(ROWS, CLASSES), numbers(ROWS, CLASSES))
def test_linear_mixture(weights, one, two):
    w = softmax(weights)
    got = mix_linear(tensor(log_softmax(weights)), tensor(one), tensor(two)).numpy()
    np.testing.assert_allclose(got, w[:, :1] * one + w[:, 1:] * two, atol=1e-4)


@given(
    st.lists(st.integers(0, CLASSES - 1), max_size=40),
    st.sampled_from([0.01, 0.5, 1.0, 100.0]),
)
def test_log_prior(labels, smoothing):
    got = log_prior(np.array(labels, dtype=np.int64), CLASSES, smoothing)
    total = len(labels) + smoothing * CLASSES
    expected = [math.log((labels.count(c) + smoothing) / total) for c in range(CLASSES)]
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


@given(st.lists(st.integers(0, CLASSES - 1), max_size=12))
def test_novelty_is_how_often_a_row_would_have_been_new(labels):
    """Each row left out in turn: is its class among the others'? With one trial more, half new."""
    new = sum(label not in labels[:i] + labels[i + 1 :] for i, label in enumerate(labels))
    counts = np.bincount(np.array(labels, dtype=np.int64), minlength=CLASSES)
    assert math.exp(novelty(counts)) == pytest.approx((new + 0.5) / (len(labels) + 1))


@given(st.lists(st.integers(0, CLASSES - 1), max_size=12), st.floats(0.01, 10))
def test_what_counting_says_of_classes(labels, smoothing):
    rows = np.array(labels, dtype=np.int64)
    prior, unseen = class_evidence(rows, CLASSES, smoothing)
    assert torch.equal(prior, log_prior(rows, CLASSES, smoothing))
    counts = np.bincount(rows, minlength=CLASSES)
    assert unseen.tolist() == pytest.approx([0.0 if n else novelty(counts) for n in counts])
    assert (unseen < 0).tolist() == (counts == 0).tolist()
