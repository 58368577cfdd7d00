"""How clients train, and how two experts are joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedms.models.mixture import Mix


@dataclass(frozen=True)
class Training:
    """How a client trains in a round: AdamW, a fresh optimiser every time.

    Args:
        batch_size: rows a step; the last batch of an epoch may be smaller.
        learning_rate: of adapters and linear heads.
        gate_learning_rate: of the gate.
        weight_decay: decoupled, on everything trained.
    """

    batch_size: int = 32
    learning_rate: float = 3e-3
    gate_learning_rate: float = 1e-3
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Mixing:
    """How two experts are joined (all reconstructed).

    Args:
        mix: see `models.mixture`.
        smoothing: of the class prior, for experts that have it: added to every class count,
            greater than 0.
        data: rows the gate learns on. `train`: together with the local expert, on the loss of the
            mixture. `val`: on validation rows, after each epoch in which the local expert learned
            alone; a gate that sees the rows the expert was fitted to over-trusts it.
        bottleneck: width of the gate adapter, at least 1.
        local_loss: weight of the local expert's own cross-entropy beside the mixture's.
        grounded: whether experts look for classes where class statistics, if there are any, say
            they are (ours).
    """

    mix: Mix = "probabilities"
    smoothing: float = 0.5
    data: Literal["train", "val"] = "train"
    local_loss: float = 0.0
    bottleneck: int = 4
    grounded: bool = True
