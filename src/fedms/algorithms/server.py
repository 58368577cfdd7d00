"""How the server moves the global model by the average that arrived."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedms.core.algorithm import Learner
from fedms.core.tensors import Tensors, part, under


@dataclass(frozen=True)
class Server:
    """With `d = average - x` for every tensor that arrived, of a global model `x`:

    - `average` without momentum is federated averaging (arXiv 1602.05629): `x ← x + d`. With
      momentum `m` (FedAvgM, arXiv 1909.06335): `v ← m·v + d`, `x ← x + v`.
    - `adam` (FedAdam, arXiv 2003.00295, algorithm 2): `v ← m·v + (1 - m)·d`,
      `s ← decay·s + (1 - decay)·d²`, `x ← x + rate·v / (√s + floor)`.

    Args:
        kind: see above.
        momentum: 0 to below 1.
        rate: of Adam's steps, greater than 0.
        decay: of Adam's squares, 0 to below 1.
        floor: what keeps Adam's steps bounded, greater than 0; squares start at its square.
    """

    MEMORY: ClassVar = ("start/", "velocity/", "squares/")
    """What the names of tensors that it remembers begin with."""
    kind: Literal["average", "adam"] = "average"
    momentum: float = 0.0
    rate: float = 0.01
    decay: float = 0.99
    floor: float = 1e-3

    def start(self, learner: Learner, names: frozenset[str], seed: int) -> dict[str, Tensor]:
        """What the server must know before the first round: the model that has not moved yet."""
        if self.kind == "average" and not self.momentum:
            return {}
        return under("start", learner.initial_expert(names, seed))

    def move(self, state: Tensors, average: Tensors) -> dict[str, Tensor]:
        """The server's tensors after a round: `global/…`, and what it remembers of the way."""
        if self.kind == "average" and not self.momentum:
            return {**state, **under("global", average)}
        before = {**part("start", state), **part("global", state)}
        moves = {name: tensor - before[name] for name, tensor in average.items()}
        velocity, squares = part("velocity", state), part("squares", state)
        if self.kind == "average":
            velocity = {n: self.momentum * velocity.get(n, 0.0) + d for n, d in moves.items()}
            moved = {n: before[n] + v for n, v in velocity.items()}
            return {**state, **under("global", moved), **under("velocity", velocity)}
        m, decay = self.momentum, self.decay
        velocity = {n: m * velocity.get(n, 0.0) + (1 - m) * d for n, d in moves.items()}
        squares = {
            n: decay * squares.get(n, torch.full_like(d, self.floor**2)) + (1 - decay) * d * d
            for n, d in moves.items()
        }
        moved = {
            n: before[n] + self.rate * v / (squares[n].sqrt() + self.floor)
            for n, v in velocity.items()
        }
        remembered = {**under("velocity", velocity), **under("squares", squares)}
        return {**state, **under("global", moved), **remembered}
