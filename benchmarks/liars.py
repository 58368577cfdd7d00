"""Who is accused when class statistics of clients are compared, and who should be.

    python benchmarks/liars.py

Every federation of `docs/results.md`, honest and with false labels (each the next class) at three
tenths of its clients, two seeds; the round of class statistics alone. Writes a table into
`docs/reliability.md` (minutes).
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pages
import results

from fedms.config import load_config
from fedms.events import Event, RoundDone
from fedms.run import run
from fedms.runtimes.faults import Faults, attackers
from fedms.store.run_folder import environment

PAGE = results.ROOT / "docs" / "reliability.md"
SEEDS = (0, 1)
FALSE = ("faults.attack=labels", "faults.attackers=0.3")


class _EnoughError(Exception):
    """The first round is over."""


def accused(cell: results.Cell, seed: int, *settings: str) -> tuple[set[str], set[str], set[str]]:
    """Clients that train, those of them who lie, and those who are told of."""
    words = (*cell.settings, *results.COMMON, *settings, f"seed={seed}")
    recipe = results.ROOT / "recipes" / f"{cell.recipe}.toml"
    config = load_config(recipe, [*words, "screen.contradictions=warn"])
    told: set[str] = set()
    cohort: set[str] = set()

    def watch(event: Event) -> None:
        if isinstance(event, RoundDone):
            cohort.update(event.record.cohort)
            told.update(event.record.warned)
            raise _EnoughError

    with tempfile.TemporaryDirectory(prefix="fedms-") as place, contextlib.suppress(_EnoughError):
        run(config, Path(place) / "run", watch=watch)
    return cohort, {*attackers(Faults(**config.faults.model_dump()), cohort, seed)}, told


def row(cell: results.Cell) -> list[str]:
    """Of all seeds: honest clients accused in honest federations and in others, and liars found."""
    alone, beside, found = ([0, 0] for _ in range(3))
    for seed in SEEDS:
        for counts, settings in ((alone, ()), (beside, FALSE)):
            cohort, liars, told = accused(cell, seed, *settings)
            counts[0] += len(told - liars)
            counts[1] += len(cohort - liars)
            found[0] += len(told & liars)
            found[1] += len(liars)
    return [cell.name, *(f"{some} of {of}" for some, of in (alone, beside, found))]


def main() -> None:
    """Run and write."""
    head = ["", "accused where nobody lies", "accused beside liars", "liars found"]
    table = pages.table(head, map(row, results.CELLS))
    facts = environment(0)
    said = f"`python benchmarks/liars.py`; commit {str(facts['git_commit'])[:12]}; two seeds."
    pages.write(PAGE, "liars", f"{table}\n\n{said}")


if __name__ == "__main__":
    main()
