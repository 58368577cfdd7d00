"""The gate: how much of each example's prediction comes from the global expert.

The abstract names a gate network with an inserted gate adapter that joins the aggregation.
Reconstructed: the frozen model's feature `h(x)` of width `d`, scaled to unit mean square, passes a
residual bottleneck adapter `h + up(gelu(down(h)))` (d → d/4 → d, `up` zero at first, so that it
starts as the identity), then a linear head d → 2 (zero at first, so that both experts start with
equal weight) and a log-softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedms.core.seeds import derive_seed

ADAPTER = ("down.weight", "down.bias", "up.weight", "up.bias")
HEAD = ("head.weight", "head.bias")


class Gate(nn.Module):
    """`(batch, width)` features to `(batch, 2)` log weights of (global, local) expert."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, max(1, width // 4))
        self.up = nn.Linear(max(1, width // 4), width)
        self.head = nn.Linear(width, 2)
        self.requires_grad_(False)

    def forward(self, feature: Tensor) -> Tensor:
        hidden = F.normalize(feature, dim=-1) * feature.shape[-1] ** 0.5
        hidden = hidden + self.up(F.gelu(self.down(hidden)))
        return F.log_softmax(self.head(hidden), dim=-1)


def initial_gate(width: int, seed: int) -> dict[str, Tensor]:
    """The gate before training. Only `down.weight` is random (uniform within ±1/sqrt(width))."""
    inner = max(1, width // 4)
    generator = torch.Generator().manual_seed(derive_seed(seed, "gate"))
    down = (torch.rand((inner, width), generator=generator) * 2 - 1) * width**-0.5
    return {
        "down.weight": down,
        "down.bias": torch.zeros(inner),
        "up.weight": torch.zeros(width, inner),
        "up.bias": torch.zeros(width),
        "head.weight": torch.zeros(2, width),
        "head.bias": torch.zeros(2),
    }
