"""Every update is checked before it is averaged: one bad client must not spoil the round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedms.core import calibration, discriminant
from fedms.core.agreement import agreements
from fedms.core.algorithm import ClientInfo, ClientUpdate, RoundPlan, Score
from fedms.core.layout import Shapes
from fedms.core.words import brief, one_line


def reason_to_reject(
    update: ClientUpdate, plan: RoundPlan, expected: Shapes, declared: ClientInfo
) -> str | None:
    """Why `update` may not be averaged, in one short line, or None if it may.

    Args:
        update: as it arrived.
        plan: the round it must answer.
        expected: exactly the names and shapes this client uploads under the plan.
        declared: what the client said at the start. No update may claim more training rows, for
            that number is its weight, nor more validation rows.
    """
    checks = (
        _wrong_round(update, plan),
        _wrong_rows(update, declared.rows),
        wrong_score(update.score, declared.validation),
        _wrong_counts(update),
        _wrong_keys(update, expected),
    )
    reason = next((reason for reason in checks if reason), None)
    reason = reason or _wrong_values(update, expected) or _implausible(update, declared)
    return brief(reason) if reason else None


_MOST = 10**15
"""Nothing that clients send is larger: products and squares of it are still finite in float32."""
_ROUNDING = 1e-3
_DIVERGED = "training diverged"
_NAME = 100
"""Characters of a tensor's name that a client chose: its words do not end a reason."""


@dataclass(frozen=True)
class Screen:
    """What is asked of an update beyond that it can be read.

    Args:
        max_norm_ratio: how many times as long as the cohort's median change it may be; 0: any.
        reject: whether a longer one is left out, or only told of.
        contradictions: what becomes of class sums that contradict those of others: `reject`,
            `warn`, or `off`, where they are not compared.
        max_rows_ratio: as how many times the cohort's median rows a client counts at most; 0: any.
    """

    max_norm_ratio: float = 0.0
    reject: bool = True
    contradictions: Literal["reject", "warn", "off"] = "reject"
    max_rows_ratio: float = 0.0

    def compares(self, update: ClientUpdate) -> bool:
        """Whether it has to wait for all others."""
        gathered = discriminant.SUMS in update.tensors and self.contradictions != "off"
        return gathered or self.max_norm_ratio > 0


def weight(rows: int, client: ClientInfo, cohort: Sequence[ClientInfo], ratio: float) -> int:
    """As how many training rows an update counts, where no client counts for many others.

    How many rows it has is a client's own word. Of more than `ratio` times its cohort's median, of
    training or of validation rows, it counts as so many; its sums over rows shrink alike.

    Args:
        rows: that the update claims.
        client: who sent it, as declared.
        cohort: all who were asked, as declared.
        ratio: greater than 0.
    """
    share = 1.0
    for name in ("rows", "validation"):
        most = ratio * statistics.median(getattr(each, name) for each in cohort)
        if 0 < most < getattr(client, name):
            share = min(share, most / getattr(client, name))
    return max(1, round(share * rows))


def too_long(changes: Mapping[str, float], ratio: float) -> dict[str, str]:
    """Clients whose changes are beyond a multiple of the median, with what to say of them."""
    most = ratio * statistics.median(changes.values()) if changes else 0.0
    return {
        client: f"changes parameters by {length:.3g}; expected at most {most:.3g}, {ratio:g} times "
        "the median of its cohort"
        for client, length in changes.items()
        if length > most
    }


def contradicting(updates: Sequence[ClientUpdate]) -> dict[str, str]:
    """Clients whose class sums contradict those of the others, with what to say of them."""
    sums = [u for u in updates if discriminant.SUMS in u.tensors]
    found = agreements([u.tensors for u in sums], [u.rows for u in sums])
    return {
        update.client: "has its classes where others have other classes: agreement "
        f"{one.value:.2f}, median of all {one.median:.2f}"
        for update, one in zip(sums, found, strict=True)
        if one.contradicts
    }


def _wrong_round(update: ClientUpdate, plan: RoundPlan) -> str | None:
    if type(update.round) is not int:
        return f"claims round {str(update.round)[:20]}"
    if update.round != plan.round:
        return f"answers round {update.round + 1}; expected round {plan.round + 1}"
    return None


def _wrong_rows(update: ClientUpdate, declared: int) -> str | None:
    if type(update.rows) is not int or not 0 < update.rows <= declared:
        return f"claims {str(update.rows)[:20]} training rows; declared {declared}"
    return None


def _wrong_counts(update: ClientUpdate) -> str | None:
    for name in ("depth", "trained_parameters"):
        count = getattr(update, name)
        if type(count) is not int or not 0 <= count < _MOST:
            return f"claims {name} {str(count)[:20]}"
    return None


def wrong_score(score: Score, declared: int) -> str | None:
    """Why this cannot be a score on so many rows; None if it can."""
    whole = type(score.rows) is int and type(score.correct) is int
    if not whole or not 0 <= score.correct <= score.rows <= declared:
        claimed = f"{str(score.correct)[:20]} correct of {str(score.rows)[:20]}"
        return f"claims {claimed} validation rows; declared {declared}"
    if not -_ROUNDING <= score.loss <= _MOST:  # NaN is not
        return f"has a validation loss of {score.loss}: its {_DIVERGED}"
    if not -_ROUNDING <= score.gate_weight <= score.rows + _ROUNDING:
        return f"claims {score.gate_weight} as weights of {score.rows} rows"
    return None


def diverged(reason: str) -> bool:
    """Whether it is for this reason that an update was rejected."""
    return reason.endswith(_DIVERGED)


def _wrong_keys(update: ClientUpdate, expected: Shapes) -> str | None:
    missing, extra = (
        expected.keys() - update.tensors.keys(),
        update.tensors.keys() - expected.keys(),
    )
    if missing:
        return f"lacks {len(missing)} of {len(expected)} tensors, e.g. {min(missing)}"
    if extra:
        return f"has {len(extra)} unexpected tensors, e.g. {one_line(min(extra))[:_NAME]!r}"
    return None


def _wrong_values(update: ClientUpdate, expected: Shapes) -> str | None:
    for name, tensor in update.tensors.items():
        if tuple(tensor.shape) != tuple(expected[name]):
            return f"{name} has shape {tuple(tensor.shape)}; expected {tuple(expected[name])}"
        if tensor.dtype != torch.float32:
            return f"{name} has type {tensor.dtype}; expected torch.float32"
    sizes = [tensor.abs().max() for tensor in update.tensors.values() if tensor.numel()]
    largest = float(torch.stack(sizes).max()) if sizes else 0.0
    if not math.isfinite(largest):
        return f"has values that are not finite: its {_DIVERGED}"
    return f"has values up to {largest:.3g}: its {_DIVERGED}" if largest > _MOST else None


def _implausible(update: ClientUpdate, declared: ClientInfo) -> str | None:
    """Sums that cannot be of any rows: they would reach all clients, at once."""
    if discriminant.MOMENT in update.tensors:
        return discriminant.implausible(update.tensors)
    if calibration.SHAPES.keys() <= update.tensors.keys():
        return calibration.implausible(update.tensors, declared.validation / update.rows)
    return None
