"""From features to class logits: against class prompts, or by a linear layer of the expert.

Several clients' features are scored at once: the first axis of everything is clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors
from fedms.models.backbone import Backbone

VECTORS = "classes.vectors"
"""Name of class vectors, `(clients, classes, width)`, among a head's tensors: they never train."""


class Head(Protocol):
    """`shapes` names the tensors that belong to the expert (none for frozen heads)."""

    @property
    def prompts(self) -> Tensor | None:
        """Embeddings of class prompts, `(classes, width)` of unit length, if it scores by them."""
        ...

    @property
    def temperature(self) -> float:
        """What cosines are multiplied by."""
        ...

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    @property
    def classes(self) -> int: ...

    def initial(self, name: str, seed: int) -> Tensor:
        """One of its tensors before training."""
        ...

    def __call__(self, features: Tensor, expert: Tensors) -> Tensor:
        """`(clients, batch, width)` features to `(clients, batch, classes)` logits.

        The expert's own tensors, and `VECTORS` if they are given, have a first axis of clients.
        """
        ...


class PromptHead:
    """Cosine between a feature and each class's prompt embedding, times a temperature.

    Frozen: prompts are encoded once, by the foundation model without adapters. Class vectors take
    their place where they are given.

    Args:
        embeddings: `(classes, width)`, of unit length.
        temperature: greater than 0.
    """

    def __init__(self, embeddings: Tensor, temperature: float) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.prompts, self.temperature = embeddings, temperature

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
        return len(self.prompts)

    def initial(self, name: str, seed: int) -> Tensor:
        raise KeyError(name)

    def __call__(self, features: Tensor, expert: Tensors) -> Tensor:
        vectors = expert.get(VECTORS, self.prompts)
        return self.temperature * F.normalize(features, dim=-1) @ vectors.mT


class AttentionHead(PromptHead):
    """FedCLIP's adapter (arXiv 2302.13485): features are weighed before they meet the prompts.

    `feature * softmax(up(tanh(down(feature))))`, each layer as wide as the feature. `up` starts at
    zero, so that all weights are equal and the head starts as the foundation model's
    (reconstructed, as is the feature's scaling to unit mean square before `down`).

    It trains by cross-entropy over the prompts of all classes, as everything does here. Its
    authors' public code trains by CLIP's contrastive loss within a batch: every image against the
    prompts of the batch's images, and the other way round.
    """

    def __init__(self, embeddings: Tensor, temperature: float) -> None:
        super().__init__(embeddings, temperature)
        width = embeddings.shape[1]
        square, line = (width, width), (width,)
        names = ("down.weight", "down.bias", "up.weight", "up.bias")
        kinds = dict(zip(names, (square, line, square, line), strict=True))
        self.shapes = {f"attention.{name}": shape for name, shape in kinds.items()}

    def initial(self, name: str, seed: int) -> Tensor:
        if name != "attention.down.weight":
            return torch.zeros(self.shapes[name])
        width = self.shapes[name][0]
        generator = torch.Generator().manual_seed(derive_seed(seed, "head", name))
        uniform: Tensor = torch.rand(width, width, generator=generator)
        return uniform.mul(2).sub(1).div(width**0.5)

    def __call__(self, features: Tensor, expert: Tensors) -> Tensor:
        if "attention.up.weight" not in expert:
            return super().__call__(features, expert)
        down, up = (
            (expert[f"attention.{side}.weight"], expert[f"attention.{side}.bias"])
            for side in ("down", "up")
        )
        scaled = F.normalize(features, dim=-1) * features.shape[-1] ** 0.5
        weights = F.softmax(affine(torch.tanh(affine(scaled, *down)), *up), dim=-1)
        return super().__call__(features * weights, expert)


class ContextHead(PromptHead):
    """PromptFL (arXiv 2208.11625): classes are scored by prompts that start with learned words.

    As CoOp (arXiv 2109.01134): the same context vectors stand before every class name, in place of
    word embeddings. The text encoder runs, frozen, in every step.

    Args:
        encode: from context vectors `(words, width of a word)` to class embeddings of unit length,
            `(classes, width)`.
        words: the shape of context vectors.
        spread: standard deviation of the model's word embeddings, from which contexts start.
        prompts: the head without learned words.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        words: tuple[int, int],
        spread: float,
        prompts: PromptHead,
    ) -> None:
        super().__init__(prompts.prompts, prompts.temperature)
        self._encode, self._spread = encode, spread
        self.shapes = {_CONTEXT: words}

    def initial(self, name: str, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, "head", name))
        return torch.randn(self.shapes[name], generator=generator) * self._spread

    def learned(self, expert: Tensors) -> Tensor | None:
        """Embeddings of an expert's own prompts, `(classes, width)`; None: it has none."""
        return self._encode(expert[_CONTEXT]) if _CONTEXT in expert else None

    def __call__(self, features: Tensor, expert: Tensors) -> Tensor:
        if _CONTEXT not in expert:
            return super().__call__(features, expert)
        embeddings = torch.stack([self._encode(context) for context in expert[_CONTEXT]])
        return self.temperature * F.normalize(features, dim=-1) @ embeddings.mT


_CONTEXT = "prompt.context"


class LinearHead:
    """`weight @ feature + bias`, part of the expert: averaged in stage 1, private in stage 2.

    It starts at zero: every client starts from the same head, and with equal class scores, or with
    the cosine between feature and class vector, times 20, where these are given; that is added.
    """

    prompts: Tensor | None = None
    temperature = 20.0

    def __init__(self, width: int, classes: int) -> None:
        self.shapes = {"classifier.weight": (classes, width), "classifier.bias": (classes,)}
        self.classes = classes

    def initial(self, name: str, seed: int) -> Tensor:
        return torch.zeros(self.shapes[name])

    def __call__(self, features: Tensor, expert: Tensors) -> Tensor:
        if "classifier.weight" not in expert:  # the foundation model alone has no opinion
            return features.new_zeros(*features.shape[:-1], self.classes)
        logits = affine(features, expert["classifier.weight"], expert["classifier.bias"])
        if VECTORS not in expert:
            return logits
        return logits + self.temperature * F.normalize(features, dim=-1) @ expert[VECTORS].mT


def affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each client's own linear layer: `(clients, batch, in)` to `(clients, batch, out)`."""
    return torch.baddbmm(bias[:, None], inputs, weight.mT)
