"""The measures that `fedms bench` knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from fedms.bench.kernels import kernel_rows
from fedms.bench.rounds import growth_rows, overhead_rows, workers_rows
from fedms.bench.rows import Row
from fedms.bench.steps import stack_rows, step_rows

MEASURES: Mapping[str, Callable[[], Iterator[Row]]] = {
    "text": partial(step_rows, "text-16", "text-64"),
    "vision": partial(step_rows, "vision"),
    "kernels": kernel_rows,
    "stack": stack_rows,
    "overhead": overhead_rows,
    "clients": growth_rows,
    "workers": workers_rows,
}
"""By name, what yields its rows."""


def measure(only: str | None = None) -> Iterator[Row]:
    """Rows of all measures, or of one, as they are measured."""
    for name, rows in MEASURES.items():
        if only in (None, name):
            yield from rows()
