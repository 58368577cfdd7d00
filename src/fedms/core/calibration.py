"""Calibration: how much a client's model believes each piece of what it knows of an example.

Every class has six pieces of evidence, in nats; its log-probability is their weighted sum,
normalised over classes (a logarithmic opinion pool, Genest and Zidek 1986; ours). All clients share
the weights, for a client alone has too few validation rows to find them:

- `global`, `local`: log-probabilities under the global and the local expert.
- `gate`: the mean of both, by the gate's weight on the global expert.
- `prior`: the log of the client's smoothed frequency of the class.
- `unseen`: where the client has no training row of the class, the log of how likely its next row
  is of any such class (`models.mixture.novelty`), else 0.
- `statistics`: the class's log-likelihood by class statistics (`core.discriminant`), 0 without.

The first three and the last are opinions, and none has a negative weight: what fits so many rows
of trained clients may do so by taking one expert's opinion out of another's, and then fails where
the two differ in another way, as those of newcomers do (docs/research-log.md). Log frequencies may
have any weight, for what has not come yet may be what comes next.

The weights minimise the log loss on validation rows of all clients, with a ridge around where they
start: half the mean squared change, in nats, of weighted evidence over a row's classes, and a tenth
of half the squared change of weights. (A ridge in weights, which have no common scale, lets
a single wrong row in two hundred turn the class prior around: docs/research-log.md.) The loss is
convex, so that a Newton step a round is enough: clients send its gradient and curvature, which are
averaged like anything else, and how far evidence is spread. That is what measures the ridge, and
what shortens a step that would move log-probabilities further than its curvature holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core.tensors import Tensors

EVIDENCE = ("global", "local", "gate", "prior", "unseen", "statistics")
"""The order of weights."""
OPINIONS = tuple(EVIDENCE.index(name) for name in ("global", "local", "gate", "statistics"))
"""Places of weights that are at least 0."""
WEIGHTS = "calibration/weights"
"""Name of the shared weights, `(6,)`, on the server and on the wire."""
SHAPES = {
    "calibration/gradient": (len(EVIDENCE),),
    "calibration/curvature": (len(EVIDENCE), len(EVIDENCE)),
    "calibration/spread": (len(EVIDENCE), len(EVIDENCE)),
    "calibration/rows": (1,),
}
"""What a client sends: sums over its validation rows, divided by its number of training rows, which
is its weight in the average. (Averages of them, times all training rows, are sums over all.)"""
_ROUNDING = 1e-5
"""How far a client's sums may be off, in units of their own spread: float32 has 6e-8."""
_NOTHING = 1e-12
"""Spread of a row, in squared nats, below which all is rounding."""
_FAR = 1e8
"""Spread of a row, over classes and pieces of evidence, beyond which it is left out: a thousand
times the most there was (docs/research-log.md). Of larger sums float64 cannot tell small ones."""
_MEMORY = 0.5
"""What is left of earlier rounds' evidence after one more."""
FLOOR = 0.1
"""Of the ridge, in weights: what holds those of evidence that is alike or the same for all classes.
The least log loss in cross-validation over eight runs, of 0.01, 0.1, 0.3 and 1."""
MEMORY = "fitted/"
"""Prefix of what the server remembers of earlier rounds' evidence."""
_GRADIENT, _CURVATURE = f"{MEMORY}gradient", f"{MEMORY}curvature"
"""Of all rounds' loss, at the weights that are beside them: there little is lost in float32."""


def initial() -> Tensor:
    """The mixture as the gate makes it: linear in log-probabilities, without a prior.

    A class's log-likelihood by its statistics is far too sure of itself: rows of a class are not
    normally distributed. Fitted weights are between 0.02 and 0.2 (docs/research-log.md).
    """
    return torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.05])


def prior(weights: Tensor) -> tuple[float, float]:
    """Weights of the class prior and of unseen classes."""
    found = dict(zip(EVIDENCE, weights.tolist(), strict=True))
    return found["prior"], found["unseen"]


def impersonal(weights: Tensor) -> Tensor:
    """Weights without those of what a client's counts say."""
    return weights * torch.tensor([name not in ("prior", "unseen") for name in EVIDENCE])


def log_probabilities(evidence: Tensor, weights: Tensor) -> Tensor:
    """`(rows, classes)` of evidence `(rows, classes, 6)`."""
    return F.log_softmax(evidence @ weights.to(evidence), dim=-1)


def one_expert(evidence: Tensor, weights: Tensor, name: str) -> Tensor:
    """`log_probabilities` if the gate gave all of its weight to an expert, "global" or "local"."""
    opinion, gate = EVIDENCE.index(name), EVIDENCE.index("gate")
    moved = evidence.clone()
    moved[..., gate] = evidence[..., opinion]
    return log_probabilities(moved, weights)


