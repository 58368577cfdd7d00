"""Somebody who took no part in a run: a model of its own, from its rows and what the run shares."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedms.build import make_algorithm
from fedms.clients import found_anywhere
from fedms.config import Config, dump_config, load_config, validate
from fedms.core.algorithm import ClientState, Role, RoundPlan, Score, ServerState
from fedms.core.errors import DivergenceError, UserError
from fedms.core.layout import Layout
from fedms.core.metrics import summarise
from fedms.core.tensors import pick
from fedms.data import Part
from fedms.deploy.parts import ELSEWHERE, SITE, SiteParts, build_site
from fedms.identity import identity
from fedms.models import spoken
from fedms.reopened import run_config
from fedms.runtimes.simulator import SCORED, adapting
from fedms.runtimes.workers import on_threads
from fedms.store.files import lies_in, own_folder, write_json, write_text
from fedms.store.marks import (
    ADAPTED,
    CONFIG,
    ENVIRONMENT,
    FEDERATION,
    SUMMARY,
    expect_run,
    read_facts,
)
from fedms.store.run_folder import FOUNDATION, RunFolder
from fedms.store.states import DamagedError, load_server_state, save_state
from fedms.use import NEW, with_rows

_STATE = "state.safetensors"
_FOLDER = "(a folder called"
"""Begins `model.name` where newcomers have to say where they have it."""
_OWN = (
    *("data.", "training.", "runtime.", "sal.caps", "model.name", "seed"),
    *("partition.test_fraction", "partition.val_fraction"),
)
"""Settings that are a newcomer's own; all else is as the run had it."""
_ROLES: tuple[Role, ...] = ("personal", "global", "local")


