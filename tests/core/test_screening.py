"""Every reason to reject an update, one row each."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedms.core import calibration, discriminant
from fedms.core.algorithm import ClientInfo, ClientUpdate, RoundPlan, Score
from fedms.core.screening import diverged, reason_to_reject

PLAN = RoundPlan(round=2, stage=1, depth=1, seed=0, cohort=1.0, epochs=1)
EXPECTED = {"global/a": (2, 3), "global/b": (1,)}
GOOD = ClientUpdate(
    "c", 2, 10, {"global/a": torch.ones(2, 3), "global/b": torch.ones(1)}, Score(1, 2), 1, 7
)


def with_tensor(name: str, tensor: torch.Tensor) -> ClientUpdate:
    return replace(GOOD, tensors={**GOOD.tensors, name: tensor})


def reason(update: ClientUpdate) -> str | None:
    return reason_to_reject(update, PLAN, EXPECTED, ClientInfo("c", 10, validation=5))


@pytest.mark.parametrize(
    "good",
    [
        GOOD,
        replace(GOOD, rows=1),
        replace(GOOD, score=Score()),
        replace(GOOD, score=Score(0, 5, 3.0)),
        with_tensor("global/b", torch.tensor([-9e14])),
        replace(GOOD, score=Score(1, 2, 0.5, 2.0)),
    ],
)
def test_accepted(good):
    assert reason(good) is None


REJECTED = [
    (with_tensor("global/b", torch.tensor([float("nan")])), "not finite"),
    (with_tensor("global/b", torch.tensor([float("inf")])), "not finite"),
    (with_tensor("global/b", torch.tensor([float("-inf")])), "not finite"),
    (with_tensor("global/b", torch.tensor([3.4e38])), "has values up to 3.4e+38"),
    (with_tensor("global/b", torch.tensor([-2e15])), "has values up to 2e+15"),
    (replace(GOOD, tensors={"global/a": torch.ones(2, 3)}), "lacks 1 of 2 tensors"),
    (replace(GOOD, tensors={}), "lacks 2 of 2 tensors"),
    (with_tensor("local/a", torch.ones(1)), "unexpected tensors, e.g. 'local/a'"),
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
    (replace(GOOD, rows=float("inf")), "claims inf"),
    (replace(GOOD, rows=1e12), "claims 1000000000000.0"),
    (replace(GOOD, rows=10**12), "claims 1000000000000"),
    (replace(GOOD, rows=None), "claims None"),
    (replace(GOOD, round=1), "answers round 2; expected round 3"),
    (replace(GOOD, round=3), "answers round 4"),
    (replace(GOOD, round=None), "claims round None"),
    (replace(GOOD, round=2.0), "claims round 2.0"),
    (replace(GOOD, score=Score(3, 2)), "claims 3 correct of 2"),
    (replace(GOOD, score=Score(3, 6)), "claims 3 correct of 6 validation rows; declared 5"),
    (replace(GOOD, depth=-1), "claims depth -1"),
    (replace(GOOD, depth=True), "claims depth True"),
    (replace(GOOD, trained_parameters=10**4000), "claims trained_parameters 1000"),
    (replace(GOOD, score=Score(-1, 2)), "claims -1 correct"),
    (replace(GOOD, score=Score(0, -1)), "of -1 validation rows"),
    (replace(GOOD, score=Score(float("nan"), 2)), "claims nan correct"),
    (replace(GOOD, score=Score(1, 2, float("nan"))), "validation loss of nan"),
    (replace(GOOD, score=Score(1, 2, 1e300)), "validation loss of 1e+300"),
    (replace(GOOD, score=Score(1, 2, -1.0)), "validation loss of -1.0"),
    (replace(GOOD, score=Score(1, 2, 0.5, float("nan"))), "claims nan as weights"),
    (replace(GOOD, score=Score(1, 2, 0.5, 7.0)), "claims 7.0 as weights of 2 rows"),
]


@pytest.mark.parametrize(("bad", "says"), REJECTED)
def test_rejected_with_the_reason(bad, says):
    assert says in reason(bad)


def test_a_name_that_a_client_chose_forges_no_lines():
    name = "x\n\x1b[2Jround 3: accepted\u2028" + 999 * "y"
    said = reason(with_tensor(name, torch.ones(1)))
    assert said.startswith("has 1 unexpected tensors, e.g. 'x")
    assert said.isprintable()
    assert len(said) <= 300
    words = "\U000e0001" * 25 + "training diverged"
    assert not diverged(reason(with_tensor(words, torch.ones(1))))


KINDS = {
    "tensors": "of [0-9]+ tensors|unexpected tensors",
    "shapes": "has shape",
    "types": "has type",
    "values": "has values",
    "training rows": "training rows",
    "scores": "validation|as weights",
    "rounds": "round",
    "counts": "claims depth|claims trained",
}


def test_every_kind_of_rejection_is_tried(record_property):
    found = Counter(
        next(kind for kind, words in KINDS.items() if re.search(words, reason(bad) or ""))
        for bad, _ in REJECTED
    )
    assert found.keys() == KINDS.keys()
    said = ", ".join(f"{count} of {kind}" for kind, count in found.items())
    record_property("survived", f"{found.total()} updates were rejected: {said}")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 2.5])
def test_a_score_of_no_whole_number_of_rows_is_rejected(value):
    """Scores are summed over clients and steer the capability queue: inf / inf is NaN for all."""
    assert reason(replace(GOOD, score=Score(value, value))) is not None


def gathered(rows=30, classes=4, width=5, seed=0):
    """Class statistics as a client sends them."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, width, generator=random) + 1
    labels = torch.randint(0, classes, (rows,), generator=random)
    sums = discriminant.sums(features, labels, classes)
    return {name: (t / rows).float() for name, t in sums.items()}


