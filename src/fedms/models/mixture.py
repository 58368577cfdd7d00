"""The mixture of foundation models: two experts' opinions joined by the gate's weights.

With weights `w` for the global and `1 - w` for the local expert, per example (reconstructed; the
abstract only says that the two form a mixture):

- `probabilities`: `p = w p_global + (1 - w) p_local`.
- `logits`: `p = softmax(w l_global + (1 - w) l_local)`.
- `features`: `p = softmax(head(w z_global + (1 - w) z_local))`, with the local expert's head.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core.rows import Index

Mix = Literal["probabilities", "logits", "features"]


def mix_probabilities(weights: Tensor, global_logits: Tensor, local_logits: Tensor) -> Tensor:
    """Log-probabilities of the mixture of probabilities, computed without leaving log space.

    Args:
        weights: `(…, batch, 2)` log weights of (global, local).
        global_logits: `(…, batch, classes)`.
        local_logits: likewise.
    """
    first = weights[..., :1] + F.log_softmax(global_logits, dim=-1)
    second = weights[..., 1:] + F.log_softmax(local_logits, dim=-1)
    return torch.logaddexp(first, second)


def mix_linear(weights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`w·first + (1 - w)·second` of logits or features, from `(…, batch, 2)` log weights."""
    share = weights.exp()
    return share[..., :1] * first + share[..., 1:] * second


def evidence(
    global_logits: Tensor,
    local_logits: Tensor,
    weight: Tensor,
    statistics: Tensor,
    counted: Tensor,
) -> Tensor:
    """What a client knows of every class, `(rows, classes, 6)`, as `core.calibration` names it.

    Args:
        global_logits: `(rows, classes)`.
        local_logits: likewise.
        weight: the gate's, of the global expert, `(rows,)`.
        statistics: scores by class statistics, `(rows, classes)`.
        counted: see `class_evidence`.
    """
    shared, own = (F.log_softmax(logits, -1) for logits in (global_logits, local_logits))
    mean = own + weight[:, None] * (shared - own)
    counts = (row.expand_as(shared) for row in counted.to(shared))
    known = (shared, own, mean, *counts, F.log_softmax(statistics.to(shared), -1))
    return torch.stack(known, -1)


def class_evidence(labels: Index, classes: int, smoothing: float) -> Tensor:
    """What counting a client's training rows says of every class, `(2, classes)`.

    The log of its smoothed frequency, and `novelty` where the client has no row of it (else 0).
    """
    counts = np.bincount(labels, minlength=classes)
    unseen = torch.from_numpy(np.where(counts == 0, novelty(counts), 0.0)).to(torch.float32)
    return torch.stack([log_prior(labels, classes, smoothing), unseen])


def novelty(counts: Index) -> float:
    """Log of how likely a client's next row is of a class that it has none of.

    By Good and Turing (Good 1953, The population frequencies of species): as likely as rows have
    been alone in their class, `(alone + 1/2) / (rows + 1)`. So clients with few rows, or with many
    classes, expect more new ones. (Ours, in place of 1 for every client: docs/research-log.md.)
    """
    alone = int((counts == 1).sum())
    return float(np.log((alone + 0.5) / (int(counts.sum()) + 1)))


def log_prior(labels: Index, classes: int, smoothing: float) -> Tensor:
    """Log of smoothed class frequencies, `(classes,)`: `(n_c + s) / (n + s·classes)`.

    Added to logits, it corrects an expert trained on other class frequencies (logit adjustment,
    arXiv 2007.07314, turned towards the client). `smoothing` > 0 keeps unseen classes possible.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64) + smoothing
    return torch.from_numpy(np.log(counts / counts.sum())).to(torch.float32)
