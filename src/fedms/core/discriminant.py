"""Class statistics: what sums over clients' rows say of every class before anything is trained.

Clients send once, of their training rows' features under the foundation model, each of unit length:
how many rows every class has, their sums by class, and the second moment of all. Added up they are
exactly those of all rows together, however skewed clients are. Two things are made of them:

- A linear discriminant with one covariance for all classes (Fisher 1936; federated: FedCGS, arXiv
  2503.06962, and Fed3R, arXiv 2402.01348, for the closely related ridge regression). Ours: a client
  draws the means of classes towards its own rows, and how much it counts is left to calibration.
- Class vectors (ours): where an expert looks for a class. A class prompt says where rows of it
  should be, their mean where they are; the prompt, if there is one, counts as a few rows in it. To
  train a head first, and features from there, distorts them less (arXiv 2202.10054); here no step
  is needed.

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
WHITENING = "statistics/whitening"
"""What the server makes of the moment. With the sums and counts of all, it is sent once."""
_RIDGE = 3.0
"""Added to the covariance, times the mean variance of a direction and the square of directions per
row: of few rows variances are small by chance where they are small. Power and factor were set by
hand, after fixed ridges on validation rows of eleven federations (docs/research-log.md)."""
_FLOOR = 1e-6
"""No direction has less variance than this; those of features of unit length sum to 1 at most."""
_ROUNDING = 1e-3
"""By which sums in float32 may be off, as shares of all rows."""
_FIRST = 1.0
"""Rows that the expectation of a class's mean counts as in it."""
_BESIDE = 0.1
"""Further rows that a class's prompt counts as in its vector, for every row of the class."""
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


def implausible(tensors: Tensors) -> str | None:
    """Why these cannot be `sums` divided by their number of rows; None if they can.

    Of features of unit length: frequencies of classes add up to 1, no class's sum is longer than
    it has rows, the trace of the second moment is 1, and what it is beyond the classes' means has
    no negative direction.
    """
    counts, by_class = tensors[COUNTS].double(), tensors[SUMS].double()
    lower = _unpack(tensors[MOMENT].double(), by_class.shape[1])
    if counts.min() < 0 or abs(counts.sum() - 1) > _ROUNDING:
        return "has class frequencies that do not add up to 1"
    if (by_class.norm(dim=1) > counts + _ROUNDING).any():
        return "has a class whose features are longer than 1"
    if abs(lower.trace() - 1) > _ROUNDING or lower.abs().max() > 1 + _ROUNDING:
        return "has second moments that are not those of features of length 1"
    scaled = by_class / counts.clamp_min(_ROUNDING).sqrt()[:, None]
    scaled = scaled * (counts > 0)[:, None]
    within = lower + lower.tril(-1).T - scaled.T @ scaled
    if torch.linalg.eigvalsh(within).min() < -_ROUNDING:
        return "has second moments that cannot be, with its classes' sums"
    return None


def discriminant(total: Tensors, *, whole: bool = False) -> dict[str, Tensor]:
    """The server's tensors, float32, of sums over all rows.

    `WHITENING` is the lower triangle of a matrix under which every class has unit covariance;
    `SUMS` and `COUNTS` are as given.

    Args:
        total: as `sums`.
        whole: the covariance is that of all rows, and not within classes.
    """
    counts, by_class = total[COUNTS].double(), total[SUMS].double()
    lower, rows = _unpack(total[MOMENT].double(), by_class.shape[1]), counts.sum()
    moment = lower + lower.tril(-1).T
    overall = by_class.sum(0) / rows
    scaled = by_class / counts.clamp_min(1)[:, None].sqrt()
    within = (moment - scaled.T @ scaled) / rows
    around = moment / rows - torch.outer(overall, overall)
    spread = around.diagonal().mean().clamp_min(0)
    free = (rows - (counts > 0).sum()).clamp_min(1)
    ridge = _RIDGE * (len(lower) / free).square() * spread + _FLOOR
    values, directions = torch.linalg.eigh(around if whole else within)
    values = values.clamp_min(0) + ridge
    root = torch.linalg.cholesky((directions * values) @ directions.T)
    whitening = torch.linalg.solve_triangular(root, torch.eye(len(root)).double(), upper=False)
    return {WHITENING: _pack(whitening).float(), SUMS: by_class.float(), COUNTS: counts.float()}


