"""Who holds what: the rows of every client by class, and how far clients are from one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedms import data
from fedms.build import class_indices, deal, load_table
from fedms.config import Config
from fedms.core.rows import ClientSizes

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Holdings:
    """What clients hold. Classes are counted over training rows.

    Args:
        sizes: rows of every client by split; those that never train come last.
        unseen: how many those are.
        classes: of the federation.
        counts: training rows, `(clients, classes)`.
        summary: the same in a sentence.
    """

    sizes: Sequence[ClientSizes]
    unseen: int
    classes: tuple[str, ...]
    counts: Counts
    summary: str

    @property
    def shares(self) -> Shares:
        """Of each class in a client's rows, `(clients, classes)`."""
        found: Shares = self.counts / self.counts.sum(1, keepdims=True)
        return found

    @property
    def names(self) -> list[str]:
        """Of clients, with a mark at those that never train."""
        return [s.id + " (unseen)" * (i >= self.trained) for i, s in enumerate(self.sizes)]

    @property
    def trained(self) -> int:
        """How many clients train."""
        return len(self.sizes) - self.unseen

    def to_all(self) -> Shares:
        """`(clients,)`: divergence of each from the rows of all that train together."""
        everyone = self.counts[: self.trained].sum(0)
        return divergences(self.shares, (everyone / everyone.sum())[None])[:, 0]

    def between(self) -> float | None:
        """Mean divergence over all pairs of clients that train; None for one client."""
        if self.trained < 2:
            return None
        shares = self.shares[: self.trained]
        return float(divergences(shares, shares)[np.triu_indices(self.trained, 1)].mean())

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        largest, far = self.shares.argmax(1), self.to_all()
        clients = [
            {
                **asdict(sizes),
                "unseen": i >= self.trained,
                "largest_class": self.classes[largest[i]],
                "largest_share": float(self.shares[i, largest[i]]),
                "divergence": float(far[i]),
                "rows_by_class": dict(zip(self.classes, self.counts[i].tolist(), strict=True)),
            }
            for i, sizes in enumerate(self.sizes)
        ]
        return {
            "summary": self.summary,
            "classes": list(self.classes),
            "divergence_between_clients": self.between(),
            "clients": clients,
        }


def holdings(config: Config) -> Holdings:
    """Load data and deal rows as `[data]` and `[partition]` say; no model is needed.

    Raises:
        UserError: if data and configuration do not fit together.
    """
    table = load_table(config)
    federation = deal(config, table)
    labels = class_indices(table, federation.classes)
    everyone = chain(federation.clients, federation.unseen)
    counts = [np.bincount(labels[c.train], minlength=len(federation.classes)) for c in everyone]
    return Holdings(
        sizes=data.describe(federation, table.labels),
        unseen=len(federation.unseen),
        classes=federation.classes,
        counts=np.stack(counts),
        summary=data.summary(federation, table),
    )


def divergences(ours: Shares, theirs: Shares) -> Shares:
    """Jensen-Shannon divergence of every distribution from every other, `(ours, theirs)`.

    In bits: 0 for equal distributions, 1 for those that have no class in common.
    """
    rows = [
        _entropy((mine + theirs) / 2) - (_entropy(mine) + _entropy(theirs)) / 2 for mine in ours
    ]
    return np.stack(rows).clip(0.0, 1.0)


def _entropy(shares: Shares) -> Shares:
    """In bits, over the last axis."""
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return -np.asarray((shares * logs).sum(-1))
