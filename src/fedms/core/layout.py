"""Which tensors of a model can train: by name, block by block."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """Which trainable tensors a model has.

    Args:
        blocks: names of an expert's adapter tensors, one group a block, from input to output.
        head: names of a linear head that belongs to the expert; empty where classes are scored
            against their prompts.
        gate_adapter, gate_head: names of the gate's tensors.
        shapes: shape of every tensor named above.
        pairs: the matrices (A, B) of every projection, whose product `B @ A` is added to it.
        mixers: names of the tensors by which a block's projections weigh an expert's own product
            and the one beneath it, one group a block; an expert has them or not.
        classes: of the federation.
        width: of the foundation model's features.
    """

    blocks: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]
    gate_adapter: tuple[str, ...]
    gate_head: tuple[str, ...]
    shapes: Shapes
    pairs: tuple[tuple[str, str], ...]
    mixers: tuple[tuple[str, ...], ...]
    classes: int
    width: int

    @property
    def down(self) -> frozenset[str]:
        """Names of all A matrices."""
        return frozenset(a for a, _ in self.pairs)

    def whole(self, names: Collection[str]) -> frozenset[str]:
        """These names, and those of all adapter tensors of the blocks they are of."""
        blocks = (block for block in self.blocks if any(name in names for name in block))
        return frozenset(names).union(*blocks)

    def expert(self, depth: int) -> frozenset[str]:
        """What an expert trains when its last `depth` blocks are active (0..all), head included."""
        active = self.blocks[len(self.blocks) - depth :]
        return frozenset(name for block in active for name in block).union(self.head)

    def mixing(self, depth: int) -> frozenset[str]:
        """The mixers of the last `depth` blocks."""
        active = self.mixers[len(self.mixers) - depth :]
        return frozenset(name for block in active for name in block)

    def size(self, names: Iterable[str]) -> int:
        """How many numbers the tensors of these names hold together."""
        return sum(math.prod(self.shapes[name]) for name in names)
