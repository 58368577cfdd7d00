"""The peer of the steps: plain transformers and PEFT, LoRA in all blocks, nothing kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

TEXT = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
}
"""MiniLM's shape."""
VISION = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
}
"""CLIP ViT-B/16's vision tower."""
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 224,
    "patch_size": 14,
}
"""CLIP ViT-L/14's vision tower."""
SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "image_size": 32,
    "patch_size": 8,
}
"""The vision tower of glyphclip."""
_LEAST = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}


def text_model() -> nn.Module:
    """A sentence encoder of MiniLM's shape with random weights, in evaluation mode."""
    model: nn.Module = transformers.BertModel(
        transformers.BertConfig(**TEXT), add_pooling_layer=False
    )
    return model.eval()


def clip_model(vision: Mapping[str, int], projection: int) -> nn.Module:
    """A CLIP model with random weights and hardly any text tower, in evaluation mode."""
    config = transformers.CLIPConfig(
        text_config={**_LEAST, "intermediate_size": 32, "vocab_size": 64},
        vision_config=dict(vision),
        projection_dim=projection,
    )
    model: nn.Module = transformers.CLIPModel(config)
    return model.eval()


def plain_step(
    model: nn.Module, classes: Tensor, batch: Mapping[str, Tensor], labels: Tensor
) -> Callable[[], Tensor]:
    """A training step as their documentation teaches it; call it again and again.

    Args:
        model: `text_model()` or `clip_model(…)`; gets adapters.
        classes: `(classes, width)` embeddings of class prompts.
        batch: of every step.
        labels: of its rows.
    """
    is_text = "input_ids" in batch
    targets = ["query", "value"] if is_text else r"vision_model\..*\.(q_proj|v_proj)"
    adapted: Any = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.0)

    def features() -> Tensor:
        if not is_text:
            pooled = adapted.base_model.model.vision_model(**batch).pooler_output
            return adapted.base_model.model.visual_projection(pooled)  # type: ignore[no-any-return]
        hidden = adapted(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)  # type: ignore[no-any-return]

    def step() -> Tensor:
        optimiser.zero_grad()
        logits = 20 * F.normalize(features().float(), dim=-1) @ classes.T
        loss = F.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss

    return step