@dataclass(frozen=True, eq=False)
class Discriminant:
    """What the server made of all clients' sums.

    Args:
        whitening: `(width (width + 1) / 2,)`, see `discriminant`.
        sums: `(classes, width)`.
        counts: `(classes,)`.
        personal: whether a client draws the means towards its own training rows.
        whole: whether classes are as frequent as among all rows; else all are as likely beforehand.
    """

    whitening: Tensor
    sums: Tensor
    counts: Tensor
    personal: bool = True
    whole: bool = False

    @staticmethod
    def of(tensors: Tensors, *, personal: bool, whole: bool = False) -> Discriminant | None:
        """That of the server's tensors, if it is among them."""
        if WHITENING not in tensors:
            return None
        whitening, sums, counts = (tensors[name] for name in (WHITENING, SUMS, COUNTS))
        return Discriminant(whitening, sums, counts, personal, whole)

    def scores(
        self, features: Tensor, own: Tensor, labels: Tensor, prompts: Tensor | None = None
    ) -> Tensor:
        """`(rows, classes)`: log-likelihoods and bias, up to what all classes have in common.

        Args:
            features: `(rows, width)` under the foundation model.
            own: likewise, of the client's training rows.
            labels: theirs.
            prompts: embeddings of class prompts, see `means`.
        """
        means = self.drawn(own, labels, prompts)
        whitened = F.normalize(features, dim=-1) @ self.matrix.T
        return whitened @ means.T - means.square().sum(-1) / 2 + self.bias

    @property
    def matrix(self) -> Tensor:
        """`(width, width)`, which whitens a feature of unit length."""
        return _unpack(self.whitening, self.sums.shape[1])

    @property
    def bias(self) -> Tensor:
        """`(classes,)`: log-frequencies of classes, or zeros."""
        if not self.whole:
            return torch.zeros_like(self.counts)
        first = _FIRST / len(self.counts)
        return ((self.counts + first) / (self.counts.sum() + _FIRST)).log()

    @property
    def strength(self) -> Tensor:
        """`(classes,)`: how many of a client's rows a shared mean counts as.

        A client's mean is taken to differ from the shared one as the mean of ten rows differs from
        that of their class, and the shared one likewise from its own expectation by its own rows:
        variances add up, `1 / strength = 1 / 10 + 1 / (rows + 1)`.
        """
        return 1 / (1 / _SHARED + 1 / (self.counts + _FIRST))

    def means(self, prompts: Tensor | None = None) -> Tensor:
        """`(classes, width)`: whitened means of classes.

        Where a class has few rows it is drawn to what is expected of it: the overall mean, moved as
        its prompt differs from the mean prompt, counts as one row.

        Args:
            prompts: embeddings of class prompts, `(classes, width)` of unit length, or None; not
                used where classes are as frequent as among all rows (`whole`).
        """
        expected = self.sums.sum(0) / self.counts.sum()
        if prompts is not None and not self.whole:
            expected = expected + prompts.to(self.sums) - prompts.to(self.sums).mean(0)
        means = (self.sums + _FIRST * expected) / (self.counts + _FIRST)[:, None]
        return means @ self.matrix.T

    def drawn(self, own: Tensor, labels: Tensor, prompts: Tensor | None = None) -> Tensor:
        """`(classes, width)`: `means`, drawn towards a client's rows where personal."""
        means = self.means(prompts)
        if not self.personal:
            return means
        of_class = F.one_hot(labels, len(means)).to(means)
        total = of_class.T @ (F.normalize(own, dim=-1) @ self.matrix.T)
        strength = self.strength[:, None]
        return (total + strength * means) / (of_class.sum(0)[:, None] + strength)

    def lacks(self, labels: Tensor) -> bool:
        """Whether a row is of a class of which nobody had any."""
        return bool((self.counts[labels] == 0).any())

    def vectors(
        self,
        prompts: Tensor | None = None,
        own: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """`(classes, width)` of unit length: directions in which experts look for classes.

        The mean of a class's rows, in which its prompt counts as one row, and one more for ten;
        without prompts, the overall mean counts as one row. Of a class that nobody had, a
        newcomer's own rows count.

        Args:
            prompts: as in `means`.
            own: as in `scores`, or None.
            labels: likewise.
        """
        sums, counts = self.sums, self.counts
        if own is not None and labels is not None:
            new = F.one_hot(labels, len(counts)).to(sums) * (counts == 0)
            sums = sums + new.T @ F.normalize(own, dim=-1)
            counts = counts + new.sum(0)
        if prompts is None:
            return F.normalize(sums + _FIRST * self.sums.sum(0) / self.counts.sum(), dim=-1)
        weight = _FIRST + _BESIDE * counts
        return F.normalize(sums + weight[:, None] * prompts.to(sums), dim=-1)


def _pack(matrix: Tensor) -> Tensor:
    rows, columns = np.tril_indices(len(matrix))
    return matrix[rows, columns]


def _unpack(packed: Tensor, width: int) -> Tensor:
    """The lower triangle as a matrix, zero above its diagonal."""
    matrix = packed.new_zeros(width, width)
    matrix[np.tril_indices(width)] = packed
    return matrix
