"""Foundation models of every supported kind: found blocks, encoding, padding, features, prompts."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fedms.core.algorithm import Expert, View
from fedms.core.rows import Rows
from fedms.models import Backbone, PromptHead, class_prompts, load_backbone

#        name: kind, pooling, width, root, query
TABLE = {
    "clip": ("clip", "cls", 12, "vision_model.encoder.layers", "self_attn.q_proj"),
    "sentence": ("sentence", "mean", 16, "encoder.layer", "attention.self.query"),
    "sentence-cls": ("sentence", "cls", 16, "encoder.layer", "attention.self.query"),
    "bert": ("text", "mean", 16, "encoder.layer", "attention.self.query"),
    "roberta": ("text", "mean", 16, "encoder.layer", "attention.self.query"),
    "distilbert": ("text", "mean", 16, "transformer.layer", "attention.q_lin"),
    "vit": ("image", "cls", 16, "layers", "attention.q_proj"),
    "dinov2": ("image", "cls", 16, "encoder.layer", "attention.q_proj"),
    "ijepa": ("image", "mean", 16, "layers", "attention.q_proj"),
}
EARLIER = dict.fromkeys(("vit", "dinov2", "ijepa"), ("encoder.layer", "attention.attention.query"))
"""What earlier versions of transformers call the same (5.0 both, 5.17 those of DINOv2)."""
TEXTS = [name for name, row in TABLE.items() if row[0] in ("text", "sentence")]
PROMPTS = [name for name, row in TABLE.items() if row[0] in ("clip", "sentence")]
CLASSES = ["red cat", "green dog", "blue bird pay card"]


@pytest.fixture(scope="module")
def backbone(model_folder):
    loaded: dict = {}

    def get(name):
        if name not in loaded:
            loaded[name] = load_backbone(str(model_folder(name)))
        return loaded[name]

    return get


@pytest.mark.parametrize("name", TABLE)
def test_kind_blocks_and_features(backbone, make_rows, name):
    kind, pooling, width, root, query = TABLE[name]
    model = backbone(name)
    assert (model.kind, model.pooling, model.width) == (kind, pooling, width)
    assert not model.model.training
    assert not any(p.requires_grad for p in model.model.parameters())
    blocks = model.blocks("qv")
    if name in EARLIER and blocks.targets[0] == EARLIER[name][1]:
        root, query = EARLIER[name]
    value = query.replace("query", "value").replace("q_", "v_")
    assert (blocks.root, blocks.count, blocks.targets) == (root, 3, (query, value))
    rows = make_rows(model, 5)
    features = model.features(model.collate(rows))
    assert features.shape == (5, width)
    assert features.std(0).min() > 1e-3


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("targets", ["q", "qkvo", "vo"])
def test_other_targets(backbone, name, targets):
    found = backbone(name).blocks(targets).targets
    assert len(set(found)) == len(targets)
    block = backbone(name).model.get_submodule(backbone(name).blocks(targets).root)[0]
    assert all(isinstance(block.get_submodule(p), torch.nn.Linear) for p in found)
    assert all("attention" in p or "attn" in p for p in found)


@pytest.mark.parametrize("name", TABLE)
def test_what_encode_and_collate_make(backbone, inputs, name):
    model = backbone(name)
    columns = model.encode(inputs(model.takes, [0, 1, 2, 0], 1))
    rows = Rows(columns, np.zeros(4, dtype=np.int64))
    batch = model.collate(rows)
    if model.takes == "image":
        assert columns["pixel_values"].shape == (4, 3, 16, 16)
        assert columns["pixel_values"].dtype == np.uint8
        assert model.lengths(rows) is None
        assert batch["pixel_values"].dtype == torch.float32
        return
    lengths = model.lengths(rows)
    assert len(set(lengths.tolist())) > 1
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, lengths.max())
    assert batch["attention_mask"].sum(1).tolist() == lengths.tolist()
    assert not batch["input_ids"][batch["attention_mask"] == 0].any()


@pytest.mark.parametrize("name", TABLE)
def test_neighbours_in_a_batch_change_nothing(backbone, make_rows, name):
    model = backbone(name)
    rows = make_rows(model, 6)
    together = model.features(model.collate(rows))
    for i in range(6):
        alone = model.features(model.collate(rows.take(np.array([i]))))
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TEXTS)
def test_features_are_the_pooled_states_of_transformers(backbone, model_folder, inputs, name):
    texts = inputs("text", [0, 1, 2, 1], 2)
    folder = model_folder(name)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, return_tensors="pt"
    )
    batch = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    hidden = transformers.AutoModel.from_pretrained(folder)(**batch).last_hidden_state
    if TABLE[name][1] == "cls":
        expected = hidden[:, 0]
    else:
        kept = [h[m.bool()].mean(0) for h, m in zip(hidden, batch["attention_mask"], strict=True)]
        expected = torch.stack(kept)
    model = backbone(name)
    rows = Rows(model.encode(texts), np.zeros(4, dtype=np.int64))
    got = model.features(model.collate(rows))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit", "dinov2", "ijepa"])
def test_image_features_are_those_of_transformers(backbone, model_folder, inputs, name):
    """Its class token, or where it has none the mean of all patches."""
    images = [image.resize((40, 30)) for image in inputs("image", [0, 1, 2], 2)]
    folder = model_folder(name)
    pixels = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(
        images, return_tensors="pt"
    )
    hidden = transformers.AutoModel.from_pretrained(folder)(**pixels).last_hidden_state
    expected = hidden.mean(1) if name == "ijepa" else hidden[:, 0]
    model = backbone(name)
    rows = Rows(model.encode(images), np.zeros(3, dtype=np.int64))
    torch.testing.assert_close(model.features(model.collate(rows)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("off", ["do_normalize", "do_rescale"])
def test_pixels_are_those_of_the_image_processor(tmp_path, model_folder, inputs, off):
    folder = shutil.copytree(model_folder("vit"), tmp_path / "vit")
    facts = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**facts, off: False}))
    images, model = inputs("image", [0, 1, 2], 2), load_backbone(str(folder))
    expected = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(
        images, return_tensors="pt"
    )
    rows = Rows(model.encode(images), np.zeros(3, dtype=np.int64))
    torch.testing.assert_close(model.collate(rows)["pixel_values"], expected["pixel_values"])


def scores(learner, rows, raw=False):
    view = View(Expert({}))
    if raw:
        return learner.head(learner.features(view.expert, rows), {})
    return learner.predict(view, None, rows).log_probabilities


def test_clip_logits_are_those_of_transformers(make_learner, model_folder, inputs):
    folder = model_folder("clip")
    learner = make_learner("clip")
    learner.head = PromptHead.encode(learner.backbone, [CLASSES], temperature=None)
    images = [image.resize((30, 20)) for image in inputs("image", [0, 1, 2, 0], 3)]
    rows = Rows(learner.backbone.encode(images), np.zeros(4, dtype=np.int64))
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        CLASSES, padding=True, return_tensors="pt"
    )
    pixels = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(
        images, return_tensors="pt"
    )
    plain = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = plain(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], **pixels
        ).logits_per_image
    torch.testing.assert_close(scores(learner, rows, raw=True), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        scores(learner, rows), F.log_softmax(logits, -1), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["sentence", "sentence-cls"])
def test_sentence_logits_are_20_cosines(make_learner, model_folder, inputs, name):
    folder = model_folder(name)
    learner = make_learner(name)
    learner.head = PromptHead.encode(learner.backbone, [CLASSES], temperature=None)
    texts = inputs("text", [0, 1, 2, 0], 3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    plain = transformers.AutoModel.from_pretrained(folder).eval()

    def pooled(text):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        hidden = plain(input_ids=ids).last_hidden_state[0].detach().double().numpy()
        return hidden[0] if name == "sentence-cls" else hidden.mean(0)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    expected = [[20 * cosine(pooled(t), pooled(c)) for c in CLASSES] for t in texts]
    rows = Rows(learner.backbone.encode(texts), np.zeros(4, dtype=np.int64))
    got = scores(learner, rows, raw=True).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("name", PROMPTS)
def test_templates_are_averaged_and_adapters_have_no_say(make_learner, name):
    learner = make_learner(name)
    backbone = learner.backbone
    templates = class_prompts(["a photo of {label}", "my {label}"], CLASSES)
    each = np.stack([backbone.embed_prompts(t).numpy() for t in templates])
    mean = each.mean(0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    head = PromptHead.encode(backbone, templates, temperature=7.0)
    np.testing.assert_allclose(head.prompts.numpy(), mean, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(each, axis=2), 1, atol=1e-5)
    features = torch.randn(2, backbone.width)
    cosine = F.cosine_similarity(features[:, None], torch.from_numpy(mean)[None], dim=-1)
    torch.testing.assert_close(head(features, {}), 7 * cosine, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("wanted", "limit"), [(None, 16), (5, 5), (100, 16)])
def test_long_texts_are_cut(model_folder, wanted, limit):
    model = load_backbone(str(model_folder("bert")), max_length=wanted)
    ids = model.encode(["cat " * 50])["input_ids"][0]
    assert (model.max_length, len(ids)) == (limit, limit)
    assert (ids[0], ids[-1]) == (2, 3)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("card_arrival", "my card arrival"),
        ("talk.politics.misc", "my talk politics misc"),
        ("8", "my 8"),
        ("_", "my _"),
        ("known", "my friend"),
        ("C++", "my C++"),
        ("top-up__failed", "my top up failed"),
    ],
)
def test_class_prompts(label, words):
    assert class_prompts("my {label}", [label], {"known": "friend"}) == [[words]]


@pytest.mark.parametrize("name", ["vit", "bert", "sentence"])
def test_a_linear_head_starts_without_an_opinion(make_learner, make_client, name):
    learner = make_learner(name, linear=True)
    client = make_client(learner.backbone)
    fresh = learner.initial_expert(learner.layout.expert(1), 0)
    for tensors in ({}, fresh):
        log_p = learner.predict(View(Expert(tensors)), client, client.test).log_probabilities
        torch.testing.assert_close(log_p, torch.full((4, 3), 1 / 3).log())


LENGTHS = st.lists(st.integers(1, 40), max_size=60)


@given(lengths=LENGTHS, most=st.integers(1, 20))
def test_rows_pass_once_shortest_first_with_little_padding(backbone, lengths, most):
    sentence = backbone("sentence")
    ids = [np.zeros(length, dtype=np.int32) for length in lengths]
    rows = Rows({"input_ids": ids}, np.zeros(len(ids), dtype=np.int64))
    batches = list(sentence.passes(rows, most))
    order = np.concatenate([*batches, np.zeros(0, np.int64)])
    assert sorted(order.tolist()) == list(range(len(ids)))
    padded = np.array([sentence.padded(length) for length in lengths], dtype=int)
    assert padded[order].tolist() == sorted(padded.tolist())
    for batch in batches:
        tokens = padded[batch]
        assert 1 <= len(batch) <= most
        assert (tokens.max() - tokens).sum() <= 64
    for one, other in pairwise(batches):  # with one row more it would be too many, or too much
        tokens = padded[[*one, other[0]]]
        assert len(one) == most or (tokens.max() - tokens).sum() > 64


def test_images_and_accelerators_pass_in_as_few_batches_as_can_be(backbone, make_rows, monkeypatch):
    vit, sentence = backbone("vit"), backbone("sentence")
    assert [len(b) for b in vit.passes(make_rows(vit, 7), 3)] == [3, 3, 1]
    monkeypatch.setattr(Backbone, "device", torch.device("cuda"))
    ids = [np.zeros(length, dtype=np.int32) for length in (1, 40) * 50]
    rows = Rows({"input_ids": ids}, np.zeros(len(ids), dtype=np.int64))
    assert [len(batch) for batch in sentence.passes(rows, 64)] == [64, 36]
