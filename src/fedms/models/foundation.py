"""A foundation model that a program has in memory, written down as runs read it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from fedms.core.errors import UserError
from fedms.models.pretrained import quiet

_PARTS = ("tokenizer", "image_processor")
"""Of a processor for texts and images."""


def keep(model: Any, processor: Any, folder: Path) -> None:
    """Write a model of transformers, or a sentence encoder, as `load_backbone` reads it.

    The model is left as it is, and where it is.

    Args:
        model: with `save_pretrained`; plain, without adapters.
        processor: tokenizer, image processor, or a processor with both; None for a sentence
            encoder, which has its own.
        folder: is made.

    Raises:
        UserError: if one of them is something else.
    """
    _check(model, processor)
    own = getattr(model, "config", None)
    try:
        if own is not None:
            model.config = copy.deepcopy(own)  # save_pretrained notes class and precision in it
        with quiet():
            model.save_pretrained(str(folder))
            for part in _parts(processor):
                part.save_pretrained(str(folder))
    finally:
        if own is not None:
            model.config = own


def _parts(processor: Any) -> list[Any]:
    parts = [getattr(processor, name) for name in _PARTS if hasattr(processor, name)]
    return parts or ([] if processor is None else [processor])


def _check(model: Any, processor: Any) -> None:
    kind = type(model).__name__
    if not hasattr(model, "save_pretrained"):
        raise UserError(
            f"got a {kind} for the model; expected a name, a model of transformers, or a sentence "
            "encoder; try AutoModel.from_pretrained"
        )
    if hasattr(model, "peft_config"):
        raise UserError(
            f"got a {kind} with adapters; expected a plain model, to which fedms adds its own; try "
            "merge_and_unload()"
        )
    whole = hasattr(model, "tokenizer") and hasattr(model, "encode")  # a sentence encoder
    if processor is None and not whole:
        raise UserError(
            f"got a {kind} alone; expected its tokenizer or image processor too; try "
            "FedMS(model, AutoTokenizer.from_pretrained(...))"
        )
    if processor is not None and not hasattr(processor, "save_pretrained"):
        raise UserError(
            f"got a {type(processor).__name__} for the tokenizer; expected a tokenizer, image "
            "processor or processor of transformers"
        )
