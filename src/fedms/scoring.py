"""How good the models of a run are: on their clients' test rows, or on other labelled rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedms import build
from fedms.core.errors import UserError
from fedms.core.rows import Index, Rows
from fedms.data import Table
from fedms.deploy.parts import SITE, own_rows
from fedms.identity import data_now, expect_same
from fedms.store.marks import ENVIRONMENT, read_facts
from fedms.use import NEW, Models, with_rows


def evaluate(
    folder: Path, words: Sequence[str] = (), client: str | None = None, *, device: str | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Accuracy, mean log loss in nats, mean weight of a gate, and rows, by client and role.

    Roles are `personal` and, of a mixture, its two experts alone: `global` and `local`, bare, that
    is without class statistics and calibration, which the same roles have in a run's summary.

    Args:
        folder: of a run, or of a site's run.
        words: settings of `[data]`: all rows of these are used, in place of test rows.
        client: whose model; None for all who have test rows here, or for other rows the only one.
        device: as `runtime.device`.

    Raises:
        UserError: if there are no models, no rows, or they do not fit.
    """
    models = Models(folder, device=device)
    if others := [word for word in words if not word.startswith("data.")]:
        raise UserError(f"got {others[0]!r}; expected settings of data, as data.path=FILE")
    if client is not None:
        models.model(client)  # there is one, and it can be read
    found = _given(models, words, client) if words else _own(models, client)
    scored: dict[str, dict[str, dict[str, Any]]] = {}
    for who, rows in found:
        scores = models.score(rows, who)
        gated = "personal" if "global" in scores else None
        scored[who] = {
            role: {
                "accuracy": score.accuracy,
                "loss": score.loss / score.rows,
                "gate_weight": score.gate_weight / score.rows if role == gated else None,
                "rows": score.rows,
            }
            for role, score in scores.items()
        }
    if not scored:
        raise UserError(f"got no test rows of {client or 'any client'} in {folder}")
    return scored


def _given(models: Models, words: Sequence[str], client: str | None) -> Iterator[tuple[str, Rows]]:
    config = with_rows(models.folder / "config.toml", [*words, *_ALL])
    if not config.data.classes:  # of any number of the federation's classes may be rows
        known = config.data.model_copy(update={"classes": [*models.classes]})
        config = config.model_copy(update={"data": known})
    yield client or models.only(), models.labelled(build.load_table(config))


_ALL = ("data.split=", "data.max_rows=", "partition.by=iid", "partition.column=")


def _own(models: Models, client: str | None) -> Iterator[tuple[str, Rows]]:
    """Test rows of clients, as they were dealt; of `new`, of all who took no part."""
    table, dealt = _dealt(models, newcomers=client == NEW and NEW not in models.clients)
    for who, test in dealt:
        if len(test) and client in (None, who):
            yield who, models.labelled(table.take(test))


def _dealt(models: Models, *, newcomers: bool) -> tuple[Table, list[tuple[str, Index]]]:
    config, site = models.config, models.folder / SITE
    facts = read_facts(site if site.is_file() else models.folder / ENVIRONMENT)
    if config.data.source != "memory":
        expect_same(config, facts, models.folder, {"data": data_now(config)})
    if site.is_file():
        who = str(facts["client"])
        table, rows = own_rows(config, who)
        return table, [(who, rows.test)]
    table = build.load_table(config)
    federation = build.deal(config, table)
    if newcomers:
        tests = [each.test for each in federation.unseen]
        return table, [(NEW, np.concatenate(tests))] if tests else []
    return table, [(each.id, each.test) for each in federation.clients]