@dataclass(frozen=True, eq=False)
class Shared:
    """What a run leaves for those who took no part: no more than its clients were sent.

    Args:
        path: of its configuration.
        classes: of the federation, in order.
        state: the server's after the last round, but with that round's number and stage: what
            newcomers do, clients did then.
        weights: what tells the foundation model from others (`identity`); None if nothing does.
    """

    path: Path
    classes: tuple[str, ...]
    state: ServerState
    weights: str | None

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether it is a complete run's folder, with its server's checkpoint."""
        return (folder / SUMMARY).is_file() and bool(RunFolder(folder).server_states.rounds())

    @classmethod
    def find(cls, folder: Path) -> Shared:
        """Of a complete run, or of what `fedms export --client new` wrote.

        Raises:
            UserError: if there is none.
        """
        try:
            exported = folder / FEDERATION if (folder / FEDERATION).is_dir() else folder
            if (exported / _STATE).is_file():
                return cls._exported(exported)
            return cls._of_run(folder)
        except DamagedError as error:
            raise UserError(str(error)) from None

    @classmethod
    def _exported(cls, folder: Path) -> Shared:
        state, beside = load_server_state(folder / _STATE)
        classes = load_config(folder / CONFIG).data.classes
        if beside["config"] != _hash((folder / CONFIG).read_text(encoding="utf-8")):
            raise UserError(
                f"got {folder / CONFIG}, which has changed since it was exported; expected what "
                "was exported; try settings on the command line"
            )
        return cls(folder / CONFIG, tuple(classes), state, beside["weights"])

    @classmethod
    def _of_run(cls, folder: Path) -> Shared:
        if (folder / SITE).is_file():
            raise UserError(
                f"got {folder}, which is one client's; expected a complete run's folder, or what "
                "fedms export --client new made of one"
            )
        expect_run(folder)
        run = RunFolder.open(folder)
        if run.summary() is None:
            raise UserError(
                f"got {folder}, a run that ended early; expected a complete one; try fedms resume "
                f"{folder}"
            )
        if not run.server_states.rounds():
            raise UserError(f"got {folder}, which has no checkpoint of its server any more")
        state, _ = run.server_states.load()
        last = run.lines(state.round)[-1]
        classes = read_facts(run.adapters / "head.json")["classes"]
        weights = read_facts(folder / ENVIRONMENT).get("identity", {}).get("weights")
        state = replace(state, round=last["round"], stage=last["stage"])
        return cls(run.config, tuple(classes), state, weights)

    def save(self, folder: Path, layout: Layout) -> None:
        """Write what every client of the run was sent, and its configuration without their names.

        With class statistics that is sums of rows' features, and counts, by class, over all
        clients: of a class with one row that row's feature. No path of this machine is in it.
        """
        config = run_config(self.path)
        plan = again(config, layout, self.state)
        sent = pick(self.state.tensors, plan.broadcast | plan.constant)
        text = dump_config(_impersonal(config, self.classes))
        beside = {"weights": self.weights, "config": _hash(text)}
        folder.mkdir()
        write_text(folder / CONFIG, text)
        save_state(folder / _STATE, replace(self.state, tensors=sent, queue=()), beside)


def again(config: Config, layout: Layout, state: ServerState) -> RoundPlan:
    """The plan of one more round like the last, of whose number and stage the state is."""
    plan = make_algorithm(config, layout).plan(state)
    assert plan is not None
    return replace(plan, rate=1.0)


def _impersonal(config: Config, classes: Sequence[str]) -> Config:
    """Without paths, how rows are dealt, and names of clients."""
    source = config.data.source if config.data.source in ("csv", "parquet", "folder") else "csv"
    kept: dict[str, set[str]] = {
        "data": {"input", "label", "drop_labels", "drop_duplicates", "drop_empty"},
        "partition": {"test_fraction", "val_fraction", "unseen_rounds"},
        "runtime": {"precision"},
    }
    values = config.model_dump(mode="json", exclude={"faults", "tracking"})
    values |= {
        name: config.model_dump(mode="json", include={name: names})[name]
        for name, names in kept.items()
    }
    values["data"] |= {"source": source, "path": ELSEWHERE, "classes": [*classes]}
    if Path(config.model.name).is_dir():
        values["model"]["name"] = f"{_FOLDER} {spoken(config.model.name)})"
    for section, name in (("sal", "caps"), ("lora", "ranks")):
        values[section][name] = {
            who: cap for who, cap in values[section][name].items() if who == "*"
        }
    return validate(values)


def adapt(
    source: Path,
    to: Path,
    words: Sequence[str] = (),
    *,
    client: str | None = None,
    rounds: int | None = None,
    force: bool = False,
    parts: Sequence[Part] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Make a model for somebody who took no part in a run, of its own rows; nothing is sent.

    It performs the method's last round again, so many times, with what the run shares: with FedMS
    it trains a local expert and a gate of its own beside the global expert. This is what unseen
    clients do in a simulation (`partition.unseen_clients`), with all rows that there are.

    Args:
        source: a complete run's folder, or what `fedms export --client new` made of one.
        to: the folder that is made, for `predict`, `evaluate`, `serve` and `export` as a site's.
        words: settings of the newcomer's own, above all `data.path`.
        client: its name; None: the folder's.
        rounds: how many; None: `partition.unseen_rounds`. After none it has what the run shares,
            weighed by what its own rows say of classes.
        force: replace what was adapted there before.
        parts: data sets, where the rows are in memory.
        tell: is told of every round.

    Returns:
        What `adapted.json` says: rows, and scores by split and role `before` and `after`.

    Raises:
        UserError: if source, rows or settings do not fit, something is in the way, or the method
            has no models of clients' own.
    """
    who = expect_name(to.resolve().name if client is None else client)
    _check(words, rounds, given=bool(parts))
    shared = Shared.find(source)
    config = _configure(shared, words)
    _expect_apart(config, source, to)
    with (
        on_threads(config.runtime.threads),
        own_folder(to, ADAPTED, "fedms adapt", force=force) as folder,
        tempfile.TemporaryDirectory(prefix="fedms-") as scratch,
    ):
        _expect_weights(config, shared, source)
        site = build_site(config, who, Path(scratch), parts)
        sizes = site.sizes
        tell(
            f"{who}: {sizes.train:,} train, {sizes.val:,} val, {sizes.test:,} test rows of "
            f"{sizes.classes} of {len(config.data.classes)} classes"
        )
        began = time.perf_counter()
        before = _scores(site, shared.state, None)
        count = config.partition.unseen_rounds if rounds is None else rounds
        own, performed = _train(site, shared.state, count, tell)
        costs = site.learner.spent()
        found = {
            "client": who,
            "method": config.method,
            "rounds": performed,
            "rows": {"train": sizes.train, "val": sizes.val, "test": sizes.test},
            "classes": sizes.classes,
            "before": before,
            "after": _scores(site, shared.state, own),
            "train_flops": costs.flops,
            "seconds": time.perf_counter() - began,
        }
        _keep(site, shared, own, folder, to)
        write_json(folder / ADAPTED, found)
    return found


def expect_name(client: str) -> str:
    """A newcomer's name, if it can be one.

    Raises:
        UserError: if not.
    """
    if client == NEW or not 0 < len(client) <= _LONGEST or not client.isprintable():
        raise UserError(
            f"got client {client!r}; expected a name of 1 to {_LONGEST} printable characters, but "
            f"for {NEW!r}; try --client NAME"
        )
    return client


