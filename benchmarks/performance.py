"""Write the table of `fedms bench` into `docs/performance.md`.

    python benchmarks/performance.py [--only MEASURE] [--device cpu]

Each measure has its block of the page (`pages.py`), those of an accelerator end in its kind
(`text-cuda`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pages
import torch

from fedms.bench import MEASURES, Row, measure, measures_of
from fedms.machine import device_name, pick_device
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
        f"`{command}`; commit {commit(facts)}; {where(facts)}; "
        f"torch {packages['torch']}, Python {facts['python']}.",
    ]
    return "\n".join(lines)


def commit(facts: Mapping[str, Any]) -> str:
    """Of the code that was measured, short; it says so where the code was changed since."""
    known, _, dirty = str(facts["git_commit"]).partition("-")
    return known[:12] + (f" and changes ({dirty})" if dirty else "")


def where(facts: Mapping[str, Any]) -> str:
    """The accelerator, or the shared machine's processor and threads."""
    cores = f"{facts['processor']}, {facts['cores']} cores"
    if device := facts.get("device"):
        return f"one {device}, {cores}"
    return f"{cores}, shared, {torch.get_num_threads()} thread(s)"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=MEASURES, help="one measure")
    parser.add_argument("--device", default="cpu", help="as runtime.device [cpu]")
    words = parser.parse_args()
    device = pick_device(words.device)
    kind = device.split(":")[0]
    facts = environment(0)
    suffix, option = "", ""
    if kind != "cpu":
        facts["device"] = device_name(device)
        suffix, option = f"-{kind}", f" --device {kind}"
    for name in [words.only] if words.only else measures_of(device):
        text = block(list(measure([name], device)), facts, f"fedms bench --only {name}{option}")
        pages.write(PAGE, f"{name}{suffix}", text)


if __name__ == "__main__":
    main()
