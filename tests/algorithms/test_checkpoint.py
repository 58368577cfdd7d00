"""Which of a client's checkpoints is its model."""

from __future__ import annotations

import math

import pytest
import torch

from fedms.algorithms.checkpoint import chosen, remember
from fedms.core.algorithm import ClientState, Score


def rounds(scores, keep_best: bool) -> list[ClientState]:
    """States after rounds whose checkpoints hold the round's number."""
    states = [ClientState({}, 1)]
    for number, score in enumerate(scores):
        tensors = {"local/x": torch.tensor([float(number)])}
        states.append(remember(states[-1], tensors, score, depth=2, keep_best=keep_best))
    return states[1:]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([Score(1, 4, 1.0), Score(2, 4, 9.0)], [0, 1]),
        ([Score(2, 4, 1.0), Score(1, 4, 0.1)], [0, 0]),
        ([Score(2, 4, 1.0), Score(2, 4, 0.9)], [0, 1]),
        ([Score(2, 4, 1.0), Score(2, 4, 1.1)], [0, 0]),
        ([Score(2, 4, 1.0), Score(2, 4, 1.0)], [0, 1]),
        ([Score(2, 4), Score(1, 4), Score(0, 4), Score(3, 4), Score(2, 4)], [0, 0, 0, 3, 3]),
        ([Score(), Score(), Score()], [0, 1, 2]),
    ],
)
def test_best_on_validation_rows(scores, best):
    states = rounds(scores, keep_best=True)
    assert [int(chosen(s)["local/x"]) for s in states] == best
    assert [int(s.tensors["local/x"]) for s in states] == list(range(len(scores)))
    assert [s.rounds for s in states] == list(range(1, len(scores) + 1))


def test_who_diverges_is_where_it_was():
    bad = Score(loss=math.nan)
    first, second = rounds([Score(1, 4, 1.0), bad], keep_best=True)
    assert second is first
    assert rounds([bad], keep_best=True) == [None]


def test_last():
    states = rounds([Score(4, 4), Score(0, 4)], keep_best=False)
    assert [int(chosen(s)["local/x"]) for s in states] == [0, 1]
    assert list(states[-1].tensors) == ["local/x"]
