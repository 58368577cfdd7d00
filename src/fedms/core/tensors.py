"""Named tensors: the one form in which adapters, gates and states are held, sent and stored.

Names carry a role before the first slash: `global/…` and `local/…` for the tensors of an expert,
`gate/…` for the gate. Values are float32 on the CPU wherever they are not on a model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache

import safetensors.torch
import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def under(role: str, tensors: Tensors) -> dict[str, Tensor]:
    """`tensors` named with `role/` in front."""
    return {f"{role}/{name}": value for name, value in tensors.items()}


def part(role: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of one role, named without it."""
    start = f"{role}/"
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}


def pick(tensors: Tensors, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors with these names, in sorted order.

    Raises:
        KeyError: if one is missing.
    """
    return {name: tensors[name] for name in sorted(names)}


def serialise(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """The safetensors bytes of `tensors`: what crosses the wire and what is hashed."""
    contiguous = {name: tensors[name].contiguous() for name in sorted(tensors)}
    return safetensors.torch.save(contiguous, dict(metadata) if metadata else None)


def wire_bytes(tensors: Tensors) -> int:
    """How many bytes `serialise` makes of them, without doing so each time; 0 for no tensors."""
    if not tensors:
        return 0
    return _serialised_size(tuple((n, t.shape, t.dtype) for n, t in tensors.items()))


@lru_cache(maxsize=256)
def _serialised_size(kinds: tuple[tuple[str, torch.Size, torch.dtype], ...]) -> int:
    return len(serialise({name: torch.zeros(shape, dtype=dtype) for name, shape, dtype in kinds}))


def deserialise(data: bytes) -> dict[str, Tensor]:
    """What `serialise` made."""
    return safetensors.torch.load(data)


def fingerprint(tensors: Tensors) -> str:
    """A hash of names, shapes, types and values: equal for equal tensors, in any order."""
    return hashlib.blake2b(serialise(tensors), digest_size=16).hexdigest()


def elements(tensors: Tensors) -> int:
    """How many numbers the tensors hold together."""
    return sum(t.numel() for t in tensors.values())


def all_finite(tensors: Tensors) -> bool:
    """Whether no value is NaN or infinite.

    A float64 sum of float32 values is finite if and only if they all are, and takes one pass.
    """
    return all(math.isfinite(t.sum(dtype=torch.float64)) for t in tensors.values())
