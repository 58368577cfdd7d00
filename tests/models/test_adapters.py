"""Adapters in the resident model and on disk, against plain PEFT."""

from __future__ import annotations

import json

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional as F

from fedms.core.algorithm import Expert, View
from fedms.core.tensors import fingerprint
from fedms.models import Mixing, save_expert, save_gate

MODELS = ["clip", "sentence", "vit", "bert", "roberta", "distilbert", "dinov2"]
BATCH = np.arange(4)


def random_expert(learner, depth: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """All tensors of an expert of this depth, none of them zero."""
    rng = torch.Generator().manual_seed(seed)
    names = sorted(learner.layout.expert(depth))
    return {n: 0.3 * torch.randn(learner.layout.shapes[n], generator=rng) for n in names}


def plain_model(folder, kind):
    loader = transformers.CLIPModel if kind == "clip" else transformers.AutoModel
    return loader.from_pretrained(folder).eval()


def plain_features(model, kind, batch):
    inner = model.base_model.model if isinstance(model, peft.PeftModel) else model
    if kind == "clip":
        return inner.visual_projection(inner.vision_model(**batch).pooler_output)
    hidden = inner(**batch).last_hidden_state
    if kind in ("vit", "dinov2"):
        return hidden[:, 0]
    mask = batch["attention_mask"][..., None]
    return (hidden * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("depth", [1, 3])
def test_plain_peft_reads_what_is_saved(
    make_learner, model_folder, make_rows, tmp_path, kind, depth
):
    learner = make_learner(kind)
    rows = make_rows(learner.backbone, 4)
    batch = learner.backbone.collate(rows)
    tensors = random_expert(learner, depth)
    save_expert(tmp_path / "expert", learner, Expert(tensors), str(model_folder(kind)))

    plain = plain_model(model_folder(kind), kind)
    with torch.no_grad():
        frozen = plain_features(plain, kind, batch)
        adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "expert").eval()
        features = plain_features(adapted, kind, batch)
    got = learner.features(Expert(tensors), rows)
    torch.testing.assert_close(got, features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(learner.features(Expert({}), rows), frozen, atol=1e-5, rtol=1e-5)
    assert (features - frozen).abs().max() > 0.01

    logits = learner.predict(View(Expert(tensors)), None, rows).log_probabilities
    heads = tmp_path / "expert/head.safetensors"
    assert heads.exists() == (kind not in ("clip", "sentence"))
    if heads.exists():
        read = load_file(heads)
        weight, bias = sorted(read.values(), key=lambda t: -t.ndim)
        by_hand = F.log_softmax(features @ weight.T + bias, -1)
    else:
        cosine = F.normalize(features, dim=-1) @ learner.head.prompts.T
        by_hand = F.log_softmax(5.0 * cosine, -1)
    torch.testing.assert_close(logits, by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "root", "targets"),
    [
        ("clip", "vision_model.encoder.layers", r"vision_model.*(q|v)_proj"),
        ("sentence", "encoder.layer", ["query", "value"]),
        ("roberta", "encoder.layer", ["query", "value"]),
        ("distilbert", "transformer.layer", ["q_lin", "v_lin"]),
        ("vit", "layers", ["q_proj", "v_proj"]),
        ("dinov2", "encoder.layer", ["q_proj", "v_proj"]),
    ],
)
def test_every_block_has_a_slot_named_as_peft_names_it(
    make_learner, model_folder, kind, root, targets
):
    layout, plain = make_learner(kind).layout, plain_model(model_folder(kind), kind)
    if kind in ("vit", "dinov2") and not any("q_proj" in name for name, _ in plain.named_modules()):
        root, targets = "encoder.layer", ["query", "value"]  # earlier versions of transformers
    lora = peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets)
    model = peft.get_peft_model(plain, lora)
    expected = {n: tuple(t.shape) for n, t in peft.get_peft_model_state_dict(model).items()}
    adapters = {n for block in layout.blocks for n in block}
    assert {n: layout.shapes[n] for n in adapters} == expected
    for index, block in enumerate(layout.blocks):
        assert len(block) == 4
        assert all(n.startswith(f"base_model.model.{root}.{index}.") for n in block)


@pytest.mark.parametrize("kind", ["clip", "sentence", "vit", "bert"])
def test_names_of_expert_and_gate_are_apart(make_learner, kind):
    """One table of shapes holds both, so a name must not mean two tensors."""
    learner = make_learner(kind)
    layout = learner.layout
    expert = [n for block in layout.blocks for n in block] + list(layout.head)
    expert += [n for block in layout.mixers for n in block]
    gate = [*layout.gate_adapter, *layout.gate_head]
    assert len({*expert, *gate}) == len(expert) + len(gate) == len(layout.shapes)
    made = {**learner.initial_expert(frozenset(expert), 0), **learner.initial_gate(0)}
    assert {n: tuple(t.shape) for n, t in made.items()} == dict(layout.shapes)


