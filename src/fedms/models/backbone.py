"""The frozen foundation model: load it, encode inputs for it, get one feature vector an example.

Which models there may be, and how they are read, is in `pretrained.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedms.core.rows import Column, Index, Rows
from fedms.models import pretrained
from fedms.models.blocks import Blocks, find_blocks
from fedms.models.pretrained import Kind, Pooling
from fedms.models.products import products_of

_WORD = "x"
"""Stands where context vectors are put; one token in any vocabulary of words."""
_PADDING = 64
"""Tokens of padding that cost a CPU about as much as one more batch (docs/performance.md)."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen foundation model with all that belongs to it. Its modules are in evaluation mode."""

    name: str
    kind: Kind
    model: nn.Module
    processor: Any
    pooling: Pooling
    width: int
    max_length: int

    @property
    def takes(self) -> Literal["text", "image"]:
        return "image" if self.kind in ("clip", "image") else "text"

    @property
    def scores_prompts(self) -> bool:
        """Whether classes can be scored against their prompts."""
        return self.kind in pretrained.PROMPTED

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes."""
        return next(self.model.parameters()).dtype

    def compute_in(self, dtype: torch.dtype) -> None:
        """Hold the frozen weights, and compute, in `dtype`; features stay float32.

        On the CPU the backward pass of torch's fused attention is ten times slower in bfloat16
        than in float32, so that the plain one is used there. Frequencies of rotary positions stay
        float32, as transformers loads them: rounded, late positions would be others.
        """
        if dtype != torch.float32 and self.device.type == "cpu":
            self.model.set_attn_implementation("eager")  # type: ignore[operator]
        exact = [(n, b) for n, b in self.model.named_buffers() if n.endswith("inv_freq")]
        self.model.to(dtype)
        for name, buffer in exact:
            place, _, last = name.rpartition(".")
            setattr(self.model.get_submodule(place), last, buffer)

    def blocks(self, targets: str) -> Blocks:
        """The blocks that `features` passes through, with the projections in `targets` ("qv")."""
        tower = "vision_model" if self.kind == "clip" else ""
        return find_blocks(self.model, tower, targets, self.name)

    def encode(self, inputs: Sequence[Any]) -> dict[str, Column]:
        """Columns of raw inputs: token ids a text, or resized uint8 pixels an image (PIL, RGB)."""
        if self.takes == "text":
            return {"input_ids": self._tokens(list(inputs))}
        pixels = self.processor(
            images=list(inputs), do_rescale=False, do_normalize=False, return_tensors="np"
        )["pixel_values"]
        return {"pixel_values": np.ascontiguousarray(np.asarray(pixels).round().astype(np.uint8))}

    def lengths(self, rows: Rows) -> np.ndarray[Any, Any] | None:
        """Tokens of every row, or None where all rows are alike."""
        if self.takes == "image":
            return None
        return np.array([len(ids) for ids in rows.columns["input_ids"]])

    def passes(self, rows: Rows, most: int) -> Iterator[Index]:
        """In which batches rows pass where nothing trains: all of them once, shortest first.

        A batch has at most `most` rows, and on the CPU as little padding as makes up for a batch
        more. An accelerator, which is faster than it is given work, pads.
        """
        lengths, start, padding = self.lengths(rows), 0, 0
        order = np.arange(len(rows)) if lengths is None else np.argsort(lengths, kind="stable")
        limit = _PADDING if self.device.type == "cpu" else math.inf
        longest = 0
        for end, row in enumerate(order):
            tokens = longest if lengths is None else self.padded(int(lengths[row]))
            padding += (end - start) * (tokens - longest)
            longest = tokens
            if end - start == most or (end > start and padding > limit):
                yield order[start:end]
                start, padding = end, 0
        if len(order):
            yield order[start:]

    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """One batch on the model's device, padded to its longest row; a mask if any is shorter.

        In bfloat16 rows are padded to a multiple of 8 tokens: matrix units take tiles of it, and
        kernels that are made and kept for every shape, as on the CPU, are fewer.
        """
        if self.takes == "text":
            return self._pad([torch.as_tensor(ids) for ids in rows.columns["input_ids"]])
        pixels = torch.as_tensor(np.asarray(rows.columns["pixel_values"])).to(self.device)
        values, shape = pixels.to(torch.float32), (1, -1, 1, 1)
        if self.processor.do_rescale:
            values = values * self.processor.rescale_factor
        if self.processor.do_normalize:
            mean = torch.tensor(self.processor.image_mean, device=self.device).view(shape)
            std = torch.tensor(self.processor.image_std, device=self.device).view(shape)
            values = (values - mean) / std
        return {"pixel_values": values.to(self.dtype)}

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`(batch, width)` float32 features under whatever adapters are in the model."""
        if self.kind == "clip":
            pooled = self.model.vision_model(**batch).pooler_output  # type: ignore[operator]
            return self.model.visual_projection(pooled).float()  # type: ignore[operator,no-any-return]
        hidden = self.model(**batch).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0].float()  # type: ignore[no-any-return]
        if "attention_mask" not in batch:
            return hidden.float().mean(1)  # type: ignore[no-any-return]
        mask = batch["attention_mask"].unsqueeze(-1).float()
        return (hidden.float() * mask).sum(1) / mask.sum(1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """`(prompts, width)` text embeddings of unit length, from the model without adapters."""
        return self._prompt_features(self._prompt_batch(prompts))

    def context_encoder(self, labels: Sequence[str], words: int) -> Callable[[Tensor], Tensor]:
        """Class embeddings of unit length as a function of context vectors.

        Args:
            labels: as they stand in prompts.
            words: context vectors before each, taking the place of so many words.

        Returns:
            a function of `(words, width of a word)` to `(labels, width)`, through the model without
            adapters; gradients flow to the vectors.
        """
        filled = [" ".join([*[_WORD] * words, label]) for label in labels]
        batch, table = self._prompt_batch(filled), self._word_table()

        def encode(context: Tensor) -> Tensor:
            def place(module: nn.Module, args: Any, found: Tensor) -> Tensor:
                given = context.to(found.dtype).expand(len(found), -1, -1)
                return torch.cat([found[:, :1], given, found[:, 1 + words :]], 1)

            handle = table.register_forward_hook(place)
            try:
                return self._prompt_features(batch)
            finally:
                handle.remove()

        return encode

    def word_embeddings(self) -> Tensor:
        """`(vocabulary, width of a word)` of the text encoder."""
        return self._word_table().weight

    def _word_table(self) -> nn.Embedding:
        if self.kind == "clip":
            return self.model.text_model.embeddings.token_embedding  # type: ignore[union-attr,return-value]
        return self.model.get_input_embeddings()  # type: ignore[operator,no-any-return]

    def temperature(self) -> float:
        """What cosines are multiplied by: CLIP's learned `logit_scale`, 20 for sentence encoders.

        20 is the value sentence encoders of this family were trained with (multiple negatives
        ranking loss of sentence-transformers).
        """
        if self.kind != "clip":
            return 20.0
        return float(self.model.logit_scale.cpu().exp())  # type: ignore[operator]

    def _prompt_features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`(prompts, width)` of unit length."""
        with products_of(next(self.model.parameters())):
            if self.kind == "clip":
                pooled = self.model.text_model(**batch).pooler_output  # type: ignore[operator]
                features = self.model.text_projection(pooled).float()  # type: ignore[operator]
            else:
                features = self.features(batch)
        return nn.functional.normalize(features, dim=-1)

    def _prompt_batch(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        if self.kind != "clip":
            return self._pad([torch.as_tensor(ids) for ids in self._tokens(prompts)])
        tokenizer = pretrained.load_tokenizer(self.name)
        limit = self.model.config.text_config.max_position_embeddings  # type: ignore[union-attr]
        tokens = tokenizer(
            list(prompts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        wanted = ("input_ids", "attention_mask")
        return {name: tokens[name].to(self.device) for name in wanted}

    def _tokens(self, texts: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        encoded = self.processor(
            list(texts), truncation=True, max_length=self.max_length, return_attention_mask=False
        )
        return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]

    def padded(self, longest: int) -> int:
        """Tokens of a batch of texts whose longest row has so many."""
        tile = 8 if self.dtype == torch.bfloat16 else 1
        return max(longest, min(-(-longest // tile) * tile, self.max_length))

    def _pad(self, ids: Sequence[Tensor]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(row) for row in ids])
        tokens = self.padded(int(lengths.max()))
        padded = torch.full((len(ids), tokens), self.processor.pad_token_id)
        for line, row in zip(padded, ids, strict=True):
            line[: len(row)] = row
        batch = {"input_ids": padded.to(self.device)}
        if (lengths < tokens).any():
            mask = torch.arange(tokens) < lengths[:, None]
            batch["attention_mask"] = mask.to(torch.long).to(self.device)
        return batch


def load_backbone(name: str, *, max_length: int | None = None, device: str = "cpu") -> Backbone:
    """Load a foundation model by embedded name, local folder or hub id, frozen.

    Args:
        name: `glyphclip`, `minilm`, a folder as `save_pretrained` writes it, or a hub id.
        max_length: tokens after which texts are cut; None for the model's own limit.
        device: where it computes.

    Raises:
        UserError: if it cannot be found, or is of a kind that is not supported.
    """
    known = pretrained.look_up(name)
    folder, kind, config = known.folder, known.kind, known.config
    model = pretrained.load_model(kind, config, folder, name).eval().requires_grad_(False)
    model = model.to(device, torch.float32)
    texts = kind in ("sentence", "text")
    processor = (
        pretrained.load_tokenizer(folder)
        if texts
        else pretrained.load_image_processor(folder, name)
    )
    mean = texts or config.model_type in pretrained.NO_CLASS_TOKEN
    pooling = pretrained.pooling(folder) or ("mean" if mean else "cls")
    limit = pretrained.max_length(config, processor, folder, max_length) if texts else 0
    return Backbone(folder, kind, model, processor, pooling, known.width, limit)
