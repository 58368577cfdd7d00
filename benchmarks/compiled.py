"""What `torch.compile` of the blocks would gain: a step with and without, in `docs/performance.md`.

    python benchmarks/compiled.py [--device cpu]

A trial, not a feature: it takes the place of blocks' forward functions. Compiling takes minutes.
On CUDA also with graphs of launches (torch's mode `reduce-overhead`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from unittest import mock

import pages
import torch
from performance import PAGE, block

from fedms.bench import Row
from fedms.bench.rows import alternate
from fedms.bench.steps import Case, fit_of, learner_of
from fedms.machine import device_name, pick_device
from fedms.models.meter import Meter, wait
from fedms.store.run_folder import environment

CASE = Case("text", 16, 16)
DEPTH, REPEATS = 3, 15


def rows(device: torch.device) -> Iterator[Row]:
    """Seconds of a step, compiled beside eager, and of compiling."""
    modes = {"compiled": "default"}
    if device.type == "cuda":
        modes["compiled, as CUDA graphs"] = "reduce-overhead"
    for precision, (how, mode) in product(("float32", "bfloat16"), modes.items()):
        plain, compiled = (learner_of(CASE, precision, device) for _ in range(2))
        blocks = compiled.backbone.model.get_submodule(compiled.slots.root)
        for each in blocks.children():
            each.forward = torch.compile(each.forward, dynamic=True, mode=mode)
        works = {
            "plain": partial(plain.fit, [fit_of(plain, CASE, DEPTH)]),
            "compiled": partial(compiled.fit, [fit_of(compiled, CASE, DEPTH)]),
        }
        began = time.perf_counter()
        for _ in range(3):
            works["compiled"]()
        wait(device)
        first = time.perf_counter() - began
        seconds = alternate(works, REPEATS, device)
        what = f"step of MiniLM, batch 16, depth {DEPTH}, {precision}"
        peer = ("not compiled", seconds["plain"])
        yield Row.of(f"{what}, {how}", seconds["compiled"], "s", REPEATS, peer)
        yield Row.of(f"compiling it, {precision}, {how}", first, "s", 1)


@contextmanager
def _uncounted(meter: Meter, kind: object, *sizes: int, **how: float) -> Iterator[None]:
    """Counting FLOPs keeps torch from compiling."""
    yield


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="as runtime.device [cpu]")
    device = pick_device(parser.parse_args().device)
    facts, suffix, option = environment(0), "", ""
    if device != "cpu":
        facts["device"] = device_name(device)
        kind = device.split(":")[0]
        suffix, option = f"-{kind}", f" --device {kind}"
    with mock.patch.object(Meter, "step", _uncounted):
        measured = []
        for row in rows(torch.device(device)):
            sys.stdout.write(" | ".join(pages.cells(row)) + "\n")
            sys.stdout.flush()
            measured.append(row)
    text = block(measured, facts, f"python benchmarks/compiled.py{option}")
    pages.write(PAGE, f"compiled{suffix}", text)


if __name__ == "__main__":
    main()