def _expect_apart(config: Config, source: Path, to: Path) -> None:
    """That what is adapted, and of what, is not in the folder that it replaces."""
    named = {"data.path=": config.data.path, "model.name=": config.model.name, "": str(source)}
    for key, value in named.items():
        if value and lies_in(value, to):
            raise UserError(
                f"got {key}{value} in --to {to}, which is replaced; expected them apart; try "
                "another --to"
            )


_LONGEST = 100


def _check(words: Sequence[str], rounds: int | None, *, given: bool) -> None:
    if rounds is not None and (not isinstance(rounds, int) or rounds < 0):
        raise UserError(f"got {rounds} rounds; expected a whole number of at least 0")
    for word in words:
        if not word.startswith(_OWN) or word.startswith("data.classes"):
            raise UserError(
                f"got {word}; expected settings of data (but for data.classes), training or "
                "runtime, model.name, sal.caps, seed or fractions of rows: all else is as the run "
                "had it"
            )
    if not given and not any(word.startswith("data.path=") for word in words):
        raise UserError("got no data.path; expected where the newcomer's rows are")


def _expect_weights(config: Config, shared: Shared, source: Path) -> None:
    """That the foundation model is the run's, as far as it can be told from others."""
    if config.model.name.startswith(_FOLDER):
        raise UserError(
            f"got no model.name, and the run's is {config.model.name[1:-1]} elsewhere; expected "
            "where that is here; try model.name=FOLDER"
        )
    if shared.weights not in (None, identity(config)["weights"]):
        raise UserError(
            f"got model.name = {config.model.name!r}, which is another foundation model than "
            f"that of {source}, or has changed; expected the same, and of the hub in the same "
            "commit; try model.name=FOLDER"
        )


def _configure(shared: Shared, words: Sequence[str]) -> Config:
    """The run's, with the newcomer's rows, of the federation's classes."""
    config = with_rows(shared.path, ["data.split=", "data.max_rows=", *words])
    data = config.data.model_copy(update={"classes": [*shared.classes]})
    return found_anywhere(config.model_copy(update={"data": data}))


def _train(
    site: SiteParts, state: ServerState, rounds: int, tell: Callable[[str], None]
) -> tuple[ClientState | None, int]:
    """Its private state after these rounds, and how many the method has for it."""
    plan, own, number = again(site.config, site.learner.layout, state), None, 0
    updates = adapting(site.algorithm, site.learner, plan, state, site.client, rounds)
    for update in updates:
        if not math.isfinite(update.score.loss):
            raise DivergenceError(
                f"got a loss of {update.score.loss} in round {number + 1}: training diverged; try "
                "a lower training.learning_rate"
            )
        if update.state is None:
            tell(f"{site.config.method} trains nothing of a newcomer's own in stage {plan.stage}")
            break
        own, number = update.state, number + 1
        tell(f"round {number} of {rounds}")
    return own, number


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _keep(site: SiteParts, shared: Shared, own: ClientState | None, folder: Path, to: Path) -> None:
    """Fill a folder that will be at `to`; a foundation model that a run has in its folder too."""
    foundation = shared.path.parent / FOUNDATION
    if Path(site.config.model.name) == foundation.resolve():
        shutil.copytree(foundation, folder / FOUNDATION, copy_function=_link)
        site = site.with_model(str(to.resolve() / FOUNDATION))
    site.keep(folder / "adapters", shared.state, own)
    if not (folder / "adapters" / "clients").is_dir():
        raise UserError(
            f"got a run of {site.config.method}, of which clients have no models of their own; "
            f"expected another method; try fedms predict --client {NEW}"
        )


def _link(source: str, target: str) -> None:
    """Files are never written to in place, so that two folders may share one; else it is copied."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _scores(
    site: SiteParts, state: ServerState, own: ClientState | None
) -> dict[str, dict[str, Any]]:
    """Accuracy and mean log loss in nats by split and role, of splits with rows."""
    views = {role: site.algorithm.view(state, own, role) for role in _ROLES}
    found: dict[str, dict[str, Any]] = {}
    for split in SCORED:
        if not len(site.client.split(split)):
            continue
        found[split] = {
            role: _said(site.learner.score(view, site.client, split))
            for role, view in views.items()
            if view is not None
        }
    return found


def _said(score: Score) -> dict[str, float | None]:
    summarise({"": score})  # it is finite
    return {"accuracy": score.accuracy, "loss": score.loss / score.rows}
