"""How good the models of a run are: on their clients' test rows, or on other labelled rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedms import build
from fedms.config import Config
from fedms.core.errors import UserError
from fedms.core.rows import Index, Rows
from fedms.data import Table
from fedms.deploy.parts import SITE, own_rows
from fedms.identity import data_now, expect_same
from fedms.store.marks import ENVIRONMENT, read_facts
from fedms.use import NEW, Models, with_rows


def evaluate(
    folder: Path,
    words: Sequence[str] = (),
    client: str | None = None,
    *,
    device: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Accuracy, mean log loss in nats, mean weight of a gate, and rows, by client and role.

    Roles are `personal` and, of a mixture, its two experts alone: `global` and `local`, bare, that
    is without class statistics and calibration, which the same roles have in a run's summary.

    Args:
        folder: of a run, or of a site's run.
        words: settings of `[data]`: all rows of these are used, in place of test rows; but of the
            data that the run was made of test rows are, as without settings.
        client: whose model; None for all who have test rows here, or for other rows the only one.
        device: as `runtime.device`.
        tell: is told where rows are those that the run was made of.

    Raises:
        UserError: if there are no models, no rows, or they do not fit.
    """
    models = Models(folder, device=device)
    if others := [word for word in words if not word.startswith("data.")]:
        raise UserError(f"got {others[0]!r}; expected settings of data, as data.path=FILE")
    if client is not None:
        models.model(client)  # there is one, and it can be read
    own = _its_own(models, words, tell) if words else models.config
    found = _given(models, words, client) if own is None else _own(models, own, client)
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
    if own is not None and client is None and (untested := set(models.clients) - scored.keys()):
        tell(f"without test rows here: {', '.join(sorted(untested))}")
    return scored


def _its_own(models: Models, words: Sequence[str], tell: Callable[[str], None]) -> Config | None:
    """The run's configuration where settings name the data that it was made of, wherever these are.

    If they are to be read otherwise they are other rows, of which a word is said.
    """
    path = models.folder / "config.toml"
    given = with_rows(path, [*words, *_ALL])
    if data_now(given) != _facts(models).get("identity", {}).get("data"):
        return None
    place = {"path": given.data.path, "source": given.data.source}
    own = models.config.data.model_copy(update=place)
    if with_rows(path, words).data != own:
        tell("these are the data that the run was made of: rows that it trained on are among them")
        return None
    tell("these are the data that the run was made of: what is scored is clients' test rows")
    return models.config.model_copy(update={"data": own})


def _given(models: Models, words: Sequence[str], client: str | None) -> Iterator[tuple[str, Rows]]:
    config = with_rows(models.folder / "config.toml", [*words, *_ALL])
    if not config.data.classes:  # of any number of the federation's classes may be rows
        known = config.data.model_copy(update={"classes": [*models.classes]})
        config = config.model_copy(update={"data": known})
    yield client or models.only(), models.labelled(build.load_table(config))


_ALL = ("data.split=", "data.max_rows=", "partition.by=iid", "partition.column=")


def _own(models: Models, config: Config, client: str | None) -> Iterator[tuple[str, Rows]]:
    """Test rows of clients, as they were dealt; of `new`, of all who took no part."""
    table, dealt = _dealt(models, config, newcomers=client == NEW and NEW not in models.clients)
    for who, test in dealt:
        if len(test) and client in (None, who):
            yield who, models.labelled(table.take(test))


def _dealt(
    models: Models, config: Config, *, newcomers: bool
) -> tuple[Table, list[tuple[str, Index]]]:
    facts = _facts(models)
    if config.data.source != "memory":
        expect_same(config, facts, models.folder, {"data": data_now(config)})
    if (models.folder / SITE).is_file():
        who = str(facts["client"])
        table, rows = own_rows(config, who)
        return table, [(who, rows.test)]
    table = build.load_table(config)
    federation = build.deal(config, table)
    if newcomers:
        tests = [each.test for each in federation.unseen]
        return table, [(NEW, np.concatenate(tests))] if tests else []
    return table, [(each.id, each.test) for each in federation.clients]


def _facts(models: Models) -> dict[str, Any]:
    """Of the run, or of the site's."""
    site = models.folder / SITE
    return read_facts(site if site.is_file() else models.folder / ENVIRONMENT)
