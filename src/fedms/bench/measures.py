"""The measures that `fedms bench` knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch

from fedms.bench.kernels import kernel_rows
from fedms.bench.rounds import growth_rows, overhead_rows, workers_rows
from fedms.bench.rows import Row
from fedms.bench.steps import stack_rows, step_rows

MEASURES: Mapping[str, Callable[..., Iterator[Row]]] = {
    "text": partial(step_rows, "text-16", "text-64"),
    "vision": partial(step_rows, "vision"),
    "large": partial(step_rows, "large"),
    "kernels": kernel_rows,
    "stack": stack_rows,
    "workers": workers_rows,
    "overhead": overhead_rows,
    "clients": growth_rows,
}
"""By name, what yields its rows."""
_IDLE = ("overhead", "clients")
"""What trains nothing, and so is of the CPU whatever device there is."""


def measures_of(device: str) -> list[str]:
    """What is measured on a device if no measure is named.

    On a CPU not the large tower, whose steps take a quarter of an hour.
    """
    skipped = ("large",) if device == "cpu" else _IDLE
    return [name for name in MEASURES if name not in skipped]


def measure(names: Iterable[str], device: str) -> Iterator[Row]:
    """Rows of measures, as they are measured.

    Args:
        names: of `MEASURES`.
        device: that is there, as `pick_device` gives it.
    """
    for name in names:
        how = {} if name in _IDLE else {"device": torch.device(device)}
        yield from MEASURES[name](**how)
