"""A toy learner: three small blocks, LoRA-like pairs, a gate; every step in plain sight."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedms.core.algorithm import Expert, Layout, Score, View
from fedms.core.costs import Costs
from fedms.core.rows import ClientData, Rows, shuffled_batches
from fedms.core.seeds import derive_seed

WIDTH, CLASSES, BLOCKS = 4, 3, 3


class Toy:
    """Block i: `h = tanh(h W_i + h A_i B_i)`; a class is scored by a fixed or a trained matrix."""

    def __init__(self, linear: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.frozen = torch.randn(BLOCKS, WIDTH, WIDTH, generator=generator)
        self.classes = torch.randn(WIDTH, CLASSES, generator=generator)
        blocks = tuple((f"{i}.A", f"{i}.B") for i in range(BLOCKS))
        head = ("top",) if linear else ()
        shapes = {"top": (WIDTH, CLASSES)} if linear else {}
        for a, b in blocks:
            shapes |= {a: (WIDTH, 2), b: (2, WIDTH)}
        gate = {"inner": (WIDTH, WIDTH), "outer": (WIDTH, 2)}
        self.layout = Layout(blocks, head, ("inner",), ("outer",), {**shapes, **gate})

    def initial_expert(self, names, seed):
        return {name: self._initial(name, seed) for name in sorted(names)}

    def _initial(self, name, seed):
        if not name.endswith("A"):
            return torch.zeros(self.layout.shapes[name])
        generator = torch.Generator().manual_seed(derive_seed(seed, name))
        return torch.randn(self.layout.shapes[name], generator=generator)

    def initial_gate(self, seed):
        return {"inner": torch.zeros(WIDTH, WIDTH), "outer": torch.zeros(WIDTH, 2)}

    def _logits(self, expert, x):
        for i, weight in enumerate(self.frozen):
            low = x @ expert[f"{i}.A"] @ expert[f"{i}.B"] if f"{i}.A" in expert else 0
            x = torch.tanh(x @ weight + low)
        return x @ expert.get("top", self.classes)

    def _log_probabilities(self, expert, partner, gate, x):
        own = F.log_softmax(self._logits(expert, x), -1)
        if partner is None:
            return own, torch.zeros(len(x))
        weights = F.log_softmax((x + x @ gate["inner"]) @ gate["outer"], -1)
        shared = F.log_softmax(self._logits(partner.tensors, x), -1)
        return torch.logaddexp(weights[:, :1] + shared, weights[:, 1:] + own), weights[:, 0].exp()

    def fit(self, fits, pace) -> list[View]:
        return [self._fit(f.view, f.names, f.data, f.epochs, f.seed) for f in fits]

    def _fit(self, view: View, names, data: ClientData, epochs: int, seed: int) -> View:
        expert = {n: t.clone() for n, t in view.expert.tensors.items()}
        gate = {n: t.clone() for n, t in (view.gate or {}).items()}
        trained = [expert[n].requires_grad_() for n in sorted(names)]
        trained += [t.requires_grad_() for t in gate.values()]
        for epoch in range(epochs):
            for index in shuffled_batches(len(data.train), 4, derive_seed(seed, epoch)):
                rows = data.train.take(index)
                x, y = torch.from_numpy(rows.columns["x"]), torch.from_numpy(rows.labels)
                scores, _ = self._log_probabilities(expert, view.partner, gate, x)
                gradients = torch.autograd.grad(F.nll_loss(scores, y), trained, allow_unused=True)
                with torch.no_grad():
                    for tensor, gradient in zip(trained, gradients, strict=True):
                        if gradient is not None:
                            tensor.sub_(0.3 * gradient)
        tensors = {n: t.detach() for n, t in expert.items()}
        return View(Expert(tensors), view.partner, {n: t.detach() for n, t in gate.items()} or None)

    def spent(self) -> Costs:
        return Costs()

    @torch.no_grad()
    def score(self, view: View, data: ClientData, split) -> Score:
        rows = data.split(split)
        x, y = torch.from_numpy(rows.columns["x"]), torch.from_numpy(rows.labels)
        scores, weight = self._log_probabilities(view.expert.tensors, view.partner, view.gate, x)
        loss = float(F.nll_loss(scores, y, reduction="sum"))
        return Score(int((scores.argmax(1) == y).sum()), len(y), loss, float(weight.sum()))


def toy_client(name: str, rows: int = 9, seed: int = 0, cap: int | None = None) -> ClientData:
    rng = np.random.default_rng(seed)

    def part(count: int) -> Rows:
        labels = rng.integers(0, CLASSES, count)
        x = rng.normal(size=(count, WIDTH)) + np.eye(WIDTH)[labels]
        return Rows({"x": x.astype(np.float32)}, labels.astype(np.int64))

    return ClientData(name, part(rows), part(6), part(6), cap)


@pytest.fixture(scope="session")
def toy() -> Callable[..., Toy]:
    return Toy


@pytest.fixture(scope="session")
def make_toy_client() -> Callable[..., ClientData]:
    return toy_client
