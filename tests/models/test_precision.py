"""Computing in bfloat16: the frozen model alone, and close to what float32 gives."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
import transformers

from fedms.core.algorithm import Expert, Fit, View
from fedms.machine import pick_precision
from fedms.models import Mixing, Training, load_backbone

MODELS = ["clip", "sentence", "vit", "roberta", "dinov2"]
CALM = Training(batch_size=99, learning_rate=0.02, gate_learning_rate=0.02)
"""All rows at once, so that the loss falls whatever the order."""


@pytest.fixture
def pair(make_learner):
    """The same learner in float32 and in bfloat16."""

    def make(kind, **options):
        return tuple(
            make_learner(kind, dtype=dtype, **options) for dtype in (torch.float32, torch.bfloat16)
        )

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


def test_rotary_frequencies_are_those_that_transformers_loads(tmp_path, tokenizer_saver):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2)
    config = transformers.ModernBertConfig(
        **sizes, **special, num_attention_heads=2, vocab_size=24, pad_token_id=0
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer_saver(tmp_path)
    half = load_backbone(str(tmp_path))
    half.compute_in(torch.bfloat16)
    plain = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    expected = {n: b for n, b in plain.named_buffers() if n.endswith("inv_freq")}
    got = {n: b for n, b in half.model.named_buffers() if n.endswith("inv_freq")}
    assert {b.dtype for b in expected.values()} == {torch.float32}
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_adapters_are_float32_and_learn(pair, make_client, kind):
    _, half = pair(kind, training=CALM, cache_bytes=10**7)
    client = make_client(half.backbone)
    names = half.layout.expert(1)
    view = View(Expert(half.initial_expert(names, 0)))
    after = half.fit([Fit(view, names, client, 12, 0)])[0]
    assert {t.dtype for t in after.expert.tensors.values()} == {torch.float32}
    assert half.score(after, client, "train").loss < half.score(view, client, "train").loss
    assert {kept.states.dtype for kept in half.prefixes._kept.values()} == {torch.bfloat16}


def test_half_of_the_bytes_are_kept_and_saved_for_the_backward_pass(pair, make_client):
    spent = []
    for learner in pair("clip", cache_bytes=10**7):
        client = make_client(learner.backbone)
        names = learner.layout.expert(2)
        view = View(Expert(learner.initial_expert(names, 0)))
        learner.fit([Fit(view, names, client, 1, 0)])
        spent.append(learner.spent())
    exact, half = spent
    assert half.cache_bytes * 2 == exact.cache_bytes
    assert half.peak_activation_bytes < 0.75 * exact.peak_activation_bytes


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("avx512", [True, False])
def test_auto_is_bfloat16_only_where_the_hardware_has_it(monkeypatch, amx, avx512):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    expected = torch.bfloat16 if amx or avx512 else torch.float32
    assert pick_precision("auto", cpu, 512) == expected
    assert pick_precision("auto", cpu, 64) == torch.float32
    assert pick_precision("float32", cpu, 512) == torch.float32
    assert pick_precision("bfloat16", cpu, 64) == torch.bfloat16


@pytest.mark.parametrize("kind", ["clip", "sentence"])
@pytest.mark.parametrize("mix", ["probabilities", "features"])
@pytest.mark.parametrize("data", ["train", "val"])
def test_a_mixture_trains_in_bfloat16(pair, make_client, kind, mix, data):
    _, half = pair(kind, mixing=Mixing(mix, data=data), training=CALM, cache_bytes=10**7)
    client = make_client(half.backbone)
    names = half.layout.expert(1)
    expert = Expert(half.initial_expert(names, 0))
    view = View(expert, expert, half.initial_gate(0))
    after = half.fit([Fit(view, names, client, 12, 0)])[0]
    assert {t.dtype for t in (*after.expert.tensors.values(), *after.gate.values())} == {
        torch.float32
    }
    assert half.score(after, client, "train").loss < half.score(view, client, "train").loss


def test_texts_are_padded_to_tiles_in_bfloat16(pair, make_rows):
    exact, half = pair("sentence")
    rows = make_rows(exact.backbone, 5)
    longest = int(exact.backbone.lengths(rows).max())
    assert longest % 8
    assert exact.backbone.collate(rows)["input_ids"].shape == (5, longest)
    batch = half.backbone.collate(rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (5, longest + -longest % 8)
    assert batch["attention_mask"].sum(1).tolist() == exact.backbone.lengths(rows).tolist()
    limited = replace(half.backbone, max_length=longest)
    assert limited.collate(rows)["input_ids"].shape == (5, longest)


def test_a_checkpoint_in_half_precision_is_read_in_float32(model_folder, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(model_folder("clip"), folder)
    transformers.CLIPModel.from_pretrained(folder).half().save_pretrained(folder)
    backbone = load_backbone(str(folder))
    assert {p.dtype for p in backbone.model.parameters()} == {torch.float32}
    assert backbone.embed_prompts(["a cat"]).dtype == torch.float32
