"""Methods among unequal devices: half of the writers can train two of six blocks.

    python benchmarks/unequal.py           # run what is missing, write docs/results.md
    python benchmarks/unequal.py --tables  # run nothing

The cell femnist of `results.py`, by the same protocol. FlexLoRA, which is for devices that hold
adapters of lower rank, has clients of rank 2 in place of 8, and all blocks.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pages
import results

from fedms.build import deal, load_table
from fedms.compare import VARIANTS, Result, compare, table
from fedms.compare.scores import by_method, versus

CELL = "femnist"
OUT = results.RESULTS / f"{CELL}-unequal"
METHODS = (*("local", "fedavg", "fedra", "flexlora", "finetune", "finetune+statistics", "fedms"),)
CAP, RANK = 2, 2


def weaker() -> list[str]:
    """Every second writer, in the order of their names."""
    config = cell().plan(["fedms"]).configure(VARIANTS["fedms"], results.RATES[0], 0)
    return sorted(client.id for client in deal(config, load_table(config)).clients)[::2]


def cell() -> results.Cell:
    """Of equal devices."""
    return next(cell for cell in results.CELLS if cell.name == CELL)


def found(weak: Sequence[str], *, perform: bool) -> list[Result]:
    """Of all methods whose runs are there, or are made."""
    made: list[Result] = []
    for method in METHODS:
        low = "lora.ranks.{}=" + str(RANK) if method == "flexlora" else "sal.caps.{}=" + str(CAP)
        settings = (*cell().settings, *(low.format(client) for client in weak), *results.COMMON)
        plan = replace(cell().plan([method]), overrides=settings, out=OUT, perform=perform)
        made += compare(plan)
    return made


def lines(
    made: Mapping[str, Sequence[Result]],
    equal: Mapping[str, Sequence[Result]],
    weak: Sequence[str],
) -> str:
    """A row a method; beside it what it has where all devices are strong."""
    head = ["", "mean", "of equal devices", "weaker half", "stronger half", "worst decile"]
    head += ["FedMS is ahead by", "MB sent", "TFLOPs"]
    rows = []
    for method, its in made.items():
        of = {True: list[float](), False: list[float]()}
        for result in its:
            for client, accuracy in result.test["per_client"].items():
                of[client in weak].append(accuracy)
        beside = versus(made["fedms"], its) if method != "fedms" else None
        sent = statistics.fmean(r.cost["upload_bytes"] + r.cost["download_bytes"] for r in its)
        title = VARIANTS[method].title
        cells = [f"**{title}**" if method == "fedms" else title]
        cells += [f"{results.mean(its):.3f}", f"{results.mean(equal[method]):.3f}"]
        cells += [f"{statistics.fmean(of[half]):.3f}" for half in (True, False)]
        cells.append(f"{results.mean(its, 'worst_decile'):.3f}")
        cells.append(table.signed(beside.spread) if beside else "")
        flops = statistics.fmean(r.cost["train_flops"] for r in its)
        rows.append([*cells, f"{sent / 1e6:.1f}", f"{flops / 1e12:.2f}"])
    return pages.table(head, rows)


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true", help="run nothing, write tables")
    weak = weaker()
    made = found(weak, perform=not parser.parse_args().tables)
    equal = by_method(cell().results())
    said = f"`python benchmarks/unequal.py`; {results.where(made)}."
    text = f"{lines(by_method(made), equal, weak)}\n\n{table.origin(made)}\n\n{said}"
    pages.write(results.PAGE, OUT.name, text)


if __name__ == "__main__":
    main()
