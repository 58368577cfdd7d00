"""Write the table of `fedms bench` into `docs/performance.md`.

    python benchmarks/performance.py [--only MEASURE]

Each measure has its block of the page (`pages.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pages
import torch

from fedms.bench import MEASURES, Row, measure
from fedms.store.run_folder import environment

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def block(rows: Sequence[Row], facts: Mapping[str, Any], command: str) -> str:
    """Rows in markdown, with where they are from."""
    peers = sorted({row.peer_name for row in rows if row.peer_name})
    packages = facts["packages"]
    lines = [
        pages.table(["measure", "fedms", "peer", "fedms / peer"], map(pages.cells, rows)),
        "",
        *(["Peer: " + "; ".join(peers) + "."] if peers else []),
        f"`{command}`; commit {str(facts['git_commit'])[:12]}; {facts['processor']}, "
        f"{facts['cores']} cores, shared, {torch.get_num_threads()} thread(s); "
        f"torch {packages['torch']}, Python {facts['python']}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=MEASURES, help="one measure")
    words = parser.parse_args()
    facts = environment(0)
    for name in [words.only] if words.only else MEASURES:
        text = block(list(measure(name)), facts, f"fedms bench --only {name}")
        pages.write(PAGE, name, text)


if __name__ == "__main__":
    main()
