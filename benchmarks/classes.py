"""Where should experts look for classes before anything is trained? On validation rows.

    python benchmarks/classes.py                # every cell of benchmarks/results.py, seed 0
    python benchmarks/classes.py banking77,digits

For each cell: accuracy (log loss), mean over clients, by cosines to class prompts, to means of all
clients' rows, and to class vectors with some weight of the prompt beside every row; then by the
discriminant of class statistics with several ridges, with prompts and without, at the temperature
that suits these rows best.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import pages
import torch
from results import CELLS, Cell
from torch import Tensor
from torch.nn import functional as F

from fedms.build import build
from fedms.compare import VARIANTS
from fedms.core import discriminant
from fedms.core.discriminant import Discriminant

Rows = Sequence[tuple[Tensor, Tensor]]
"""Features and labels of every client."""
_TEMPERATURES = [0.02 * 1.25**i for i in range(20)]
_BESIDE = (0.0, 0.1, 0.3, 1.0)
_RIDGES = (0.01, 0.1, 1.0)


def score(rows: Rows, logits: Callable[[Tensor], Tensor], temperatures: Sequence[float]) -> str:
    """Accuracy, and log loss at the best of some temperatures."""
    said = [(logits(x), y) for x, y in rows]
    accuracy = statistics.fmean(float((s.argmax(1) == y).float().mean()) for s, y in said)
    losses = (
        statistics.fmean(float(F.cross_entropy(t * s, y)) for s, y in said) for t in temperatures
    )
    return f"{accuracy:.3f} ({min(losses):.3f})"


def line(cell: Cell, scratch: Path) -> list[str]:
    """A cell's row of the table."""
    experiment = build(cell.plan(["fedms"]).configure(VARIANTS["fedms"], 3e-3, 0), scratch)
    learner, prompts = experiment.learner, experiment.learner.head.prompts
    assert prompts is not None
    temperature = learner.head(prompts[:1][None], {}).max().item()
    rows = [(learner.frozen(c.val), torch.from_numpy(c.val.labels)) for c in experiment.clients]
    rows = [(x, y) for x, y in rows if len(y)]
    parts = [learner.statistics(client) for client in experiment.clients]
    total = {name: torch.stack([p[name] for p in parts]).sum(0) for name in parts[0]}

    def known() -> Discriminant:
        found = Discriminant.of(discriminant.discriminant(total), personal=False)
        assert found is not None
        return found

    def cosines(vectors: Tensor) -> str:
        return score(rows, lambda x: F.normalize(x, dim=-1) @ vectors.T, [temperature])

    cells = [cell.name, cosines(prompts)]
    for beside in _BESIDE:
        with patch.object(discriminant, "_BESIDE", beside):
            cells.append(cosines(known().vectors(prompts)))
    nobody = torch.zeros(0, len(prompts[0])), torch.zeros(0, dtype=torch.long)

    def likelihoods(found: Discriminant, given: Tensor | None = None) -> str:
        return score(rows, lambda x: found.scores(x, *nobody, given), _TEMPERATURES)

    counts = total[discriminant.COUNTS]
    free = float(counts.sum() - (counts > 0).sum()) / len(prompts[0])
    for ridge in _RIDGES:
        with patch.object(discriminant, "_RIDGE", ridge * free**2):
            cells.append(likelihoods(known()))
    cells += [likelihoods(known()), likelihoods(known(), prompts)]
    return cells


def main() -> None:
    """Print the table."""
    wanted = sys.argv[1].split(",") if len(sys.argv) > 1 else [cell.name for cell in CELLS]
    head = ["cell", "prompts", "means (and a prompt as one row)"]
    head += [f"{beside:g} of a row beside" for beside in _BESIDE[1:]]
    head += [f"discriminant, ridge {ridge:g}" for ridge in _RIDGES]
    head += ["its ridge by rows", "the same, with prompts"]
    with tempfile.TemporaryDirectory(prefix="fedms-classes-") as scratch:
        lines = [line(cell, Path(scratch)) for cell in CELLS if cell.name in wanted]
    print(pages.table(head, lines))  # noqa: T201


if __name__ == "__main__":
    main()
