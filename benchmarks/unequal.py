"""Methods among unequal devices: half of the writers can train two of six blocks.

    python benchmarks/unequal.py           # run what is missing, write docs/results.md
    python benchmarks/unequal.py --tables  # run nothing

The cell femnist of `results.py`, by the same protocol. FlexLoRA, which is for devices that hold
adapters of lower rank, has clients of rank 2 in place of 8, and all blocks. FedRA draws as many
blocks as a device can train.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import pages
import results

from fedms.compare import VARIANTS, MissingRunError, Result, compare, table
from fedms.compare.rows import COSTS
from fedms.compare.scores import by_method, versus

CELL = "femnist"
OUT = results.RESULTS / f"{CELL}-unequal"
METHODS = (
    "local",
    "fedavg",
    "ffa",
    "flexlora",
    "fedra",
    "finetune",
    "finetune+statistics",
    "fedrep",
    "fedms",
)
"""Those for such devices, the strongest of the cell as published, and what they are made of."""
CAP, RANK = 2, 2
OWN = {"fedra": ("baselines.random_blocks=6",)}
"""What a method is given beside the limits: in the cell FedRA draws three blocks for everybody."""

Found = Mapping[str, Sequence[Result]]
"""Method."""


def cell() -> results.Cell:
    """Of equal devices."""
    return next(cell for cell in results.CELLS if cell.name == CELL)


def weaker(equal: Found) -> list[str]:
    """Every second writer, in the order of their names."""
    return sorted(equal["fedms"][0].test["per_client"])[::2]


def limits(method: str, weak: Sequence[str]) -> Iterator[str]:
    """Settings of the weaker devices, and the method's own."""
    for client in weak:
        low = f"lora.ranks.{client}={RANK}"
        yield low if method == "flexlora" else f"sal.caps.{client}={CAP}"
    yield from OWN.get(method, ())


def unequal(weak: Sequence[str], *, perform: bool) -> Found:
    """Of the methods whose runs are there, or are made."""
    found: list[Result] = []
    for method in METHODS:
        plan = cell().plan([method])
        settings = (*plan.overrides, *limits(method, weak))
        with suppress(MissingRunError):
            found += compare(replace(plan, overrides=settings, out=OUT, perform=perform))
    return by_method(found)


def lines(found: Found, equal: Found, weak: Sequence[str]) -> str:
    """A row a method; in brackets what it has where all devices are strong."""
    head = ["in brackets: of equal devices", "mean", "weaker half", "stronger half"]
    head += ["worst decile", "FedMS is ahead by", "rate", "MB sent", "TFLOPs"]
    everybody = {*equal["fedms"][0].test["per_client"]}
    rows = []
    for method, own in found.items():
        beside = versus(found["fedms"], own) if method != "fedms" else None
        cells = [VARIANTS[method].title]
        for clients in (everybody, weak, everybody - {*weak}):
            cells.append(f"{mean(own, clients):.3f} ({mean(equal[method], clients):.3f})")
        worst = [results.mean(each, "worst_decile") for each in (own, equal[method])]
        cells.append(f"{worst[0]:.3f} ({worst[1]:.3f})")
        cells.append(table.signed(beside.spread) if beside else "")
        cells.append(f"{own[0].rate:g}{' (edge)' if own[0].edge else ''}")
        for cost in ("MB sent", "TFLOPs"):
            cells.append(f"{statistics.fmean(map(COSTS[cost], own)):.1f}")
        rows.append(cells)
    return pages.table(head, rows)


def mean(found: Sequence[Result], clients: Collection[str]) -> float:
    """Of these clients' accuracies, over seeds."""
    scores = [result.test["per_client"] for result in found]
    return statistics.fmean(each[client] for each in scores for client in clients)


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true", help="run nothing, write tables")
    equal = by_method(cell().results())
    weak = weaker(equal)
    found = unequal(weak, perform=not parser.parse_args().tables)
    every = [result for method in found for result in (*found[method], *equal[method])]
    settings = " ".join([*cell().settings, *results.COMMON])
    said = f"`python benchmarks/unequal.py`: `{settings}` and limits for writers "
    said += f"{', '.join(weak)}; seeds {', '.join(map(str, cell().seeds))}; {results.where(every)}."
    text = f"{lines(found, equal, weak)}\n\n{table.origin(every)}\n\n{said}"
    pages.write(results.PAGE, OUT.name, text)


if __name__ == "__main__":
    main()
