"""Make the tables of `docs/results.md`: run what is missing, then write the tables from summaries.

    python benchmarks/results.py              # run what is missing, write the page
    python benchmarks/results.py --tables     # only write the page, from the runs that are there

A run that exists with the same configuration is used again. Between the markers of the page
everything is generated; the words around it are not touched.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedms.config import Config, load_config
from fedms.run import run

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "results"
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- begin {name} -->", "<!-- end {name} -->"


@dataclass(frozen=True)
class Study:
    """One table: a recipe, settings for all methods, and settings of each method's own."""

    name: str
    recipe: str
    seeds: Sequence[int]
    methods: Mapping[str, Sequence[str]]
    settings: Sequence[str] = ()

    def configs(self) -> list[Config]:
        """Every run of this study."""
        recipe = ROOT / "recipes" / self.recipe
        return [
            load_config(recipe, [*self.settings, f"method={method}", *own, f"seed={seed}"])
            for seed in self.seeds
            for method, own in self.methods.items()
        ]


STUDIES = (
    Study("digits", "digits.toml", (0, 1, 2), {"fedms": (), "local": ()}),
    Study("banking77", "banking77.toml", (0, 1, 2), {"fedms": (), "local": ()}),
    Study("femnist", "femnist.toml", (0, 1, 2), {"fedms": (), "local": ()}),
)


def folder(config: Config) -> Path:
    """Where a run of a study is kept."""
    return RUNS / f"{config.name}-{config.method}-seed{config.seed}"


def is_done(config: Config) -> bool:
    """Whether a complete run with exactly this configuration is there."""
    path = folder(config)
    if not (path / "summary.json").exists():
        return False
    return Config.model_validate(tomllib.loads((path / "config.toml").read_text())) == config


def table(study: Study) -> str:
    """The study's table in markdown, with the commit, machine and command behind it."""
    summaries: dict[str, list[dict[str, Any]]] = {}
    for config in study.configs():
        summary = json.loads((folder(config) / "summary.json").read_text())
        summaries.setdefault(config.method, []).append(summary)
    ours = summaries["fedms"]
    rows = [
        _row("zero-shot", [s["test"]["zero_shot"] for s in ours], None),
        _row("global expert (stage 1 of FedMS)", [s["test"]["global"] for s in ours], None),
        *(
            _row(f"{method}-only LoRA, all blocks", [s["test"]["personal"] for s in runs], runs)
            for method, runs in summaries.items()
            if method != "fedms"
        ),
        _row("FedMS: local expert alone", [s["test"]["local"] for s in ours], None),
        _row("**FedMS: mixture**", [s["test"]["personal"] for s in ours], ours),
    ]
    head = "| personal test accuracy | mean | worst decile | weighted | MB sent | train seconds |"
    lines = [head, "|---|---|---|---|---|---|", *rows, "", _margins(summaries), "", _origin(study)]
    return "\n".join(lines)


def _row(name: str, scores: Sequence[Mapping[str, float]], runs: Sequence[Any] | None) -> str:
    cells = [_spread([s[key] for s in scores]) for key in ("mean", "worst_decile", "weighted")]
    costs = [r["cost"] for r in runs or ()]
    sent = statistics.mean([c["upload_bytes"] + c["download_bytes"] for c in costs] or [0]) / 1e6
    seconds = statistics.mean([c["train_seconds"] for c in costs] or [0])
    cells += [f"{sent:.1f}", f"{seconds:.0f}"] if costs else ["", ""]
    return f"| {name} | {' | '.join(cells)} |"


def _spread(values: Sequence[float]) -> str:
    """Mean over seeds, and the range."""
    mean = statistics.mean(values)
    return f"{mean:.3f} ({min(values):.3f}–{max(values):.3f})"


def _margins(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """FedMS minus each rival, seed by seed; and clients that gain or lose against local-only."""
    ours, local = summaries["fedms"], summaries["local"]
    rivals = {
        "zero-shot": [s["test"]["zero_shot"]["mean"] for s in ours],
        "its global expert": [s["test"]["global"]["mean"] for s in ours],
        "local-only": [s["test"]["personal"]["mean"] for s in local],
    }
    own = [s["test"]["personal"]["mean"] for s in ours]
    words = [
        f"{name} {', '.join(f'{a - b:+.3f}' for a, b in zip(own, theirs, strict=True))}"
        for name, theirs in rivals.items()
    ]
    pairs = [
        (s["test"]["personal"]["per_client"][c], accuracy)
        for s, other in zip(ours, local, strict=True)
        for c, accuracy in other["test"]["personal"]["per_client"].items()
    ]
    better, worse = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    return (
        f"FedMS' mean minus, seed by seed: {'; '.join(words)}. Against local-only, of "
        f"{len(pairs)} clients × seeds {better} are better, {worse} worse."
    )


def _origin(study: Study) -> str:
    first = folder(study.configs()[0])
    facts = json.loads((first / "environment.json").read_text())
    versions = facts["packages"]
    return (
        f"`make results`; recipe `recipes/{study.recipe}`, seeds {list(study.seeds)} (range in "
        f"brackets); commit {str(facts['git_commit'])[:12]}, {facts['processor']}, "
        f"{facts['cores']} cores, torch {versions['torch']}, Python {facts['python']}."
    )


def write(study: Study) -> None:
    """Put a study's table between its markers."""
    begin, end = BEGIN.format(name=study.name), END.format(name=study.name)
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    PAGE.write_text(f"{before}{begin}\n{table(study)}\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true", help="write the page only")
    parser.add_argument("--only", help="one study")
    words = parser.parse_args()
    for study in STUDIES:
        if words.only not in (None, study.name):
            continue
        for config in study.configs():
            if not words.tables and not is_done(config):
                run(config, folder(config), force=True)
        write(study)


if __name__ == "__main__":
    main()
