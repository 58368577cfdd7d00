"""Every way of dealing is complete, deterministic, bounded, and leaves no trace."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedms.core.errors import UserError
from fedms.data import Partitioning, partition
from fedms.data.apportion import apportion

SYNTHETIC = ("iid", "dirichlet", "shards", "quantity")


def labels_of(rows: int, classes: int) -> list[str]:
    return [f"c{i % classes}" for i in range(rows)]


def dealt_rows(parts: dict[str, np.ndarray]) -> list[int]:
    return sorted(np.concatenate(list(parts.values())).tolist())


@settings(deadline=None, max_examples=60)
@given(
    by=st.sampled_from(SYNTHETIC),
    rows=st.integers(1, 80),
    classes=st.integers(1, 9),
    clients=st.integers(1, 12),
    alpha=st.sampled_from([5e-324, 0.01, 0.5, 100, 1.7e308]),
    min_rows=st.integers(0, 6),
    seed=st.integers(0, 2**40),
)
def test_every_row_exactly_once_or_a_user_error(by, rows, classes, clients, alpha, min_rows, seed):
    how = Partitioning(by, clients, alpha, min_rows=min_rows)
    message = ""
    try:
        parts = partition(labels_of(rows, classes), None, how, seed)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    if by in ("iid", "quantity"):  # these fail only, and always, where there are too few rows
        assert bool(message) == (clients * max(min_rows, 1) > rows)
    if message:
        return
    assert list(parts) == [str(k) for k in range(clients)]
    assert dealt_rows(parts) == list(range(rows))
    again = partition(labels_of(rows, classes), None, how, seed)
    assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in parts.items()}
    for part in parts.values():
        assert part.dtype == np.int64
        assert len(part) >= min_rows
        assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("by", SYNTHETIC)
def test_seed_decides_and_nothing_else(by):
    labels = labels_of(120, 5)
    how = Partitioning(by, 6)
    one, again, other = (partition(labels, None, how, seed) for seed in (1, 1, 2))
    assert {k: v.tolist() for k, v in one.items()} == {k: v.tolist() for k, v in again.items()}
    assert {k: v.tolist() for k, v in one.items()} != {k: v.tolist() for k, v in other.items()}
    if by in ("dirichlet", "quantity"):  # the draw too, not the order of rows alone
        assert [len(v) for v in one.values()] != [len(v) for v in other.values()]


@pytest.mark.parametrize("by", [*SYNTHETIC, "column"])
def test_global_state_is_untouched_and_nothing_is_printed(by, capfd, recwarn):
    labels = labels_of(60, 3)
    states = random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    partition(labels, labels, Partitioning(by, 3, alpha=0.05), 0)
    assert states == (random.getstate(), repr(np.random.get_state()))  # noqa: NPY002
    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0


def test_importing_the_package_does_not_import_flwr_datasets():
    code = "import sys, fedms.data; sys.exit('flwr_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_iid_parts_are_equal_and_mixed():
    parts = partition([*["a"] * 500, *["b"] * 500], None, Partitioning("iid", 4), 0)
    assert [len(part) for part in parts.values()] == [250] * 4
    for part in parts.values():  # contiguous parts would hold one class only
        assert 90 < (part < 500).sum() < 160


def test_small_alpha_is_more_skewed_than_large():
    labels = labels_of(2000, 10)

    def largest_share(alpha):
        parts = partition(labels, None, Partitioning("dirichlet", 5, alpha), 0)
        counts = [Counter(labels[i] for i in part) for part in parts.values()]
        return np.mean([max(c.values()) / sum(c.values()) for c in counts])

    assert largest_share(0.05) > 2 * largest_share(100)


def test_dirichlet_that_cannot_be_reached_ends_with_what_to_try():
    how = Partitioning("dirichlet", 30, alpha=0.001, min_rows=3)
    with pytest.raises(UserError, match=r"alpha=0\.001 for clients=30 and 100 rows.*larger alpha"):
        partition(labels_of(100, 2), None, how, 0)


@pytest.mark.parametrize("by", SYNTHETIC)
@pytest.mark.parametrize(("classes", "clients"), [(1, 400), (400, 1), (400, 400), (2000, 20)])
def test_many_classes_and_clients_are_dealt(by, classes, clients):
    """In seconds: a draw takes time in proportion to classes, and tries are counted."""
    how = Partitioning(by, clients, 0.3, min_rows=0)
    assert dealt_rows(partition(labels_of(2000, classes), None, how, 0)) == list(range(2000))


def test_shards_give_few_classes_and_lose_no_remainder():
    labels = labels_of(1003, 10)  # 100 or 101 rows a class, shards of 50: 2 classes at most each
    parts = partition(labels, None, Partitioning("shards", 10, shards_per_client=2), 0)
    assert dealt_rows(parts) == list(range(1003))
    assert max(len({labels[i] for i in part}) for part in parts.values()) <= 4
    assert {len(part) for part in parts.values()} <= {100, 101}


def test_rows_left_over_by_shards_go_where_their_class_is():
    labels = ["a"] * 51 + ["b"] * 50  # two shards of 50, one row left: one shard at most is mixed
    for seed in range(12):
        parts = partition(labels, None, Partitioning("shards", 2, shards_per_client=1), seed)
        assert sum(len({labels[i] for i in part}) for part in parts.values()) <= 3


def test_quantity_skews_sizes():
    sizes = {
        alpha: sorted(
            len(part)
            for part in partition(
                labels_of(1000, 4), None, Partitioning("quantity", 10, alpha, min_rows=5), 0
            ).values()
        )
        for alpha in (0.2, 1e6)
    }
    assert sizes[0.2][0] >= 5
    assert sizes[0.2][-1] > 3 * sizes[0.2][4]
    assert sizes[1e6][-1] - sizes[1e6][0] <= 2


def test_natural_clients():
    groups = ["10", "9", "9", "x", "9", "10", "y", "y"]
    by = {"by": "column", "min_rows": 2}
    parts = partition(groups, groups, Partitioning(**by, clients=0), 0)
    assert {k: v.tolist() for k, v in parts.items()} == {"9": [1, 2, 4], "10": [0, 5], "y": [6, 7]}
    assert list(parts) == ["9", "10", "y"]
    assert list(partition(groups, groups, Partitioning(**by, clients=2), 0)) == ["9", "10"]
    assert list(partition(groups, groups, Partitioning(**by, clients=1), 0)) == ["9"]
    swapped = [{"9": "10", "10": "9"}.get(group, group) for group in groups]
    assert list(partition(groups, swapped, Partitioning(**by, clients=1), 0)) == ["10"]
    assert list(partition(groups, groups, Partitioning(**by, clients=9), 0)) == ["9", "10", "y"]


@pytest.mark.parametrize(
    ("how", "rows", "message"),
    [
        (Partitioning("iid", 11), 10, r"clients=11.*the 10 rows"),
        (Partitioning("quantity", 4, min_rows=3), 10, "at least 3 rows each.*fewer clients"),
        (Partitioning("shards", 4, shards_per_client=3), 10, "12 shards.*10 rows"),
        (Partitioning("shards", 3, shards_per_client=2, min_rows=3), 10, "min_rows=3"),
        (Partitioning("column"), 10, "without a column of clients"),
    ],
)
def test_what_cannot_be_dealt(how, rows, message):
    with pytest.raises(UserError, match=message):
        partition(labels_of(rows, 2), None, how, 0)


def test_no_natural_client_is_large_enough():
    with pytest.raises(UserError, match=r"min_rows=3, which none of 2.*largest: 2"):
        partition(["a"] * 4, list("xxyy"), Partitioning("column", min_rows=3), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "dirichelt"}, "try 'dirichlet'"),
        ({"clients": 0}, "clients=0; expected 1 or more"),
        ({"by": "column", "clients": -1}, "expected 0 or more"),
        ({"alpha": 0.0}, "above 0"),
        ({"alpha": float("nan")}, "above 0"),
        ({"alpha": float("inf")}, "above 0"),
        ({"shards_per_client": 0}, "shards_per_client=0"),
        ({"min_rows": -1}, "min_rows=-1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        Partitioning(**options)


@settings(deadline=None, max_examples=100)
@given(
    total=st.integers(0, 60),
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=8),
)
def test_apportion_is_exact_and_keeps_its_quota(total, weights):
    dealt = apportion(total, weights, np.random.default_rng(0))
    assert dealt.sum() == total
    assert (dealt >= 0).all()
    if sum(weights):
        assert np.abs(dealt - total * np.array(weights) / sum(weights)).max() < 1 + 1e-6


def test_apportion_by_hand():
    rng = np.random.default_rng(0)
    # quotas 4.7, 1.6, 1.58, 1.2, 0.61, 0.31: floors 4, 1, 1, 1, 0, 0, then the largest remainders
    assert apportion(10, [47, 16, 15.8, 12, 6.1, 3.1], rng).tolist() == [5, 2, 1, 1, 1, 0]
    ties = {tuple(apportion(1, [1, 1], np.random.default_rng(s))) for s in range(20)}
    assert ties == {(1, 0), (0, 1)}
