"""Every reason to reject an update, one row each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedms.core.algorithm import ClientUpdate, RoundPlan, Score
from fedms.core.screening import reason_to_reject

PLAN = RoundPlan(round=2, stage=1, depth=1, seed=0, cohort=1.0, epochs=1)
EXPECTED = {"global/a": (2, 3), "global/b": (1,)}
GOOD = ClientUpdate(
    "c", 2, 10, {"global/a": torch.ones(2, 3), "global/b": torch.ones(1)}, Score(1, 2), 1, 7
)


def with_tensor(name: str, tensor: torch.Tensor) -> ClientUpdate:
    return replace(GOOD, tensors={**GOOD.tensors, name: tensor})


def reason(update: ClientUpdate) -> str | None:
    return reason_to_reject(update, PLAN, EXPECTED, declared_rows=10)


@pytest.mark.parametrize(
    "good",
    [
        GOOD,
        replace(GOOD, rows=1),
        replace(GOOD, score=Score()),
        replace(GOOD, score=Score(0, 5, 3.0)),
        with_tensor("global/b", torch.tensor([3.4e38])),
    ],
)
def test_accepted(good):
    assert reason(good) is None


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (with_tensor("global/b", torch.tensor([float("nan")])), "not finite"),
        (with_tensor("global/b", torch.tensor([float("inf")])), "not finite"),
        (with_tensor("global/b", torch.tensor([float("-inf")])), "not finite"),
        (replace(GOOD, tensors={"global/a": torch.ones(2, 3)}), "lacks 1 of 2 tensors"),
        (replace(GOOD, tensors={}), "lacks 2 of 2 tensors"),
        (with_tensor("local/a", torch.ones(1)), "unexpected tensors, e.g. local/a"),
        (with_tensor("global/a", torch.ones(3, 2)), r"global/a has shape (3, 2)"),
        (with_tensor("global/a", torch.ones(1, 3)), r"expected (2, 3)"),
        (with_tensor("global/a", torch.ones(3)), r"shape (3,)"),
        (with_tensor("global/b", torch.ones(())), r"shape ()"),
        (with_tensor("global/b", torch.ones(1, 1)), r"shape (1, 1)"),
        (with_tensor("global/b", torch.ones(1, dtype=torch.float64)), "torch.float64"),
        (with_tensor("global/b", torch.ones(1, dtype=torch.float16)), "torch.float16"),
        (with_tensor("global/b", torch.ones(1, dtype=torch.int64)), "torch.int64"),
        (replace(GOOD, rows=0), "claims 0 training rows; declared 10"),
        (replace(GOOD, rows=-3), "claims -3"),
        (replace(GOOD, rows=11), "claims 11"),
        (replace(GOOD, rows=True), "claims True"),
        (replace(GOOD, rows=2.0), "claims 2.0"),
        (replace(GOOD, rows=float("nan")), "claims nan"),
        (replace(GOOD, round=1), "answers round 2; expected round 3"),
        (replace(GOOD, round=3), "answers round 4"),
        (replace(GOOD, score=Score(3, 2)), "claims 3 correct of 2"),
        (replace(GOOD, score=Score(-1, 2)), "claims -1 correct"),
        (replace(GOOD, score=Score(0, -1)), "of -1 validation rows"),
        (replace(GOOD, score=Score(float("nan"), 2)), "claims nan correct"),
    ],
)
def test_rejected_with_the_reason(bad, says):
    assert says in reason(bad)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 2.5])
def test_a_score_of_no_whole_number_of_rows_is_rejected(value):
    """Scores are summed over clients and steer the capability queue: inf / inf is NaN for all."""
    assert reason(replace(GOOD, score=Score(value, value))) is not None
