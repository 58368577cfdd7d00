"""The gate: how much of each example's prediction comes from the global expert.

The abstract names a gate network with an inserted gate adapter that joins the aggregation.
Reconstructed: the frozen model's feature `h(x)` of width `d`, scaled to unit mean square, passes a
residual bottleneck adapter `h + up(gelu(down(h)))` (d → 4 → d or another width inside, `up` zero
at first, so that it starts as the identity), then a linear head d → 2 (zero at first, so that both
experts start with equal weight) and a log-softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors
from fedms.models.heads import affine

ADAPTER = ("down.weight", "down.bias", "up.weight", "up.bias")
HEAD = ("head.weight", "head.bias")


def gate_shapes(width: int, inner: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a gate for features of a width, with an inner width."""
    return {
        "down.weight": (inner, width),
        "down.bias": (inner,),
        "up.weight": (width, inner),
        "up.bias": (width,),
        "head.weight": (2, width),
        "head.bias": (2,),
    }


def gate_weights(gate: Tensors, features: Tensor) -> Tensor:
    """Log weights of (global, local) expert, `(clients, batch, 2)`.

    Args:
        gate: tensors of `clients` gates, each with a first axis of them.
        features: the frozen model's, `(clients, batch, width)`.
    """
    hidden = F.normalize(features, dim=-1) * features.shape[-1] ** 0.5
    inner = F.gelu(affine(hidden, gate["down.weight"], gate["down.bias"]))
    hidden = hidden + affine(inner, gate["up.weight"], gate["up.bias"])
    return F.log_softmax(affine(hidden, gate["head.weight"], gate["head.bias"]), dim=-1)


def initial_gate(width: int, seed: int, inner: int) -> dict[str, Tensor]:
    """The gate before training. Only `down.weight` is random (uniform within ±1/sqrt(width))."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "gate"))
    shapes = gate_shapes(width, inner)
    down = (torch.rand(shapes["down.weight"], generator=generator) * 2 - 1) * width**-0.5
    return {**{name: torch.zeros(shape) for name, shape in shapes.items()}, "down.weight": down}
