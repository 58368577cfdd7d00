"""Heads that learn: FedCLIP's adapter and PromptFL's words, by hand and through a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedms.core.algorithm import Expert, Fit, View
from fedms.models import AttentionHead, ContextHead, PromptHead, Training, load_backbone
from fedms.models.names import EMBEDDED
from fedms.models.pretrained import load_tokenizer
from fedms.models.resident import FROZEN

LABELS = ["red cat", "green dog", "blue bird"]


def prompts(width=6, classes=3):
    embeddings = torch.randn(classes, width, generator=torch.Generator().manual_seed(1))
    return PromptHead(F.normalize(embeddings, dim=-1), 5.0)


def test_fedclips_adapter_starts_as_the_foundation_model():
    plain = prompts()
    head = AttentionHead(plain.prompts, plain.temperature)
    features = torch.randn(2, 4, 6)
    start = {n: torch.stack([head.initial(n, 0)] * 2) for n in head.shapes}
    assert {n: tuple(t.shape[1:]) for n, t in start.items()} == head.shapes
    torch.testing.assert_close(head(features, start), plain(features, {}))
    assert torch.equal(head(features, {}), plain(features, {}))
    again = head.initial("attention.down.weight", 0)
    assert torch.equal(again, start["attention.down.weight"][0])
    assert not torch.equal(head.initial("attention.down.weight", 1), again)


def test_fedclips_adapter_by_hand():
    plain = prompts()
    head = AttentionHead(plain.prompts, plain.temperature)
    rng = np.random.default_rng(0)
    tensors = {n: rng.normal(size=(2, *shape)) for n, shape in head.shapes.items()}
    features = rng.normal(size=(2, 4, 6))
    for client in range(2):
        own = {n.removeprefix("attention."): t[client] for n, t in tensors.items()}
        x = features[client]
        scaled = x / np.linalg.norm(x, axis=1, keepdims=True) * 6**0.5
        inner = np.tanh(scaled @ own["down.weight"].T + own["down.bias"])
        outer = np.exp(inner @ own["up.weight"].T + own["up.bias"])
        y = x * outer / outer.sum(1, keepdims=True)
        y = y / np.linalg.norm(y, axis=1, keepdims=True)
        expected = 5.0 * y @ plain.prompts.double().numpy().T
        got = head(
            torch.from_numpy(features).float(),
            {n: torch.from_numpy(t).float() for n, t in tensors.items()},
        )
        np.testing.assert_allclose(got[client].numpy(), expected, atol=1e-5)


@pytest.fixture(params=["clip", "sentence", "glyphclip"])
def backbone(request, model_folder):
    name = request.param
    return load_backbone(name if name == "glyphclip" else str(model_folder(name)))


def test_words_in_place_of_words_are_the_prompt(backbone):
    """With the embeddings of a real word as context, the class is scored as that prompt."""
    encode = backbone.context_encoder(["red", "blue"], 2)
    words = "seven eight" if backbone.name == str(EMBEDDED) else "cat dog"
    ids = load_tokenizer(backbone.name)(words)["input_ids"][1:-1]
    assert len(ids) == 2
    context = backbone.word_embeddings()[torch.tensor(ids)]
    expected = backbone.embed_prompts([f"{words} red", f"{words} blue"])
    with torch.no_grad():
        torch.testing.assert_close(encode(context), expected, atol=1e-5, rtol=1e-5)
    other = context.clone().requires_grad_()
    encode(other)[0].sum().backward()
    assert other.grad.abs().sum() > 0
    with torch.no_grad():  # nothing stays behind
        torch.testing.assert_close(backbone.embed_prompts([f"{words} red"])[0], expected[0])


@pytest.mark.parametrize("kind", ["attention", "context"])
@pytest.mark.parametrize("model", ["clip", "sentence"])
def test_heads_learn_in_the_learner_and_in_stacks(make_learner, make_client, model, kind):
    training = Training(batch_size=99, learning_rate=0.05)
    learner = make_learner(model, training=training, cache_bytes=10**7)
    plain = learner.head
    if kind == "attention":
        head = AttentionHead(plain.prompts, plain.temperature)
    else:
        words = learner.backbone.word_embeddings()
        encode = learner.backbone.context_encoder(LABELS, 3)
        head = ContextHead(encode, (3, words.shape[1]), float(words.detach().std()), plain)
    learner.head = head
    clients = [make_client(learner.backbone, n, 7 + i, i) for i, n in enumerate("ab")]
    names = frozenset(head.shapes)
    view = View(Expert(learner.initial_expert(names, 0)))
    fits = [Fit(view, names, client, 10, 0) for client in clients]
    together = learner.fit(fits)
    for client, fit, after in zip(clients, fits, together, strict=True):
        before, then = (learner.score(v, client, "train").loss for v in (view, after))
        assert then < before
        alone = learner.fit([fit])[0].expert.tensors
        for name, tensor in alone.items():
            torch.testing.assert_close(after.expert.tensors[name], tensor, atol=1e-4, rtol=1e-4)
    assert learner.score(View(FROZEN), clients[0], "train").rows == 7


def test_features_stand_still_where_only_a_head_trains(make_learner, make_client, monkeypatch):
    """The foundation model runs once over the rows, however many epochs and rounds there are."""
    learner = make_learner("vit", training=Training(batch_size=3))
    client = make_client(learner.backbone, rows=9)
    calls = []
    original = learner.backbone.__class__.features

    def counted(self, batch):
        calls.append(len(next(iter(batch.values()))))
        return original(self, batch)

    monkeypatch.setattr(learner.backbone.__class__, "features", counted)
    names = frozenset(learner.layout.head)
    fit = Fit(View(Expert(learner.initial_expert(names, 0))), names, client, 7, 0)
    after = learner.fit([fit])[0]
    assert sum(calls) == 9
    first = learner.spent().flops
    learner.fit([replace(fit, view=after)])  # a new head, and features that are none of its own
    assert sum(calls) == 9
    assert 0 < learner.spent().flops < first
    assert (
        learner.score(after, client, "train").loss < learner.score(fit.view, client, "train").loss
    )