def fitted(rows=5, classes=4, trained=3, scale=1.0, seed=0, weights=None):
    """Sums for calibration as a client sends them."""
    random = torch.Generator().manual_seed(seed)
    evidence = scale * torch.randn(rows, classes, 6, generator=random)
    labels = torch.randint(0, classes, (rows,), generator=random)
    weights = calibration.initial() if weights is None else weights
    found = calibration.derivatives(evidence, labels, weights)
    return {name: (t / trained).float() for name, t in found.items()}


@pytest.mark.parametrize("rows", [1, 2, 30, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_sums_of_rows_are_plausible(rows, seed):
    assert discriminant.implausible(gathered(rows, seed=seed)) is None
    nothing = {name: torch.zeros(shape) for name, shape in calibration.SHAPES.items()}
    assert calibration.implausible(nothing, 0) is None  # no validation rows


@given(
    rows=st.sampled_from([1, 2, 30, 1000]),
    classes=st.sampled_from([1, 2, 150]),
    trained=st.sampled_from([1, 3, 10**5]),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    sure=st.sampled_from([-50.0, 0.0, 1.0, 50.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_sums_for_calibration_are_plausible_whatever_rows_are(
    rows, classes, trained, scale, sure, seed
):
    """Also where the model is sure, and always wrong: then the gradient is as steep as can be."""
    weights = sure * torch.ones(6)
    sent = fitted(rows, classes, trained, scale, seed, weights)
    assert calibration.implausible(sent, rows / trained) is None


COUNTS, SUMS, MOMENT = discriminant.COUNTS, discriminant.SUMS, discriminant.MOMENT
GRADIENT, CURVATURE, SPREAD, ROWS = calibration.SHAPES


def odd(tensors, name, change):
    return {**tensors, name: change(tensors[name].clone())}


def alike(far):
    """Sums of pieces of evidence that are one and the same, `far` apart."""
    form, rows = torch.full((6, 6), far), torch.tensor([1.0])
    return dict(zip(calibration.SHAPES, (torch.zeros(6), form, form, rows), strict=True))


def steep(far):
    """A gradient in one direction, and a large spread in another."""
    sums = odd(alike(0.0), SPREAD, lambda t: entry(t, 0, 0, by=far))
    return odd(sums, GRADIENT, lambda t: entry(t, 3, by=far**0.5 / 100))


def entry(tensor, *where, by):
    tensor[where] += by
    return tensor


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (odd(gathered(), COUNTS, lambda t: -t), "do not add up to 1"),
        (odd(gathered(), COUNTS, lambda t: 100 * t), "do not add up to 1"),
        (odd(gathered(), COUNTS, lambda t: entry(entry(t, 0, by=-2), 1, by=2)), "add up to 1"),
        (odd(gathered(), SUMS, lambda t: 1e9 * t), "longer than 1"),
        (odd(gathered(), SUMS, lambda t: entry(t, 0, 0, by=2)), "longer than 1"),
        (odd(gathered(), MOMENT, lambda t: 1e9 * t), "not those of features of length 1"),
        (odd(gathered(), MOMENT, lambda t: 0 * t), "not those of features of length 1"),
        (odd(gathered(), MOMENT, lambda t: entry(t, 1, by=0.9)), "cannot be, with its classes"),
        (odd(fitted(), ROWS, lambda t: -t), "rows a training row, not 0 to 1.67"),
        (odd(fitted(), ROWS, lambda t: 1e12 * t), "rows a training row, not 0 to 1.67"),
        (odd(fitted(), ROWS, lambda t: 0 * t), "a gradient for calibration that no rows have"),
        (odd(fitted(), GRADIENT, lambda t: 1e6 * t), "a gradient for calibration that no rows"),
        (odd(fitted(), GRADIENT, lambda t: t.new_tensor(1e6)[None].expand(6)), "that no rows have"),
        (odd(fitted(), GRADIENT, lambda t: 1e30 * t), "has values up to"),
        (odd(fitted(), CURVATURE, lambda t: 1e30 * t), "has values up to"),
        (odd(fitted(), CURVATURE, lambda t: -t), "negative direction"),
        (odd(fitted(), CURVATURE, lambda t: entry(t, 0, 1, by=9)), "negative direction"),
        (odd(fitted(), SPREAD, lambda t: -t), "more curvature for calibration than spread"),
        (odd(fitted(), SPREAD, lambda t: 0 * t), "more curvature for calibration than spread"),
        (odd(fitted(), CURVATURE, lambda t: 1e6 * t), "more curvature for calibration than"),
        (alike(1e15), "a spread for calibration that no evidence has"),
        *((steep(far), "a gradient for calibration that no rows") for far in (1e3, 1e7, 1e14)),
    ],
)
def test_sums_of_no_rows_are_rejected(tensors, says):
    expected = {name: tuple(t.shape) for name, t in tensors.items()}
    update = replace(GOOD, tensors=tensors, rows=3)
    found = reason_to_reject(update, PLAN, expected, ClientInfo("c", 10, validation=5))
    assert found is not None
    assert says in found
