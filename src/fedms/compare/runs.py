"""Perform the runs of a comparison that are missing, and read the others.

A run is a build product: one that is complete and has the same resolved configuration is used
again, so that a comparison which was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedms.compare.variants import VARIANTS, Variant
from fedms.config import Config, load_config
from fedms.core.errors import DivergenceError, UserError
from fedms.run import Event, run

Watch = Callable[[str, Event], None]
"""Is told the name of the run and its event."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Args:
        config: the file, or None for the embedded default.
        overrides: `section.key=value`, for all.
        methods: names of `VARIANTS`.
        seeds: at least one. The first also chooses the learning rate.
        rates: learning rates, at least one; every method gets the one with the lowest validation
            loss on the first seed.
        out: folder of the comparison; runs are in `runs/` below it.
    """

    config: Path | None
    overrides: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    rates: Sequence[float]
    out: Path

    def configure(self, variant: Variant, rate: float, seed: int) -> Config:
        """The configuration of one run."""
        base = load_config(self.config, self.overrides)
        rounds = base.stage1.rounds + base.stage2.rounds
        settings = [setting.format(rounds=rounds) for setting in variant.settings]
        own = [f"training.learning_rate={rate}", f"seed={seed}"]
        return load_config(self.config, [*self.overrides, *settings, *own])

    def folder(self, name: str, rate: float, seed: int) -> Path:
        """Where one run is kept."""
        return self.out / "runs" / f"{name}-rate{rate:g}-seed{seed}"


@dataclass(frozen=True)
class Result:
    """One method on one seed.

    Args:
        method: name of the variant.
        seed: of the run.
        rate: the learning rate that was chosen.
        folder: of the run.
        test, validation: scores of the variant's role, as a role's are in `summary.json`.
        unseen, unseen_adapted: scores of unseen clients before and after they adapt, or None.
        cost: as in `summary.json`.
    """

    method: str
    seed: int
    rate: float
    folder: Path
    test: Mapping[str, Any]
    validation: Mapping[str, Any]
    unseen: Mapping[str, Any] | None
    unseen_adapted: Mapping[str, Any] | None
    cost: Mapping[str, Any]


def compare(plan: Plan, watch: Watch = lambda name, event: None) -> list[Result]:
    """Results of all methods and seeds, in the order of methods, then seeds.

    Raises:
        UserError: if a method is unknown, or a run of one fails.
    """
    check(plan)
    found = (_results(plan, name, watch) for name in plan.methods)
    return [result for results in found for result in results]


def check(plan: Plan) -> None:
    """Make sure that all can be run, before anything is.

    Raises:
        UserError: naming what is wrong.
    """
    for name in plan.methods:
        if name not in VARIANTS:
            raise UserError(f"got method {name!r}; expected one of {', '.join(VARIANTS)}")
        plan.configure(_runner(name)[1], plan.rates[0], plan.seeds[0])


def _runner(name: str) -> tuple[str, Variant]:
    """The variant whose runs are read."""
    name = VARIANTS[name].run or name
    return name, VARIANTS[name]


def _results(plan: Plan, name: str, watch: Watch) -> list[Result]:
    runner, variant = _runner(name)

    def summary(rate: float, seed: int) -> dict[str, Any]:
        config, folder = plan.configure(variant, rate, seed), plan.folder(runner, rate, seed)
        if not is_done(folder, config):
            run(config, folder, force=True, watch=lambda event: watch(folder.name, event))
        return dict(json.loads((folder / "summary.json").read_text()))

    def loss(rate: float) -> float:
        """On validation rows of the first seed; infinite where training diverges."""
        try:
            return float(summary(rate, plan.seeds[0])["validation"]["personal"]["loss"])
        except DivergenceError:
            if rate == min(plan.rates):
                raise
            return math.inf

    rate = min(sorted(plan.rates), key=loss) if len(plan.rates) > 1 else plan.rates[0]
    role, results = VARIANTS[name].role, []
    personal = role == "personal"
    for seed in plan.seeds:
        found = summary(rate, seed)
        if found["test"][role] is None:
            continue  # e.g. zero-shot of a model that cannot score classes
        results.append(
            Result(
                method=name,
                seed=seed,
                rate=rate,
                folder=plan.folder(runner, rate, seed),
                test=found["test"][role],
                validation=found["validation"][role],
                unseen=found["test"]["unseen"] if personal else None,
                unseen_adapted=found["test"]["unseen_adapted"] if personal else None,
                cost=found["cost"],
            )
        )
    return results


def is_done(folder: Path, config: Config) -> bool:
    """Whether a complete run with exactly this configuration is there."""
    try:
        return (folder / "summary.json").exists() and load_config(folder / "config.toml") == config
    except (OSError, ValueError):
        return False
