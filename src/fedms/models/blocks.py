"""Where a foundation model's transformer blocks are, and which of their layers get adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fedms.core.errors import UserError

PROJECTIONS = {
    "q": ("query", "q_proj", "q_lin"),
    "k": ("key", "k_proj", "k_lin"),
    "v": ("value", "v_proj", "v_lin"),
    "o": ("out_proj", "o_proj", "out_lin", "attention.output.dense"),
}


@dataclass(frozen=True)
class Blocks:
    """Where the transformer blocks are and which linear layers of each carry an adapter.

    Args:
        root: module path of the list of blocks, e.g. `encoder.layer`.
        count: number of blocks, L.
        targets: paths of the adapted layers below one block, e.g. `attention.self.query`.
    """

    root: str
    count: int
    targets: tuple[str, ...]

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """Targets that see the same: q, k and v by `""`, what comes after attention by its path."""
        after = tuple(f".{name}" for name in PROJECTIONS["o"])
        apart = tuple(target for target in self.targets if f".{target}".endswith(after))
        first = tuple(target for target in self.targets if target not in apart)
        return {**({"": first} if first else {}), **{target: (target,) for target in apart}}


def find_blocks(model: nn.Module, tower: str, targets: str, name: str) -> Blocks:
    """Find the list of transformer blocks and the projections to adapt.

    Raises:
        UserError: if the model has no such list, or its blocks lack a projection of `targets`.
    """
    config: Any = model.config
    count = int(getattr(config, "vision_config", config).num_hidden_layers)
    for path, module in model.named_modules():
        inside = path.startswith(tower)
        if inside and isinstance(module, nn.ModuleList) and len(module) == count:
            found = _targets(module[0], targets)
            if found:
                return Blocks(path, count, found)
    raise UserError(
        f"got model.name = {name!r} ({type(model).__name__}), in whose blocks there are no linear "
        f"layers for lora.targets = {targets!r}; expected an encoder such as CLIP, BERT, RoBERTa, "
        "ViT or DINOv2"
    )


def _targets(block: nn.Module, targets: str) -> tuple[str, ...]:
    """Paths of the wanted projections, or () if one is missing."""
    linear = [path for path, module in block.named_modules() if isinstance(module, nn.Linear)]
    found: list[str] = []
    for letter in targets:
        match = [
            p for p in linear if ("." + p).endswith(tuple("." + n for n in PROJECTIONS[letter]))
        ]
        if not match:
            return ()
        found.append(match[0])
    return tuple(found)
