"""Try settings where test rows may choose: on federations of rows that a cell's table is not about.

    python benchmarks/fresh.py "method=fedavg training.learning_rate=1e-3" "sal.start=5"
    python benchmarks/fresh.py --federations 6,7,8,9 "method=fedavg" ""  # then tried on others
    python benchmarks/fresh.py --cell banking77 --federations 0,1,2 "stage2.checkpoint=best" ""

The table of a cell in `docs/results.md` is about a part of the rows of texts there are (800 of
amazon5's 26,808, a seed). Of the rest come federations of as many training and validation rows,
with 1,600 test rows: by what is best on some of them something may be chosen, and then be seen on
the others and in the table. (Not in that of another cell of the same data: amazon5-more draws rows
of amazon5's federations here.) Every argument is a row: settings on top of the cell's. Printed:
means over federations, of clients' test accuracy, and of the personal models' log loss on test and
validation rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pages
import results
from results import Cell

from fedms.build import load_table
from fedms.config import load_config
from fedms.core.rows import Index
from fedms.data import Table
from fedms.run import run

CELLS = {
    cell.name: cell
    for cell in results.CELLS
    if "data.split=" in cell.settings and any("data.max_rows" in word for word in cell.settings)
}
"""Of texts, from CSV files, of which a seed draws a part."""
SHARES, TEST = {"train": 0.4, "val": 0.1}, 1600
"""Of a cell's rows; and test rows."""
FEDERATIONS = "0,1,2,3,4,5"
OWN = (
    *("evaluate_every=0", "data.max_rows=", "data.split=split", "data.drop_labels="),
    "training.learning_rate=3e-3",
)
FIRST = 100
"""Seed of the first federation."""


def recipe(cell: Cell) -> Path:
    """Of a cell."""
    return results.ROOT / "recipes" / f"{cell.recipe}.toml"


def others(cell: Cell) -> Table:
    """Rows that no seed draws, for the cell's table or another of as many rows of these data."""

    def draw(*settings: str) -> Table:
        return load_table(load_config(recipe(cell), [*cell.settings, *settings]))

    drawn = {text for seed in results.MANY for text in draw(f"seed={seed}").inputs}
    table = draw("data.max_rows=")
    return table.take(np.array([i for i, text in enumerate(table.inputs) if text not in drawn]))


def federations(cell: Cell, folder: Path, numbers: Sequence[int]) -> Iterator[Path]:
    """Files of rows, no row in two, for those of the numbers that there are rows for."""
    config, table = load_config(recipe(cell), cell.settings), others(cell)
    sizes = {part: round(share * (config.data.max_rows or 0)) for part, share in SHARES.items()}
    split = [part for part, rows in {**sizes, "test": TEST}.items() for _ in range(rows)]
    order, size = np.random.default_rng(7).permutation(len(table)), len(split)
    column = config.partition.column or "group"
    for number in (n for n in numbers if (n + 1) * size <= len(table)):
        rows = table.take(order[number * size : (number + 1) * size])
        if {*rows.labels} > {*rows.labels[: sizes["train"]]}:
            rows = rows.take(_every_class_first(rows.labels))
        path = folder / f"{number}.csv"
        groups = rows.groups or [""] * len(rows)
        with path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow([config.data.input, config.data.label, column, "split"])
            lines.writerows(zip(rows.inputs, rows.labels, groups, split, strict=True))
        yield path


def _every_class_first(labels: Sequence[str]) -> Index:
    """The order with one row of every class before all others."""
    _, first = np.unique(labels, return_index=True)
    return np.concatenate([np.sort(first), np.setdiff1d(np.arange(len(labels)), first)])


def score(
    cell: Cell, settings: Sequence[str], path: Path, number: int, folder: Path
) -> Mapping[str, Any]:
    """A run's summary."""
    where = (f"data.path={path}", f"seed={FIRST + number}")
    run(
        load_config(recipe(cell), [*cell.settings, *results.COMMON, *OWN, *where, *settings]),
        folder,
    )
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def line(settings: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of a table: means over federations."""

    def mean(part: str, role: str, figure: str = "mean") -> str:
        scores = [summary[part][role] for summary in found]
        return f"{statistics.fmean(s[figure] for s in scores):.4f}" if all(scores) else "–"

    figures = [mean("test", role) for role in ("personal", "global", "local")]
    figures.append(mean("test", "personal", "worst_decile"))
    losses = [mean(part, "personal", "loss") for part in ("test", "validation")]
    return [settings or "as it is", *figures, *losses]


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", default=[""], metavar='"KEY=VALUE …"')
    parser.add_argument("--cell", choices=CELLS, default="amazon5", help="[amazon5]")
    parser.add_argument(
        "--federations", default=FEDERATIONS, help="numbers by commas; those that there are"
    )
    words = parser.parse_args()
    cell = CELLS[words.cell]
    if not re.fullmatch(r"\d+(,\d+)*", words.federations):
        parser.error(f"got federations {words.federations!r}; expected numbers by commas")
    numbers = [int(number) for number in words.federations.split(",")]
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedms-fresh-") as scratch:
        files = list(federations(cell, Path(scratch), numbers))
        if not files:
            parser.error(f"got federations {words.federations}; {cell.name} has not so many")
        numbers = [int(path.stem) for path in files]
        for place, settings in enumerate(words.settings):
            found = [
                score(cell, settings.split(), path, number, Path(scratch) / f"{place}-{number}")
                for number, path in zip(numbers, files, strict=True)
            ]
            rows.append(line(settings, found))
    head = ["settings", "personal", "global", "local", "worst decile", "loss", "validation loss"]
    print(pages.table(head, rows))  # noqa: T201


if __name__ == "__main__":
    main()
