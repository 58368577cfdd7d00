"""Seeds, cohorts and batches are functions of their arguments."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedms.core.rows import ClientData, Rows, shuffled_batches
from fedms.core.seeds import derive_seed, draw_cohort

CLIENTS = tuple(f"c{i}" for i in range(10))


def test_seeds_are_fixed_for_ever():
    """A run that is resumed by a later version must draw the same numbers."""
    assert derive_seed(0, "client", 1, "a") == derive_seed(0, "client", 1, "a")
    assert derive_seed(0, "cohort", 0) == 3664083053257748903


def test_seeds_differ_by_every_argument():
    asked = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", "0"), (0, "a", 1), (0, "a0"), (0,)]
    seeds = {derive_seed(*words) for words in asked}
    assert len(seeds) == len(asked)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("cohort", "size"),
    [(1.0, 10), (0.5, 5), (0.25, 3), (0.01, 1), (0.04, 1), (1, 1), (3, 3), (10, 10), (99, 10)],
)
def test_cohort_size(cohort, size):
    drawn = draw_cohort(CLIENTS, cohort, 0, 0)
    assert len(set(drawn)) == len(drawn) == size
    assert list(drawn) == sorted(drawn)


def test_cohorts_change_with_round_and_seed_and_reach_everyone():
    cohorts = {(s, r): draw_cohort(CLIENTS, 3, s, r) for s in range(2) for r in range(20)}
    assert draw_cohort(CLIENTS, 3, 1, 5) == cohorts[1, 5]
    assert {c for drawn in cohorts.values() for c in drawn} == set(CLIENTS)
    assert [cohorts[0, r] for r in range(20)] != [cohorts[1, r] for r in range(20)]
    assert len({cohorts[0, r] for r in range(20)}) > 10


@pytest.mark.parametrize("cohort", [0, 0.0, -1, -0.5, 1.01, 2.0, float("nan")])
def test_cohort_out_of_range(cohort):
    with pytest.raises(ValueError, match=r"cohort|integer"):
        draw_cohort(CLIENTS, cohort, 0, 0)


def test_no_clients_no_cohort():
    with pytest.raises(ValueError, match="no clients"):
        draw_cohort((), 1.0, 0, 0)


def test_global_random_state_is_neither_read_nor_written():
    def drawn():
        return draw_cohort(CLIENTS, 4, 7, 1), [b.tolist() for b in shuffled_batches(20, 6, 5)]

    def states():
        numbers = np.random.get_state()[1].tolist()  # noqa: NPY002
        return random.getstate(), numbers, torch.get_rng_state().tolist()

    before, first = states(), drawn()
    assert states() == before
    random.random()
    np.random.random()  # noqa: NPY002
    torch.rand(1)
    assert drawn() == first


ragged = st.lists(st.integers(1, 40), max_size=80)


@settings(deadline=None)
@given(ragged, st.integers(1, 9), st.integers(0, 2**62), st.booleans())
def test_every_row_once(lengths, size, seed, by_length):
    given_lengths = np.array(lengths, dtype=np.int64) if by_length else None
    batches = list(shuffled_batches(len(lengths), size, seed, given_lengths))
    again = list(shuffled_batches(len(lengths), size, seed, given_lengths))
    assert sorted(int(i) for b in batches for i in b) == list(range(len(lengths)))
    sizes = sorted((len(b) for b in batches), reverse=True)
    assert sizes == [size] * (len(lengths) // size) + [len(lengths) % size] * bool(
        len(lengths) % size
    )
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]


def padding(batches, lengths):
    return sum(int(lengths[b].max() * len(b) - lengths[b].sum()) for b in batches)


@pytest.mark.parametrize("seed", range(5))
def test_with_lengths_there_is_less_padding(seed):
    lengths = np.random.default_rng(seed).integers(1, 60, 300)
    mixed = padding(shuffled_batches(300, 8, seed), lengths)
    assert padding(shuffled_batches(300, 8, seed, lengths), lengths) < mixed / 2


@pytest.mark.parametrize("seed", range(5))
def test_clients_of_one_pace_have_like_lengths_at_the_same_time(seed):
    """However many batches each has; and the pace, not the client, decides when long ones come."""
    rng = np.random.default_rng(seed)

    def longest(rows, pace):
        lengths = rng.integers(1, 60, rows)
        drawn = shuffled_batches(rows, 8, int(rng.integers(1000)), lengths, pace)
        return np.array([lengths[batch].max() for batch in drawn])

    one, other, apart = longest(800, 7), longest(640, 7), longest(800, 8)
    assert np.corrcoef(one[:80], other)[0, 1] > 0.8
    assert abs(np.corrcoef(one, apart)[0, 1]) < 0.4
    assert abs(np.corrcoef(one, np.arange(100))[0, 1]) < 0.4


@pytest.mark.parametrize("lengths", [None, np.arange(64) % 7])
def test_seeds_shuffle_differently(lengths):
    epochs = {
        str([b.tolist() for b in shuffled_batches(64, 8, seed, lengths)]) for seed in range(10)
    }
    assert len(epochs) == 10


def test_batches_by_length_do_not_come_from_short_to_long():
    lengths = np.arange(64)
    firsts = [next(shuffled_batches(64, 8, 0, lengths, pace))[0] // 8 for pace in range(20)]
    assert len(set(firsts)) > 3


def test_rows_take_arrays_and_lists():
    rows = Rows({"x": np.arange(6).reshape(3, 2), "y": ["a", "b", "c"]}, np.array([0, 1, 2]))
    taken = rows.take(np.array([2, 0]))
    assert taken.columns["x"].tolist() == [[4, 5], [0, 1]]
    assert (list(taken.columns["y"]), taken.labels.tolist(), len(taken)) == (["c", "a"], [2, 0], 2)


def test_rows_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="column 'x' has 2 rows; expected 3"):
        Rows({"x": np.zeros(2)}, np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize(("cap", "active", "trained"), [(None, 5, 5), (2, 5, 2), (7, 5, 5)])
def test_a_cap_limits_depth(cap, active, trained):
    empty = Rows({}, np.array([], dtype=np.int64))
    assert ClientData("c", empty, empty, empty, cap).depth(active) == trained
