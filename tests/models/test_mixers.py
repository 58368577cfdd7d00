"""Gates with hidden units, which all projections of a block with the same input share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fedms.core.algorithm import Expert, Fit, View
from fedms.core.errors import UserError
from fedms.models import Training, save_expert
from fedms.models.adapters import Factor, Gate
from fedms.models.resident import alone
from fedms.models.saved import Common, SavedModel

HIDDEN = 5
OF_A_GATE = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")


def some(layout, names, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {n: 0.5 * torch.randn(layout.shapes[n], generator=rng) for n in sorted(names)}


def mixed(learner, seed=0):
    """An expert over another, with gates; none of their tensors is zero."""
    layout = learner.layout
    pairs = {n for pair in layout.pairs for n in pair}
    own = some(layout, pairs | layout.mixing(3) | {*layout.head}, seed)
    return Expert(own, beneath=some(layout, pairs, seed + 100))


@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize("shape", [(), (6,)])
def test_a_gate_against_numpy(clients, shape):
    rng = np.random.default_rng(0)
    own, other, width, batch = 2, 3, 7, 4
    sizes = (HIDDEN, width), (HIDDEN,), (2, HIDDEN), (2,)
    inner, bias, outer, last = tensors = [rng.normal(size=(clients, *size)) for size in sizes]
    weights = [rng.normal(size=(clients, own + other, width)) for _ in range(2)]
    gate, factors = Gate(OF_A_GATE, 2), [Factor(own), Factor(own)]
    gate.tensors = {n: torch.from_numpy(t) for n, t in zip(OF_A_GATE, tensors, strict=True)}
    for factor, weight in zip(factors, weights, strict=True):
        factor.weight, factor.gate = torch.from_numpy(weight), gate
    for _ in range(2):
        x = rng.normal(size=(clients * batch, *shape, width))
        inputs = torch.from_numpy(x)
        for factor, weight in zip(factors, weights, strict=True):
            got = factor(inputs).numpy()
            for row in range(clients * batch):
                c = row // batch
                hidden = np.maximum(x[row] @ inner[c].T + bias[c], 0)
                e = np.exp(hidden @ outer[c].T + last[c])
                share = e / e.sum(-1, keepdims=True)
                z = x[row] @ weight[c].T
                parts = z[..., :own] * share[..., :1], z[..., own:] * share[..., 1:]
                np.testing.assert_allclose(got[row], np.concatenate(parts, -1), atol=1e-12)


class Plainly:
    """Both products in a projection of a plain model, weighed in plain sight."""

    def __init__(self, expert: Expert, down: str, gate: str, scale: float) -> None:
        up = down.replace("lora_A", "lora_B")
        self.pairs = [(t[down], t[up]) for t in (expert.tensors, expert.beneath)]
        self.gate = [expert.tensors[f"{gate}{name}"] for name in OF_A_GATE]
        self.scale = scale

    def __call__(self, module, args, output):
        (x,), (inner, bias, outer, last) = args, self.gate
        share = F.softmax(F.relu(x @ inner.T + bias) @ outer.T + last, -1)
        products = [x @ a.T @ b.T for a, b in self.pairs]
        return output + self.scale * (share[..., :1] * products[0] + share[..., 1:] * products[1])


@pytest.mark.parametrize("kind", ["clip", "vit", "sentence", "distilbert"])
@pytest.mark.parametrize("targets", ["qv", "vkqo"])
def test_a_model_with_gates_against_hooks_on_a_plain_one(make_learner, make_rows, kind, targets):
    """Of one client and of two in a stack; q, k and v of a block have one gate, o its own."""
    learner, plain = (make_learner(kind, targets=targets, gate_hidden=h) for h in (HIDDEN, 0))
    experts, rows = [mixed(learner), mixed(learner, 1)], make_rows(learner.backbone, 4)
    model, slots = plain.backbone.model, learner.slots
    paths = [a.removeprefix("base_model.model.").split(".lora_A")[0] for a, _ in slots.pairs]
    after = (".out_proj", ".o_proj", ".out_lin", ".attention.output.dense")
    expected = []
    for expert in experts:
        hooks = []
        for path, (down, _) in zip(paths, slots.pairs, strict=True):
            block = path[len(slots.root) + 1 :].split(".")[0]
            place = path if path.endswith(after) else f"{slots.root}.{block}"
            gate = f"base_model.model.{place}.mixer."
            hook = Plainly(expert, down, gate, scale=2.0)
            hooks.append(model.get_submodule(path).register_forward_hook(hook))
        expected.append(plain.backbone.features(plain.backbone.collate(rows)))
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(
            learner.features(expert, rows), expected[-1], atol=1e-4, rtol=1e-3
        )
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    twice = learner.backbone.collate(rows.take(np.tile(np.arange(4), 2)))
    adapters = [learner.adapters(e.tensors, e.beneath) for e in experts]
    stacked = {n: torch.stack([own[n] for own in adapters]) for n in adapters[0]}
    with torch.no_grad(), slots.holding(stacked):
        got = learner.backbone.features(twice)
    torch.testing.assert_close(got, torch.cat(expected), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "root"),
    [("clip", "vision_model.encoder.layers"), ("sentence", "encoder.layer")],
)
def test_names_and_shapes(make_learner, kind, root):
    layout = make_learner(kind, gate_hidden=HIDDEN).layout
    shapes = ((HIDDEN, 16), (HIDDEN,), (2, HIDDEN), (2,))
    for index, names in enumerate(layout.mixers):
        assert names == tuple(f"base_model.model.{root}.{index}.mixer.{n}" for n in OF_A_GATE)
        assert tuple(layout.shapes[n] for n in names) == shapes
    assert len(layout.mixers) == 3
    more = make_learner(kind, targets="oq", gate_hidden=HIDDEN).layout.mixers
    assert [len(names) for names in more] == [8] * 3


def test_a_new_gate_is_random_inside_and_even(make_learner, make_rows):
    """To the bit as a linear gate begins, whatever the seed."""
    learner, linear = (make_learner("vit", gate_hidden=h) for h in (HIDDEN, 0))
    rows, names = make_rows(learner.backbone, 5), learner.layout.mixing(3)
    gates = [learner.initial_expert(names, seed) for seed in (0, 0, 1)]
    for name in names:
        tensors = [gate[name] for gate in gates]
        assert torch.equal(tensors[0], tensors[1])
        assert tensors[0].any() == name.endswith("inner.weight")
        assert torch.equal(tensors[0], tensors[2]) != name.endswith("inner.weight")
        assert tensors[0].abs().max() <= 16**-0.5
    inner = [gates[0][n] for n in sorted(names) if n.endswith("inner.weight")]
    assert not torch.equal(inner[0], inner[1])
    pairs = mixed(linear)
    own = {n: t for n, t in pairs.tensors.items() if "mixer" not in n}
    zeros = linear.initial_expert(linear.layout.mixing(3), 0)
    expected = linear.features(replace(pairs, tensors={**own, **zeros}), rows)
    for gate in gates:
        got = learner.features(replace(pairs, tensors={**own, **gate}), rows)
        assert torch.equal(got, expected)


def test_a_gate_is_computed_once_a_layer_and_holds_nothing(make_learner, make_rows, monkeypatch):
    learner = make_learner("clip", targets="qkv", gate_hidden=HIDDEN)
    calls, relu = [], F.relu
    monkeypatch.setattr(F, "relu", lambda x: calls.append(x.shape) or relu(x))
    expert, rows = mixed(learner), make_rows(learner.backbone, 3)
    with torch.no_grad(), learner.slots.holding(alone(learner.adapters(expert.tensors))):
        learner.backbone.features(learner.backbone.collate(rows))
        gates = {factor.gate for factor in learner.slots._factors.values()} - {None}
        assert all(gate.tensors and gate._known is None for gate in gates)
        assert len({tensor.data_ptr() for tensor in learner.slots.held()}) == 3 * (6 + 4)
    assert len(gates) == len(calls) == 3
    assert not any(gate.tensors for gate in gates)


def test_what_is_kept_below_a_gate_is_not_taken_for_another(make_learner, make_client):
    """Of experts that differ in the first block's gate alone, with room for their prefixes."""
    learner, fresh = (make_learner("vit", gate_hidden=HIDDEN, cache_bytes=b) for b in (10**7, 0))
    client, first = make_client(learner.backbone), mixed(learner)
    name = learner.layout.mixers[0][-1]
    second = replace(first, tensors={**first.tensors, name: torch.tensor([4.0, -4.0])})
    names = learner.layout.expert(1) | learner.layout.mixing(1)
    for expert in (first, second, first):
        fit = Fit(View(expert), names, client, 1, 0)
        got, expected = (one.fit([fit])[0].expert.tensors for one in (learner, fresh))
        assert learner.prefixes.bytes
        for n in names:
            torch.testing.assert_close(got[n], expected[n], atol=1e-5, rtol=1e-4)
    scores = [fresh.score(View(e), client, "train").loss for e in (first, second)]
    assert abs(scores[0] - scores[1]) > 1e-3


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_stacked_clients_learn_what_they_learn_alone(make_learner, make_client, kind):
    training = Training(batch_size=4)
    learner = make_learner(kind, training=training, gate_hidden=HIDDEN, cache_bytes=10**7)
    names = learner.layout.expert(2) | learner.layout.mixing(2)
    fits = []
    for i, rows in enumerate((11, 5, 3)):
        expert, data = mixed(learner, i), make_client(learner.backbone, str(i), rows, seed=i)
        fits.append(Fit(View(expert), names, data, 2, i))
    together, separate = learner.fit(fits), [learner.fit([fit])[0] for fit in fits]
    for fit, one, other in zip(fits, together, separate, strict=True):
        for name, tensor in other.expert.tensors.items():
            torch.testing.assert_close(one.expert.tensors[name], tensor, atol=5e-5, rtol=0)
            moved = not torch.equal(tensor, fit.view.expert.tensors[name])
            assert moved == (name in names)


