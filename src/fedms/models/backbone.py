"""The frozen foundation model: load it, encode inputs for it, get one feature vector an example.

The only module that imports transformers. Three kinds are supported:

- `clip`: a `CLIPModel`; images are classified, class prompts go through its text tower.
- `sentence`: a text encoder with a sentence-transformers pooling (`1_Pooling/config.json`);
  texts are classified, class prompts are encoded as the texts are.
- `text`, `image`: any other encoder (BERT, RoBERTa, ViT, DINOv2, …), which cannot score prompts.

Weights are read from safetensors only, and no code of a model repository is ever run.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import cached_file

from fedms.core.errors import UserError, did_you_mean
from fedms.core.rows import Column, Rows
from fedms.models.blocks import Blocks, find_blocks
from fedms.models.names import resolve

Kind = Literal["clip", "sentence", "text", "image"]
Pooling = Literal["mean", "cls"]
_PROMPTED = ("clip", "sentence")
_WORD = "x"
"""Stands where context vectors are put; one token in any vocabulary of words."""


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
        return self.kind in _PROMPTED

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
        if self.kind == "clip":
            pooled = self.model.text_model(**batch).pooler_output  # type: ignore[operator]
            features = self.model.text_projection(pooled).float()  # type: ignore[operator]
        else:
            features = self.features(batch)
        return nn.functional.normalize(features, dim=-1)

    def _prompt_batch(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        if self.kind != "clip":
            return self._pad([torch.as_tensor(ids) for ids in self._tokens(prompts)])
        tokenizer = load_tokenizer(self.name)
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
    known = look_up(name)
    folder, kind, config = known.folder, known.kind, known.config
    model = _load_model(kind, config, folder, name).eval().requires_grad_(False)
    model = model.to(device, torch.float32)
    processor = load_tokenizer(folder) if kind in ("sentence", "text") else _images(folder, name)
    mean = kind in ("sentence", "text") or config.model_type in _NO_CLASS_TOKEN
    pooling = _pooling(folder) or ("mean" if mean else "cls")
    limit = 0 if kind in ("clip", "image") else _max_length(config, processor, folder, max_length)
    return Backbone(folder, kind, model, processor, pooling, known.width, limit)


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a model before its weights are read: where it is, and as in `Backbone`."""

    folder: str
    kind: Kind
    width: int
    config: Any

    @property
    def commit(self) -> str | None:
        """Of a model of the hub, from the place of its files; None for a folder."""
        if Path(self.folder).is_dir():
            return None
        try:
            found = cached_file(self.folder, "config.json", local_files_only=True)
        except OSError:
            return None
        name = Path(str(found)).parent.name
        return name if re.fullmatch("[0-9a-f]{40}", name) else None

    @property
    def scores_prompts(self) -> bool:
        """See `Backbone.scores_prompts`."""
        return self.kind in _PROMPTED


def look_up(name: str) -> Known:
    """A foundation model's kind and sizes, by any name that `load_backbone` takes.

    Raises:
        UserError: if it cannot be found, or is of a kind that is not supported.
    """
    folder = resolve(name)
    config = _load(transformers.AutoConfig, folder, name)
    kind = _kind(config, folder, name)
    width = config.projection_dim if kind == "clip" else config.hidden_size
    return Known(folder, kind, width, config)


def _kind(config: Any, folder: str, name: str) -> Kind:
    if config.model_type == "clip":
        return "clip"
    plain = hasattr(config, "hidden_size") and not hasattr(config, "depths")  # no stages, as Swin
    plain = plain and config.model_type not in _OTHER_LAYOUT
    if config.model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES and plain:
        return "image"
    encoder = plain and not config.is_encoder_decoder
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and encoder:
        return "sentence" if _pooling(folder) else "text"
    raise UserError(
        f"got model.name = {name!r} of type {config.model_type!r}; expected CLIP, a sentence "
        "encoder, or a text or image encoder such as BERT, RoBERTa, ViT or DINOv2"
    )


