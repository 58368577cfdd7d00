"""What personal models say of rows from elsewhere, and whether the gate notices them.

    python benchmarks/visitors.py

Each client's model on its own test rows and on as many of all others' (visitors), two seeds; FedMS
as it is, and with nothing but experts and gate; each with equal weights in the gate's place. Writes
a table into `docs/results.md` (ten minutes).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import pages
import results

from fedms import build
from fedms.config import load_config
from fedms.run import run
from fedms.store.run_folder import environment
from fedms.use import Models

CELLS = ("femnist", "clinc150")
SEEDS = (0, 1)
BARE = ("gate.calibration=false", "gate.statistics=none", "model.class_vectors=prompt")
EQUAL = "gate.mixture=even"
WAYS = {
    "FedMS": (),
    "FedMS, equal weights": (EQUAL,),
    "experts and gate alone": BARE,
    "experts alone, equal weights": (*BARE, EQUAL),
}
ROLES = ("personal", "global", "local")


def scores(cell: results.Cell, settings: Sequence[str], seed: int) -> Iterator[dict[str, float]]:
    """Of every client: accuracies of `own` rows and of a `visit` by role, and the gate's weight."""
    recipe = results.ROOT / "recipes" / f"{cell.recipe}.toml"
    words = [*cell.settings, *results.COMMON, *settings, f"seed={seed}"]
    config = load_config(recipe, words)
    with tempfile.TemporaryDirectory(prefix="fedms-") as place:
        run(config, Path(place) / "run")
        models = Models(Path(place) / "run", device="cpu")
        table = build.load_table(config)
        tests = {c.id: c.test for c in build.deal(config, table).clients if len(c.test)}
        rng = np.random.default_rng(seed)
        for who, own in tests.items():
            others = np.concatenate([rows for other, rows in tests.items() if other != who])
            visit = np.sort(rng.choice(others, min(len(others), len(own)), replace=False))
            found: dict[str, float] = {}
            for kind, rows in (("own", own), ("visit", visit)):
                said = models.score(models.labelled(table.take(rows)), who)
                found |= {f"{kind} {role}": said[role].accuracy or 0.0 for role in ROLES}
                found[f"{kind} weight"] = said["personal"].gate_weight / said["personal"].rows
            yield found


def rows() -> Iterator[list[str]]:
    """Of each cell and way: means over clients and seeds."""
    named = {cell.name: cell for cell in results.CELLS}
    for name in CELLS:
        for way, settings in WAYS.items():
            found = [each for seed in SEEDS for each in scores(named[name], settings, seed)]
            means = {key: fmean(each[key] for each in found) for key in found[0]}
            if EQUAL in settings:
                means = {k: v for k, v in means.items() if not k.endswith("weight")}
            keys = (*ROLES, "weight")
            columns = [f"{kind} {key}" for kind in ("own", "visit") for key in keys]
            yield [name, way, *(f"{means[c]:.3f}" if c in means else "–" for c in columns)]


def main() -> None:
    """Run and write."""
    kinds = ("personal", "global", "local", "weight on the global one")
    head = ["", "", *(f"{kind} rows: {each}" for kind in ("own", "others'") for each in kinds)]
    table = pages.table(head, rows())
    facts = environment(0)
    said = f"`python benchmarks/visitors.py`; commit {str(facts['git_commit'])[:12]}; two seeds."
    pages.write(results.PAGE, "visitors", f"{table}\n\n{said}")


if __name__ == "__main__":
    main()
