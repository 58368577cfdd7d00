"""Accuracy under budgets, and costs to an accuracy, of models that are scored after every round.

    python benchmarks/spending.py           # run what is missing, write docs/results.md
    python benchmarks/spending.py --tables  # run nothing

Cells of `results.py` score after every fourth round, which is enough to say how methods end. Here
one of them is run again, of every method with the learning rate that validation chose there.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import pages
import results

from fedms.compare import Result, compare, table
from fedms.compare.scores import by_method

CELL = "femnist"
"""Its runs are short, and methods differ."""
OUT = results.RESULTS / f"{CELL}-rounds"


def found(*, perform: bool) -> list[Result]:
    """Of all methods as published, FedMS, and its simple rival."""
    (cell,) = [cell for cell in results.CELLS if cell.name == CELL]
    chosen = by_method(cell.results())
    again: list[Result] = []
    for method in (*results.METHODS, *results.FOR_CLIP):
        first = chosen[method][0]
        rate = results.RATES[0] if first.rate is None else first.rate
        settings = (*cell.settings, "evaluate_every=1", *filter(None, [first.choice]))
        plan = replace(cell.plan([method]), overrides=(*settings, *results.COMMON))
        again += compare(replace(plan, rates=(rate,), out=OUT, perform=perform))
    return again


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true", help="run nothing, write tables")
    made = found(perform=not parser.parse_args().tables)
    said = f"`python benchmarks/spending.py`; {results.where(made)}."
    text = f"{table.spending(made)}\n\n{table.origin(made)}\n\n{said}"
    pages.write(results.PAGE, f"{CELL}-rounds", text)


if __name__ == "__main__":
    main()
