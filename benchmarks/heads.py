"""Methods with a linear head in place of prompts: is FedMS' lead theirs to lose?

    python benchmarks/heads.py                  # run what is missing, write docs/results.md
    python benchmarks/heads.py --only amazon5   # one cell, or several by commas
    python benchmarks/heads.py --tables         # run nothing

In `results.py` all methods score by the foundation model's prompts of the classes, which stand
still, but a linear probe. Personal methods were published with heads of a client's own. Here they
have them (FedPer and FedRep with the last block), by the same protocol, on three of a cell's seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import pages
import results

from fedms.compare import VARIANTS, MissingRunError, Result, compare, table
from fedms.compare.scores import by_method, versus

CELLS = ("newsgroups20", "clinc150", "amazon5")
METHODS = ("local", "fedper", "fedrep", "fedms")
NAME = "heads"

Found = Mapping[str, Sequence[Result]]
"""Method."""


def prompts_of(cell: results.Cell) -> Found:
    """The cell's own results, with the rates that were chosen there, on these seeds."""
    found = compare(replace(cell.plan(METHODS), perform=False))
    return by_method([result for result in found if result.seed in results.SEEDS])


def made(cell: results.Cell, *, perform: bool) -> Found:
    """With a linear head, of the methods whose runs are there, or are made."""
    found: list[Result] = []
    for method in METHODS:
        plan = cell.plan([method], results.SEEDS)
        out = results.RESULTS / f"{cell.name}-{NAME}"
        settings = (*plan.overrides, "model.head=linear")
        with suppress(MissingRunError):
            found += compare(replace(plan, overrides=settings, out=out, perform=perform))
    return by_method(found)


def lines(prompts: Found, linear: Found) -> list[list[str]]:
    """A row a method: with prompts, with a linear head, and FedMS with prompts beside that."""
    rows = []
    for method, its in linear.items():
        title = VARIANTS[method].title
        cells = [f"**{title}**" if method == "fedms" else title]
        for found in (prompts[method], its):
            cells += [f"{results.mean(found):.3f}", f"{results.mean(found, 'worst_decile'):.3f}"]
        beside = versus(prompts["fedms"], its)
        rows.append([*cells, f"{its[0].rate:g}", table.signed(beside.spread) if beside else "–"])
    return rows


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="cells by commas; all otherwise")
    parser.add_argument("--tables", action="store_true", help="run nothing, write tables")
    words = parser.parse_args()
    named = {cell.name: cell for cell in results.CELLS if cell.name in CELLS}
    wanted = words.only.split(",") if words.only else CELLS
    if unknown := {*wanted} - {*named}:
        parser.error(f"got cell {min(unknown)!r}; expected one of {', '.join(CELLS)}")
    head = ["", "", "prompts", "worst decile", "linear head", "worst decile", "rate"]
    head += ["FedMS with prompts is ahead by"]
    rows, every = [], list[Result]()
    for name in CELLS:
        perform = name in wanted and not words.tables
        linear = made(named[name], perform=perform)
        rows += [[name, *cells] for cells in lines(prompts_of(named[name]), linear)]
        every += [result for its in linear.values() for result in its]
    said = f"`python benchmarks/heads.py`; seeds 0, 1, 2; {results.where(every)}."
    text = f"{pages.table(head, rows)}\n\n{table.origin(every)}\n\n{said}"
    pages.write(results.PAGE, NAME, text)


if __name__ == "__main__":
    main()
