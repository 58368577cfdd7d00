"""Named tensors: the one form in which adapters, gates and states are held, sent and stored.

Names carry a role before the first slash: `global/…` and `local/…` for the tensors of an expert,
`gate/…` for the gate. Values are float32 on the CPU wherever they are not on a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

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
    """Whether no value is NaN or infinite."""
    return all(bool(torch.isfinite(t).all()) for t in tensors.values())
