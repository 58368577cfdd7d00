"""Try settings where test rows may choose: on federations of rows that no table is about.

    python benchmarks/fresh.py "method=fedavg training.learning_rate=1e-3" "sal.start=5"
    python benchmarks/fresh.py --federations 6,7,8,9 "method=fedavg" ""  # then tried on others

Tables of `docs/results.md` are about 800 rows of amazon5 a seed, of 26,808. Of the others come
federations of the same size, with four times the test rows: by what is best on some of them
something may be chosen, and then be seen on the others and in the tables. Every argument is a row:
settings on top of the cell's. Printed: means over federations, of clients' test accuracy, and of
the personal models' log loss on test and validation rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pages
import results

from fedms.config import load_config
from fedms.data import Table, load_table
from fedms.run import run

CELL = next(cell for cell in results.CELLS if cell.name == "amazon5")
RECIPE = results.ROOT / "recipes" / f"{CELL.recipe}.toml"
PARTS = {"train": 320, "val": 80, "test": 1600}
FEDERATIONS = "0,1,2,3,4,5"
OWN = ("evaluate_every=0", "data.max_rows=", "data.split=split", "training.learning_rate=3e-3")
FIRST = 100
"""Seed of the first federation."""


def others() -> Table:
    """Rows that no seed of the cell's tables draws."""
    config = load_config(RECIPE, CELL.settings)
    data, domain = config.data, config.partition.column

    def draw(seed: int = 0, rows: int | None = None) -> Table:
        return load_table(
            "csv", data.path, group=domain, drop_duplicates=True, max_rows=rows, seed=seed
        )

    drawn = {text for seed in CELL.seeds for text in draw(seed, data.max_rows).inputs}
    table = draw()
    return table.take(np.array([i for i, text in enumerate(table.inputs) if text not in drawn]))


def federations(folder: Path, numbers: Sequence[int]) -> Iterator[Path]:
    """Files of rows, no row in two."""
    table, size = others(), sum(PARTS.values())
    order = np.random.default_rng(7).permutation(len(table))
    split = [name for name, rows in PARTS.items() for _ in range(rows)]
    for number in numbers:
        rows = table.take(order[number * size : (number + 1) * size])
        path = folder / f"{number}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["text", "label", "domain", "split"])
            lines.writerows(zip(rows.inputs, rows.labels, rows.groups or (), split, strict=True))
        yield path


def score(settings: Sequence[str], path: Path, number: int, folder: Path) -> Mapping[str, Any]:
    """A run's summary."""
    where = (f"data.path={path}", f"seed={FIRST + number}")
    run(load_config(RECIPE, [*CELL.settings, *results.COMMON, *OWN, *where, *settings]), folder)
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
    parser.add_argument("--federations", default=FEDERATIONS, help="numbers by commas, 0 to 9")
    words = parser.parse_args()
    known = [str(number) for number in range(10)]
    if unknown := {*words.federations.split(",")} - {*known}:
        parser.error(f"got federation {min(unknown)!r}; expected some of {', '.join(known)}")
    numbers = [int(number) for number in words.federations.split(",")]
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedms-fresh-") as scratch:
        files = list(federations(Path(scratch), numbers))
        for place, settings in enumerate(words.settings):
            found = [
                score(settings.split(), path, number, Path(scratch) / f"{place}-{number}")
                for number, path in zip(numbers, files, strict=True)
            ]
            rows.append(line(settings, found))
    head = ["settings", "personal", "global", "local", "worst decile", "loss", "validation loss"]
    print(pages.table(head, rows))  # noqa: T201


if __name__ == "__main__":
    main()