def test_what_gates_cost(make_learner, make_client):
    """Their FLOPs once a layer, forward and twice backward; in a stack as much for each client."""
    learner = make_learner("vit", training=Training(batch_size=8), gate_hidden=HIDDEN)
    flops, clients = [], [make_client(learner.backbone, n, 8, i) for i, n in enumerate("ab")]
    tokens = 8 * 5  # 8 rows, of 4 patches and the class token
    for gates in (frozenset(), learner.layout.mixing(3)):
        names, expert = learner.layout.expert(3) | gates, mixed(learner)
        own = {n: t for n, t in expert.tensors.items() if n in names}
        fits = [Fit(View(replace(expert, tensors=own)), names, c, 1, 0) for c in clients]
        for some in (fits[:1], fits):
            learner.spent()
            learner.fit(some)
            flops.append(learner.spent().flops)
    inner, outer = 2 * tokens * HIDDEN * 16, 2 * tokens * HIDDEN * 2
    # of 3 layers; below the first nothing trains, so that its inputs have no gradient
    assert flops[2] - flops[0] == 3 * 3 * (inner + outer) - inner
    assert [flops[1], flops[3]] == [2 * flops[0], 2 * flops[2]]


@pytest.mark.parametrize("hidden", [0, HIDDEN])
def test_a_block_has_all_of_its_gates_or_none(make_learner, hidden):
    learner = make_learner("clip", gate_hidden=hidden)
    expert, lost = mixed(learner), learner.layout.mixers[1][-1]
    tensors = {n: t for n, t in expert.tensors.items() if n != lost}
    with (
        pytest.raises(ValueError, match=f"block 1 without '{lost}'"),
        learner.slots.holding(alone(learner.adapters(tensors, expert.beneath))),
    ):
        pass
    without = {n: t for n, t in tensors.items() if n not in learner.layout.mixers[1]}
    with learner.slots.holding(alone(learner.adapters(without, expert.beneath))):
        pass


def test_saved_gates(make_learner, make_rows, tmp_path):
    """Beside the adapters; a model of them says the same, and misses what is lost or of another."""
    learner = make_learner("clip", gate_hidden=HIDDEN)
    expert, rows = mixed(learner), make_rows(learner.backbone, 4)
    save_expert(tmp_path / "global", learner, expert, "base")
    path = tmp_path / "global" / "mixers.safetensors"
    kept = load_file(path)
    assert kept.keys() == learner.layout.mixing(3)
    model = SavedModel.load(Common.load(learner, tmp_path), None)
    assert torch.equal(learner.features(model.expert, rows), learner.features(expert, rows))
    lost = learner.layout.mixers[2][1]
    save_file({n: t for n, t in kept.items() if n != lost}, path)
    with pytest.raises(UserError, match=f"without '{lost}'; expected all of a block"):
        Common.load(learner, tmp_path)
    save_file(kept, path)
    with pytest.raises(UserError, match=r"of torch\.float32"):
        Common.load(make_learner("clip", gate_hidden=HIDDEN + 1), tmp_path)
    with pytest.raises(UserError, match="model has no "):
        Common.load(make_learner("clip"), tmp_path)
