"""Rows are counted by class and weight."""

from __future__ import annotations

import numpy as np

from fedms.core.routing import Routing, routing


def test_rows_are_counted_by_class_and_weight():
    labels = np.array([2, 0, 2, 2, 0], np.int64)
    weights = np.array([0.0, 0.25, 0.0625, 1.0, 0.96875], np.float32)
    assert routing(labels, weights) == Routing(
        counts=((0, 2, 1), (0, 9, 1), (2, 0, 2), (2, 9, 1)),
        weights=((0, 1.21875), (2, 1.0625)),
    )


def test_weights_beyond_their_range_by_rounding_are_counted():
    labels, weights = np.zeros(2, np.int64), np.array([-1e-7, 1 + 1e-6], np.float32)
    assert routing(labels, weights).counts == ((0, 0, 1), (0, 9, 1))
