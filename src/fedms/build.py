"""From configuration to objects: the only place that knows both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedms import algorithms, data, models
from fedms.checks import check, check_named, expect_known, prompted
from fedms.config import Config
from fedms.core.algorithm import FederatedAlgorithm
from fedms.core.errors import UserError
from fedms.core.layout import Layout
from fedms.core.robust import Rule
from fedms.core.rows import ClientData, ClientSizes, Column, Rows, Split, join
from fedms.core.screening import Screen
from fedms.machine import DTYPES, computes, pick_device, pick_precision
from fedms.runtimes.rounds import Rules

_CHUNK = 1024
_PIXELS = 16_000_000
"""Of pictures that are decoded at a time, but for one: a chunk of photographs is gigabytes."""
CENTRALISED = "centralised"
"""The method that is none of federated learning: one client holds all rows."""
_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, eq=False)
class Experiment:
    """Everything a runtime needs, and what is shown before training."""

    federation: data.Federation
    partition: list[ClientSizes]
    partition_summary: str
    learner: models.ModelLearner
    algorithm: FederatedAlgorithm
    clients: tuple[ClientData, ...]
    unseen: tuple[ClientData, ...]
    head: Mapping[str, Any]
    workers: int
    computes: Mapping[str, Any]

    @property
    def trained(self) -> tuple[ClientData, ...]:
        """Who trains: the clients, or for centralised training one that holds all their rows."""
        return (_pooled(self.clients),) if self.algorithm.name == CENTRALISED else self.clients


def build(
    config: Config, scratch: Path | None = None, table: data.Table | None = None
) -> Experiment:
    """Load data and foundation model, deal rows to clients, make learner and algorithm.

    Args:
        config: what to build.
        scratch: folder for files of the prefix cache; None for none. It may be made later.
        table: the examples; None: those that `[data]` describes.

    Raises:
        UserError: if data, model and configuration do not fit together.
    """
    check(config)
    table = load_table(config) if table is None else table
    federation = deal(config, table)
    trainers = 1 if config.method == CENTRALISED else len(federation.clients)
    workers = min(config.runtime.workers, trainers)
    learner, head = make_learner(
        config,
        table.kind,
        federation.classes,
        scratch,
        device="cpu" if workers > 1 else config.runtime.device,  # workers have models of their own
    )
    everyone = (*federation.clients, *federation.unseen)
    held = np.unique(np.concatenate([part for c in everyone for part in (c.train, c.val, c.test)]))
    rows = table.take(held)
    columns, labels = encode(learner.backbone, rows), class_indices(rows, federation.classes)
    ids = [c.id for c in everyone]
    check_named("sal.caps", config.sal.caps, ids)
    check_named("lora.ranks", config.lora.ranks, ids)

    def client(who: data.ClientIndex) -> ClientData:
        parts = (np.searchsorted(held, part) for part in (who.train, who.val, who.test))
        own = data.ClientIndex(who.id, *parts)
        return client_data(own, columns, labels, *limits(config, learner.layout, who.id))

    return Experiment(
        federation=federation,
        partition=data.describe(federation, table.labels),
        partition_summary=data.summary(federation, table),
        learner=learner,
        algorithm=make_algorithm(config, learner.layout),
        clients=tuple(map(client, federation.clients)),
        unseen=tuple(map(client, federation.unseen)),
        head=head,
        workers=workers,
        computes=computes(config, learner.backbone.width, workers),
    )


@dataclass(frozen=True)
class WorkerParts:
    """Makes what a worker process needs beside its clients: called there with its number.

    Workers share the cache's budgets equally, and take turns with CUDA devices.
    """

    config: Config
    classes: tuple[str, ...]
    scratch: Path
    workers: int

    def __call__(self, worker: int) -> tuple[FederatedAlgorithm, models.ModelLearner]:
        device = pick_device(self.config.runtime.device, worker)
        learner, _ = make_learner(
            self.config, None, self.classes, self.scratch, device=device, workers=self.workers
        )
        return make_algorithm(self.config, learner.layout), learner


def load_table(config: Config, parts: Sequence[data.Part] = ()) -> data.Table:
    """The labelled examples that `[data]` describes, with the column that names natural clients.

    If rows are in memory, `parts` are the data sets.
    """
    wanted = {name: getattr(config.data, name) for name in type(config.data).model_fields}
    group = config.partition.column
    return data.load_table(**wanted, group=group, seed=config.seed, parts=parts)


def deal(config: Config, table: data.Table) -> data.Federation:
    """Who holds which rows, as `[partition]` says."""
    wanted = config.partition
    natural = wanted.by == "column"
    how = data.Partitioning(
        by=wanted.by,
        clients=(wanted.max_clients or 0) if natural else wanted.clients,
        alpha=wanted.alpha,
        shards_per_client=wanted.shards,
        min_rows=wanted.min_rows,
    )
    federation = data.assign(
        table,
        how,
        test_fraction=wanted.test_fraction,
        val_fraction=wanted.val_fraction,
        unseen_clients=wanted.unseen_clients,
        seed=config.seed,
    )
    return replace(federation, classes=tuple(config.data.classes) or federation.classes)


def make_learner(
    config: Config,
    kind: str | None,
    classes: tuple[str, ...],
    scratch: Path | None = None,
    *,
    device: str = "auto",
    workers: int = 1,
) -> tuple[models.ModelLearner, dict[str, Any]]:
    """The resident model with empty adapter slots, and a description of its head for later use.

    Raises:
        UserError: if it does not take data of this kind (None: of whatever kind it takes).
    """
    wanted, runtime = config.model, config.runtime
    with torch.random.fork_rng(devices=[]):
        backbone = models.load_backbone(
            wanted.name, max_length=wanted.max_length, device=pick_device(device)
        )
        if kind not in (None, backbone.takes):
            raise UserError(
                f"got data of {kind}s for model.name = {wanted.name!r}, which takes "
                f"{backbone.takes}s; expected both alike; try another model, or data.input"
            )
        head, description = _head(config, backbone, classes)
        backbone.compute_in(pick_precision(runtime.precision, backbone.device, backbone.width))
        slots = models.AdapterSlots(
            backbone.model,
            backbone.blocks(config.lora.targets),
            config.lora.rank,
            config.lora.alpha,
            config.baselines.gate_hidden if config.method == "dual" else 0,
        )
    training = models.Training(**config.training.model_dump(exclude={"learning_rate_schedule"}))
    gate = config.gate
    mixing = models.Mixing(
        gate.mix,
        gate.smoothing,
        gate.data,
        gate.local_loss,
        gate.bottleneck,
        grounded=wanted.class_vectors == "statistics",
    )
    room = models.Room(
        parse_size(runtime.cache_bytes) // workers,
        parse_size(runtime.cache_disk_bytes) // workers,
        scratch,
        None if runtime.cache_dtype == "auto" else DTYPES[runtime.cache_dtype],
    )
    return models.ModelLearner(backbone, slots, head, training, mixing, room), description


def _head(
    config: Config, backbone: models.Backbone, classes: tuple[str, ...]
) -> tuple[models.Head, dict[str, Any]]:
    wanted = config.model
    described: dict[str, Any] = {"model": wanted.name, "classes": list(classes)}
    if not prompted(config, backbone.scores_prompts):
        return models.LinearHead(backbone.width, len(classes)), {**described, "kind": "linear"}
    expect_known(wanted.label_names, {*classes, *config.data.drop_labels})
    texts = models.class_prompts(wanted.prompt, classes, wanted.label_names)
    head = models.PromptHead.encode(backbone, texts, wanted.temperature)
    described |= {"prompts": texts, "temperature": head.temperature}
    if config.method == "fedclip":
        learned = models.AttentionHead(head.prompts, head.temperature)
        return learned, {**described, "kind": "attention"}
    if config.method == "promptfl":
        words = config.baselines.context_words
        (labels,) = models.class_prompts("{label}", classes, wanted.label_names)
        table = backbone.word_embeddings()
        encode = backbone.context_encoder(labels, words)
        shape, spread = (words, table.shape[1]), float(table.std())
        return models.ContextHead(encode, shape, spread, head), {**described, "kind": "context"}
    return head, {**described, "kind": "prompt"}


def make_algorithm(config: Config, layout: Layout) -> FederatedAlgorithm:
    """The method that the configuration names, for a model of this layout."""
    sal, first, second, baselines = config.sal, config.stage1, config.stage2, config.baselines
    options = algorithms.Options(
        stage1=algorithms.Stage(first.rounds, first.cohort, first.epochs),
        stage2=algorithms.Stage(second.rounds, second.cohort, second.epochs),
        sal=algorithms.Sal(sal.trigger, sal.start, sal.step, sal.queue, sal.epsilon, sal.every),
        carry_depth=sal.carry_depth,
        local_init=second.local_init,
        share=config.gate.share,
        mixture=config.gate.mixture,
        stage1_prior=first.prior,
        server=algorithms.Server(momentum=first.server_momentum, rate=baselines.adam_rate),
        mix_prior=config.gate.mix_prior,
        calibrate=config.gate.calibration,
        statistics=config.gate.statistics,
        checkpoint=second.checkpoint,
        rate_schedule=config.training.learning_rate_schedule,
        pull=baselines.pull,
        own_pull=baselines.own_pull,
        private_blocks=baselines.private_blocks,
        random_blocks=baselines.random_blocks,
        likeness=baselines.likeness,
    )
    method = "fedavg" if config.method == CENTRALISED else config.method
    return replace(algorithms.METHODS[method](layout, options), name=config.method)


def make_rules(config: Config) -> Rules:
    """When a round counts, and how updates become one."""
    screen, rounds, aggregation = config.screen, config.rounds, config.aggregation
    return Rules(
        rounds.min_updates,
        rounds.attempts,
        Screen(
            screen.max_norm_ratio,
            screen.above == "reject",
            screen.contradictions,
            screen.max_rows_ratio,
        ),
        Rule(aggregation.rule, aggregation.malicious),
    )


def encode(backbone: models.Backbone, table: data.Table) -> dict[str, Column]:
    """All inputs of a table as the model takes them; images are decoded a few at a time."""
    if table.kind == "text":
        return backbone.encode(table.inputs)
    parts = [backbone.encode(images) for images in _decoded(table)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _decoded(table: data.Table) -> Iterator[list[Any]]:
    """All pictures, in lists of at most `_CHUNK`, which end with what makes them `_PIXELS`."""
    held, pixels = [], 0
    for row, item in enumerate(table.inputs):
        held.append(data.decode_image(item, table.where(row)))
        pixels += held[-1].width * held[-1].height
        if len(held) == _CHUNK or pixels >= _PIXELS or row == len(table) - 1:
            yield held
            held, pixels = [], 0


def class_indices(table: data.Table, classes: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """Class index of every row; -1 for rows whose class no client holds."""
    index = {label: i for i, label in enumerate(classes)}
    return np.array([index.get(label, -1) for label in table.labels], dtype=np.int64)


def client_data(
    who: data.ClientIndex,
    columns: Mapping[str, Column],
    labels: np.ndarray[Any, Any],
    cap: int | None,
    rank: int | None,
) -> ClientData:
    """A client's rows of a table, and what bounds it."""
    everything = Rows(columns, labels)
    train, val, test = (everything.take(index) for index in (who.train, who.val, who.test))
    return ClientData(who.id, train, val, test, cap, rank)


