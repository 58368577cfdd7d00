"""Accuracy under budgets, and costs to an accuracy, of models that are scored after every round.

    python benchmarks/spending.py           # run what is missing, write docs/results.md
    python benchmarks/spending.py --tables  # run nothing

Cells of `results.py` score after every fourth round, which is enough to say how methods end. Here
one of them is run again, of every method with the learning rate that validation chose there.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from dataclasses import replace

import pages
import results

from fedms.compare import VARIANTS, MissingRunError, Result, compare, table
from fedms.compare.scores import by_method

CELL = "femnist"
"""Its runs are short."""
TARGETS = (0.80, 0.85, 0.90)
"""Accuracies on validation rows."""
OUT = results.RESULTS / f"{CELL}-rounds"


def found(*, perform: bool) -> list[Result]:
    """Of methods as published, FedMS, and its simple rival, whose runs are there or are made."""
    (cell,) = [cell for cell in results.CELLS if cell.name == CELL]
    again: list[Result] = []
    for method, (first, *_) in by_method(cell.results()).items():
        if method in results.CONTROLS or VARIANTS[method].run:
            continue
        rate = results.RATES[0] if first.rate is None else first.rate
        settings = (*cell.settings, "evaluate_every=1", *filter(None, [first.choice]))
        plan = replace(cell.plan([method]), overrides=(*settings, *results.COMMON))
        with suppress(MissingRunError):
            again += compare(replace(plan, rates=(rate,), out=OUT, perform=perform))
    return again


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true", help="run nothing, write tables")
    made = found(perform=not parser.parse_args().tables)
    said = "`python benchmarks/spending.py`; means of seeds 0, 1 and 2; "
    said += f"{results.where(made)}. Seconds were measured beside other programs."
    views = table.spending(made, targets=TARGETS)
    text = f"{views}\n\n{table.origin(made)}\n\n{said}"
    pages.write(results.PAGE, f"{CELL}-rounds", text)


if __name__ == "__main__":
    main()