_NO_CLASS_TOKEN = ("ijepa",)
"""Encoders of images whose tokens are all of patches: features are the mean, as with texts."""
_OTHER_LAYOUT = ("longformer",)
"""Inside them rows of a batch are not the first axis, or tokens are padded once more."""


def _load_model(kind: Kind, config: Any, folder: str, name: str) -> nn.Module:
    loader = transformers.CLIPModel if kind == "clip" else transformers.AutoModel
    bare = {"add_pooling_layer": False} if _has_pooler(config) else {}
    options = {"use_safetensors": True, "output_loading_info": True, **bare}
    model, found = _load(loader, folder, name, **options)
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(
            f"got model.name = {name!r}, whose file lacks {len(missing)} weights, e.g. "
            f"{missing[0]}; expected all of them; try saving the model again"
        )
    return model  # type: ignore[no-any-return]


def _has_pooler(config: Any) -> bool:
    return config.model_type in ("bert", "roberta", "xlm-roberta", "camembert", "vit", "deit")


def _load(loader: Any, folder: str, name: str, **options: Any) -> Any:
    """`from_pretrained` without remote code, quietly; what goes wrong becomes one line."""
    try:
        with quiet():
            return loader.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        reason = reason if len(reason) <= _REASON else f"{reason[:_REASON]}…"
        raise UserError(
            f"got model.name = {name!r}, which cannot be loaded: {reason}; expected a folder that "
            "save_pretrained wrote (with safetensors weights), or a hub id that can be reached"
            f"{did_you_mean(name.lower(), ('glyphclip', 'minilm'))}"
        ) from error


_REASON = 400
"""Characters of what transformers says: some versions name all models that they know."""


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers without progress bars and notices; its settings are put back afterwards."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def load_tokenizer(folder: str) -> Any:
    """The tokenizer in a folder or hub repository.

    Raises:
        UserError: if there is none, or it has no padding token.
    """
    tokenizer = _load(transformers.AutoTokenizer, folder, folder)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise UserError(
            f"got no tokenizer files in {folder!r}; expected tokenizer.json or the like"
        )
    if tokenizer.pad_token_id is None:
        raise UserError(f"got a tokenizer without a padding token in {folder!r}; expected one")
    return tokenizer


def _images(folder: str, name: str) -> Any:
    return _load(transformers.AutoImageProcessor, folder, name, backend="pil")


def _json(folder: str, path: str) -> dict[str, Any] | None:
    """A JSON file beside the weights, or None where there is none."""
    file = cached_file(
        folder,
        path,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return json.loads(Path(file).read_text()) if file else None


def _pooling(folder: str) -> Pooling | None:
    """How a sentence encoder pools, or None for other models."""
    found = _json(folder, "1_Pooling/config.json")
    if found is None:
        return None
    on = [key for key, value in found.items() if key.startswith("pooling_mode_") and value]
    if "pooling_mode" in found:  # as sentence-transformers writes it since version 6
        on = [str(found["pooling_mode"])]
    known: dict[str, Pooling] = {"pooling_mode_cls_token": "cls", "cls": "cls"}
    known |= {"pooling_mode_mean_tokens": "mean", "mean": "mean"}
    if len(on) != 1 or on[0] not in known:
        raise UserError(
            f"got a sentence encoder in {folder!r} with pooling {', '.join(on) or 'none'}; "
            f"expected one of {', '.join(known)}"
        )
    return known[on[0]]


def _max_length(config: Any, tokenizer: Any, folder: str, wanted: int | None) -> int:
    positions = getattr(config, "max_position_embeddings", None) or 512
    offset = (config.pad_token_id or 0) + 1 if config.model_type in _OFFSET_POSITIONS else 0
    sentence = (_json(folder, "sentence_bert_config.json") or {}).get("max_seq_length")
    limits = [positions - offset, tokenizer.model_max_length, sentence, wanted]
    return int(min(limit for limit in limits if limit))


_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")
