"""From configuration to objects where rows and server are apart: what each side needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedms import build, data
from fedms.config import Config, dump_config
from fedms.core.algorithm import ClientState, FederatedAlgorithm, ServerState
from fedms.core.errors import UserError
from fedms.core.rows import ClientData, ClientSizes
from fedms.identity import data_now
from fedms.machine import computes
from fedms.models import ModelLearner
from fedms.outcome import Outcome
from fedms.store.files import safe_name, write_json, write_text

ELSEWHERE = "(each site's own)"
"""`data.path` of a configuration that is for many machines."""
SITE = "site.json"
"""In a folder of a site's run: who it is, and of which rows its test rows are a part."""


@dataclass(frozen=True, eq=False)
class SiteParts:
    """What one client computes with where its rows are."""

    learner: ModelLearner
    algorithm: FederatedAlgorithm
    client: ClientData
    sizes: ClientSizes
    outcome: Outcome
    config: Config
    data: str

    def with_model(self, name: str) -> SiteParts:
        """By another name of its foundation model, where that will be."""
        model = self.config.model.model_copy(update={"name": name})
        config = self.config.model_copy(update={"model": model})
        head = {**self.outcome.head, "model": name}
        return replace(self, config=config, outcome=replace(self.outcome, base=name, head=head))

    def keep(self, adapters: Path, state: ServerState, own: ClientState | None) -> None:
        """Write its models: what all have, and beside it its own, as in a run folder.

        With the configuration, and who it is, they can be used there (`fedms.use`).
        """
        write_text(adapters.parent / "config.toml", dump_config(self.config))
        facts = {"client": self.client.id, "identity": {"data": self.data}}
        write_json(adapters.parent / SITE, facts)
        self.outcome.save_shared(adapters, state)
        own_folder = adapters / "clients" / safe_name(self.client.id)
        self.outcome.save_own(own_folder, state, own, self.client)


def build_site(
    config: Config, client: str, scratch: Path | None = None, parts: Sequence[data.Part] = ()
) -> SiteParts:
    """Load a client's own rows and the foundation model.

    All rows of `[data]` are the client's, and are split as a natural client's; `data.classes` are
    the whole federation's.

    Args:
        config: of the run.
        client: its name.
        scratch: as for `build.build`.
        parts: as for `build.load_table`.

    Raises:
        UserError: as `build.build`; and without `data.classes`.
    """
    classes = _classes(config)
    table, rows = own_rows(config, client, parts)
    learner, head = build.make_learner(
        config, table.kind, classes, scratch, device=config.runtime.device
    )
    columns = build.encode(learner.backbone, table)
    labels = build.class_indices(table, classes)
    (sizes,) = data.describe(data.Federation(classes, (rows,)), table.labels)
    algorithm = build.make_algorithm(config, learner.layout)
    return SiteParts(
        learner,
        algorithm,
        build.client_data(rows, columns, labels, *build.limits(config, learner.layout, client)),
        sizes,
        Outcome(algorithm, learner, config.model.name, head),
        config,
        data_now(config, table if parts else None),
    )


def own_rows(
    config: Config, client: str, parts: Sequence[data.Part] = ()
) -> tuple[data.Table, data.ClientIndex]:
    """All rows of `[data]`, which are one client's, and how they are split.

    Raises:
        UserError: as `build.load_table`.
    """
    dealt = config.partition
    own = config.model_copy(
        update={"partition": dealt.model_copy(update={"by": "iid", "column": None})}
    )
    table = build.load_table(own, parts)
    rows = data.alone(
        table,
        client,
        test_fraction=dealt.test_fraction,
        val_fraction=dealt.val_fraction,
        seed=config.seed,
    )
    return table, rows


def build_server(config: Config, sizes: Sequence[ClientSizes]) -> build.Experiment:
    """What a server without rows needs, for clients of these sizes.

    Raises:
        UserError: as `build.build`; and without `data.classes`.
    """
    classes = _classes(config)
    learner, head = build.make_learner(config, None, classes, device=config.runtime.device)
    return build.Experiment(
        federation=data.Federation(classes, ()),
        partition=list(sizes),
        partition_summary=data.spread(sizes, len(classes)),
        learner=learner,
        algorithm=build.make_algorithm(config, learner.layout),
        clients=(),
        unseen=(),
        head=head,
        workers=1,
        computes=computes(config, learner.backbone.width, 1),
    )


def _classes(config: Config) -> tuple[str, ...]:
    if not config.data.classes:
        raise UserError(
            "got no data.classes, and a site's rows may not have all; expected the classes of the "
            "whole federation, in the same order at every site"
        )
    return tuple(config.data.classes)
