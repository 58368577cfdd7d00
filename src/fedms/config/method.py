"""How it is learnt: the methods, and the sections of what they train, when and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedms.config.section import Cap, Cohort, Rank, Section, studied

Method = Literal[
    "fedms",
    "finetune",
    "fedavg",
    "fedprox",
    "fedadam",
    "ffa",
    "flora",
    "fedex",
    "flexlora",
    "promptfl",
    "fedclip",
    "fedra",
    "fedcgs",
    "ditto",
    "fedper",
    "fedrep",
    "fedsa",
    "dual",
    "fedalt",
    "feddpa",
    "local",
    "probe",
    "centralised",
]


class Lora(Section):
    """The adapters of an expert."""

    rank: int = studied(
        8,
        "2026-11-26 · More rows of amazon5; checkpoint, start, rank",
        ge=1,
        description="columns of A, rows of B",
    )
    alpha: float = Field(16.0, gt=0, description="low-rank products are scaled by alpha / rank")
    targets: str = studied(
        "qv",
        "2026-11-26 · More rows of amazon5; checkpoint, start, rank",
        pattern="^[qkvo]+$",
        description="projections, of q, k, v and o",
    )
    ranks: dict[str, Rank] = Field(
        default_factory=dict, description='flexlora: ranks of clients, at most lora.rank; "*": all'
    )


class Sal(Section):
    """Sparsely activated LoRA: which blocks are trained, and when there are more."""

    trigger: Literal["queue", "schedule", "all"] = studied(
        "queue",
        "2026-11-25 · What each part is worth",
        description="when accuracy stands still; by the calendar; all from the start",
    )
    start: int = Field(1, ge=1, description="active blocks at first")
    step: int = Field(1, ge=1, description="blocks activated at a time")
    queue: int = Field(3, ge=2, description="validation scores in the capability queue")
    epsilon: float = Field(0.002, ge=0, description="gain below which more is activated")
    every: int = Field(2, ge=1, description="rounds between activations, trigger = schedule")
    carry_depth: bool = Field(True, description="stage 2 begins at the depth stage 1 reached")
    caps: dict[str, Cap] = Field(
        default_factory=dict,
        description='most blocks a client trains: a number, or "60kB" of upload; "*" is for all',
    )


class Stage1(Section):
    """The global expert."""

    rounds: int = Field(10, ge=0, description="of this stage")
    cohort: Cohort = Field(1.0, description="fraction (float) or number (int) of clients a round")
    epochs: int = Field(1, ge=1, description="passes over a client's rows in a round")
    prior: Literal["none", "client", "learned"] = studied(
        "learned",
        "2026-11-22 · Five shared numbers",
        description="class frequencies added to a client's logits while it trains; learned: as "
        "calibration weighs them, if there is one",
    )
    server_momentum: float = Field(
        0.0, ge=0, lt=1, description="going on as in earlier rounds; 0: federated averaging"
    )


class Stage2(Section):
    """Local experts and gate."""

    rounds: int = Field(10, ge=0, description="of this stage")
    cohort: Cohort = Field(1.0, description="fraction (float) or number (int) of clients a round")
    epochs: int = Field(1, ge=1, description="passes over a client's rows in a round")
    local_init: Literal["global", "zero"] = studied(
        "global",
        "2026-11-26 · More rows of amazon5; checkpoint, start, rank",
        description="a local expert starts as the global one, or as no adapter",
    )
    checkpoint: Literal["mean", "best", "last"] = studied(
        "mean",
        "2026-11-22 · Five shared numbers",
        description="of a client's rounds: mean of local experts, best on validation, last",
    )


class Gate(Section):
    """How the two experts are joined."""

    share: Literal["adapter", "all", "none"] = studied(
        "adapter",
        "2026-11-26 · Where could a gate earn its place?",
        description="what of the gate is averaged",
    )
    mixture: Literal["gate", "even", "none"] = studied(
        "gate",
        "2026-11-22 · Five shared numbers",
        description="of both experts: by the gate, with equal weights, or local one alone",
    )
    mix: Literal["probabilities", "logits", "features"] = studied(
        "probabilities",
        "2026-11-22 · Five shared numbers",
        description="what of the experts is weighed",
    )
    mix_prior: Literal["none", "client", "both", "learned"] = studied(
        "none",
        "2026-11-21 · What was wrong was stage 1",
        description="whose logits get the log of the client's class frequencies; learned: both, in "
        "training, as calibration weighs them",
    )
    smoothing: float = studied(
        0.5,
        "2026-11-21 · What was wrong was stage 1",
        gt=0,
        description="added to class counts of the client prior",
    )
    data: Literal["train", "val"] = studied(
        "train",
        "2026-11-21 · Which rows should the gate learn on?",
        description="rows the gate learns on; if val, calibration is fitted on rows it has seen",
    )
    calibration: bool = studied(
        True,
        "2026-11-22 · Five shared numbers",
        description="predict by weights of evidence that all clients fit on validation rows",
    )
    statistics: Literal["personal", "shared", "none"] = studied(
        "personal",
        "2026-11-22 · Sums that nobody trained",
        description="class statistics of the foundation model's features, sent once, if models are "
        "calibrated: as evidence, with each client's own rows or without, and for class vectors",
    )
    bottleneck: int = studied(
        4,
        "2026-11-21 · How few bytes and rounds do?",
        ge=1,
        description="width of the gate adapter",
    )
    local_loss: float = studied(
        0.0,
        "2026-11-27 · A client that claims the moon",
        ge=0,
        description="weight of the local expert's own loss beside the mixture's",
    )

    @model_validator(mode="after")
    def _prior_needs_logits(self) -> Gate:
        if self.mix_prior == "learned" and not self.calibration:
            raise ValueError('gate.mix_prior = "learned" needs gate.calibration = true')
        if self.mix == "features" and self.mix_prior == "client":
            raise ValueError('gate.mix_prior = "client" needs gate.mix "probabilities" or "logits"')
        if self.mix == "features" and self.calibration:
            raise ValueError('gate.mix = "features" needs gate.calibration = false')
        return self


class Baselines(Section):
    """What methods other than FedMS can be told."""

    pull: float = Field(
        0.01, ge=0, description="fedprox: weight of the squared distance to the global model"
    )
    own_pull: float = studied(
        1.0,
        "2026-11-27 · A client that claims the moon, a Ditto that was alone",
        ge=0,
        description="ditto: weight of its own model's squared distance to the global one",
    )
    private_blocks: int = Field(
        1, ge=1, description="fedper, fedrep: the last blocks, which stay with the client"
    )
    random_blocks: int = Field(3, ge=1, description="fedra: blocks a client trains in a round")
    context_words: int = Field(4, ge=1, description="promptfl: learned vectors before a class")
    likeness: float = Field(
        0.5, ge=0, le=1, description="feddpa: local adapter's weight in a row like the client's own"
    )
    gate_hidden: int = Field(
        0, ge=0, description="dual: hidden units of a layer's gate; 0: linear, one a projection"
    )
    adam_rate: float = Field(0.01, gt=0, description="fedadam: learning rate of the server")


class Training(Section):
    """A client's optimiser."""

    batch_size: int = Field(32, ge=1, description="rows of a step")
    learning_rate: float = Field(3e-3, gt=0, description="AdamW's, of adapters and heads")
    gate_learning_rate: float = Field(1e-3, gt=0, description="of the gate")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's")
    learning_rate_schedule: Literal["constant", "cosine"] = studied(
        "constant",
        "2026-11-21 · A learning rate that falls over stage 2",
        description="over the rounds of a stage: constant, or half a cosine towards 0",
    )
