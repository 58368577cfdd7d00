"""Methods with a linear head: does FedMS keep its lead if others have heads of their own?

    python benchmarks/heads.py                  # run what is missing, write docs/results.md
    python benchmarks/heads.py --only amazon5   # one cell, or several by commas
    python benchmarks/heads.py --tables         # run nothing

In `results.py` baselines but a linear probe score by the foundation model's prompts of classes,
which stand still. Here local training, FedPer and FedRep have a linear head of each client's own
(with the last block), by the same protocol. FedMS' linear head begins at the means of all clients'
rows, theirs at zeros: fine-tuning with all that is ours begins as FedMS does, and FedMS with
nothing of ours as they do.
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
METHODS = ("local", "fedper", "fedrep", "finetune+statistics", "fedms-plain", "fedms")
NAME = "heads"

Found = Mapping[str, Sequence[Result]]
"""Method."""


def linear(cell: results.Cell, *, perform: bool) -> Found:
    """With a linear head, of the methods whose runs are there, or are made."""
    found: list[Result] = []
    for method in METHODS:
        plan = cell.plan([method])
        settings = (*plan.overrides, "model.head=linear")
        out = results.RESULTS / f"{cell.name}-{NAME}"
        with suppress(MissingRunError):
            found += compare(replace(plan, overrides=settings, out=out, perform=perform))
    return by_method(found)


def lines(prompts: Found, heads: Found) -> list[list[str]]:
    """A row a method: with a linear head, in brackets with prompts, and FedMS with these."""
    rows = []
    for method, own in heads.items():
        cells = [VARIANTS[method].title]
        for score in ("mean", "worst_decile"):
            before = prompts.get(method)
            said = f"{results.mean(before, score):.3f}" if before else "–"
            cells.append(f"{results.mean(own, score):.3f} ({said})")
        beside = versus(prompts["fedms"], own)
        edge = " (edge)" if own[0].edge else ""
        rows.append([*cells, table.signed(beside.spread) if beside else "–"])
        rows[-1].append(f"{own[0].rate:g}{edge}")
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
    head = ["", "linear head (prompts)", "mean", "worst decile"]
    head += ["FedMS with prompts is ahead by", "rate"]
    rows, every = [], list[Result]()
    for name, cell in named.items():
        heads = linear(cell, perform=name in wanted and not words.tables)
        prompts = by_method(cell.results())
        rows += [[name, *cells] for cells in lines(prompts, heads)]
        for method, own in heads.items():
            every += [*own, *prompts.get(method, ())]
    said = (
        f"`python benchmarks/heads.py`; settings and seeds of these cells; {results.where(every)}."
    )
    text = f"{pages.table(head, rows)}\n\n{table.origin(every)}\n\n{said}"
    pages.write(results.PAGE, NAME, text)


if __name__ == "__main__":
    main()
