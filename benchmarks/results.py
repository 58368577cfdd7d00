"""Make the tables of `docs/results.md`: compare methods on every cell, then write the page.

    python benchmarks/results.py                    # run what is missing (days), write the page
    python benchmarks/results.py --only digits      # one cell, or several by commas
    python benchmarks/results.py --methods fedms,local
    python benchmarks/results.py --tables           # run nothing, write what is there

A cell is a recipe with settings that make it affordable; its comparison (docs/evaluation.md) is in
`benchmarks/results/CELL`. Of it `runs.jsonl` is kept with the code: a record of every run, so that
what was run once, on whatever machine, need not be run again, and every figure can be looked up. A
method is in a cell's table once all its runs are there, and a cell is written once FedMS is. Each
has its block of the page, and a line in the README's table; what is around them, and what is not
written anew, stays.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pages

from fedms.compare import VARIANTS, MissingRunError, Plan, Result, compare, plots, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"

FOR_CLIP = ("promptfl", "fedclip")
METHODS = tuple(name for name in VARIANTS if name not in FOR_CLIP)
SEEDS = (0, 1, 2)
RATES = (3e-3, 1e-2)
COMMON = ("runtime.threads=1",)


@dataclass(frozen=True)
class Cell:
    """Data and skew: a recipe, and what is set on top of it."""

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    methods: tuple[str, ...] = METHODS

    def plan(self, methods: Sequence[str]) -> Plan:
        """The comparison of some methods."""
        recipe = ROOT / "recipes" / f"{self.recipe}.toml"
        settings = (*self.settings, *COMMON)
        return Plan(recipe, settings, methods, SEEDS, RATES, RESULTS / self.name)

    def results(self) -> list[Result]:
        """Of all methods whose runs are there."""
        found: list[Result] = []
        for method in self.methods:
            try:
                found += compare(replace(self.plan([method]), perform=False))
            except MissingRunError:
                continue
        return found


_ROUNDS = ("stage1.rounds=5", "stage2.rounds=3", "evaluate_every=4")
_HALVED = ("data.split=", "partition.test_fraction=0.5")
"""Half of a client's rows for tests: they cost little, and make small differences visible."""
_STEPS = ("training.batch_size=8", "runtime.stack=4")
"""A client has some 60 training rows: with larger batches it would take too few steps."""
_TEXT = (*_ROUNDS, *_HALVED, *_STEPS, "model.max_length=32", "runtime.precision=bfloat16")
_IMAGES = (*_ROUNDS, "runtime.stack=8")
_BANKING = (*_TEXT, "data.max_rows=1500")
_CLINC = (*_TEXT, "data.max_rows=1600")
_NEWS = (*_TEXT, "data.max_rows=1500")
_SPREAD = ("partition.by=dirichlet", "partition.clients=10")
_WRITERS = ("partition.max_clients=16",)
_AUTHORS = ("partition.max_clients=40", "partition.unseen_clients=10")
CELLS = (
    Cell("digits", "digits", _IMAGES, (*METHODS, *FOR_CLIP)),
    Cell("femnist", "femnist", (*_IMAGES, *_WRITERS), (*METHODS, *FOR_CLIP)),
    Cell("banking77", "banking77", _BANKING),
    Cell("banking77-even", "banking77", (*_BANKING, "partition.alpha=1.0")),
    Cell(
        "banking77-quantity",
        "banking77",
        (*_BANKING, "partition.by=quantity", "partition.alpha=1.0"),
    ),
    Cell("clinc150", "clinc150", (*_CLINC, "partition.unseen_clients=2")),
    Cell("clinc150-skewed", "clinc150", (*_CLINC, *_SPREAD, "partition.alpha=0.1")),
    Cell("clinc150-even", "clinc150", (*_CLINC, *_SPREAD, "partition.alpha=1.0")),
    Cell("newsgroups20", "newsgroups20", (*_TEXT, *_AUTHORS)),
    Cell("newsgroups20-skewed", "newsgroups20", (*_NEWS, *_SPREAD, "partition.alpha=0.1")),
    Cell("amazon5", "amazon5", (*_TEXT, "data.max_rows=800")),
)


def block(cell: Cell, results: Sequence[Result]) -> str:
    """The cell's tables, and what made them."""
    facts = results[0].record.facts
    settings = " ".join([*cell.settings, *COMMON])
    said = (
        f"`python benchmarks/results.py --only {cell.name}`: "
        f"`recipes/{cell.recipe}.toml {settings}`; seeds {', '.join(map(str, SEEDS))}; "
        f"learning rates from {' and '.join(f'{rate:g}' for rate in RATES)} on; "
        f"{facts['processor']}, {facts['cores']} cores, shared, one thread a run; "
        f"torch {facts['packages']['torch']}, Python {facts['python']}. "
        '"±" is half of a 95 % interval over seeds. Seconds were measured beside other programs.'
    )
    return f"{table.markdown(results)}\n{said}"


def overview(found: dict[str, list[Result]], before: str) -> str:
    """The README's table: personal test accuracy, mean over clients and seeds, a line a cell.

    Cells that were not found keep the line that they have in the table of before.
    """
    columns = {
        "zero-shot": "zeroshot",
        "local-only": "local",
        "FedAvg": "fedavg",
        "FedAvg, then fine-tuning": "finetune",
        "the same, with all that is ours": "finetune+statistics",
        "FedMS": "fedms",
    }
    rows = {line.split("|")[1].strip(): line for line in before.splitlines()[2:]}
    for cell, results in found.items():
        means = {
            name: statistics.fmean(r.test["mean"] for r in results if r.method == name)
            for name in {r.method for r in results}
        }
        cells = [f"{means[m]:.3f}" if m in means else "–" for m in columns.values()]
        others = {n: m for n, m in means.items() if _is_rival(n)}
        best = max(others, key=others.__getitem__, default=None)
        said = f"{VARIANTS[best].title} {others[best]:.3f}" if best else "–"
        rows[cell] = f"| {' | '.join([cell, *cells[:-1], said, cells[-1]])} |"
    head = ["", *list(columns)[:-1], "best as published, of those run", "FedMS"]
    return "\n".join([pages.table(head, ()), *(rows[c.name] for c in CELLS if c.name in rows)])


def _is_rival(name: str) -> bool:
    """Whether it is a method as published: not ours, no bound, nothing of ours in it."""
    variant = VARIANTS[name]
    return variant.group != "ours" and not variant.bound and "+" not in name


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="cells by commas; all otherwise")
    parser.add_argument("--methods", help="names by commas; all of the cell's otherwise")
    parser.add_argument("--tables", action="store_true", help="run nothing, write tables")
    words = parser.parse_args()
    named = {cell.name: cell for cell in CELLS}
    if unknown := {*(words.only or "").split(",")} - {*named, ""}:
        parser.error(f"got cell {min(unknown)!r}; expected one of {', '.join(named)}")
    cells = [named[name] for name in words.only.split(",")] if words.only else CELLS
    for cell in cells if not words.tables else ():
        compare(cell.plan(words.methods.split(",") if words.methods else cell.methods))
    found = {cell.name: cell.results() for cell in cells}
    found = {name: r for name, r in found.items() if any(one.method == "fedms" for one in r)}
    for name, results in found.items():
        table.write(RESULTS / name, results)
        plots.write(RESULTS / name, results)
        pages.write(PAGE, name, block(named[name], results))
    pages.write(README, "results", overview(found, pages.read(README, "results")))


if __name__ == "__main__":
    main()
