"""Read foundation models from folders and the hub: of what kind they are, weights, tokenizers.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import cached_file

from fedms.core.errors import UserError, did_you_mean
from fedms.models.names import resolve

Kind = Literal["clip", "sentence", "text", "image"]
Pooling = Literal["mean", "cls"]
PROMPTED = ("clip", "sentence")


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
        return self.kind in PROMPTED


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
        return "sentence" if pooling(folder) else "text"
    raise UserError(
        f"got model.name = {name!r} of type {config.model_type!r}; expected CLIP, a sentence "
        "encoder, or a text or image encoder such as BERT, RoBERTa, ViT or DINOv2"
    )


NO_CLASS_TOKEN = ("ijepa",)
"""Encoders of images whose tokens are all of patches: features are the mean, as with texts."""
_OTHER_LAYOUT = ("longformer",)
"""Inside them rows of a batch are not the first axis, or tokens are padded once more."""


def load_model(kind: Kind, config: Any, folder: str, name: str) -> nn.Module:
    """The weights, as they lie in the file, in the module that they are of.

    Raises:
        UserError: if they cannot be read, or some are missing.
    """
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


def load_image_processor(folder: str, name: str) -> Any:
    """What resizes images, in a folder or hub repository.

    Raises:
        UserError: if there is none.
    """
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


def pooling(folder: str) -> Pooling | None:
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


def max_length(config: Any, tokenizer: Any, folder: str, wanted: int | None) -> int:
    """Tokens after which texts are cut: as many as are wanted, within the model's own limits."""
    positions = getattr(config, "max_position_embeddings", None) or 512
    offset = (config.pad_token_id or 0) + 1 if config.model_type in _OFFSET_POSITIONS else 0
    sentence = (_json(folder, "sentence_bert_config.json") or {}).get("max_seq_length")
    limits = [positions - offset, tokenizer.model_max_length, sentence, wanted]
    return int(min(limit for limit in limits if limit))


_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")