def test_depth_counts_from_the_output(make_learner):
    layout = make_learner("vit").layout
    for depth in range(4):
        active = [n for block in layout.blocks[3 - depth :] for n in block]
        assert layout.expert(depth) == {*active, *layout.head}
        sizes = [np.prod(layout.shapes[n]) for n in layout.expert(depth)]
        assert layout.size(layout.expert(depth)) == sum(sizes)


def test_an_expert_begins_as_peft_does(make_learner):
    learner = make_learner("clip", rank=8)
    names = learner.layout.expert(3)
    fresh = learner.initial_expert(names, 5)
    for name, tensor in fresh.items():
        if "lora_B" in name:
            assert not tensor.any()
            continue
        bound = 1 / tensor.shape[1] ** 0.5
        assert 0.9 * bound < tensor.abs().max() <= bound
        assert abs(float(tensor.mean())) < 0.2 * bound
    one = min(names)
    assert torch.equal(learner.initial_expert(frozenset([one]), 5)[one], fresh[one])
    assert fingerprint(learner.initial_expert(names, 6)) != fingerprint(fresh)


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_with_b_zero_it_is_the_foundation_model(make_learner, make_rows, kind):
    learner = make_learner(kind)
    rows = make_rows(learner.backbone, 5)
    fresh = Expert(learner.initial_expert(learner.layout.expert(3), 0))
    torch.testing.assert_close(
        learner.features(fresh, rows),
        learner.features(Expert({}), rows),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_no_expert_leaves_anything_in_the_model(make_learner, make_rows, kind):
    learner, fresh = make_learner(kind), make_learner(kind)
    rows = make_rows(learner.backbone, 5)
    for depth in (3, 1, 2):
        learner.features(Expert(random_expert(learner, depth, depth)), rows)
    batch = learner.backbone.collate(rows)
    assert torch.equal(learner.backbone.features(batch), fresh.backbone.features(batch))
    for tensors in (random_expert(learner, 1), {}):
        got, expected = (m.features(Expert(tensors), rows) for m in (learner, fresh))
        assert torch.equal(got, expected)


def test_tensors_without_a_slot_and_blocks_that_are_incomplete(make_learner):
    learner = make_learner("clip")
    whole = random_expert(learner, 1)
    with pytest.raises(ValueError, match="no slot"), learner.slots.holding({"x": torch.ones(1)}):
        pass
    half = {n: t for n, t in whole.items() if "q_proj" in n}
    with pytest.raises(ValueError, match="block 2 without"), learner.slots.holding(half):
        pass
    assert all(layer.disable_adapters for block in learner.slots._layers for layer in block)


@pytest.mark.parametrize(
    "drop", ["q_proj.lora_A", "q_proj.lora_B", "v_proj.lora_A", "v_proj.lora_B"]
)
def test_any_missing_tensor_of_a_block_is_noticed(make_learner, drop):
    learner = make_learner("clip")
    rest = {n: t for n, t in random_expert(learner, 2).items() if f"1.self_attn.{drop}" not in n}
    with pytest.raises(ValueError, match="block 1"), learner.slots.holding(rest):
        pass


def test_what_is_saved_of_an_expert_that_adapts_nothing(make_learner, tmp_path):
    save_expert(tmp_path / "none", make_learner("clip"), Expert({}), "base")
    assert list((tmp_path / "none").iterdir()) == []


def test_a_saved_gate_can_be_read(make_learner, tmp_path):
    learner = make_learner("clip", mixing=Mixing(mix="logits"))
    gate = learner.initial_gate(4)
    save_gate(tmp_path / "gate", learner, gate)
    assert fingerprint(load_file(tmp_path / "gate/gate.safetensors")) == fingerprint(gate)
    facts = json.loads((tmp_path / "gate/gate.json").read_text())
    assert (facts["width"], facts["mix"]) == (12, "logits")


def test_saved_adapters_say_where_they_belong(make_learner, tmp_path):
    learner = make_learner("sentence")
    save_expert(tmp_path / "e", learner, Expert(random_expert(learner, 2)), "the-base")
    config = peft.PeftConfig.from_pretrained(str(tmp_path / "e"))
    assert config.base_model_name_or_path == "the-base"
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 4, 0.0)
    saved = load_file(tmp_path / "e/adapter_model.safetensors")
    assert {int(n.split("layer.")[1].split(".")[0]) for n in saved} == {1, 2}
