"""From features to class logits: against class prompts, or by a linear layer of the expert.

Several clients' features are scored at once: the first axis of everything is clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core.tensors import Tensors
from fedms.models.backbone import Backbone


class Head(Protocol):
    """`shapes` names the tensors that belong to the expert (none for frozen heads)."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    @property
    def classes(self) -> int: ...

    def __call__(self, features: Tensor, expert: Tensors) -> Tensor:
        """`(clients, batch, width)` features to `(clients, batch, classes)` logits.

        The expert's own tensors have a first axis of clients.
        """
        ...


class PromptHead:
    """Cosine between a feature and each class's prompt embedding, times a temperature.

    Frozen: prompts are encoded once, by the foundation model without adapters.

    Args:
        embeddings: `(classes, width)`, of unit length.
        temperature: greater than 0.
    """

    def __init__(self, embeddings: Tensor, temperature: float) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.embeddings, self.temperature = embeddings, temperature

    @classmethod
    def encode(
        cls, backbone: Backbone, prompts: Sequence[Sequence[str]], temperature: float | None
    ) -> PromptHead:
        """Encode one prompt a class for every template; templates are averaged, as CLIP does.

        `temperature` None takes the model's own.
        """
        each = [backbone.embed_prompts(template) for template in prompts]
        mean = F.normalize(torch.stack(each).mean(0), dim=-1)
        return cls(mean, backbone.temperature() if temperature is None else temperature)

    @property
    def classes(self) -> int:
        return len(self.embeddings)

    def __call__(self, features: Tensor, expert: Tensors) -> Tensor:
        return self.temperature * F.normalize(features, dim=-1) @ self.embeddings.T


class LinearHead:
    """`weight @ feature + bias`, part of the expert: averaged in stage 1, private in stage 2.

    It starts at zero: every client starts from the same head, and with equal class scores.
    """

    def __init__(self, width: int, classes: int) -> None:
        self.shapes = {"classifier.weight": (classes, width), "classifier.bias": (classes,)}
        self.classes = classes

    def __call__(self, features: Tensor, expert: Tensors) -> Tensor:
        if "classifier.weight" not in expert:  # the foundation model alone has no opinion
            return features.new_zeros(*features.shape[:-1], self.classes)
        return affine(features, expert["classifier.weight"], expert["classifier.bias"])


def affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each client's own linear layer: `(clients, batch, in)` to `(clients, batch, out)`."""
    return torch.baddbmm(bias[:, None], inputs, weight.mT)