def derivatives(evidence: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Of the log loss by the weights, summed over rows: named and shaped as `SHAPES`, float64.

    `spread` is how far evidence is from its mean over a row's classes: outer products, summed over
    classes and rows. Rows that are further apart than any evidence is are left out.

    Args:
        evidence: `(rows, classes, 6)`.
        labels: `(rows,)`.
        weights: `(6,)`, where the derivatives are taken.
    """
    x = evidence.double()
    x = x - x.mean(1, keepdim=True)
    near = x.square().sum((1, 2)) <= _FAR
    x, labels = x[near], labels[near]
    p = log_probabilities(x, weights).exp()
    mean = torch.einsum("nc,nci->ni", p, x)
    gradient = (mean - x[torch.arange(len(labels)), labels]).sum(0)
    curvature = torch.einsum("nc,nci,ncj->ij", p, x, x) - mean.T @ mean
    spread = torch.einsum("nci,ncj->ij", x, x)
    rows = torch.tensor([len(labels)]).double()
    return dict(zip(SHAPES, (gradient, curvature, spread, rows), strict=True))


def implausible(tensors: Tensors, most: float) -> str | None:
    """Why these cannot be `derivatives` divided by training rows; None if they can.

    Whatever evidence and labels are, with `d` classes' evidence from its mean, a row's curvature is
    a variance, at most `sum of d d'`, which is its spread; and its gradient is `sum of a d` with
    weights `a`, predicted less true, whose squares add up to 2 at most. So by Cauchy and Schwarz
    `gradient gradient'` is at most `2 rows spread`, in every direction: nobody moves the weights
    further than rows could. Each piece of evidence is measured by its own spread, so that a large
    one of one piece is no leave for another.

    Args:
        tensors: as sent.
        most: what `rows` may be: validation rows by training rows.
    """
    gradient, curvature, spread, rows = (tensors[name].double() for name in SHAPES)
    if not 0 <= float(rows) <= most * (1 + _ROUNDING):
        return f"has calibration of {rows.item():.3g} rows a training row, not 0 to {most:.3g}"
    steep = torch.outer(gradient, gradient)
    unit = (spread.diagonal().clamp_min(0) + _NOTHING * (float(rows) + _NOTHING)).rsqrt()
    for larger, smaller, said in (
        (curvature, 0 * curvature, "a curvature for calibration with a negative direction"),
        (spread, curvature, "more curvature for calibration than spread"),
        (2 * rows * spread, steep, "a gradient for calibration that no rows have"),
    ):
        form = unit[:, None] * (larger - smaller) * unit
        crooked = (form - form.T).abs().max() > _ROUNDING
        if crooked or torch.linalg.eigvalsh(form).min() < -_ROUNDING:
            return f"has {said}"
    if spread.trace() > _FAR * rows * (1 + _ROUNDING):
        return "has a spread for calibration that no evidence has"
    return None


def damped(step: Tensor, spread: Tensor) -> Tensor:
    """A Newton step, shortened by how far it would move log-probabilities.

    The third derivative of the log loss is at most the second times the range of the change over a
    row's classes, so that by `log(1 + r) / r` of a step of range `r` curvature holds (Bach 2010,
    Self-concordant analysis for logistic regression). Here `r` is two root mean squares.

    Args:
        step: `(6,)`, a change of weights.
        spread: `(6, 6)`, covariance of evidence over a row's classes, mean over rows.
    """
    reach = 2 * (step @ spread @ step).clamp_min(1e-12).sqrt()
    return step * reach.log1p() / reach


def lowest(curvature: Tensor, pull: Tensor, opinions: Sequence[int] = OPINIONS) -> Tensor:
    """`w` with the least `w curvature w / 2 - pull w` of which no opinion's weight is negative.

    Of those at 0 the others follow, and which are is tried out: the least that is allowed is the
    least of all, for this is convex.

    Args:
        curvature: `(weights, weights)`, positive definite.
        pull: `(weights,)`.
        opinions: places of weights that are at least 0.
    """
    found: list[tuple[float, Tensor]] = []
    for count in range(len(opinions) + 1):
        for none in itertools.combinations(opinions, count):
            some = [i for i in range(len(pull)) if i not in none]
            weights = torch.zeros_like(pull)
            weights[some] = torch.linalg.solve(curvature[some][:, some], pull[some])
            if all(weights[i] >= 0 for i in opinions):
                found.append((float(weights @ curvature @ weights / 2 - pull @ weights), weights))
    return min(found, key=lambda one: one[0])[1]


def move(state: Tensors, average: Tensors, rows: int, classes: int) -> dict[str, Tensor]:
    """The server's tensors after a round: new weights, and what is remembered of the rounds.

    Each round's loss is taken as the quadratic that its derivatives say; weights minimise the sum
    of all rounds', of which earlier ones count less and less, among those that `OPINIONS` allows.

    Args:
        state: the server's tensors; the weights among them are where derivatives were taken.
        average: of what clients sent, with `SHAPES` among it.
        rows: training rows behind the average.
        classes: of the federation.
    """
    gradient, curvature, spread, fitted = (average[name].double() * rows for name in SHAPES)
    now = state[WEIGHTS].double()
    if _GRADIENT in state:
        gradient = gradient + _MEMORY * state[_GRADIENT]
        curvature = curvature + _MEMORY * state[_CURVATURE]
    linear = gradient - curvature @ now
    first = initial().double()
    row = spread / (classes * fitted.clamp_min(1))
    ridge = _upwards(row) + FLOOR * torch.eye(len(first)).double()
    step = lowest(_upwards(curvature) + ridge, ridge @ first - linear) - now
    weights = (now + damped(step, row)).float()
    remembered = {_GRADIENT: linear + curvature @ weights.double(), _CURVATURE: curvature}
    return {**state, WEIGHTS: weights, **{name: t.float() for name, t in remembered.items()}}


def _upwards(form: Tensor) -> Tensor:
    """The nearest symmetric one without negative directions: rounding may have left some."""
    values, directions = torch.linalg.eigh((form + form.T) / 2)
    upwards: Tensor = (directions * values.clamp_min(0)) @ directions.T
    return upwards
