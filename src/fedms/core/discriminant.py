"""Class statistics: what sums over clients' rows say of every class before anything is trained.

Clients send once, of their training rows' features under the foundation model, each of unit length:
how many rows every class has, their sums by class, and the second moment of all. Added up they are
exactly those of all rows together, however skewed clients are. Of them the server makes a linear
discriminant with one covariance for all classes (Fisher 1936; federated: FedCGS, arXiv 2503.06962,
and Fed3R, arXiv 2402.01348, for the closely related ridge regression). Ours: a client draws the
means of classes towards its own rows, and how much all of it counts is left to calibration.

These sums say more of a client than an adapter does: where it has one row of a class, the sum is
that row's feature. `gate.statistics = "none"` leaves all of it out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core.layout import Shapes
from fedms.core.tensors import Tensors

COUNTS, SUMS, MOMENT = (f"statistics/{name}" for name in ("counts", "sums", "moment"))
"""What a client sends, divided by its number of training rows, which is its weight."""
WHITENING, MEANS, STRENGTH, BIAS = (
    f"statistics/{name}" for name in ("whitening", "means", "strength", "bias")
)
"""What the server makes of it, and sends to every client once."""
_RIDGE = 0.01
"""Added to the covariance, times the mean variance of a direction."""
_FLOOR = 1e-6
"""No direction has less variance than this; those of features of unit length sum to 1 at most."""
_OVERALL = 1.0
"""Rows that the overall mean counts as in every class's mean."""
_SHARED = 10.0
"""Rows that a shared mean counts as, at most, beside a client's own ones."""


def shapes(classes: int, width: int) -> Shapes:
    """Of what a client sends; of the moment, which is symmetric, the lower triangle is sent."""
    return {COUNTS: (classes,), SUMS: (classes, width), MOMENT: (width * (width + 1) // 2,)}


def sums(features: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """Over rows, in float64, named and shaped as `shapes` says.

    Args:
        features: `(rows, width)`.
        labels: `(rows,)`, 0..classes - 1.
        classes: of the federation.
    """
    z = F.normalize(features.double(), dim=-1)
    of_class = F.one_hot(labels, classes).double()
    return {COUNTS: of_class.sum(0), SUMS: of_class.T @ z, MOMENT: _pack(z.T @ z)}


def discriminant(total: Tensors, *, whole: bool = False) -> dict[str, Tensor]:
    """The server's tensors, float32, of sums over all rows.

    `WHITENING` is the lower triangle of a matrix under which every class has unit covariance,
    `MEANS` are those of the classes under it, `(classes, width)`; `STRENGTH` is how many of a
    client's rows each of them counts as, `(classes,)`, and `BIAS` is what is added to scores,
    `(classes,)`: zero, so that all are as likely beforehand.

    A client's mean is taken to differ from the shared one as the mean of ten rows differs from that
    of their class, and the shared one likewise from its own expectation by its own rows: variances
    add up, `1 / strength = 1 / 10 + 1 / (rows + 1)`.

    Args:
        total: as `sums`.
        whole: the covariance is that of all rows, and classes are as frequent as there.
    """
    counts, by_class = total[COUNTS].double(), total[SUMS].double()
    lower, rows = _unpack(total[MOMENT].double(), by_class.shape[1]), counts.sum()
    moment = lower + lower.tril(-1).T
    overall = by_class.sum(0) / rows
    scaled = by_class / counts.clamp_min(1)[:, None].sqrt()
    within = (moment - scaled.T @ scaled) / rows
    around = moment / rows - torch.outer(overall, overall)
    spread = around.diagonal().mean()
    values, directions = torch.linalg.eigh(around if whole else within)
    values = values.clamp_min(0) + _RIDGE * spread.clamp_min(0) + _FLOOR
    root = torch.linalg.cholesky((directions * values) @ directions.T)
    whitening = torch.linalg.solve_triangular(root, torch.eye(len(root)).double(), upper=False)
    means = (by_class + _OVERALL * overall) / (counts + _OVERALL)[:, None]
    bias = ((counts + _OVERALL / len(counts)) / (rows + _OVERALL)).log()
    return {
        WHITENING: _pack(whitening).float(),
        MEANS: (means @ whitening.T).float(),
        STRENGTH: (1 / (1 / _SHARED + 1 / (counts + _OVERALL))).float(),
        BIAS: (bias if whole else torch.zeros_like(bias)).float(),
    }


@dataclass(frozen=True, eq=False)
class Discriminant:
    """What the server made of all clients' sums.

    Args:
        whitening: `(width (width + 1) / 2,)`, see `discriminant`.
        means: `(classes, width)`.
        strength: `(classes,)`.
        bias: `(classes,)`.
        personal: whether a client draws the means towards its own training rows.
    """

    whitening: Tensor
    means: Tensor
    strength: Tensor
    bias: Tensor
    personal: bool = True

    @staticmethod
    def of(tensors: Tensors, *, personal: bool) -> Discriminant | None:
        """That of the server's tensors, if it is among them."""
        if MEANS not in tensors:
            return None
        names = WHITENING, MEANS, STRENGTH, BIAS
        whitening, means, strength, bias = (tensors[name] for name in names)
        return Discriminant(whitening, means, strength, bias, personal)

    def scores(self, features: Tensor, own: Tensor, labels: Tensor) -> Tensor:
        """`(rows, classes)`: log-likelihoods and bias, up to what all classes have in common.

        Args:
            features: `(rows, width)` under the foundation model.
            own: likewise, of the client's training rows.
            labels: theirs.
        """
        means = self.drawn(own, labels)
        whitened = F.normalize(features, dim=-1) @ self.matrix.T
        return whitened @ means.T - means.square().sum(-1) / 2 + self.bias

    @property
    def matrix(self) -> Tensor:
        """`(width, width)`, which whitens a feature of unit length."""
        return _unpack(self.whitening, self.means.shape[1])

    def drawn(self, own: Tensor, labels: Tensor) -> Tensor:
        """`(classes, width)`: the whitened means, drawn towards a client's rows where personal."""
        if not self.personal:
            return self.means
        of_class = F.one_hot(labels, len(self.means)).to(self.means)
        total = of_class.T @ (F.normalize(own, dim=-1) @ self.matrix.T)
        strength = self.strength[:, None]
        return (total + strength * self.means) / (of_class.sum(0)[:, None] + strength)


def _pack(matrix: Tensor) -> Tensor:
    rows, columns = np.tril_indices(len(matrix))
    return matrix[rows, columns]


def _unpack(packed: Tensor, width: int) -> Tensor:
    """The lower triangle as a matrix, zero above its diagonal."""
    matrix = packed.new_zeros(width, width)
    matrix[np.tril_indices(width)] = packed
    return matrix
