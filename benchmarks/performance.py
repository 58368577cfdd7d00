"""Write the table of `fedms bench` into `docs/performance.md`.

    python benchmarks/performance.py [--only MEASURE]

Between the markers of the page everything is generated, one block a measure.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedms.bench import MEASURES, Row, measure
from fedms.progress import figure
from fedms.store.run_folder import environment

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def table(rows: Sequence[Row], facts: Mapping[str, Any], command: str) -> str:
    """Rows in markdown, with where they are from."""
    lines = ["| measure | fedms | peer | fedms / peer |", "|---|---|---|---|"]
    for row in rows:
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        cells = (row.measure, figure(row.ours, row.unit), figure(row.peer, row.unit), ratio)
        lines.append(f"| {' | '.join(cells)} |")
    peers = sorted({row.peer_name for row in rows if row.peer_name})
    packages = facts["packages"]
    lines += [
        "",
        *(["Peer: " + "; ".join(peers) + "."] if peers else []),
        f"`{command}`; commit {str(facts['git_commit'])[:12]}; {facts['processor']}, "
        f"{facts['cores']} cores, shared, {torch.get_num_threads()} thread(s); "
        f"torch {packages['torch']}, Python {facts['python']}.",
    ]
    return "\n".join(lines)


def write(name: str, text: str) -> None:
    """Put a block between its markers."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=MEASURES, help="one measure")
    words = parser.parse_args()
    facts = environment(0)
    for name in [words.only] if words.only else MEASURES:
        write(name, table(list(measure(name)), facts, f"fedms bench --only {name}"))


if __name__ == "__main__":
    main()
