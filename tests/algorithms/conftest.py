"""A toy learner: three small blocks, LoRA-like pairs, a gate; every step in plain sight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedms.core import calibration, discriminant
from fedms.core.algorithm import Fit, Score, View
from fedms.core.costs import Costs
from fedms.core.layout import Layout
from fedms.core.routing import routing
from fedms.core.rows import ClientData, Rows, shuffled_batches
from fedms.core.seeds import derive_seed
from fedms.models.mixture import class_evidence, evidence

WIDTH, CLASSES, BLOCKS = 4, 3, 3


class Toy:
    """Block i: `h = tanh(h W_i + h A_i B_i)`; a class is scored by a fixed or a trained matrix.

    Of a gate with `hidden` units in a block there are no biases.
    """

    def __init__(self, linear: bool = False, hidden: int = 0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.frozen = torch.randn(BLOCKS, WIDTH, WIDTH, generator=generator)
        self.classes = torch.randn(WIDTH, CLASSES, generator=generator)
        blocks = tuple((f"{i}.A", f"{i}.B") for i in range(BLOCKS))
        head = ("top",) if linear else ()
        shapes = {"top": (WIDTH, CLASSES)} if linear else {}
        for a, b in blocks:
            shapes |= {a: (2, WIDTH), b: (WIDTH, 2)}
        gate = {"inner": (WIDTH, WIDTH), "outer": (WIDTH, 2)}
        inner = [(f"{i}.inner.mixer",) if hidden else () for i in range(BLOCKS)]
        mixers = tuple((*inner[i], f"{i}.mixer") for i in range(BLOCKS))
        shapes |= {f"{i}.mixer": (2, hidden or WIDTH) for i in range(BLOCKS)}
        shapes |= {name: (hidden, WIDTH) for names in inner for name in names}
        every = {**shapes, **gate}
        self.layout = Layout(
            blocks, head, ("inner",), ("outer",), every, blocks, mixers, CLASSES, WIDTH
        )

    def initial_expert(self, names, seed):
        return {name: self._initial(name, seed) for name in sorted(names)}

    def _initial(self, name, seed):
        if not name.endswith(("A", "inner.mixer")):
            return torch.zeros(self.layout.shapes[name])
        generator = torch.Generator().manual_seed(derive_seed(seed, name))
        return torch.randn(self.layout.shapes[name], generator=generator)

    def initial_gate(self, seed):
        return {"inner": torch.zeros(WIDTH, WIDTH), "outer": torch.zeros(WIDTH, 2)}

    def _features(self, expert, x, beneath, weight=None):
        for i, frozen in enumerate(self.frozen):
            shares = [1.0, 1.0]
            if weight is not None:
                shares = [weight[:, None], 1 - weight[:, None]]
            elif f"{i}.mixer" in expert:
                inner = expert.get(f"{i}.inner.mixer")
                seen = x if inner is None else F.relu(x @ inner.T)
                shares = F.softmax(seen @ expert[f"{i}.mixer"].T, -1).T[..., None]
            pairs = [(s, t) for s, t in zip(shares, (expert, beneath), strict=True)]
            pairs = [(s, t) for s, t in pairs if f"{i}.A" in t]
            low = sum(s * (x @ t[f"{i}.A"].T @ t[f"{i}.B"].T) for s, t in pairs)
            x = torch.tanh(x @ frozen + low)
        return x

    def _logits(self, expert, x, beneath, likeness=None):
        weight = None
        if likeness is not None:
            weight = (F.normalize(self._features(expert, x, {}), dim=-1) @ likeness).clamp(0, 1)
        return self._features(expert, x, beneath, weight) @ expert.get("top", self.classes)

    @torch.no_grad()
    def mean_direction(self, expert, rows):
        x = torch.from_numpy(rows.columns["x"])
        return F.normalize(self._features(expert.tensors, x, expert.beneath), dim=-1).mean(0)

    def _log_probabilities(self, expert, partner, gate, x, beneath, offset=0.0, likeness=None):
        own = F.log_softmax(self._logits(expert, x, beneath, likeness) + offset, -1)
        if partner is None:
            return own, torch.zeros(len(x))
        weights = F.log_softmax((x + x @ gate["inner"]) @ gate["outer"], -1)
        shared = F.log_softmax(self._logits(partner.tensors, x, partner.beneath) + offset, -1)
        return torch.logaddexp(weights[:, :1] + shared, weights[:, 1:] + own), weights[:, 0].exp()

    def fit(self, fits, pace) -> list[View]:
        return [self._fit(fit) for fit in fits]

    def _fit(self, fit: Fit) -> View:
        view, names, data, epochs, seed = fit.view, fit.names, fit.data, fit.epochs, fit.seed
        anchor = {**view.expert.tensors, **fit.anchor}
        counted = class_evidence(data.train.labels, CLASSES, 0.5)
        offset = torch.tensor(fit.prior or (0.0, 0.0)) @ counted
        expert = {n: t.clone() for n, t in view.expert.tensors.items()}
        gate = {n: t.clone() for n, t in (view.gate or {}).items()}
        trained = [expert[n].requires_grad_() for n in sorted(names)]
        anchors = [anchor[n] for n in sorted(names)]
        trained += [t.requires_grad_() for t in gate.values() if fit.gate]
        anchors += [None] * (len(trained) - len(anchors))
        for epoch in range(epochs):
            for index in shuffled_batches(len(data.train), 4, derive_seed(seed, epoch)):
                rows = data.train.take(index)
                x, y = torch.from_numpy(rows.columns["x"]), torch.from_numpy(rows.labels)
                scores, _ = self._log_probabilities(
                    expert, view.partner, gate, x, view.expert.beneath, offset
                )
                gradients = torch.autograd.grad(F.nll_loss(scores, y), trained, allow_unused=True)
                with torch.no_grad():
                    for tensor, gradient, to in zip(trained, gradients, anchors, strict=True):
                        if gradient is not None:
                            away = 0 if to is None else fit.pull * (tensor - to)
                            tensor.sub_(0.3 * fit.rate * (gradient + away))
        tensors, own = {n: t.detach() for n, t in expert.items()}, view.expert
        return View(
            replace(own, tensors=tensors),
            view.partner,
            {n: t.detach() for n, t in gate.items()} or None,
        )

    def spent(self) -> Costs:
        return Costs()

    def _evidence(self, view, data, x):
        own = self._logits(view.expert.tensors, x, view.expert.beneath)
        shared, weight = own, torch.full((len(x),), 0.5)
        if view.partner is not None:
            shared = self._logits(view.partner.tensors, x, view.partner.beneath)
            weight = ((x + x @ view.gate["inner"]) @ view.gate["outer"]).softmax(-1)[:, 0]
        said = torch.zeros(len(x), CLASSES)
        if view.statistics is not None:
            labels = torch.from_numpy(data.train.labels)
            z, mine = (
                self._features({}, x, {}) for x in (x, torch.from_numpy(data.train.columns["x"]))
            )
            said = view.statistics.scores(z, mine, labels)
        counted = class_evidence(data.train.labels, CLASSES, 0.5)
        return evidence(shared, own, weight, said, counted), weight

    def statistics(self, data, names=frozenset()):
        x, labels = torch.from_numpy(data.train.columns["x"]), torch.from_numpy(data.train.labels)
        return discriminant.sums(self._features({}, x, {}), labels, CLASSES)

    @torch.no_grad()
    def derivatives(self, view, data):
        x, y = torch.from_numpy(data.val.columns["x"]), torch.from_numpy(data.val.labels)
        return calibration.derivatives(self._evidence(view, data, x)[0], y, view.calibration)

    @torch.no_grad()
    def score(self, view: View, data: ClientData, split) -> Score:
        rows = data.split(split)
        x, y = torch.from_numpy(rows.columns["x"]), torch.from_numpy(rows.labels)
        own = view.expert
        scores, weight = self._log_probabilities(
            own.tensors, view.partner, view.gate, x, own.beneath, likeness=own.likeness
        )
        if view.calibration is not None:
            known, weight = self._evidence(view, data, x)
            scores = calibration.log_probabilities(known, view.calibration)
        loss = float(F.nll_loss(scores, y, reduction="sum"))
        return Score(int((scores.argmax(1) == y).sum()), len(y), loss, float(weight.sum()))

    def routing(self, view, data):
        weight = self._evidence(view, data, torch.from_numpy(data.test.columns["x"]))[1]
        return routing(data.test.labels, weight.numpy())


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
