"""Triggers of SAL against a plain simulation of what the design says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedms.algorithms import Sal

scores = st.lists(st.none() | st.sampled_from([0.0, 0.1, 0.101, 0.102, 0.2, 0.5, 1.0]), max_size=25)


def run(sal: Sal, sequence, blocks: int) -> list[int]:
    """Depth in every round, and after the last."""
    depth, queue, depths = sal.first_depth(blocks), (), []
    for rounds, score in enumerate(sequence, 1):
        depths.append(depth)
        depth, queue = sal.grow(depth, queue, score, rounds=rounds, blocks=blocks)
    return [*depths, depth]


def simulate(start, step, length, epsilon, sequence, blocks) -> list[int]:
    """The capability queue with a mutable list: append, drop the oldest, look at the gain."""
    depth, queue, depths = min(start, blocks), [], []
    for score in sequence:
        depths.append(depth)
        if score is None:
            continue
        queue.append(score)
        if len(queue) > length:
            queue.pop(0)
        if len(queue) == length and not queue[-1] - queue[0] >= epsilon:
            queue.clear()
            depth = depth + step if depth + step < blocks else blocks
    return [*depths, depth]


@given(
    start=st.integers(1, 4),
    step=st.integers(1, 3),
    length=st.integers(2, 5),
    epsilon=st.sampled_from([0.0, 0.002, 0.1]),
    sequence=scores,
    blocks=st.integers(1, 6),
)
def test_queue_agrees_with_a_plain_simulation(start, step, length, epsilon, sequence, blocks):
    sal = Sal("queue", start, step, length, epsilon)
    assert run(sal, sequence, blocks) == simulate(start, step, length, epsilon, sequence, blocks)


@given(
    start=st.integers(1, 4),
    step=st.integers(1, 3),
    every=st.integers(1, 4),
    sequence=scores,
    blocks=st.integers(1, 6),
)
def test_schedule_adds_a_step_after_every_so_many_rounds(start, step, every, sequence, blocks):
    expected = [min(start + step * (r // every), blocks) for r in range(len(sequence) + 1)]
    sal = Sal("schedule", start, step, every=every)
    assert run(sal, sequence, blocks) == expected


@given(scores, st.integers(1, 6))
def test_all_is_all_from_the_start(sequence, blocks):
    assert run(Sal("all"), sequence, blocks) == [blocks] * (len(sequence) + 1)


@pytest.mark.parametrize(
    ("sequence", "depths"),
    [
        ([0.5, 0.5, 0.5, 0.5], [1, 1, 1, 2, 2]),
        ([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1, 1]),
        ([0.5, None, 0.5, 0.5], [1, 1, 1, 1, 2]),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [1, 1, 1, 2, 2, 2, 3]),
        ([0.9, 0.1, 0.2, 0.3], [1, 1, 1, 2, 2]),
    ],
)
def test_queue_by_hand(sequence, depths):
    assert run(Sal("queue"), sequence, blocks=3) == depths