def _pooled(clients: Sequence[ClientData]) -> ClientData:
    """One client with everybody's rows, for the reference that is not federated."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    train, val, test = (join([client.split(name) for client in clients]) for name in splits)
    return ClientData("everyone", train, val, test)


def limits(config: Config, layout: Layout, client: str) -> tuple[int | None, int | None]:
    """Blocks that a client can train, and its rank; None: all. `*` is for those not named.

    Raises:
        UserError: if its bytes do not suffice for one block.
    """
    caps, ranks = config.sal.caps, config.lora.ranks
    cap, rank = caps.get(client, caps.get("*")), ranks.get(client, ranks.get("*"))
    return _blocks(cap, layout) if isinstance(cap, str) else cap, rank


def _blocks(size: str, layout: Layout) -> int:
    """How many blocks' adapters (and the head) fit into so many bytes of float32."""
    budget = parse_size(size)
    fitting = [
        d for d in range(1, len(layout.blocks) + 1) if 4 * layout.size(layout.expert(d)) <= budget
    ]
    if not fitting:
        least = 4 * layout.size(layout.expert(1))
        raise UserError(f"got sal.caps of {size}; expected at least {least}B, one block's adapters")
    return max(fitting)


def parse_size(text: str) -> int:
    """Bytes of a size such as `60kB` or `2GB`, in decimal units."""
    number, unit = re.fullmatch(r"([\d.]+)\s?(\w+)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * _UNITS[unit])
