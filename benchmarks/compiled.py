"""What `torch.compile` of the blocks would gain: a step with and without, in `docs/performance.md`.

    python benchmarks/compiled.py

A trial, not a feature: it takes the place of blocks' forward functions. Compiling takes minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import pages
import torch
from performance import PAGE, block

from fedms.bench import Row
from fedms.bench.rows import alternate
from fedms.bench.steps import Case, fit_of, learner_of
from fedms.models.meter import Meter
from fedms.store.run_folder import environment

CASE = Case("text", 16, 16)
DEPTH, REPEATS = 3, 15


def rows() -> Iterator[Row]:
    """Seconds of a step, compiled beside eager, and of compiling."""
    for precision in ("float32", "bfloat16"):
        plain, compiled = (learner_of(CASE, precision) for _ in range(2))
        blocks = compiled.backbone.model.get_submodule(compiled.slots.root)
        for each in blocks.children():
            each.forward = torch.compile(each.forward, dynamic=True)
        works = {
            "plain": partial(plain.fit, [fit_of(plain, CASE, DEPTH)]),
            "compiled": partial(compiled.fit, [fit_of(compiled, CASE, DEPTH)]),
        }
        began = time.perf_counter()
        for _ in range(3):
            works["compiled"]()
        first = time.perf_counter() - began
        seconds = alternate(works, REPEATS)
        what = f"step of MiniLM, batch 16, depth {DEPTH}, {precision}"
        peer = ("not compiled", seconds["plain"])
        yield Row.of(f"{what}, compiled", seconds["compiled"], "s", REPEATS, peer)
        yield Row.of(f"compiling it, {precision}", first, "s", 1)


@contextmanager
def _uncounted(meter: Meter, kind: object, *sizes: int, **how: float) -> Iterator[None]:
    """Counting FLOPs keeps torch from compiling."""
    yield


def main() -> None:
    """Measure and write."""
    facts = environment(0)
    with mock.patch.object(Meter, "step", _uncounted):
        pages.write(PAGE, "compiled", block(list(rows()), facts, "python benchmarks/compiled.py"))


if __name__ == "__main__":
    main()
